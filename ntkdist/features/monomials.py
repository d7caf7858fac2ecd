"""Monomials of a row's values, which are exact features of a power of the cosine.

Legend: u unit rows (n, d); the monomials of degree j, u^α with |α| = j, are C(d + j − 1, j), in the order of
`itertools.combinations_with_replacement`.
"""

import math
from functools import cache
from itertools import combinations_with_replacement, groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist import gpu

F8 = NDArray[np.float64]


def count(d: int, j: int) -> int:
    """Count the monomials of degree j in d variables."""
    return math.comb(d + j - 1, j)


def root_multinomials(d: int, j: int) -> F8:
    """Return √(j!/Πα!) of each monomial of degree j: with these factors, two rows have the inner product ⟨u, u'⟩^j."""
    runs = (
        math.prod(math.factorial(len(list(run))) for _, run in groupby(variables))
        for variables in combinations_with_replacement(range(d), j)
    )
    return np.sqrt(math.factorial(j) / np.fromiter(runs, np.float64, count(d, j)))


@cache
def raised(d: int, j: int) -> tuple[NDArray[np.int64], F8]:
    """Return where u_i times each monomial of degree j − 1 is among those of degree j, and its exponent of u_i there.

    Both are (C(d + j − 2, j − 1), d).  So Σ c_α u^α has the derivative Σ_β c_{β+e_i} (β_i + 1) u^β by u_i.
    """
    place = {variables: k for k, variables in enumerate(combinations_with_replacement(range(d), j))}
    lower = list(combinations_with_replacement(range(d), j - 1))
    places = [[place[tuple(sorted((*variables, i)))] for i in range(d)] for variables in lower]
    exponents = [[variables.count(i) + 1.0 for i in range(d)] for variables in lower]
    return np.array(places), np.array(exponents)


def next_degree(u: NDArray[Any], last: NDArray[Any], j: int, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Compute monomials of degree j from those of degree j − 1: for each i, u_i times those in the variables ≥ i."""
    (n, d), xp = u.shape, gpu.array_module(u)
    if out is None:
        out = xp.empty((n, count(d, j)), u.dtype)
    at = 0
    for i in range(d):
        rest = last[:, last.shape[1] - count(d - i, j - 1) :]
        xp.multiply(u[:, i : i + 1], rest, out=out[:, at : at + rest.shape[1]])
        at += rest.shape[1]
    return out
