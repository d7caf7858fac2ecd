"""Element-wise loops, compiled to one pass over memory where NumPy would need thirty.

The loops release the interpreter lock, so that a task's threads run them in parallel.  They are compiled at first use,
once per process; nothing is written to disk, and importing this module costs nothing.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist import gpu

HALF = 7  # coefficients of an even or odd part, at most: one compilation serves every polynomial up to degree 13
ZONAL_HALF = 12  # coefficients likewise in `zonal`: longer loops are not unrolled, and many times slower
CLOSE = {4: 1e-2, 8: 1e-3}  # by item size: below, 1 − |cosine| is computed from the difference of the rows


def even_odd(
    out: NDArray[Any],
    first: int,
    even: NDArray[Any],
    odd: NDArray[Any],
    shift: float,
    reach: float,
    scale: NDArray[Any],
) -> None:
    """Replace t in the columns of ``out`` from ``first`` on by scale·(even(t² − shift) + t·odd(t² − shift)).

    t is first clipped to ±reach.  ``out`` (n, m) is contiguous, ``scale`` (n,) of its dtype; ``even`` and ``odd`` are
    coefficients (≤ HALF,), lowest degree first.
    """
    if gpu.array_module(out) is not np:
        out[:, first:] = _even_odd_by_arrays(out[:, first:], even, odd, shift, reach, scale)
        return
    number = out.dtype.type
    coefficients = (tuple(np.pad(c, (0, HALF - len(c))).astype(out.dtype)) for c in (even, odd))
    _loops()[0](out, first, *coefficients, number(shift), number(reach), scale)


def zonal(t: NDArray[Any], u: NDArray[Any], v: NDArray[Any], near: NDArray[Any], far: NDArray[Any]) -> None:
    """Replace cosines t of unit rows by a function of the angle, in place: near(a) where t > 0, far(a) elsewhere.

    a = √((1 − |t|)/2) is half the distance of u and v, or of u and −v: the sine of half the angle, in which the
    arc-cosine kernels are smooth.  For rows that are nearly (anti)parallel it is computed from their difference.

    ``t`` (n, m), ``u`` (n, d) and ``v`` (m, d) are contiguous and of one dtype; ``near`` and ``far`` are coefficients
    (≤ 2·ZONAL_HALF,) of powers of a, lowest degree first.
    """
    if gpu.array_module(t) is not np:
        _zonal_by_arrays(t, u, v, near, far)
        return
    _loops()[1](t, u, v, t.dtype.type(1 - CLOSE[t.itemsize]), t.dtype.type(0.5), *_parts(near, far, t.dtype))


def zonal_slopes(
    t: NDArray[Any], u: NDArray[Any], v: NDArray[Any], near: NDArray[Any], far: NDArray[Any], steepest: float
) -> NDArray[Any]:
    """Do as `zonal`, on the host only, and return the derivative of that function by the cosine, (n, m).

    It is −near'(a)/(4a) or far'(a)/(4a), which grows without bound as a falls, where odd powers leave a quotient by a;
    what is not below ``steepest`` is replaced by 0.
    """
    slopes, number = np.empty_like(t), t.dtype.type
    limits = number(1 - CLOSE[t.itemsize]), number(0.5), number(steepest)
    _loops()[2](t, u, v, slopes, *limits, *_parts(near, far, t.dtype))
    return slopes


def product_laplace(u: NDArray[Any], v: NDArray[Any], lengthscale: float) -> NDArray[Any]:
    """Compute exp(−Σ_c |u_c − v_c|/lengthscale) of the rows u (n, d) and v (m, d), (n, m), in u's dtype."""
    out = np.zeros((len(u), len(v)), u.dtype)
    _city_loops()[0](u, np.ascontiguousarray(v.T, u.dtype), out)
    out *= -1 / lengthscale
    return np.exp(out, out=out)


def product_laplace_gradients(
    u: NDArray[Any], v: NDArray[Any], k: NDArray[Any], weights: NDArray[Any], lengthscale: float
) -> NDArray[Any]:
    """Compute the gradients (n, t, d) of Σ_j k(u, v_j) weights_j by u; k (n, m) is `product_laplace`, weights (m, t).

    Where a coordinate of u is that of v_j, the term has no part in the derivative by it: a mean of both sides.
    """
    out = np.empty((len(u), weights.shape[1], u.shape[1]), u.dtype)
    scaled = np.ascontiguousarray(weights.T / -lengthscale, u.dtype)
    _city_loops()[1](u, np.ascontiguousarray(v.T, u.dtype), k, scaled, out)
    return out


