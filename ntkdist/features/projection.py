"""The span of a map's features at sample rows: the method of Nyström for a kernel that is given by its features.

Legend: Ψ (k, M) features at k ≤ m rows; ΨΨᵀ + δI = UᵀU; P = Ψᵀ U⁻¹ (M, m), the last columns zero if k < m.  Then ψP
has the kernel ψΨᵀ(ΨΨᵀ + δI)⁻¹Ψψᵀ, which is ψψᵀ for the rows themselves, but for δ.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from ntkdist import backend

RIDGE = 1e-6  # δ in units of the mean of ‖ψ‖²: the rounding of float32 features
COLUMNS = 4096  # of Ψ that are multiplied at a time


def span(psi: NDArray[Any], m: int) -> NDArray[np.float32]:
    """Compute P from Ψ (k, M), the same bits on any number of threads."""
    k, wide = psi.shape
    gram = np.zeros((k, k))
    for start in range(0, wide, COLUMNS):
        block = np.ascontiguousarray(psi[:, start : start + COLUMNS].T)
        backend.add_products(gram, np.zeros((k, 0)), block, np.zeros((len(block), 0), block.dtype))
    gram.flat[:: k + 1] += RIDGE * (gram.trace() / max(k, 1) or 1.0)
    with backend.one_thread():
        upper = cholesky(gram.T, overwrite_a=True, check_finite=False) if k else gram
    projection = np.zeros((wide, m), np.float32)

    def solve(start: int) -> None:
        columns = slice(start, start + backend.TILE)
        solved = solve_triangular(upper, psi[:, columns].astype(np.float64), trans="T", check_finite=False)
        projection[columns, :k] = solved.T

    backend.parallel_for(solve, range(0, wide, backend.TILE) if k else ())
    return projection
