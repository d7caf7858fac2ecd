"""The recursion of `CNTK` over pairs of images, compiled, in memory that fits a core's cache.

Legend: as in `cntk`; δ = i' − i of two rows of pixels of a pair of images; a tile, all pairs of pixels of two rows.

Windows of two pixels are shifted together, so that δ never changes: the tiles of one δ go through all layers alone,
until a layer pools.  A tile is flat, its lines ``stride`` apart with zeros between, so that a window sum is a sum of
one array at several offsets, and every element-wise loop is one long one.

φ is the angle of z to the nearer of y and −y, a = sin(φ/2) and b = a² <= ½.  With polynomials P and Q of b,
φ/π = a P and (sin φ − φ cos φ)/π = a b Q; κ₀ and 1 − κ₁ follow from these with nothing cancelled.

The loops are compiled at first use, once per process; nothing is written to disk, and importing this module costs
nothing.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from numpy.typing import NDArray

from ntkdist.kernels.base import F8, sine_excess

CLOSE = 1e-4  # half of 1 ∓ cos θ below which it is computed from a difference; the others keep 14 digits
ROUNDINGS = 16 * 2.0**-52  # of n, below which a defect after pooling is that of a pixel with itself
DEGREE = 19  # of P and Q, odd: their error is 1e-15
DEFECT, GAMMA, TANGENT = range(3)  # arrays that a layer passes on: E, q²Γ, Π
LENGTH, INVERSE, ROOT = range(3)  # of an image's layers: √n of a pixel with itself, one by the window's norm, and √M


class Layers(NamedTuple):
    """The network as `run` takes it: filter, margin before, ends, tangent, sizes before and after each convolution.

    ``sizes`` is (depth, 2, 2), ``factors`` (depth,) the sides of pooling squares.
    """

    filter_size: int
    before: int
    margin: int
    ends: bool
    tangent: bool
    sizes: NDArray[np.int64]
    factors: NDArray[np.int64]


class Memory(NamedTuple):
    """The memory that one thread works in."""

    stacks: F8  # (2, 3, rows, tile), the tiles of one δ before and after a layer
    tiles: F8  # (5, tile)
    sums: F8  # (2, tile with margins)
    pooled: F8  # (2, 3, tiles of all pairs of rows)


def memory(layers: Layers) -> Memory:
    """Allocate memory for pairs of images."""
    rows, width = layers.sizes[0].max(0).tolist()
    tile, inputs = width * (width + layers.margin), layers.sizes[1:, 0][layers.factors[:-1] > 1]
    pooled = max((h * h * w * (w + layers.margin) for h, w in inputs.tolist()), default=0)
    sums = (width + layers.margin) ** 2 + layers.filter_size
    return Memory(np.empty((2, 3, rows, tile)), np.empty((5, tile)), np.empty((2, sums)), np.empty((2, 3, pooled)))


def run(*args: Any) -> None:
    """Write k of pairs (i, j) of images to ``out``: the arguments of the loop `run` in `_loops`."""
    _loops()[0](*args)


def pooled_norms(*args: Any) -> None:
    """Write M after a layer that pools, of each image, to ``out``: the arguments of the loop likewise."""
    _loops()[1](*args)


def polynomials() -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return the even and the odd coefficients of P and of Q, lowest degree first."""

    def angle(b: F8) -> F8:
        return 2 * np.arcsin(np.sqrt(b)) / (np.pi * np.sqrt(b))

    def excess(b: F8) -> F8:
        return sine_excess(2 * np.arcsin(np.sqrt(b))) / (np.pi * b * np.sqrt(b))

    coefficients = []
    for f in (angle, excess):
        fit = Chebyshev.interpolate(f, DEGREE, [0, 0.5]).convert(kind=Polynomial, domain=[-1, 1], window=[-1, 1]).coef
        fit = np.pad(fit, (0, DEGREE + 1 - len(fit)))  # the last ones may vanish
        coefficients.append((tuple(fit[0::2].tolist()), tuple(fit[1::2].tolist())))
    return coefficients


