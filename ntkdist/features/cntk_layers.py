"""One layer of a convolutional random-feature map: windows, random filters, pooling, and the whitening filter.

Legend: u (pixels, d) windows as rows, images in order, r their norms; v the windows for the tangent kernel, as blocks
side by side; q the filter size; c = E|√d û·w| for a random direction w.  Maps are (n, h, w, channels).
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from ntkdist import gpu, random
from ntkdist.features.base import Params
from ntkdist.features.ntk_random_features import _flip, _times, mean_abs
from ntkdist.kernels.windows import cells, margins

F8 = NDArray[np.float64]
Average = Callable[[NDArray[Any]], NDArray[Any]]  # of (pixels, k) over the places of a smaller map, (n, h', w', k)
LINEAR, ABS, STEP, RIGHT, TANGENT = range(5)  # roles of the random streams
COLUMNS = 512  # computed at a time, so that they are averaged while in cache
WHITENING_SIDE = 7  # pixels; given the pixels between, those further apart are hardly correlated


class Layer(NamedTuple):
    """Sizes of a layer: windows u and v of dimensions d and dv become ``made`` and ``made_s`` features.

    dv and made_s are 0 where there is no tangent kernel yet, made where the last layer's covariance is not used.
    The linear parts of u and v have p and ps columns, which are drawn, or fitted and at most ``most`` if that is not 0;
    m columns are of |t|, ms of sgn(t).
    """

    d: int
    dv: int
    made: int
    made_s: int
    most: int = 0

    @property
    def p(self) -> int:
        # all of u where that is at most half of the columns
        p = self.d if 2 * (1 + self.d) <= self.made else self.made // 4
        return min(p, self.most or p)

    @property
    def m(self) -> int:
        return max(self.made - 1 - self.p, 0)

    @property
    def ps(self) -> int:
        ps = self.dv if 2 * self.dv <= self.made_s else self.made_s // 4
        return min(ps, self.most or ps)

    @property
    def ms(self) -> int:
        return self.made_s - self.ps

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Return the role, dimension and number of the directions of each array that is drawn."""
        shapes = {}
        if self.made:
            shapes["abs"] = (ABS, self.d, self.m)
            if self.p < self.d and not self.most:
                shapes["linear"] = (LINEAR, self.d, self.p)
        if self.made_s:
            shapes["step"] = (STEP, self.d, self.ms)
            shapes["right"] = (RIGHT, self.dv, self.ms)
            if self.ps < self.dv and not self.most:
                shapes["tangent"] = (TANGENT, self.dv, self.ps)
        return shapes

    def draw(self, h: int, seed: int) -> dict[str, F8]:
        """Draw the directions of layer h, which include all factors but 1/q."""
        arrays = {}
        for name, (role, d, k) in self.shapes().items():
            arrays[name] = random.directions(d, k, seed, h, role)
            if name != "step":
                arrays[name] *= math.sqrt(d / (2 * k))
        return arrays

    def values(self, pixels: int, pooled: int) -> int:
        """Count the numbers at the peak of `covariance` and then `tangent`, for an image, without the windows.

        Mean windows, where they are not the windows themselves; parts; then a block and the one before, or the parts
        and their concatenation with the last block.
        """
        shrinks = pooled < pixels
        made, made_s = pooled * self.made, pooled * self.made_s
        (block, earlier), (block_s, earlier_s) = (
            (pixels * min(COLUMNS, n), pixels * min(COLUMNS, max(n - COLUMNS, 0))) for n in (self.m, self.ms)
        )
        covariance = pixels + shrinks * pooled * self.d + made + max(block + earlier, made + shrinks * block)
        tangent = (1 + shrinks) * pooled * self.dv + made_s + max(2 * block_s + earlier_s, made_s + shrinks * block_s)
        return max(covariance, (made + tangent) * bool(made_s))

    def covariance(self, w: Params, u: NDArray[Any], average: Average) -> NDArray[Any]:
        """Compute [c r/√2; u/√2; (|√d u·w| − c r)/√(2m)], averaged: κ₁ times the norms."""
        xp = gpu.array_module(u)
        r = xp.sqrt(gpu.squared_norms(u))[:, None]
        c, half = mean_abs(self.d), math.sqrt(0.5)
        parts = [average(r) * u.dtype.type(c * half)]
        linear = average(u)
        parts.append(linear @ w["linear"] if "linear" in w else linear * u.dtype.type(half))
        r *= u.dtype.type(c / math.sqrt(2 * self.m))
        for block in _blocks(self.m):
            t = u @ w["abs"][:, block]
            xp.abs(t, out=t)
            t -= r
            parts.append(average(t))
        return xp.concatenate(parts, axis=3)

    def tangent(self, w: Params, u: NDArray[Any], v: list[NDArray[Any]], average: Average) -> NDArray[Any]:
        """Compute [v/√2; sgn(u·w)⊙√d (v·w')/√(2m)], averaged: κ₀ times the tangent kernel of the windows."""
        linear = beside(v, average)
        parts = [linear @ w["tangent"] if "tangent" in w else linear * u.dtype.type(math.sqrt(0.5))]
        for block in _blocks(self.ms):
            s = _times(v, w["right"][:, block])
            _flip(s, u @ w["step"][:, block])
            parts.append(average(s))
        return gpu.array_module(u).concatenate(parts, axis=3)


