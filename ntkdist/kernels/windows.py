"""Images and pairs of them; their windows and grid cells, and sums over windows."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.errors import DataError
from ntkdist.kernels.base import F8


def images(x: NDArray[Any], taker: str = "CNTK") -> F8:
    """Return images (n, h, w, channels) in float64."""
    x = np.asarray(x, np.float64)
    check_images(x.shape[1:], "X", taker)
    return x


def check_images(input_shape: tuple[int, ...], source: str, taker: str = "CNTK") -> None:
    if len(input_shape) != 3:
        raise DataError(
            f"{taker} takes images (rows, height, width, channels), but {source} has rows of shape {input_shape}; give "
            "images, or use features for tables, such as ZonalFeatures"
        )


def two_sets(x: NDArray[Any], y: NDArray[Any] | None, taker: str) -> tuple[F8, F8]:
    """Return images x (n, h, w, channels) and y, x itself if absent, in float64; refuse two shapes."""
    first = images(x, taker)
    second = first if y is None else images(y, taker)
    if first.shape[1:] != second.shape[1:]:
        raise DataError(f"{taker} compares images of one shape, got {first.shape[1:]} and {second.shape[1:]}")
    return first, second


def over_pairs(
    count: int, others: int | None, size: int, kernel: Callable[[NDArray[np.intp], NDArray[np.intp]], F8]
) -> F8:
    """Compute a kernel matrix (count, others), or without others of one set with itself, each pair once.

    ``kernel`` returns the values of pairs (i, j), and is called with ``size`` of them at a time, on all threads.
    """
    out = np.empty((count, count if others is None else others))
    i, j = np.triu_indices(count) if others is None else np.indices(out.shape).reshape(2, -1)

    def block(part: slice) -> None:
        a, b = i[part], j[part]
        out[a, b] = k = kernel(a, b)
        if others is None:
            out[b, a] = k

    backend.parallel_for(block, blocks(len(i), size))
    return out


def blocks(count: int, size: int) -> list[slice]:
    """Split a range into blocks of a size."""
    return [slice(k, k + size) for k in range(0, count, size)]


def cells(height: int, width: int, grid: int) -> list[tuple[slice, slice]]:
    """List the row and column slices of each cell of a grid × grid, of sizes as equal as possible."""
    rows, columns = ([size * k // grid for k in range(grid + 1)] for size in (height, width))
    return [(slice(*r), slice(*c)) for r in pairwise(rows) for c in pairwise(columns)]


def margins(filter_size: int, padding: str) -> tuple[int, int]:
    """Return the numbers of zeros before and after each axis."""
    return ((filter_size - 1) // 2, filter_size // 2) if padding == "same" else (0, 0)


def window_sum(x: F8, filter_size: int, padding: str) -> F8:
    """Sum over the window of each pixel, (n, h, w)."""
    around = margins(filter_size, padding)
    x = np.pad(x, ((0, 0), around, around))
    for axis in (1, 2):
        x = sliding_window_view(x, filter_size, axis).sum(-1)
    return x


def diagonal_sum(x: F8, filter_size: int, padding: str) -> F8:
    """Sum over the windows of two pixels, shifted together: Σ_{a,b} x[i + a, j + b, i' + a, j' + b]."""
    return shifted_sum(shifted_sum(x, (1, 3), filter_size, padding), (2, 4), filter_size, padding)


def shifted_sum(x: NDArray[Any], axes: tuple[int, ...], filter_size: int, padding: str) -> NDArray[Any]:
    """Sum over the shifts of a window along some axes together."""
    before, after = margins(filter_size, padding)
    shape = list(x.shape)
    for k in axes:
        shape[k] += before + after - filter_size + 1
    out = np.zeros(shape, x.dtype)
    for shift in range(-before, filter_size - before):
        to, source = [slice(None)] * x.ndim, [slice(None)] * x.ndim
        for k in axes:
            to[k], source[k] = overlap(x.shape[k], shape[k], shift)
        out[tuple(to)] += x[tuple(source)]
    return out


@cache
def gaussian_pooling(size: int, count: int) -> F8:
    """Return the weights (count, size) by which pixels are averaged around ``count`` centres, equally far apart.

    A Gaussian whose deviation is the distance of two centres over √2, cut off at that distance; the unit matrix where
    every pixel is a centre.
    """
    apart = size / count
    off = np.abs(np.arange(size) - (np.arange(count)[:, None] + 0.5) * apart + 0.5)
    weights = np.exp(-np.square(off / apart)) * (off <= apart + 1e-9)
    weights = np.eye(size) if count == size else weights / weights.sum(1, keepdims=True)
    weights.flags.writeable = False
    return weights


def overlap(size: int, target: int, shift: int) -> tuple[slice, slice]:
    """Return slices of axes of ``target`` and ``size`` pixels, in which pixel i takes pixel i + shift."""
    start = max(0, -shift)
    stop = max(start, min(target, size - shift))
    return slice(start, stop), slice(start + shift, stop + shift)