@functools.cache
def _loops() -> tuple[Any, Any]:
    import numba

    # Only contraction of a·b + c and the sign of zero are relaxed: NaN and infinity keep their meaning.
    flags: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy"}
    compiled = numba.njit(**flags)
    steps = _tile_loops(compiled, numba.njit(**flags, inline="always"))
    layer = _layer_loop(compiled, *steps)
    fill, pool = _ends_loops(compiled)

    @compiled
    def recursion(y, z, of_y, of_z, layers, rows, upto, memory):  # type: ignore[no-untyped-def]
        """Go through the layers 0 to upto.

        The sum over rows i and i' of ``rows`` times the last layer is left in tile 0, that of a layer that pools in
        ``pooled``; return the index of the latter.
        """
        start = source = np.int64(0)  # of this type from the beginning, or `fill` is compiled twice
        while True:
            stop = start
            while layers.factors[stop] == 1 and stop < upto:
                stop += 1
            height, width = layers.sizes[start, 0]
            stride = width + layers.margin
            memory.sums[:] = 0
            memory.tiles[0] = 0
            memory.pooled[1 - source] = 0
            for delta in range(1 - height, height):
                fill(y, z, of_y, of_z, layers, start, delta, stride, memory, source)
                for h in range(start, stop + 1):
                    layer(y, z, of_y, of_z, layers, h, delta, stride, memory, (h - start) % 2)
                pool(layers, stop, delta, stride, memory, (stop - start + 1) % 2, rows, 1 - source)
            source = 1 - source
            if stop == upto:
                return source
            start = stop + 1

    @compiled
    def run(i, j, y, z, of_y, of_z, layers, rows, columns, memory, out):  # type: ignore[no-untyped-def]
        depth, size = len(layers.factors), columns.shape[0]
        start = depth - 1
        while start > 0 and layers.factors[start - 1] == 1:
            start -= 1
        stride = layers.sizes[start, 0, 1] + layers.margin
        for p in range(len(i)):
            recursion(y[i[p]], z[j[p]], of_y[i[p]], of_z[j[p]], layers, rows, depth - 1, memory)
            total = 0.0
            for k in range(size):
                for l in range(size):  # noqa: E741
                    total += columns[k, l] * memory.tiles[0, k * stride + l]
            out[p] = total

    @compiled
    def pooled_norms(y, z, of_y, layers, rows, upto, memory, out):  # type: ignore[no-untyped-def]
        height, width = layers.sizes[upto + 1, 0]
        stride, scale = width + layers.margin, 1 / layers.factors[upto] ** 4
        for p in range(len(y)):
            at = recursion(y[p], z[p], of_y[p], of_y[p], layers, rows, upto, memory)
            for i in range(height):
                for j in range(width):
                    tile = (i * height + i) * width * stride
                    out[p, i, j] = scale * memory.pooled[at, GAMMA, tile + j * stride + j]

    return run, pooled_norms


def _tile_loops(compiled: Any, inlined: Any) -> tuple[Any, ...]:
    """Compile what is done to whole tiles."""
    (p_even, p_odd), (q_even, q_odd) = polynomials()

    @inlined
    def angle(b):  # type: ignore[no-untyped-def]
        s, even, odd = b * b, p_even[-1], p_odd[-1]
        for k in range(len(p_even) - 2, -1, -1):
            even, odd = even * s + p_even[k], odd * s + p_odd[k]
        return np.sqrt(b) * (even + b * odd)

    @inlined
    def excess(b):  # type: ignore[no-untyped-def]
        s, even, odd = b * b, q_even[-1], q_odd[-1]
        for k in range(len(q_even) - 2, -1, -1):
            even, odd = even * s + q_even[k], odd * s + q_odd[k]
        return np.sqrt(b) * b * (even + b * odd)

    @compiled
    def window_sums(tiles, first, last, sums, start, out, q, step):  # type: ignore[no-untyped-def]
        """Sum tiles first <= k < last, and then the sum over shifts of (j, j') together."""
        size = tiles.shape[1]
        body, one = sums[start : start + size], tiles[first]
        if last - first == 3:  # in one pass, here and below, for this is the most frequent
            two, three = tiles[first + 1], tiles[first + 2]
            for f in range(size):
                body[f] = one[f] + two[f] + three[f]
        else:
            for f in range(size):  # not by an assignment of arrays, which takes a second to compile
                body[f] = one[f]
            for k in range(first + 1, last):
                other = tiles[k]
                for f in range(size):
                    body[f] += other[f]
        one = sums[: len(out)]
        if q == 3:
            two, three = sums[step : step + len(out)], sums[2 * step : 2 * step + len(out)]
            for f in range(len(out)):
                out[f] = one[f] + two[f] + three[f]
            return
        for f in range(len(out)):
            out[f] = one[f]
        for k in range(1, q):
            other = sums[k * step : k * step + len(out)]
            for f in range(len(out)):
                out[f] += other[f]

    @compiled
    def half_gaps(s, inverse_y, inverse_z, length_y, length_z, size, cosine, b, n):  # type: ignore[no-untyped-def]
        """Compute cos θ, b and n, and count the pairs of pixels whose b needs a difference."""
        stride = len(inverse_z)
        for j in range(size):
            inverse, length, line = inverse_y[j], length_y[j], slice(j * stride, (j + 1) * stride)
            sums, cosines, halves, lengths = s[line], cosine[line], b[line], n[line]
            for k in range(stride):
                t = sums[k] * (inverse * inverse_z[k])
                cosines[k] = t
                halves[k] = max(0.5 - 0.5 * abs(t), 0.0)
                lengths[k] = length * length_z[k]
        near = 0
        for f in range(len(b)):
            near += b[f] < CLOSE
        return near

    @compiled
    def covariance(cosine, b, n, defect, gamma):  # type: ignore[no-untyped-def]
        for f in range(len(b)):
            d = excess(b[f])
            gap = 2 * b[f] - d if cosine[f] > 0 else 1 - d
            defect[f] = gap * n[f]
            gamma[f] = n[f] - defect[f]

    @compiled
    def covariance_and_tangent(cosine, b, n, before, share, defect, gamma, tangent):  # type: ignore[no-untyped-def]
        for f in range(len(b)):
            d, phi, size = excess(b[f]), angle(b[f]), n[f]
            e = size * (2 * b[f] - d if cosine[f] > 0 else 1 - d)
            kappa0 = 1 - phi if cosine[f] > 0 else phi
            defect[f] = e
            gamma[f] = size - e
            tangent[f] = share * (kappa0 * before[f] + (size - e)) if size > 0 else 0.0

    @compiled
    def last_tangent(cosine, b, before, share, tangent):  # type: ignore[no-untyped-def]
        for f in range(len(b)):
            phi = angle(b[f])
            tangent[f] = share * before[f] * (1 - phi if cosine[f] > 0 else phi)

    return window_sums, half_gaps, covariance, covariance_and_tangent, last_tangent


