"""Windows of planes: shifts and window sums of images (n, columns, h, w), one number per pixel in each plane."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist.kernels.windows import margins, overlap

Planes = NDArray[Any]


def whole(planes: Planes, q: int, padding: str) -> Planes:
    """Return all pixels of each window, (n, q²·columns, h, w)."""
    places = np.repeat(np.arange(q**2), planes.shape[1])
    return moved(np.tile(planes, (1, q**2, 1, 1)), places, q, padding)


def moved(planes: Planes, places: NDArray[np.int64], q: int, padding: str) -> Planes:
    """Shift each plane so that a pixel has the value at that plane's place in its window, counted row by row."""
    before, after = margins(q, padding)
    h, w = (size + before + after - q + 1 for size in planes.shape[2:])
    out = np.zeros((*planes.shape[:2], h, w), planes.dtype)
    for place in range(q**2):
        chosen = np.flatnonzero(places == place)
        y, from_y = overlap(planes.shape[2], h, place // q - before)
        x, from_x = overlap(planes.shape[3], w, place % q - before)
        out[:, chosen, y, x] = planes[:, chosen, from_y, from_x]
    return out


def window_sum(planes: Planes, q: int, padding: str, factor: float = 1.0) -> Planes:
    """Compute ``factor`` times the sum over the window of each pixel."""
    before, after = margins(q, padding)
    for axis in (2, 3):
        shape = list(planes.shape)
        shape[axis] += before + after - q + 1
        out = np.zeros(shape, planes.dtype)
        for shift in range(-before, q - before):
            to, source = [slice(None)] * 4, [slice(None)] * 4
            to[axis], source[axis] = overlap(planes.shape[axis], shape[axis], shift)
            out[tuple(to)] += planes[tuple(source)]
        planes = out
    if factor != 1:
        planes *= factor
    return planes