def beside(v: list[NDArray[Any]], average: Average) -> NDArray[Any]:
    return gpu.array_module(v[0]).concatenate([average(block) for block in v], axis=3)


def windows(x: NDArray[Any], q: int, padding: str) -> NDArray[Any]:
    """Return the q×q windows of maps as rows, (n, h', w', q²·channels), in the order row, column, channel."""
    before, after = margins(q, padding)
    (n, h, w, c), xp = x.shape, gpu.array_module(x)
    if before + after or not x.flags.c_contiguous:
        padded = xp.zeros((n, h + before + after, w + before + after, c), x.dtype)
        padded[:, before : before + h, before : before + w] = x
        x = padded
    h, w = x.shape[1] - q + 1, x.shape[2] - q + 1
    if xp is not np:
        return xp.concatenate([x[:, i : i + h, j : j + w] for i in range(q) for j in range(q)], axis=3)
    s0, s1, s2, s3 = x.strides
    shape = (n, h, w, q, q * c)  # q pixels of a row are one run of memory
    return as_strided(x, shape, (s0, s1, s2, s1, s3), writeable=False).reshape(*shape[:3], q * q * c)


def pooling(shape: tuple[int, ...], factor: int) -> Average:
    """Return the average over squares of maps of shape (n, h, w), which drops a ragged edge."""
    n, h, w = shape[0], shape[1] // factor, shape[2] // factor

    def average(x: NDArray[Any]) -> NDArray[Any]:
        x = x.reshape(*shape[:3], x.shape[1])
        if factor == 1:
            return x
        x = x[:, : h * factor, : w * factor]
        out = gpu.array_module(x).zeros((n, h, w, x.shape[3]), x.dtype)
        for i in range(factor):
            for j in range(factor):
                out += x[:, i::factor, j::factor]
        out /= factor**2
        return out

    return average


def averaging(shape: tuple[int, ...], factor: int, grid: int) -> Average:
    """Return the average over grid cells of maps that are pooled first, (n, 1, cells, k), by pixel weights."""

    def average(x: NDArray[Any]) -> NDArray[Any]:
        x = x.reshape(shape[0], shape[1] * shape[2], x.shape[1])
        xp = gpu.array_module(x)
        return xp.matmul(gpu.constant(xp, cell_weights, *shape[1:3], factor, grid, x.dtype.name), x)[:, None]

    return average


@cache
def cell_weights(height: int, width: int, factor: int, grid: int, dtype: str) -> NDArray[Any]:
    """Compute the weights of pixels in the mean over each cell of the grid, (cells, height·width)."""
    h, w = height // factor, width // factor
    weights = np.zeros((grid**2, height, width))
    for cell, (rows, columns) in zip(weights, cells(h, w, grid), strict=True):
        inside = np.zeros((h, w))
        inside[rows, columns] = 1 / inside[rows, columns].size
        cell[: h * factor, : w * factor] = np.kron(inside, np.full((factor, factor), factor**-2.0))
    flat = weights.reshape(grid**2, -1).astype(dtype)
    flat.flags.writeable = False
    return flat


def whitening_filter(images: NDArray[Any], share: float) -> F8:
    """Compute the ZCA filter (side²·channels, channels): middle columns of (C/λ̄ + share)^−½, C the windows' covariance.

    Statistics are assumed to be the same all over the image, so that few images are enough; the covariance is
    uncentred, so that an all-zero image stays zero.
    """
    h, w, channels = images.shape[1:]
    side = min(WHITENING_SIDE, (min(h, w) - 1) // 2 * 2 + 1)
    covariance = np.zeros((side**2 * channels,) * 2)
    for image in images:
        u = windows(image[None], side, "valid").reshape(-1, len(covariance))
        covariance += u.T @ u
    values, vectors = np.linalg.eigh(covariance)
    mean = values.mean()
    if mean == 0:
        return np.eye(len(covariance))[:, (side**2 // 2) * channels :][:, :channels]
    root = vectors / np.sqrt(np.maximum(values, 0) / mean + share) @ vectors.T
    return np.ascontiguousarray(root[:, (side**2 // 2) * channels :][:, :channels])


def whitened(x: NDArray[Any], filters: NDArray[Any]) -> NDArray[Any]:
    """Apply the whitening filter to images, with zeros around them."""
    side = math.isqrt(len(filters) // filters.shape[1])
    return windows(x, side, "same") @ filters


def principal(maps: list[NDArray[Any]], count: int) -> F8:
    """Compute leading eigenvectors, (k, count), of the uncentred covariance of the pixels of maps (n, h, w, k)."""
    covariance = np.zeros((maps[0].shape[3],) * 2)
    for u in map(flat_pixels, maps):
        covariance += u.T @ u
    vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, :count]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], 0)
    return np.ascontiguousarray(vectors * np.where(largest < 0, -1.0, 1.0))  # LAPACK does not fix the signs


def flat_pixels(x: NDArray[Any]) -> NDArray[Any]:
    """Reshape maps (n, h, w, k) to rows (pixels, k)."""
    return x.reshape(math.prod(x.shape[:3]), x.shape[3])


def _blocks(count: int) -> list[slice]:
    return [slice(k, min(k + COLUMNS, count)) for k in range(0, count, COLUMNS)]
