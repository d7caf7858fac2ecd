"""Feature maps as small values, from which every worker makes the same φ.

A `FeatureMap` is a spec.  A map that needs data is fitted once, on a sample: a `FittedMap` is the spec with the fitted
arrays and is part of the model.  Both are called with rows, and the rest of the program takes either, as `AnyMap`.
"""

import abc
import functools
import hashlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from ntkdist import backend, gpu, memory
from ntkdist.errors import DataError, SpecError
from ntkdist.spec import Spec, digest, encode

Params = dict[str, Any]
Arrays = dict[str, NDArray[Any]]
RowWeights = Callable[[NDArray[Any]], NDArray[np.float64]]  # (n, *input_shape) → (n,), sampling weights
OTHER_MAP = (
    "learn the metric with ZonalFeatures or Nystrom of the same kernel, and take it over with `[preprocess] reuse`"
)
OF_IMAGES = ("its rows are images, and a metric is for vectors", "leave the metric out")
PIECE_BYTES = 2**22  # of rows that one thread maps at a time, so that they stay in its cache
_drawn: dict[tuple[Any, ...], Params] = {}
_drawing = threading.Lock()


class FeatureMap(Spec, frozen=True):
    """A map φ with φ(x) @ φ(y).T ≈ k(x, y), as a value.

    Calling it maps rows.  All random numbers are drawn from its ``seed`` and kept in the process.

    Parameters
    ----------
    n_components : int
        Columns of φ(x), exactly.
    """

    takes_sparse: ClassVar[bool] = False  # whether `apply` also takes rows as a CSR array
    no_gradient: ClassVar[tuple[str, str]] = ("none is implemented", OTHER_MAP)  # why, and what to do
    n_components: Annotated[int, Meta(ge=1)]

    @abc.abstractmethod
    def draw(self, input_shape: tuple[int, ...]) -> Params:
        """Draw all that needs no data: float64 or integer NumPy arrays, a function of the spec and the shape."""

    @abc.abstractmethod
    def apply(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        """Return φ of rows x (n, *input_shape), as an array (n, n_components) of x's dtype.

        A row depends on its own input only, to 1e-5 (float32) or 1e-12 (float64) of its norm.
        """

    @abc.abstractmethod
    def kernel(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """Return the exact kernel that φ approximates, (n, n')."""

    def check_shape(self, input_shape: tuple[int, ...], source: str = "X") -> None:
        """Refuse rows of a shape that the map does not take; most maps flatten all.

        Raises
        ------
        DataError
            It names the ``source`` of the rows.
        """

    # Fitting, of maps that need data.

    @property
    def sample_rows(self) -> int:
        """The number of rows of the data, drawn at random, that `fit` needs; 0 if the map needs none."""
        return 0

    @property
    def rehearsal_rows(self) -> int:
        """The number of rows to time `fit` with; each further one costs as much as mapping it."""
        return self.sample_rows

    def row_weights(self, sample: NDArray[Any]) -> RowWeights | None:
        """Return the sampling weights of rows, from a first uniform sample; None if the map samples uniformly."""
        return None

    def fit(self, sample: NDArray[Any]) -> "FittedMap":
        """Fit the map to a sample (k, *input_shape) of scaled rows.

        Raises
        ------
        SpecError
            If the map learns nothing from data.
        """
        raise SpecError(f"{type(self).__name__} is drawn from its seed and learns nothing; call it without fit")

    def draw_fitted(self, input_shape: tuple[int, ...], arrays: Arrays) -> Params:
        """Return `draw` of the map with these fitted arrays."""
        return self.draw(input_shape) | arrays

    def kernel_fitted(self, arrays: Arrays, x: NDArray[Any], y: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """Return `kernel` of the map with these fitted arrays."""
        return self.kernel(x, y)

    def prefix(self, k: int, input_shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Select k columns that are a smaller map, and the factor of each.

        Exact columns stay unchanged.  Of columns that are means over independent draws, the first are taken and scaled
        up, so that the kernel they approximate is the same.

        Raises
        ------
        SpecError
            If the map has no such columns, or not k of them.
        """
        raise SpecError(
            f"{type(self).__name__} has no columns of independent draws, so that some of them are not a smaller map; "
            "fit again with fewer n_components"
        )

    def _require_columns(self, least: int, why: str = "") -> None:
        if self.n_components < least:
            name = f"{type(self).__name__}.n_components"
            raise SpecError(f"{name} is {self.n_components}; expected at least {least}{why}")

    def _too_few(self, k: int, least: int) -> SpecError:
        return SpecError(
            f"a prefix of {k} columns is none of {type(self).__name__}; expected {least} to {self.n_components}"
        )

    # Gradients of functions of rows, by which a metric is learnt.

    @property
    def has_gradient(self) -> bool:
        """The answer whether functions of the features have gradients; the methods below are then implemented."""
        return False

    def gradient(self, params: Params, x: NDArray[Any], coef: NDArray[Any]) -> NDArray[Any]:
        """Return the gradients of φ(x) @ coef by the rows, as an array (n, t, d) of x's dtype.

        d is the number of values of a row.  A row's gradient depends on that row only, to the promise of `apply`; where
        a function has a kink, at rows of length 0 and at landmarks, it is a mean of the gradients around.

        Parameters
        ----------
        params : dict
            As of `apply`.
        x : (n, *input_shape) array
        coef : (n_components, t) array

        Raises
        ------
        SpecError
            If the map has none.
        """
        return self.gradient_of(params, x, self.gradient_weights(params, coef, x.dtype))

    def gradient_weights(self, params: Params, coef: NDArray[Any], dtype: np.dtype[Any]) -> Any:
        """Return what `gradient_of` needs of ``coef``, for rows of a dtype: made once, however many pieces of rows."""
        raise self._no_gradient()

    def gradient_of(self, params: Params, x: NDArray[Any], weights: Any) -> NDArray[Any]:
        """Return `gradient` by the weights that `gradient_weights` has made."""
        raise self._no_gradient()

    def gradient_bytes(self, input_shape: tuple[int, ...], dtype: Any, t: int) -> int:
        """Count the peak bytes that `gradient_of` allocates for one row and t functions, its result included."""
        raise self._no_gradient()

    def gradient_weights_bytes(self, input_shape: tuple[int, ...], dtype: Any, t: int) -> int:
        """Count the peak bytes that `gradient_weights` allocates for t functions, its result included."""
        raise self._no_gradient()

    def _no_gradient(self) -> SpecError:
        why, remedy = self.no_gradient
        return SpecError(f"{type(self).__name__} has no gradient, as {why}; {remedy}")

    # Memory and device, as the plan projects them before any row is mapped.

    @abc.abstractmethod
    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Count the peak bytes that `apply` allocates for one row, its result included."""

    def sparse_row_bytes(self, input_shape: tuple[int, ...], dtype: Any, nonzeros: int) -> int:
        """Count `row_bytes` for one sparse row with this many non-zeros."""
        return self.row_bytes(input_shape, dtype)

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Count the peak bytes of what is drawn and kept in the process."""
        return 0

    def kept_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Count, at most, the bytes of what is drawn and kept: it is drawn in float64, and a cast copy is kept."""
        size = np.dtype(dtype).itemsize
        return self.draw_bytes(input_shape, dtype) * size // (8 + size)

    def gpu_draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Count the bytes of what is drawn and kept on a GPU: the share of `draw_bytes` that is cast for the rows."""
        return FeatureMap.kept_bytes(self, input_shape, dtype)

    def learnt_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Count the bytes of fitted arrays that every process keeps; 0 where they are small."""
        return 0

    def runs_on_gpu(self, input_shape: tuple[int, ...]) -> bool:
        """Return whether `apply` takes rows on a GPU and returns features there."""
        return False

    def gpu_row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Count `row_bytes` on a GPU, the row included: less is done in place there, and products copy slices."""
        size = np.dtype(dtype).itemsize
        return 2 * self.row_bytes(input_shape, dtype) + size * (math.prod(input_shape) + 2 * self.n_components)

    def warm(self, dtype: Any) -> None:
        """Load and compile what mapping needs, so that the first rows are timed without it; by default nothing."""

    @property
    def piece_rows(self) -> int:
        """The least number of rows that a thread maps at a time; more than 1 where every piece reads large arrays."""
        return 1

    # Use, as of a fitted map.

    @property
    def spec(self) -> "FeatureMap":
        """The map without fitted arrays: itself."""
        return self

    @property
    def arrays(self) -> Arrays:
        """The fitted arrays: none."""
        return {}

    def digest(self) -> str:
        """Return a short name; equal maps have equal names."""
        return digest(self)

    def __call__(self: "AnyMap", x: NDArray[Any]) -> NDArray[Any]:
        """Return φ(x), (n, n_components), in x's dtype if that is float32 or float64, else in float64.

        Parameters
        ----------
        x : (n, *input_shape) array
            Or a SciPy sparse one (n, d), if the map ``takes_sparse``.

        Raises
        ------
        SpecError
            If the map has to be fitted first.
        """
        x = _rows(self, x)
        spec, params = self.spec, _cached_draw(self, x.shape[1:], x.dtype)
        count = x.shape[0]
        if isinstance(x, csr_array):
            row_bytes = spec.sparse_row_bytes(x.shape[1:], x.dtype, -(-x.nnz // max(count, 1)))
        else:
            row_bytes = spec.row_bytes(x.shape[1:], x.dtype)
        rows = max(spec.piece_rows, PIECE_BYTES // row_bytes)
        return _in_pieces(lambda part: spec.apply(params, part), x, rows, (self.n_components,))

    def gradients(self: "AnyMap", x: NDArray[Any], coef: NDArray[Any]) -> NDArray[Any]:
        """Return the gradients (n, t, d) of the functions φ(x) @ coef by the rows, in the dtype of φ(x).

        d is the number of values of a row.  The memory beside the result does not grow with the rows.

        Parameters
        ----------
        x : (n, *input_shape) array
        coef : (n_components, t) array
            One column for each function.

        Raises
        ------
        SpecError
            If the map has to be fitted first, or its functions have no gradients.
        """
        spec = self.spec
        if not spec.has_gradient:
            raise spec._no_gradient()
        x, coef = _rows(self, x), np.asarray(coef, np.float64)
        if coef.ndim != 2 or len(coef) != self.n_components:
            raise DataError(
                f"gradients weighs {self.n_components} columns of {type(spec).__name__}: expected coef of shape "
                f"({self.n_components}, t), got {coef.shape}; give one column for each function"
            )
        shape, t = x.shape[1:], coef.shape[1]
        params = _cached_draw(self, shape, x.dtype)
        weights = spec.gradient_weights(params, coef, x.dtype)
        rows = max(spec.piece_rows, PIECE_BYTES // spec.gradient_bytes(shape, x.dtype, t))
        return _in_pieces(lambda part: spec.gradient_of(params, part, weights), x, rows, (t, math.prod(shape)))

    def on_gpu(self: "AnyMap", x: NDArray[Any]) -> Any:
        """Return φ(x) of rows on the host, as an array on this process's GPU."""
        params = _cached_draw(self, x.shape[1:], x.dtype, on_gpu=True)
        out = gpu.cupy().empty((len(x), self.n_components), dtype=x.dtype)
        rows = max(1, gpu.PIECE_BYTES // self.spec.gpu_row_bytes(x.shape[1:], x.dtype))
        for start in range(0, len(x), rows):
            out[start : start + rows] = self.spec.apply(params, gpu.to_device(x[start : start + rows]))
        return out


@dataclass(frozen=True, eq=False)
class FittedMap:
    """A feature map with its fitted arrays, used like a `FeatureMap`; equal specs with equal arrays are equal."""

    spec: FeatureMap
    arrays: Arrays
    __call__ = FeatureMap.__call__
    gradients = FeatureMap.gradients
    on_gpu = FeatureMap.on_gpu

    @property
    def n_components(self) -> int:
        return self.spec.n_components

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        """Return all that `FeatureMap.apply` needs: what is drawn and what was fitted."""
        return self.spec.draw_fitted(input_shape, self.arrays)

    def kernel(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """Return the exact kernel that φ approximates, (n, n')."""
        return self.spec.kernel_fitted(self.arrays, x, y)

    def digest(self) -> str:
        """Return a short name; equal maps, with equal arrays, have equal names."""
        return self._name

    @functools.cached_property
    def _name(self) -> str:
        name = hashlib.sha256(encode(self.spec).encode())
        for key, array in sorted(self.arrays.items()):
            name.update(f"{key} {array.dtype.str} {array.shape}".encode())
            name.update(np.ascontiguousarray(array).data)
        return name.hexdigest()[:16]

    def __repr__(self) -> str:
        arrays = (f"{name}={' × '.join(map(str, array.shape))}" for name, array in self.arrays.items())
        return f"FittedMap({self.spec!r}, {', '.join(arrays)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FittedMap) and self._name == other._name

    def __hash__(self) -> int:
        return hash(self._name)


AnyMap = FeatureMap | FittedMap  # either maps rows when called, and has a spec and arrays


def _rows(features: AnyMap, x: Any) -> Any:
    """Return rows as a map takes them, in float32 or float64; refuse a map that has to be fitted first."""
    if isinstance(features, FeatureMap) and features.sample_rows:
        raise SpecError(
            f"{type(features).__name__} has to look at {features.sample_rows} rows first; use its fit(sample), "
            "or the model of nd.fit"
        )
    x = _sparse(features, x) if issparse(x) else np.asarray(x)
    if x.ndim < 2:
        raise DataError(f"{type(features.spec).__name__} maps rows: expected an array (n, d), got shape {x.shape}")
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)


def _in_pieces(
    call: Callable[[NDArray[Any]], NDArray[Any]], x: NDArray[Any], rows: int, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return what a call returns for rows x, an array of ``shape`` each, by calls with so many rows, on all threads."""
    count = x.shape[0]
    if count <= rows:
        return call(x)
    out = np.empty((count, *shape), x.dtype)

    def piece(start: int) -> None:
        out[start : start + rows] = call(x[start : start + rows])

    backend.parallel_for(piece, range(0, count, rows))
    return out


def _sparse(features: AnyMap, x: Any) -> csr_array:
    """Return sparse rows as CSR without duplicate entries; refuse them if the map does not take any."""
    if not features.spec.takes_sparse:
        raise DataError(
            f"{type(features.spec).__name__} does not take sparse rows; use NTKSketch or Linear, or make the rows dense"
        )
    x = csr_array(x)
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    return x


def _cached_draw(features: AnyMap, input_shape: tuple[int, ...], dtype: np.dtype[Any], on_gpu: bool = False) -> Params:
    """Return what the map draws for rows of this shape, cast to their type; the last four are kept."""
    key = (features, input_shape, dtype.str, gpu.number() if on_gpu else None)
    with _drawing:  # threads that start together must not all draw
        if key not in _drawn:
            if len(_drawn) >= 4:
                del _drawn[next(iter(_drawn))]
            memory.give_back()  # drawing may take more than all the rest: then not beside what is free
            drawn = {k: _cast(v, dtype) for k, v in features.draw(input_shape).items()}
            memory.give_back()
            _drawn[key] = gpu.keep(drawn) if on_gpu else drawn
        return _drawn[key]


def _cast(value: Any, dtype: np.dtype[Any]) -> Any:
    """Cast floating-point arrays, in dictionaries too; share those that need no cast and are aligned."""
    if isinstance(value, dict):
        return {k: _cast(v, dtype) for k, v in value.items()}
    unchanged = value.dtype.kind != "f" or (value.dtype == dtype and value.flags.c_contiguous)
    return backend.aligned(value) if unchanged else value.astype(dtype)


def flat(x: NDArray[Any]) -> NDArray[Any]:
    """Flatten rows (n, *shape) to (n, d), also when there are none."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def normalised(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return unit rows and their lengths (n, 1); a zero row stays zero."""
    xp = gpu.array_module(x)
    r = xp.sqrt(gpu.squared_norms(x))[:, None]
    return x / xp.where(r == 0, 1, r), r
