"""K-fold cross-validation of the penalty from the sums of the folds, without another pass over the data.

The training set of fold k is the total minus fold k, and the error on fold k is a quadratic form in its sums.
"""

import contextlib
import functools
import operator
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend, memory
from ntkdist.errors import DataError, NotPositiveDefinite, SpecError
from ntkdist.solvers import Solver, check_sums
from ntkdist.solvers.cv_result import CVResult
from ntkdist.solvers.grid import Grid
from ntkdist.sums import CrossSums, NormalEquations
from ntkdist.sums.rounding import Loss

F8 = NDArray[np.float64]

# "auto": per row and relative to the features' variance (trace of the centred Gram over its weight).
AUTO_GRID = tuple(float(10.0**e) for e in np.arange(-7, -0.5, 0.5))


def cross_validate(
    folds: Sequence[NormalEquations],
    solver: Solver,
    alphas: Sequence[float] | str = "auto",
    *,
    alphas_per_row: Sequence[float] | None = None,
    extend: bool = True,
    per_target: bool = False,
    scored: Sequence[int] | None = None,
    threads: int | None = None,
    originals: Mapping[int, NormalEquations] | None = None,
) -> CVResult:
    """Score every penalty by the error on each fold of the model of the others.

    Equals refitting K times, to rounding: for K folds, a penalties and m features at most K·a factorisations.  Several
    run at once, each on one thread, so that the result depends on no number of threads.

    Errors that are computed from sums round: in float32 by 1e-7 to 1e-5 of the targets' variance, their differences by
    less.  Of the penalties whose error is within rounding of the best, the largest is chosen.

    Parameters
    ----------
    folds : sequence of NormalEquations
        Sums over disjoint sets of rows, at least two.
    solver : Solver
    alphas : sequence of float, or "auto"
        Absolute penalties, the same number for every training set.  "auto" is a grid per row of half decades from
        1e-7 to 1e-1 of the features' variance; from 2,048 features on, first every second of them, then those beside
        the best, unless the solver gives the whole path at once.
    alphas_per_row : sequence of float, optional
        Penalties that are multiplied by Σ w of each training set, instead of ``alphas``.
    extend : bool
        Grow a grid of two or more while the best is at its edge and gains.
    per_target : bool
        Choose a penalty for every target instead of one for all.
    scored : sequence of int, optional
        The folds that are scored, all by default; the rows of the others are only trained on.
    threads : int, optional
        By default as many of the process's cores as have room for their work in half of the free memory.
    originals : mapping of int to NormalEquations, optional
        Sums that the error on a fold is computed from in place of those of the fold, which have copies of rows, too.
        They may have another total weight; the mean counts.

    Raises
    ------
    DataError
        If there are fewer than two folds or one has no weight.
    SpecError
        If both grids are given, a penalty is negative, or a scored fold does not exist.
    NotPositiveDefinite
        If no penalty of the grid could be solved, or the sums are not finite.
    """
    which = tuple(range(len(folds)) if scored is None else scored)
    if not which or not set(which) <= set(range(len(folds))):
        raise SpecError(f"scored folds are {list(which)}; expected one or more of 0 to {len(folds) - 1}")
    check_folds(folds, which)
    total = functools.reduce(operator.add, folds)
    check_sums(total)
    grid, per_row = penalties(total, alphas, alphas_per_row)
    held = [(originals or {}).get(k, folds[k]) for k in which]
    scores = _Scores(folds, which, total, solver, per_row, threads or _threads(solver, total.m), held)
    auto = alphas_per_row is None and isinstance(alphas, str)
    return scores.search(grid, auto and not solver.whole_path, extend, per_target)


def check_folds(folds: Sequence[NormalEquations | CrossSums], scored: Sequence[int] | None = None) -> None:
    """Refuse fewer than two folds with rows, or a scored fold without any."""
    needed = range(len(folds)) if scored is None else scored
    if sum(fold.weight > 0 for fold in folds) < 2 or any(folds[k].weight <= 0 for k in needed):
        each = [round(fold.weight, 6) for fold in folds]
        raise DataError(
            f"Cross-validation needs two or more folds with rows, got folds of weight {each}; lower folds, or give "
            "rows that are not all equal, as equal ones share a fold"
        )