def _layer_loop(compiled: Any, window_sums: Any, half_gaps: Any, covariance: Any, both: Any, last_tangent: Any) -> Any:
    """Compile one layer of the tiles of one δ."""

    @compiled
    def refine(y, z, root_y, root_z, inverse_y, inverse_z, layers, h, i, k, defects, top, stride, cosine, b):  # type: ignore[no-untyped-def]
        """Replace b where it is small: a quarter of |û ∓ v̂|² of the unit windows, and half of the sum of E over n."""
        height, width = layers.sizes[h, 0]
        channels, q = y.shape[2] if h == 0 else 1, layers.filter_size
        for j in range(layers.sizes[h, 1, 1]):
            for l in range(layers.sizes[h, 1, 1]):  # noqa: E741
                f = j * stride + l
                if b[f] >= CLOSE:
                    continue
                sign = 1.0 if cosine[f] > 0 else -1.0
                square = gap = 0.0
                for di in range(-layers.before, q - layers.before):
                    for dj in range(-layers.before, q - layers.before):
                        in_y = 0 <= i + di < height and 0 <= j + dj < width
                        in_z = 0 <= k + di < height and 0 <= l + dj < width
                        for c in range(channels):
                            u = v = 0.0
                            if in_y:
                                u = inverse_y[j] * (y[i + di, j + dj, c] if h == 0 else root_y[i + di, j + dj])
                            if in_z:
                                v = inverse_z[l] * (z[k + di, c, l + dj] if h == 0 else root_z[k + di, l + dj])
                            square += (u - sign * v) ** 2
                        if h > 0 and in_y and in_z:
                            gap += defects[i + di - top, (j + dj) * stride + l + dj]
                b[f] = max(0.25 * square + 0.5 * gap * inverse_y[j] * inverse_z[l], 0.0)

    @compiled
    def layer(y, z, of_y, of_z, layers, h, delta, stride, memory, at):  # type: ignore[no-untyped-def]
        """Compute the stack of tiles ``1 − at`` from the stack ``at``, whose first tile is that of row ``top``."""
        q, before, last = layers.filter_size, layers.before, h == len(layers.factors) - 1
        use = layers.tangent and (layers.ends or h > 0)
        kept = use and (h > 1 or (h == 1 and layers.ends))  # else Π is a multiple of Γ
        (height, width), (rows, size) = layers.sizes[h]
        top, given, count = max(0, -delta), height - abs(delta), rows - abs(delta)
        step, start, length, share = stride + 1, before * (stride + 1), size * stride, 1 / (q * q)
        old, new = memory.stacks[at], memory.stacks[1 - at]
        defects, gammas, tangents = old[DEFECT, :, : width * stride], old[GAMMA, :, : width * stride], old[TANGENT]
        s, n = memory.tiles[1, :length], memory.tiles[2, :length]
        cosine, b = memory.tiles[3, :length], memory.tiles[4, :length]
        for t in range(count):
            i, k = top + t, top + t + delta
            first, end = max(0, t - before), min(given, t - before + q)
            window_sums(gammas, first, end, memory.sums[0], start, s, q, step)
            inverse_y, inverse_z = of_y[h, INVERSE, i], of_z[h, INVERSE, k, :stride]
            lengths = of_y[h, LENGTH, i], of_z[h, LENGTH, k, :stride]
            if half_gaps(s, inverse_y, inverse_z, *lengths, size, cosine, b, n):
                roots = of_y[h, ROOT], of_z[h, ROOT]
                refine(y, z, *roots, inverse_y, inverse_z, layers, h, i, k, defects, top, stride, cosine, b)
            if kept:
                window_sums(tangents[:, : width * stride], first, end, memory.sums[1], start, s, q, step)
            elif h > 0:
                for f in range(length):
                    s[f] *= share
            defect, gamma, tangent = new[DEFECT, t, :length], new[GAMMA, t, :length], new[TANGENT, t, :length]
            if not use:
                covariance(cosine, b, n, defect, gamma)
            elif last and not layers.ends:
                last_tangent(cosine, b, s, share, tangent)
            else:
                both(cosine, b, n, s, share, defect, gamma, tangent)

    return layer


