"""Oblivious sketches: short vectors whose inner products are those of long ones, in expectation.

Legend: n rows, d, p and q input dimensions, m output columns; w a power of two; H the Hadamard matrix of Sylvester,
H_2w = [[H, H], [H, −H]], entries ±1.

As H_w = H_a ⊗ H_b, a row of w = a·b values is transformed by two products with small matrices.  These have w(a + b)
multiplications where butterflies have w log w additions, and take a tenth of the time: BLAS works in the cache, and
butterflies in NumPy do not.

Tensor powers u^{⊗j} of rows u (n, d), never formed: Ahle et al., "Oblivious sketching of high-degree polynomial
kernels", SODA 2020, sketch them by a binary tree of products of two sketches, for j a power of two; other powers cost
the tree again, with e₁ in place of some leaves.  Here the tree is a chain, P_j = (S P_i) ⊙ (S_j u^{⊗r}) with j = i + r,
r ≤ e and i a multiple of e, e the largest degree whose monomials are given, and S an SRHT that mixes the w columns of
P_i.  Every power on the way is the sketch of its degree, at the cost of one more factor and one more mixing.  As for
the tree, the relative variance grows with the number of products, not exponentially in it.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy import fft
from scipy.sparse import csr_array, issparse

from ntkdist import gpu, random

F8 = NDArray[np.float64]
Drawn = dict[str, NDArray[Any]]  # the arrays of a sketch
Factors = tuple[NDArray[Any], NDArray[Any]]  # S P_i and S_j u^{⊗r}, whose product is P_j
Slopes = Sequence[NDArray[Any]]  # gradients by u, and by the monomials of degree 2 … e
Powers = Sequence[NDArray[Any] | csr_array]  # u, and the monomials of degree 2 … e
DENSE = 128  # up to this power of two, an SRHT is one product with its own matrix
WIDE = 1024  # longer rows are hashed before they are mixed, at a cost in proportion to their non-zeros
LEFT, RIGHT, MIX = range(100, 103)  # roles of the random streams; the layer is the degree


# By hashing to buckets.


def draw_count_sketch(d: int, m: int, seed: int, layer: int, role: int) -> Drawn:
    """Draw a CountSketch R^d → R^m: every coordinate is added to one bucket, with a random sign.

    Charikar, Chen, Farach-Colton, 2002.  Returned as ``order`` (coordinates sorted by bucket), ``starts``
    (the first of each bucket that is not empty), ``buckets`` (which those are) and ``signs`` in that order.
    """
    bucket = random.integers(m, d, seed, layer, role, 0)
    order = np.argsort(bucket, kind="stable")
    buckets, starts = np.unique(bucket[order], return_index=True)
    return {"order": order, "starts": starts, "buckets": buckets, "signs": random.signs(d, seed, layer, role, 1)[order]}


def count_sketch(s: Drawn, x: NDArray[Any], m: int) -> NDArray[Any]:
    """Sketch rows x (n, d) to (n, m)."""
    out = np.zeros((len(x), m), x.dtype)
    out[:, s["buckets"]] = np.add.reduceat(x[:, s["order"]] * s["signs"], s["starts"], axis=1)
    return out


def tensor_sketch(s: Drawn, x: NDArray[Any], t: Drawn, y: NDArray[Any], m: int) -> NDArray[Any]:
    """Sketch the rows x ⊗ y, never formed, to (n, m): the circular convolution of two CountSketches.

    Unbiased: the expected inner product of two outputs is ⟨x, x'⟩⟨y, y'⟩.  Pham, Pagh, KDD 2013.
    """
    f = fft.rfft(count_sketch(s, x, m), axis=1)
    f *= fft.rfft(count_sketch(t, y, m), axis=1)
    out: NDArray[Any] = fft.irfft(f, m, axis=1)
    return out


def tensor_sketch_bytes(p: int, q: int, m: int, itemsize: int) -> int:
    """Count the peak bytes that `tensor_sketch` of p- and q-dimensional rows allocates for one row."""
    return itemsize * (2 * max(p, q) + 5 * m)


def draw_buckets(d: int, m: int, seed: int, layer: int, role: int, scale: float = 1.0) -> Drawn:
    """Draw a CountSketch R^d → R^m of ``scale`` · x for sparse rows, by coordinate: its bucket and its sign."""
    bucket = random.integers(m, d, seed, layer, role, 0)
    return {"bucket": bucket.astype(np.int32), "sign": random.signs(d, seed, layer, role, 1) * scale}


def sparse_count_sketch(s: Drawn, x: csr_array, m: int) -> NDArray[Any]:
    """Sketch sparse rows x (n, d) to (n, m), at a cost in proportion to their non-zeros."""
    moved = csr_array((x.data * s["sign"][x.indices], s["bucket"][x.indices], x.indptr), (x.shape[0], m))
    out: NDArray[Any] = moved.toarray()  # adds the values that share a bucket
    return out


def count_sketch_transposed(s: Drawn, y: NDArray[Any]) -> NDArray[Any]:
    """Multiply rows y (n, m) by the transposed sketch of `draw_buckets`, to (n, d)."""
    out: NDArray[Any] = y[:, s["bucket"]]
    out *= s["sign"]
    return out


# By Hadamard matrices.


def next_power(d: int) -> int:
    """Return the least power of two that is at least d."""
    return 1 << max(0, d - 1).bit_length()


@cache
def hadamard(w: int, dtype: str = "float64") -> NDArray[Any]:
    """Return H_w for a power of two w."""
    h: NDArray[Any] = scipy.linalg.hadamard(w, dtype)
    h.flags.writeable = False
    return h


def mix(x: NDArray[Any]) -> NDArray[Any]:
    """Compute x H along the last axis, whose length is a power of two."""
    w, xp = x.shape[-1], gpu.array_module(x)
    b = 1 << (w.bit_length() // 2)
    left, right = (gpu.constant(xp, hadamard, width, x.dtype.name) for width in (w // b, b))
    y = (xp.ascontiguousarray(x).reshape(-1, b) @ right).reshape(-1, w // b, b)
    return xp.matmul(left, y).reshape(x.shape)


def draw_srht(d: int, m: int, seed: int, layer: int, role: int, scale: float | F8 = 1.0) -> Drawn:
    """Draw a subsampled randomised Hadamard transform R^d → R^m of ``scale`` ⊙ x: signs, then some of the rows of H.

    Rows are drawn without replacement, in random order; where m > w, from ⌈m/w⌉ independent transforms.  Ailon,
    Chazelle, STOC 2006; Tropp, 2011.  Returned as its dense ``matrix`` where d is small, as one product is then the
    fastest, else as ``signs`` (transforms, d), which carry the scale, and ``rows``.
    """
    w = next_power(d)
    count = -(-m // w)
    signs = random.signs(count * d, seed, layer, role, 0).reshape(count, d) * (scale / math.sqrt(m))
    order = np.argsort(random.uniforms(count * w, seed, layer, role, 1).reshape(count, w), axis=1)
    if w > DENSE:
        return {"signs": signs, "rows": (order + w * np.arange(count)[:, None]).ravel()[:m]}
    columns = [s[:, None] * hadamard(w)[:d, o] for s, o in zip(signs, order, strict=True)]
    return {"matrix": np.ascontiguousarray(np.concatenate(columns, axis=1)[:, :m])}


def srht(s: Drawn, x: NDArray[Any]) -> NDArray[Any]:
    """Transform rows x (n, d) to (n, m)."""
    if "matrix" in s:
        return x @ s["matrix"]
    (count, d), n, xp = s["signs"].shape, len(x), gpu.array_module(x)
    wide = xp.zeros((n, count, next_power(d)), x.dtype)
    xp.multiply(x[:, None], s["signs"], out=wide[:, :, :d])
    return xp.take(mix(wide).reshape(n, -1), s["rows"], axis=1)


def srht_transposed(s: Drawn, y: NDArray[Any], d: int) -> NDArray[Any]:
    """Multiply rows y (n, m) by the transposed transform, to (n, d)."""
    if "matrix" in s:
        return y @ s["matrix"].T
    count, w = len(s["signs"]), next_power(d)
    wide = np.zeros((len(y), count * w), y.dtype)
    wide[:, s["rows"]] = y
    mixed = mix(wide.reshape(-1, count, w))[:, :, :d]
    mixed *= s["signs"]
    out: NDArray[Any] = mixed.sum(axis=1)
    return out


def srht_values(d: int, m: int) -> int:
    """Count the numbers that `srht` holds for one row at its peak, its result included."""
    w = next_power(d)
    return m if w <= DENSE else m + 3 * w * -(-m // w)


# Of tensor powers, for many degrees at once.


class Step(NamedTuple):
    """One product of the chain: P_j from P_{j−r} and u^{⊗r}, with its number of columns."""

    j: int
    r: int
    columns: int


def steps(e: int, columns: dict[int, int], w: int) -> list[Step]:
    """List the products that lead to the wanted degrees, in order; those that others start from have all w columns."""
    last = (max(columns) - 1) // e * e
    wanted = sorted(columns.keys() | set(range(2 * e, last + 1, e)))
    return [Step(j, (j - 1) % e + 1, w if j % e == 0 and j <= last else columns[j]) for j in wanted]


def draw_factor(d: int, m: int, seed: int, layer: int, role: int, scale: float | F8, hashed: bool) -> Drawn:
    """Draw a factor of products: an SRHT of ``scale`` ⊙ x, or a CountSketch that H then mixes."""
    if not hashed:
        return draw_srht(d, m, seed, layer, role, scale)
    assert isinstance(scale, float)
    return draw_buckets(d, next_power(m), seed, layer, role, scale / math.sqrt(m))


def factor(s: Drawn, x: NDArray[Any] | csr_array, m: int) -> NDArray[Any]:
    """Compute the factor (n, m) of rows x."""
    if "bucket" not in s:
        return srht(s, x)
    return mix(sparse_count_sketch(s, x if issparse(x) else csr_array(x), next_power(m)))[:, :m]


def factor_transposed(s: Drawn, y: NDArray[Any], d: int) -> NDArray[Any]:
    """Multiply rows y (n, m) by the transposed factor, to (n, d)."""
    if "bucket" not in s:
        return srht_transposed(s, y, d)
    wide = np.zeros((len(y), next_power(y.shape[1])), y.dtype)
    wide[:, : y.shape[1]] = y
    return count_sketch_transposed(s, mix(wide))


def factor_values(d: int, m: int, hashed: bool) -> int:
    """Count the numbers that `factor` holds for one row at its peak, with its result, without a sparse row's values."""
    return 3 * next_power(m) if hashed else srht_values(d, m)


