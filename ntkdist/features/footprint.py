"""The memory of a feature map and the device that it runs on, as the plan projects them before any row is mapped."""

import abc
import math
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from ntkdist.spec import Spec


class Footprint(Spec, frozen=True):
    """A map's columns, and the bytes that mapping allocates.

    Parameters
    ----------
    n_components : int
        Columns of φ(x), exactly.
    """

    n_components: Annotated[int, Meta(ge=1)]

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
        size = np.dtype(dtype).itemsize
        return self.draw_bytes(input_shape, dtype) * size // (8 + size)

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