def penalties(
    total: NormalEquations | CrossSums, alphas: Sequence[float] | str = "auto", per_row: Sequence[float] | None = None
) -> tuple[list[float], bool]:
    """Return the first grid, ascending, and whether it is per unit of weight; arguments as in `cross_validate`."""
    if per_row is not None and alphas != "auto":
        raise SpecError("both alphas and alphas_per_row are given; give one")
    if per_row is None and isinstance(alphas, str):
        if alphas != "auto":
            raise SpecError(f'alphas is {alphas!r}; expected "auto" or a list of numbers')
        scale = total.trace() / total.weight
        return [a * scale if scale > 0 else a for a in AUTO_GRID], True
    grid = sorted({float(a) for a in (alphas if per_row is None else per_row)})
    if not grid or not all(np.isfinite(a) and a >= 0 for a in grid):
        raise SpecError(f"alphas are {grid}; expected one or more finite numbers, none negative")
    return grid, per_row is not None


def _threads(solver: Solver, m: int) -> int:
    """Return the number of solvers, each with a training sum, that fit half of the free memory, at most the cores."""
    free = memory.free_memory_bytes()
    room = backend.cores() if free is None else free // (2 * (solver.work_bytes(m) + 8 * m**2))
    return max(1, min(backend.cores(), room))


class _Scores(Grid):
    """A grid whose errors are computed from the sums of the folds."""

    def __init__(
        self,
        folds: Sequence[NormalEquations],
        scored: tuple[int, ...],
        total: NormalEquations,
        solver: Solver,
        per_row: bool,
        threads: int,
        held: Sequence[NormalEquations],  # of each scored fold, what its error is computed from
    ) -> None:
        super().__init__(folds, scored, total, per_row)
        self.folds, self.equations, self.solver, self.threads = [folds[k] for k in scored], total, solver, threads
        self.held, self.precision = held, max(fold.rounding for fold in held)

    def add(self, grid: Sequence[float]) -> None:
        losses: list[list[Loss | None]] = [[None] * len(self.folds) for _ in grid]
        runs = 1 if self.solver.whole_path else -(-self.threads // len(self.folds))  # of a fold, to use all threads
        places = [(k, range(r, len(grid), runs)) for k in range(len(self.folds)) for r in range(min(runs, len(grid)))]

        def score(place: tuple[int, range]) -> None:
            k, some = place
            fold, held = self.folds[k], self.held[k]
            train = self.equations - fold
            scale = self.scale(train.weight)
            for i, coef, intercept in solve_some(self.solver, train, [grid[i] * scale for i in some]):
                losses[some[i]][k] = held.rounded_loss(coef, intercept).times(fold.weight / held.weight)

        backend.parallel_map(score, places, min(self.threads, len(places)))
        if not self.mse and not any(all(each) for each in losses):
            self.solver.solve(self.equations, [max(grid) * self.scale(self.equations.weight)])
            raise NotPositiveDefinite(
                f"No alpha up to {max(grid):g} could be solved in every fold; use larger alphas or float64"
            )
        for alpha, each in zip(grid, losses, strict=True):
            self.put(alpha, each)


def solve_some(solver: Solver, equations: NormalEquations, alphas: list[float]) -> list[tuple[int, F8, F8]]:
    """Return the solutions that exist, with their positions: penalties too small for the precision are left out."""
    try:
        return [(i, s.coef, s.intercept) for i, s in enumerate(solver.solve(equations, alphas))]
    except NotPositiveDefinite:
        solutions = []
        for i, alpha in enumerate(alphas):
            with contextlib.suppress(NotPositiveDefinite):
                (s,) = solver.solve(equations, [alpha])
                solutions.append((i, s.coef, s.intercept))
        return solutions