def drawn_values(d: int, m: int, hashed: bool = False) -> int:
    """Count the numbers that are drawn for a factor."""
    if hashed:
        return 2 * d
    w = next_power(d)
    return d * m if w <= DENSE else -(-m // w) * (d + 2 * w) + m


def draw_poly(
    dims: Sequence[int], scales: Sequence[float | F8], chain: Sequence[Step], w: int, seed: int
) -> dict[str, Any]:
    """Draw the factors of a chain, for powers of lengths ``dims``, multiplied by ``scales`` before they are mixed."""
    e, hashed = len(dims), dims[0] > WIDE
    s: dict[str, Any] = {"left": draw_factor(dims[-1], w, seed, e, LEFT, scales[-1], hashed)}
    for j, r, columns in chain:
        # The factors of a product have columns of size 1/√w and 1, so that the product is of the size of S P_i.
        s[f"right{j}"] = draw_factor(dims[r - 1], columns, seed, j, RIGHT, scales[r - 1] * math.sqrt(columns), hashed)
        if j % e == 0 and j < chain[-1].j:
            s[f"mix{j}"] = random.signs(w, seed, j, MIX) / math.sqrt(w)
    return s


def poly_sketch(
    s: dict[str, Any], powers: Powers, chain: Sequence[Step], w: int, kept: list[Factors] | None = None
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield each degree j of a chain with its columns P: E⟨P, P'⟩ = (columns/w)·⟨u, u'⟩^j.

    The caller may overwrite a sketch after reading it, but has to read it before the next is made.  The factors of all
    products are appended to ``kept``.
    """
    e = len(powers)
    left, state, at = factor(s["left"], powers[-1], w), None, e
    for j, r, columns in chain:
        if j - r != at:
            assert state is not None
            left, at = mix(state * s[f"mix{at + e}"]), at + e
        p = factor(s[f"right{j}"], powers[r - 1], columns)
        if kept is not None:
            kept.append((left[:, :columns], p.copy()))
        p *= left[:, :columns]
        if j % e == 0:
            state = p
        yield j, p


def poly_pull_back(
    s: dict[str, Any],
    factors: Sequence[Factors],
    chain: Sequence[Step],
    w: int,
    weights: dict[int, NDArray[Any]],
    out: Slopes,
) -> None:
    """Add the gradients of Σ_j ⟨weights_j, P_j⟩ by the powers to ``out``, one array (n, N_r) for each power.

    ``factors`` are those that `poly_sketch` has kept.  The chain is run backwards: the gradients by P_j give those by
    both of its factors, and those by all that start from P_i give that by P_i.
    """
    e, by_state = len(out), None
    by_left = np.zeros((len(out[0]), w), out[0].dtype)
    for k, ((j, r, columns), (left, right)) in reversed(list(enumerate(zip(chain, factors, strict=True)))):
        by_p = np.zeros_like(right) if by_state is None or j % e else by_state
        if j in weights:
            by_p[:, : len(weights[j])] += weights[j]
        out[r - 1] += factor_transposed(s[f"right{j}"], by_p * left, out[r - 1].shape[1])
        by_left[:, :columns] += by_p * right
        if k and chain[k - 1].j - chain[k - 1].r != j - r:
            by_state = mix(by_left) * s[f"mix{j - r}"]
            by_left[:] = 0
    out[-1] += factor_transposed(s["left"], by_left, out[-1].shape[1])
