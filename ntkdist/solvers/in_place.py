"""Cholesky factorisation in the memory of the Gram itself, for one Gram that fits but has no room beside it.

The lower triangle keeps the Gram, the upper one takes the factor, penalty after penalty; the diagonal, which belongs to
both, is set aside.  The factorisation is left-looking, tile by tile on all threads of the task, so that its bits depend
on no number of threads, and no call of LAPACK meets more than a tile.

Legend: G (m, m) the Gram, of which the lower triangle is valid; s = Σ w z, z̄ = s/W; A = G − z̄sᵀ + alpha = UᵀU.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from scipy.linalg import solve_triangular
from scipy.linalg.blas import dtrsm

from ntkdist import backend
from ntkdist.backend import TILE
from ntkdist.solvers.base import F8, Sizes, Solution, Solver, Sums, check_sums, cholesky
from ntkdist.sums import NormalEquations

GROWTH = 3  # penalties that a grid grows by at once, at each end


class InPlaceCholesky(Solver, frozen=True):
    """One Cholesky factorisation per penalty in the memory of the Gram: for many features on one machine.

    A fit sums one Gram, in this process, without the last fold, or the rows held out; their error, of predictions,
    chooses the penalty; then they are added to the same Gram for the final factorisation.  So it takes 8m² bytes in
    all, where `Cholesky` takes as much for every fold and two more.  The "auto" grid is tried from every fourth penalty
    on: 8 factorisations, if it does not grow, and one for all rows.  It takes no cluster, and saves no equations that
    could be added or solved again.
    """

    sums: ClassVar[Sums] = "single"
    scores_one_fold: ClassVar[bool] = True

    def block_rows(self, m: int) -> int:
        return 2048  # of 4,096 and more, adding takes hardly less beside multiplying

    def columns(self, sizes: Sizes) -> int:
        """Return the columns that predictions are made by at once, at most: penalties and targets."""
        return (max(sizes.penalties, 2 * GROWTH) if sizes.penalties > 1 else 1) * sizes.t

    def worker_bytes(self, summing: dict[str, int], sizes: Sizes, workers: int, tasks_at_once: int) -> dict[str, int]:
        """Return the peak bytes of the process that sums and solves: of the one sum, not one for every shard."""
        batch = summing["batch"] // tasks_at_once
        return {"process": summing["process"], "map": summing["map"]} | self.driver_bytes(sizes) | {"batch": batch}

    def driver_bytes(self, sizes: Sizes) -> dict[str, int]:
        columns = self.columns(sizes)
        coefficients = sizes.m * columns * (8 + sizes.itemsize) + 6 * 8 * sizes.m * (sizes.t + 1)
        tiles = 3 * 8 * TILE**2 * sizes.threads
        return {"Gram": self.sum_bytes(sizes), "coefficients": coefficients + tiles}

    def work_bytes(self, m: int) -> int:
        return 3 * 8 * TILE**2

    def solve(self, equations: NormalEquations, alphas: Sequence[float]) -> list[Solution]:
        """Solve for every penalty, as `Solver.solve`; the Gram's upper triangle is overwritten, and mirrored anew."""
        check_sums(equations)
        mean, solutions = equations.z_sum / equations.weight, []
        rhs = equations.rhs - np.outer(mean, equations.y_sum)
        for alpha in alphas:
            coef = solve_lower(equations.lower, mean, equations.z_sum, rhs, alpha)
            intercept = (equations.y_sum - equations.z_sum @ coef) / equations.weight
            solutions.append(Solution(alpha, coef, intercept))
        return solutions

    def weights(self, gram: F8, rhs: F8, alphas: Sequence[float]) -> Iterator[F8]:
        zero = np.zeros(len(gram))
        return (solve_lower(gram, zero, zero, rhs, alpha) for alpha in alphas)


def solve_lower(gram: F8, mean: F8, z_sum: F8, rhs: F8, alpha: float) -> F8:
    """Solve (G − z̄sᵀ + alpha) x = b, (m, t), from G's lower triangle, which stays; the upper one is overwritten."""
    squares = gram.diagonal().copy()
    try:
        _factor(gram, squares, mean, z_sum, alpha)
        return _substitute(gram, rhs)
    finally:
        np.fill_diagonal(gram, squares)


def _factor(gram: F8, squares: F8, mean: F8, z_sum: F8, alpha: float) -> None:
    """Factor A = UᵀU into the upper triangle and the diagonal; ``squares`` is the diagonal of G."""
    m = len(gram)
    for j in range(0, m, TILE):
        b = slice(j, min(j + TILE, m))
        square = np.tril(gram[b, b], -1)
        square += square.T + np.diag(squares[b])
        square -= np.outer(mean[b], z_sum[b])
        square -= gram[:j, b].T @ gram[:j, b]
        lower = cholesky(square, alpha, "; use a larger alpha, or float64", j, m)
        gram[b, b] = np.tril(gram[b, b], -1) + lower.T

        def fill(i: int, b: slice = b, j: int = j, lower: F8 = lower) -> None:
            a = slice(i, min(i + TILE, m))
            rest = gram[a, b] - np.outer(z_sum[a], mean[b])
            rest -= gram[:j, a].T @ gram[:j, b]
            gram[b, a] = dtrsm(1.0, lower, rest.T, lower=1, overwrite_b=1)

        backend.parallel_for(fill, range(j + TILE, m, TILE))


def _substitute(gram: F8, rhs: F8) -> F8:
    """Solve UᵀU x = b, tile by tile, forwards and backwards."""
    m, x = len(gram), np.array(rhs)
    starts = range(0, m, TILE)
    for j in starts:
        b = slice(j, min(j + TILE, m))
        x[b] -= gram[:j, b].T @ x[:j]
        x[b] = solve_triangular(gram[b, b], x[b], trans=1, check_finite=False)
    for j in reversed(starts):
        b = slice(j, min(j + TILE, m))
        x[b] -= gram[b, b.stop :] @ x[b.stop :]
        x[b] = solve_triangular(gram[b, b], x[b], check_finite=False)
    return x