def _ends_loops(compiled: Any) -> tuple[Any, Any]:
    """Compile what comes before the first and after the last of layers that do not pool."""

    @compiled
    def fill(y, z, of_y, of_z, layers, start, delta, stride, memory, source):  # type: ignore[no-untyped-def]
        """Write the first stack of tiles: ⟨y_j, z_j'⟩, or what a layer has pooled."""
        height, width = layers.sizes[start, 0]
        top, stack, size = max(0, -delta), memory.stacks[0], width * stride
        for t in range(height - abs(delta)):
            i, k = top + t, top + t + delta
            if start == 0:
                stack[GAMMA, t, :size] = 0
                for j in range(width):
                    row = stack[GAMMA, t, j * stride : j * stride + width]
                    for c in range(y.shape[2]):
                        value, other = y[i, j, c], z[k, c]
                        for l in range(width):  # noqa: E741
                            row[l] += value * other[l]
                continue
            scale, tile = 1 / layers.factors[start - 1] ** 4, (i * height + k) * size
            gamma, tangent = memory.pooled[source, GAMMA, tile:], memory.pooled[source, TANGENT, tile:]
            stack[:, t, :size] = 0
            for j in range(width):
                for l in range(width):  # noqa: E741
                    f = j * stride + l
                    n = of_y[start, ROOT, i, j] * of_z[start, ROOT, k, l]
                    stack[TANGENT, t, f] = scale * tangent[f]
                    stack[GAMMA, t, f] = scale * gamma[f]
                    e = n - stack[GAMMA, t, f]
                    stack[DEFECT, t, f] = e if e >= ROUNDINGS * n else 0.0

    @compiled
    def pool(layers, stop, delta, stride, memory, at, rows, target):  # type: ignore[no-untyped-def]
        """Add the last stack of tiles to the sum over rows or, before the last layer, to those of pooling squares."""
        height, width = layers.sizes[stop, 1]
        top, stack, factor = max(0, -delta), memory.stacks[at], layers.factors[stop]
        last = stop == len(layers.factors) - 1
        array, share = (TANGENT, 1.0) if layers.tangent else (GAMMA, 1 / layers.filter_size**2)
        for t in range(height - abs(delta)):
            i, k = top + t, top + t + delta
            if last:
                weight, total, tile = share * rows[i, k], memory.tiles[0], stack[array, t]
                for f in range(width * stride):
                    total[f] += weight * tile[f]
                continue
            wide = width // factor
            narrow, tall = wide + layers.margin, height // factor
            if i // factor >= tall or k // factor >= tall:
                continue
            start = (i // factor * tall + k // factor) * wide * narrow
            for array in (GAMMA, TANGENT):
                if array == TANGENT and not (layers.tangent and (stop > 0 or layers.ends)):
                    continue  # the next layer takes a multiple of Γ
                for j in range(wide):
                    line, to = memory.tiles[1, : wide * factor], memory.pooled[target, array, start + j * narrow :]
                    line[:] = 0
                    for l in range(j * factor, (j + 1) * factor):  # noqa: E741
                        row = stack[array, t, l * stride :]
                        for c in range(wide * factor):
                            line[c] += row[c]
                    for l in range(wide):  # noqa: E741
                        for c in range(l * factor, (l + 1) * factor):
                            to[l] += line[c]

    return fill, pool
