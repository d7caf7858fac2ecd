"""What a feature map is: a small value, from which any worker makes the same φ.

A map that has to look at data first is fitted once, on a sample; what it learnt is a `FittedMap`, part of the model.
"""

import abc
import functools
import hashlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from ntkdist import backend, devices
from ntkdist.errors import DataError, SpecError
from ntkdist.spec import Spec, encode

Params = dict[str, Any]
Arrays = dict[str, NDArray[Any]]
RowWeights = Callable[[NDArray[Any]], NDArray[np.float64]]  # (n, *input_shape) → (n,), how likely rows are drawn
PIECE_BYTES = 2**22  # of rows that one thread maps at a time, so that what is just made is still in its cache
_drawn: dict[tuple[Any, ...], Params] = {}
_drawing = threading.Lock()


class FeatureMap(Spec, frozen=True):
    """A map φ with φ(x) @ φ(y).T ≈ k(x, y), as a value.

    Calling it maps rows; everything random in it is drawn from its ``seed`` alone and kept in the process.

    Parameters
    ----------
    n_components : int
        Columns of φ(x), exactly.
    """

    takes_sparse: ClassVar[bool] = False  # whether `apply` takes rows as a CSR array, too
    n_components: Annotated[int, Meta(ge=1)]

    @abc.abstractmethod
    def draw(self, input_shape: tuple[int, ...]) -> Params:
        """All that needs no data: float64 (or integer) NumPy arrays, a function of the spec and the shape."""

    @abc.abstractmethod
    def apply(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        """φ of rows x (n, *input_shape), as an array (n, n_components) of x's dtype.

        A row depends on its own input only, to 1e-5 (float32) or 1e-12 (float64) of its norm.
        """

    @abc.abstractmethod
    def kernel(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """The kernel that φ approximates, exactly, (n, n')."""

    def check_shape(self, input_shape: tuple[int, ...], source: str = "X") -> None:
        """Refuse rows of a shape that the map does not take; most flatten all.

        Raises
        ------
        DataError
            It names the ``source`` of the rows.
        """

    def kernel_fitted(self, arrays: Arrays, x: NDArray[Any], y: NDArray[Any] | None = None) -> NDArray[np.float64]:
        """The kernel of a map that learnt these arrays."""
        return self.kernel(x, y)

    @abc.abstractmethod
    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Peak bytes of what `apply` allocates for one row, its result included."""

    def sparse_row_bytes(self, input_shape: tuple[int, ...], dtype: Any, nonzeros: int) -> int:
        """The same for one sparse row of so many non-zeros."""
        return self.row_bytes(input_shape, dtype)

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Bytes of what is drawn and kept in the process, at its peak."""
        return 0

    def kept_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Bytes of what is drawn and kept, at most: it is drawn in float64, and what is used is kept beside it."""
        size = np.dtype(dtype).itemsize
        return self.draw_bytes(input_shape, dtype) * size // (8 + size)

    def gpu_draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Count the bytes of what is drawn and kept on a GPU: the share of `draw_bytes` that is cast for the rows."""
        size = np.dtype(dtype).itemsize
        return self.draw_bytes(input_shape, dtype) * size // (8 + size)

    def learnt_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Bytes of what `fit` learns and every process keeps; 0 where it is little."""
        return 0

    def runs_on_gpu(self, input_shape: tuple[int, ...]) -> bool:
        """Whether `apply` takes rows that are on a GPU, and so are the features then."""
        return False

    def gpu_row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """`row_bytes` on a GPU, the row included: less is done in place there, and products copy slices."""
        size = np.dtype(dtype).itemsize
        return 2 * self.row_bytes(input_shape, dtype) + size * (math.prod(input_shape) + 2 * self.n_components)

    def warm(self, dtype: Any) -> None:
        """Load and compile what mapping needs in a process: nothing, or what would be counted as the first rows'."""

    @property
    def sample_rows(self) -> int:
        """Rows of the data, drawn at random, that `fit` looks at; 0 if the map needs none."""
        return 0

    @property
    def rehearsal_rows(self) -> int:
        """Rows to time `fit` with: each of those beyond them costs what mapping it does."""
        return self.sample_rows

    @property
    def piece_rows(self) -> int:
        """Rows that a thread maps at a time, at least: more than one where a map reads much for every piece."""
        return 1

    def row_weights(self, sample: NDArray[Any]) -> RowWeights | None:
        """For maps that want rows in proportion to something learnt from a first sample: what it is; else None."""
        return None

    def fit(self, sample: NDArray[Any]) -> "FittedMap":
        """What is learnt from a sample (k, *input_shape) of scaled rows.

        Raises
        ------
        SpecError
            If the map learns nothing from data.
        """
        raise SpecError(f"{type(self).__name__} is drawn from its seed and learns nothing; call it without fit")

    def prefix(self, k: int, input_shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """A smaller map in this one: k of its columns, and what to multiply each by.

        Exact columns stay as they are; of those that are means over independent draws, the first are taken and scaled
        up, so that the kernel they approximate is the same.

        Raises
        ------
        SpecError
            If the map has none, or none of k columns.
        """
        raise SpecError(
            f"{type(self).__name__} has no columns of independent draws, so that some of them are not a smaller map; "
            "fit again with fewer n_components"
        )

    def _too_few(self, k: int, least: int) -> SpecError:
        return SpecError(
            f"a prefix of {k} columns is none of {type(self).__name__}; expected {least} to {self.n_components}"
        )

    def draw_fitted(self, input_shape: tuple[int, ...], arrays: Arrays) -> Params:
        """`draw` of a map that learnt these arrays."""
        return self.draw(input_shape) | arrays

    # What a map and a fitted map have in common.

    @property
    def spec(self) -> "FeatureMap":
        """The map without what it learnt."""
        return self

    @property
    def arrays(self) -> Arrays:
        """What it learnt: nothing."""
        return {}

    def digest(self) -> str:
        """A short name; equal maps have equal names."""
        return _digest(self)

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """φ(x), in x's dtype if that is float32 or float64, else in float64.

        Parameters
        ----------
        x : (n, *input_shape) array
            Or a SciPy sparse one (n, d), if the map ``takes_sparse``.

        Returns
        -------
        (n, n_components) array

        Raises
        ------
        SpecError
            If the map has to be fitted first.
        """
        if self.sample_rows:
            raise SpecError(
                f"{type(self).__name__} has to look at {self.sample_rows} rows first; use its fit(sample), "
                "or the model of nd.fit"
            )
        return _mapped(self, x)


@dataclass(frozen=True, eq=False)
class FittedMap:
    """A feature map with what it learnt from data; used like one.

    Attributes
    ----------
    spec : FeatureMap
    arrays : dict of str to array
    """

    spec: FeatureMap
    arrays: Arrays

    @property
    def n_components(self) -> int:
        return self.spec.n_components

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """φ(x), as `FeatureMap.__call__`."""
        return _mapped(self, x)

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        return self.spec.draw_fitted(input_shape, self.arrays)

    def apply(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        return self.spec.apply(params, x)

    def kernel(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> NDArray[np.float64]:
        return self.spec.kernel_fitted(self.arrays, x, y)

    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        return self.spec.row_bytes(input_shape, dtype)

    def sparse_row_bytes(self, input_shape: tuple[int, ...], dtype: Any, nonzeros: int) -> int:
        return self.spec.sparse_row_bytes(input_shape, dtype, nonzeros)

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        return self.spec.draw_bytes(input_shape, dtype)

    @property
    def piece_rows(self) -> int:
        return self.spec.piece_rows

    def digest(self) -> str:
        """A short name; equal maps, with equal arrays, have equal names."""
        return self._name

    @functools.cached_property
    def _name(self) -> str:
        return _digest(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FittedMap) and self._name == other._name

    def __hash__(self) -> int:
        return hash(self._name)


class AnyMap(Protocol):
    """What the rest of the program needs of a map, fitted or drawn."""

    @property
    def n_components(self) -> int: ...
    @property
    def spec(self) -> FeatureMap: ...
    @property
    def arrays(self) -> Arrays: ...
    @property
    def piece_rows(self) -> int: ...
    def __call__(self, x: NDArray[Any], /) -> NDArray[Any]: ...
    def draw(self, input_shape: tuple[int, ...], /) -> Params: ...
    def apply(self, params: Params, x: NDArray[Any], /) -> NDArray[Any]: ...
    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any, /) -> int: ...
    def sparse_row_bytes(self, input_shape: tuple[int, ...], dtype: Any, nonzeros: int, /) -> int: ...
    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any, /) -> int: ...
    def digest(self) -> str: ...


def _mapped(features: AnyMap, x: NDArray[Any]) -> NDArray[Any]:
    """φ(x), piece by piece on the threads of the task."""
    x = _sparse(features, x) if issparse(x) else np.asarray(x)
    if x.ndim < 2:
        raise DataError(f"{type(features.spec).__name__} maps rows: expected an array (n, d), got shape {x.shape}")
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64)
    params = _cached_draw(features, x.shape[1:], x.dtype)
    count = x.shape[0]
    if isinstance(x, csr_array):
        row_bytes = features.sparse_row_bytes(x.shape[1:], x.dtype, -(-x.nnz // max(count, 1)))
    else:
        row_bytes = features.row_bytes(x.shape[1:], x.dtype)
    rows = max(features.piece_rows, PIECE_BYTES // row_bytes)
    if count <= rows:
        return features.apply(params, x)
    out = np.empty((count, features.n_components), x.dtype)

    def piece(start: int) -> None:
        out[start : start + rows] = features.apply(params, x[start : start + rows])

    backend.each(piece, range(0, count, rows))
    return out


def mapped_on_gpu(features: AnyMap, x: NDArray[Any]) -> Any:
    """φ(x), piece by piece, on this process's GPU; x is on the host."""
    params = _cached_draw(features, x.shape[1:], x.dtype, on_gpu=True)
    out = devices.cupy().empty((len(x), features.n_components), dtype=x.dtype)
    rows = max(1, devices.PIECE_BYTES // features.spec.gpu_row_bytes(x.shape[1:], x.dtype))
    for start in range(0, len(x), rows):
        out[start : start + rows] = features.apply(params, devices.put(x[start : start + rows]))
    return out


def _sparse(features: AnyMap, x: Any) -> csr_array:
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
    key = (features, input_shape, dtype.str, devices.number() if on_gpu else None)
    with _drawing:  # threads that start together must not all draw
        if key not in _drawn:
            if len(_drawn) >= 4:
                del _drawn[next(iter(_drawn))]
            backend.give_back()  # drawing may take more than all the rest: then not beside what is free
            drawn = {k: _cast(v, dtype) for k, v in features.draw(input_shape).items()}
            backend.give_back()
            _drawn[key] = devices.keep(drawn) if on_gpu else drawn
        return _drawn[key]


def _digest(features: AnyMap) -> str:
    name = hashlib.sha256(encode(features.spec).encode())
    for key, array in sorted(features.arrays.items()):
        name.update(f"{key} {array.dtype.str} {array.shape}".encode())
        name.update(np.ascontiguousarray(array).data)
    return name.hexdigest()[:16]


def _cast(value: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(value, dict):
        return {k: _cast(v, dtype) for k, v in value.items()}
    as_it_is = value.dtype.kind != "f" or (value.dtype == dtype and value.flags.c_contiguous)
    return value if as_it_is else value.astype(dtype)


def flat(x: NDArray[Any]) -> NDArray[Any]:
    """Rows (n, *shape) as (n, d), also when there are none."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def normalised(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Unit rows and their lengths (n, 1); a zero row stays zero."""
    xp = devices.of(x)
    r = xp.sqrt(devices.squared_norms(x))[:, None]
    return x / xp.where(r == 0, 1, r), r