def _parts(near: NDArray[Any], far: NDArray[Any], dtype: np.dtype[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the even and the odd coefficients of both, as tuples of one length."""
    for c in (near, far):
        for part in (c[0::2], c[1::2]):
            yield tuple(np.pad(part, (0, ZONAL_HALF - len(part))).astype(dtype))


def _even_odd_by_arrays(t: Any, even: Any, odd: Any, shift: Any, reach: Any, scale: Any) -> Any:
    """Compute `even_odd` on a GPU, by array operations; return the values."""
    t = gpu.array_module(t).clip(t, -reach, reach)
    s = t * t
    s -= shift
    t *= _polynomial(s, odd)
    t += _polynomial(s, even)
    t *= scale[:, None]
    return t


def _zonal_by_arrays(t: Any, u: Any, v: Any, near: Any, far: Any) -> None:
    """Compute `zonal` on a GPU, by array operations."""
    xp = gpu.array_module(t)
    positive = t > 0
    xp.abs(t, out=t)
    close = xp.nonzero(t > 1 - CLOSE[t.itemsize])
    t *= -0.5
    t += 0.5
    xp.maximum(t, 0, out=t)
    _refine(t, positive, u, v, *close)
    del close
    a = xp.sqrt(t)
    values = [_polynomial(t, c[1::2]) for c in (near, far)]
    for value, c in zip(values, (near, far), strict=True):
        value *= a
        value += _polynomial(t, c[0::2])
    t[:] = xp.where(positive, *values)


def _refine(b: Any, positive: Any, u: Any, v: Any, i: Any, j: Any) -> None:
    """Write the squares of half the distances of the pairs (i, j) to b, in pieces of at most b's size."""
    xp, pairs = gpu.array_module(b), max(len(b), b.size // u.shape[1])
    for at in range(0, len(i), pairs):
        k, l = i[at : at + pairs], j[at : at + pairs]  # noqa: E741
        apart = v[l]
        apart *= xp.where(positive[k, l], 1, -1).astype(b.dtype)[:, None]
        apart -= u[k]
        b[k, l] = gpu.squared_norms(apart) / 4


def zonal_bytes(m: int, d: int, size: int) -> int:
    """Count the bytes per row that `_zonal_by_arrays` allocates if all pairs of rows are close.

    Signs; then indices of close pairs and two differences for a piece of them, or roots, values and one temporary.
    """
    pairs = -(-m // d)
    return m + max(16 * m + pairs * (2 * size * d + 32), 4 * size * m)


def _polynomial(s: Any, c: Any) -> Any:
    """Evaluate Σ c_k s^k by Horner's rule."""
    out = gpu.array_module(s).zeros_like(s)
    for k in range(len(c) - 1, -1, -1):
        out *= s
        out += c[k]
    return out


@functools.cache
def _loops() -> tuple[Any, ...]:
    import numba

    # Only contraction of a·b + c and the sign of zero are relaxed: NaN and infinity keep their meaning.
    compiled = numba.njit(nogil=True, fastmath={"contract", "nsz"}, error_model="numpy")

    @compiled
    def even_odd(out, first, even, odd, shift, reach, scale):  # type: ignore[no-untyped-def]
        for i in range(out.shape[0]):
            r, row = scale[i], out[i][first:]  # numba infers that this slice is contiguous, which SIMD needs
            for j in range(row.shape[0]):
                t = row[j]
                t = reach if t > reach else t
                t = -reach if t < -reach else t
                s = t * t - shift
                a, b = even[-1], odd[-1]
                for k in range(len(even) - 2, -1, -1):
                    a = a * s + even[k]
                for k in range(len(odd) - 2, -1, -1):
                    b = b * s + odd[k]
                row[j] = (a + t * b) * r

    @numba.njit(nogil=True, fastmath={"contract", "nsz"}, error_model="numpy", inline="always")
    def value(positive, b, ne, no, fe, fo):  # type: ignore[no-untyped-def]
        even = ne[-1] if positive else fe[-1]
        for k in range(len(ne) - 2, -1, -1):
            even = even * b + (ne[k] if positive else fe[k])
        odd = no[-1] if positive else fo[-1]
        for k in range(len(no) - 2, -1, -1):
            odd = odd * b + (no[k] if positive else fo[k])
        return even + np.sqrt(b) * odd

    @numba.njit(nogil=True, fastmath={"contract", "nsz"}, error_model="numpy", inline="always")
    def apart(u, v, i, j, positive, half):  # type: ignore[no-untyped-def]
        b = half - half
        for c in range(u.shape[1]):
            gap = u[i, c] - v[j, c] if positive else u[i, c] + v[j, c]
            b += gap * gap
        return half * half * b

    @compiled
    def zonal(t, u, v, close, half, ne, no, fe, fo):  # type: ignore[no-untyped-def]
        for i in range(t.shape[0]):
            row, count = t[i], 0
            for j in range(row.shape[0]):
                count += abs(row[j]) > close
            at, refined = np.empty(count, np.int64), np.empty(count, t.dtype)
            if count:
                k = 0
                for j in range(row.shape[0]):
                    if abs(row[j]) > close:
                        b = apart(u, v, i, j, row[j] > 0, half)
                        at[k], refined[k] = j, value(row[j] > 0, b, ne, no, fe, fo)
                        k += 1
            for j in range(row.shape[0]):
                row[j] = value(row[j] > 0, max(half - half * abs(row[j]), half - half), ne, no, fe, fo)
            for k in range(count):
                row[at[k]] = refined[k]

    @compiled
    def zonal_slopes(t, u, v, slopes, close, half, steepest, ne, no, fe, fo):  # type: ignore[no-untyped-def]
        squares = np.empty(t.shape[1], t.dtype)
        for i in range(t.shape[0]):
            row, slope, count = t[i], slopes[i], 0
            for j in range(row.shape[0]):
                squares[j] = max(half - half * abs(row[j]), half - half)
                count += abs(row[j]) > close
            if count:
                for j in range(row.shape[0]):
                    if abs(row[j]) > close:
                        squares[j] = apart(u, v, i, j, row[j] > 0, half)
            for j in range(row.shape[0]):  # Horner's rule for both parts and for their derivatives by b = a²
                positive, b = row[j] > 0, squares[j]
                even, by_even = ne[-1] if positive else fe[-1], half - half
                for k in range(len(ne) - 2, -1, -1):
                    by_even = by_even * b + even
                    even = even * b + (ne[k] if positive else fe[k])
                odd, by_odd = no[-1] if positive else fo[-1], half - half
                for k in range(len(no) - 2, -1, -1):
                    by_odd = by_odd * b + odd
                    odd = odd * b + (no[k] if positive else fo[k])
                a = np.sqrt(b)
                by_cosine = half * (by_even + a * by_odd + half * odd / a)
                row[j] = even + a * odd
                slope[j] = (-by_cosine if positive else by_cosine) if abs(by_cosine) < steepest else half - half

    return even_odd, zonal, zonal_slopes


@functools.cache
def _city_loops() -> tuple[Any, ...]:
    import numba

    compiled = numba.njit(nogil=True, fastmath={"contract", "nsz", "reassoc"}, error_model="numpy")

    @compiled
    def distances(u, vt, out):  # type: ignore[no-untyped-def]
        for i in range(u.shape[0]):
            row = out[i]
            for c in range(u.shape[1]):
                x, column = u[i, c], vt[c]
                for j in range(column.shape[0]):
                    row[j] += abs(x - column[j])

    @compiled
    def gradients(u, vt, k, weights, out):  # type: ignore[no-untyped-def]
        for i in range(u.shape[0]):
            row = k[i]
            for t in range(weights.shape[0]):
                weighted = row * weights[t]
                for c in range(u.shape[1]):
                    x, column, total = u[i, c], vt[c], u[i, c] - u[i, c]
                    for j in range(column.shape[0]):
                        total += weighted[j] * ((x > column[j]) - (x < column[j]))
                    out[i, t, c] = total

    return distances, gradients
