"""What a feature map is: a small value, from which any worker makes the same φ."""

import abc
import math
import threading
from typing import Annotated, Any, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from ntkdist import backend
from ntkdist.errors import DataError
from ntkdist.spec import Spec

Params = dict[str, Any]
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

    @abc.abstractmethod
    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Peak bytes of what `apply` allocates for one row, its result included."""

    def sparse_row_bytes(self, input_shape: tuple[int, ...], dtype: Any, nonzeros: int) -> int:
        """The same for one sparse row of so many non-zeros."""
        return self.row_bytes(input_shape, dtype)

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Bytes of what is drawn and kept in the process, at its peak."""
        return 0

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """φ(x), in x's dtype if that is float32 or float64, else in float64.

        Parameters
        ----------
        x : (n, *input_shape) array
            Or a SciPy sparse one (n, d), if the map ``takes_sparse``.

        Returns
        -------
        (n, n_components) array
        """
        x = self._sparse(x) if issparse(x) else np.asarray(x)
        if x.ndim < 2:
            raise DataError(f"{type(self).__name__} maps rows: expected an array (n, d), got shape {x.shape}")
        if x.dtype not in (np.float32, np.float64):
            x = x.astype(np.float64)
        params = self._cached_draw(x.shape[1:], x.dtype)
        count = x.shape[0]
        if isinstance(x, csr_array):
            row_bytes = self.sparse_row_bytes(x.shape[1:], x.dtype, -(-x.nnz // max(count, 1)))
        else:
            row_bytes = self.row_bytes(x.shape[1:], x.dtype)
        rows = max(1, PIECE_BYTES // row_bytes)
        if count <= rows:
            return self.apply(params, x)
        out = np.empty((count, self.n_components), x.dtype)

        def piece(start: int) -> None:
            out[start : start + rows] = self.apply(params, x[start : start + rows])

        backend.each(piece, range(0, count, rows))
        return out

    def _sparse(self, x: Any) -> csr_array:
        if not self.takes_sparse:
            raise DataError(
                f"{type(self).__name__} does not take sparse rows; use NTKSketch or Linear, or make the rows dense"
            )
        x = csr_array(x)
        if not x.has_canonical_format:
            x = x.copy()
            x.sum_duplicates()
        return x

    def _cached_draw(self, input_shape: tuple[int, ...], dtype: np.dtype[Any]) -> Params:
        key = (self, input_shape, dtype.str)
        with _drawing:  # threads that start together must not all draw
            if key not in _drawn:
                if len(_drawn) >= 4:
                    del _drawn[next(iter(_drawn))]
                _drawn[key] = {k: _cast(v, dtype) for k, v in self.draw(input_shape).items()}
            return _drawn[key]


def _cast(value: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(value, dict):
        return {k: _cast(v, dtype) for k, v in value.items()}
    return value.astype(dtype) if value.dtype.kind == "f" else value


def flat(x: NDArray[Any]) -> NDArray[Any]:
    """Rows (n, *shape) as (n, d), also when there are none."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def normalised(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Unit rows and their lengths (n, 1); a zero row stays zero."""
    r = np.sqrt(np.einsum("ij,ij->i", x, x))[:, None]
    return x / np.where(r == 0, 1, r), r
