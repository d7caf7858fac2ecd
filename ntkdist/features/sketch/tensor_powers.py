"""Sketches of the tensor powers of a row, for many degrees at once.

Legend: u rows (n, d); u^{⊗j} their tensor power, never formed; e the largest degree whose monomials are given; w the
columns of a state, a power of two.

Ahle et al., "Oblivious sketching of high-degree polynomial kernels", SODA 2020, sketch u^{⊗j} by a binary tree of
products of two sketches, for j a power of two; other powers cost the tree again, with e₁ in place of some leaves.
Here the tree is a chain, P_j = (S P_i) ⊙ (S_j u^{⊗r}) with j = i + r, r ≤ e and i a multiple of e, and S an SRHT that
mixes the columns of P_i.  Every power on the way is the sketch of its degree, at the cost of one more factor and one
more mixing.  As for the tree, the relative variance grows with the number of products, not exponentially in it.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse

from ntkdist import random
from ntkdist.features.sketch.buckets import draw_osnap, osnap
from ntkdist.features.sketch.hadamard import DENSE, draw_srht, mix, next_power, srht, srht_values

F8 = NDArray[np.float64]
Powers = Sequence[NDArray[Any] | csr_array]  # u, and the monomials of degree 2 … e
WIDE = 1024  # longer rows are hashed before they are mixed, at a cost in proportion to their non-zeros
LEFT, RIGHT, MIX = range(100, 103)  # roles of the random streams; the layer is the degree


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


def draw_factor(
    d: int, m: int, seed: int, layer: int, role: int, scale: float | F8, hashed: bool
) -> dict[str, NDArray[Any]]:
    """Draw a factor of products: an SRHT of ``scale`` ⊙ x, or a CountSketch that H then mixes."""
    if not hashed:
        return draw_srht(d, m, seed, layer, role, scale)
    assert isinstance(scale, float)
    return draw_osnap(d, next_power(m), seed, layer, role, scale / math.sqrt(m))


def factor(s: dict[str, NDArray[Any]], x: NDArray[Any] | csr_array, m: int) -> NDArray[Any]:
    """Compute the factor (n, m) of rows x."""
    if "bucket" not in s:
        return srht(s, x)
    return mix(osnap(s, x if issparse(x) else csr_array(x), next_power(m)))[:, :m]


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


def poly_sketch(s: dict[str, Any], powers: Powers, chain: Sequence[Step], w: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield each degree j of a chain with its columns P: E⟨P, P'⟩ = (columns/w)·⟨u, u'⟩^j.

    The caller may overwrite a sketch after reading it, but has to read it before the next is made.
    """
    e = len(powers)
    left, state, at = factor(s["left"], powers[-1], w), None, e
    for j, r, columns in chain:
        if j - r != at:
            assert state is not None
            left, at = mix(state * s[f"mix{at + e}"]), at + e
        p = factor(s[f"right{j}"], powers[r - 1], columns)
        p *= left[:, :columns]
        if j % e == 0:
            state = p
        yield j, p
