"""Choosing the penalty: K-fold cross-validation from the sums of the folds, without another pass over the data.

The training set of fold k is the total minus fold k, and the error on fold k is a quadratic form in its sums.
"""

import abc
import functools
import operator
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend, memory
from ntkdist.errors import DataError, NotPositiveDefinite, SpecError
from ntkdist.solvers import Solver, check_sums
from ntkdist.solvers.cv_result import CVResult, over_folds
from ntkdist.sums import CrossSums, NormalEquations
from ntkdist.sums.equations import SKETCH, Loss, apart, evaluating

F8 = NDArray[np.float64]

# "auto": per row and relative to the features' variance (trace of the centred Gram over its weight).
AUTO_GRID = tuple(float(10.0**e) for e in np.arange(-7, -0.5, 0.5))
EXTENSIONS = 6  # times that a grid may grow
THIN = 2048  # features from which every second penalty of the "auto" grid is tried first
FLAT = 1e-3  # relative gain below which growing it towards zero is pointless
SINGLE = 1e-10  # relative rounding of sums above which they are of float32


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
) -> CVResult:
    """Score every penalty by the error on each fold of the model of the others.

    Equals refitting K times, to rounding: for K folds, a penalties and m features at most K·a factorisations.  Several
    run at once, each on one thread, so that the result depends on no number of threads.

    An error that is read off sums is known to a rounding only, in float32 1e-7 to 1e-5 of the targets' variance, and
    the difference of two to less: of the penalties that rounding cannot tell from the best, the largest is chosen.

    Parameters
    ----------
    folds : sequence of NormalEquations
        Sums over disjoint sets of rows, at least two.
    solver : Solver
    alphas : sequence of float, or "auto"
        Absolute penalties, the same number for every training set.  "auto" is a grid per row of half decades from
        1e-7 to 1e-1 of the features' variance; from 2,048 features on, every second of them, then those beside the
        best, unless the solver gives the whole path at once.
    alphas_per_row : sequence of float, optional
        Penalties to be multiplied by Σ w of the training set at hand, instead of ``alphas``.
    extend : bool
        Grow a grid of two or more while the best is at its edge and gains.
    per_target : bool
        Choose a penalty for every target instead of one for all.
    scored : sequence of int, optional
        The folds that are scored, all by default; the rows of the others are only learnt from.
    threads : int, optional
        By default the process's cores, as far as what the solver works on fits half of the free memory.

    Raises
    ------
    DataError
        If there are fewer than two folds or one has no weight.
    SpecError
        If both grids are given, a penalty is negative, or a fold is scored that there is not.
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
    scores = _Scores(folds, which, total, solver, per_row, threads or _threads(solver, total.m))
    auto = alphas_per_row is None and isinstance(alphas, str)
    return scores.search(grid, auto and not solver.whole_path, extend, per_target)


def check_folds(folds: Sequence[NormalEquations | CrossSums], scored: Sequence[int] | None = None) -> None:
    """Refuse what cannot be cross-validated."""
    needed = range(len(folds)) if scored is None else scored
    if sum(fold.weight > 0 for fold in folds) < 2 or any(folds[k].weight <= 0 for k in needed):
        found = [round(fold.weight, 6) for fold in folds]
        raise DataError(f"Cross-validation needs two or more folds with rows, got folds of weight {found}; lower folds")


def penalties(
    total: NormalEquations | CrossSums, alphas: Sequence[float] | str = "auto", per_row: Sequence[float] | None = None
) -> tuple[list[float], bool]:
    """The grid to start from, ascending, and whether it is per unit of weight; arguments as in `cross_validate`."""
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
    free = memory.free_memory_bytes()
    room = backend.cores() if free is None else free // (2 * (solver.work_bytes(m) + 8 * m**2))  # the training sum too
    return max(1, min(backend.cores(), room))


class Grid(abc.ABC):
    """The penalties so far, with the error of each on each fold; where errors come from is for others to say.

    Parameters
    ----------
    folds : sequence of NormalEquations or CrossSums
    scored : tuple of int
        Those of the folds whose errors count.
    total : NormalEquations or CrossSums
        The sum of all folds.
    per_row : bool
        Whether penalties are per unit of weight.
    """

    def __init__(
        self,
        folds: Sequence[NormalEquations | CrossSums],
        scored: tuple[int, ...],
        total: NormalEquations | CrossSums,
        per_row: bool,
    ) -> None:
        self.count, self.scored, self.weights = len(folds), scored, [folds[k].weight for k in scored]
        self.total, self.per_row = total, per_row
        self.mse: dict[float, F8] = {}
        self.rounding: dict[float, F8] = {}
        self.sketch: dict[float, F8] = {}
        self.precision = 0.0  # relative rounding of the sums that errors are read off

    @abc.abstractmethod
    def add(self, grid: Sequence[float]) -> None:
        """Score more penalties: put their errors (k, t) into ``mse``, and if they are of sums, into ``rounding``."""

    def put(self, alpha: float, losses: Sequence[Loss | None]) -> None:
        """Take a penalty's loss on each scored fold, as sums know it; none where it was not solved."""
        t = self.total.t
        nothing = Loss(np.full(t, np.inf), np.full(t, np.nan), np.full((SKETCH, t), np.nan))
        value, rounding, sketch = map(np.stack, zip(*(each or nothing for each in losses), strict=True))
        weights = np.array(self.weights)
        self.mse[alpha], self.rounding[alpha] = value / weights[:, None], rounding / weights[:, None]
        self.sketch[alpha] = sketch / np.sqrt(weights)[:, None, None]

    def search(self, grid: Sequence[float], thin: bool, extend: bool, per_target: bool) -> CVResult:
        """Score a grid, thinly at first if there are many features, and beyond its edge while that gains."""
        if thin and self.total.m >= THIN:
            self.add(grid[::2])
            # The choice of the whole grid if it has one dip.
            found = self.result(per_target)
            tried = np.concatenate(self.choice(found, per_target)).tolist()
            beside = {2 * i + step for i in tried for step in (-1, 1)}
            self.add([grid[i] for i in sorted(beside) if 0 <= i < len(grid)])
        else:
            self.add(grid)
        result = self.result(per_target, self.extend(per_target) if extend and len(grid) > 1 else "")
        if len(self.scored) > 1:
            return result
        said = f"one fold of {self.count} was scored, so the error has no standard error"
        return replace(result, note="; ".join(filter(None, [result.note, said])))

    def may_grow(self) -> bool:
        """Whether penalties beyond those so far are worth a try."""
        return True

    def result(self, per_target: bool, note: str = "") -> CVResult:
        alphas = np.array(sorted(self.mse))
        total = self.total
        spread = np.diagonal(total.yy) / total.weight - np.square(total.y_sum / total.weight)
        result = CVResult(
            alphas,
            self.per_row,
            np.stack([self.mse[a] for a in alphas]),
            np.array(self.weights),
            np.maximum(spread, 0.0),
            np.zeros(total.t, np.int64),
            np.zeros(total.t),
            scored=self.scored,
            rounding=np.stack([self.rounding[a] for a in alphas]) if self.rounding else None,
        )
        lowest, best = self.choice(result, per_target)
        scale = total.weight if self.per_row else 1.0
        result = replace(result, best=best, alpha=alphas[best] * scale)
        if not note and result.at_edge:
            note = f"the best alpha ({alphas[best].min():g}) is at the edge of the grid"
        return replace(result, note="; ".join(filter(None, [note, self._of_rounding(result, best != lowest)])))

    def choice(self, result: CVResult, per_target: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find two rows of the grid for each target: of the least error, and the last within rounding of it."""
        score = result.path if per_target else result.path.mean(axis=1, keepdims=True)
        lowest, every = np.broadcast_to(np.nanargmin(score, axis=0), (result.path.shape[1],)), np.arange(len(score))
        rounding = self._apart(result, lowest)
        if not per_target:
            rounding = rounding.mean(axis=1, keepdims=True)
        alike = (score - np.nanmin(score, axis=0) < rounding) | (every[:, None] == lowest)
        return lowest, len(score) - 1 - alike[::-1].argmax(axis=0)

    def _apart(self, result: CVResult, row: NDArray[np.int64]) -> F8:
        """Bound the rounding of the differences, (a, t), between all errors and those of a row for each target."""
        if result.rounding is None:
            return np.zeros_like(result.path)
        sketch, of_row = np.stack([self.sketch[a] for a in result.alphas]), (row, slice(None), np.arange(len(row)))
        rounding = apart(sketch, np.moveaxis(sketch.swapaxes(2, 3)[row, :, np.arange(len(row))], 0, -1))
        late = evaluating(self.total.m) / (evaluating(self.total.m) + self.precision)  # of which nothing cancels
        return over_folds(rounding + late * (result.rounding + result.rounding[of_row].T), result.weights)

    def _of_rounding(self, result: CVResult, tied: NDArray[np.bool_]) -> str:
        """Say where rounding may be all of an error, or of the difference between two."""
        rounding = result.path_rounding[result.best, np.arange(len(result.best))]
        small, said = result.rounded & ~(result.spread <= rounding), []
        if small.any():
            of = "" if len(small) == 1 else f" of {small.sum()} of {len(small)} targets"
            size = (rounding[small] / result.spread[small]).max()
            said += [f"the error{of} is below the rounding of its sums, {size:.0e} of the target's variance"]
        if tied.any():
            said += ["smaller alphas differ from the one chosen by less than the rounding of the sums"]
        if said and self.precision > SINGLE:
            said += ['use dtype = "float64" to tell more']
        return "; ".join(said)

    def extend(self, per_target: bool) -> str:
        """Add penalties beyond the edge that holds the best, while that gains; say what was done."""
        grown, all_of_it = 0, self.total.trace() / (self.total.weight if self.per_row else 1.0)
        for _ in range(EXTENSIONS):
            before = self.result(per_target)
            grid = before.alphas[before.alphas > 0]
            # What rounding cannot tell from the best may get better further up, but not where alpha leaves no model.
            lowest, best = self.choice(before, per_target)
            low, last = (best == 0).any(), len(before.alphas) - 1
            high = ((lowest if before.alphas[-1] > all_of_it else best) == last).any()
            down, up = (grid[1] / grid[0], grid[-1] / grid[-2]) if len(grid) > 1 else (10.0, 10.0)
            more = [grid[0] / down**i for i in (1, 2, 3)] if low and len(grid) == len(before.alphas) else []
            more += [grid[-1] * up**i for i in (1, 2, 3)] if high else []
            if not more or not self.may_grow():
                break
            self.add(more)
            grown += len(more)
            # Towards zero a flat error stays flat; from a flat start upwards it may still fall.
            if not high and self.result(per_target).chosen.sum() >= (1 - FLAT) * before.chosen.sum():
                break
        after = self.result(per_target)
        if not grown:
            return ""
        where = " and is still at its edge, where the error is flat" if after.at_edge else ""
        return f"the grid grew by {grown} alphas to {after.alphas[0]:g}–{after.alphas[-1]:g}{where}"


class _Scores(Grid):
    """Errors from the sums of the folds."""

    def __init__(
        self,
        folds: Sequence[NormalEquations],
        scored: tuple[int, ...],
        total: NormalEquations,
        solver: Solver,
        per_row: bool,
        threads: int,
    ) -> None:
        super().__init__(folds, scored, total, per_row)
        self.folds, self.equations, self.solver, self.threads = [folds[k] for k in scored], total, solver, threads
        self.precision = max(fold.rounding for fold in self.folds)

    def add(self, grid: Sequence[float]) -> None:
        losses: list[list[Loss | None]] = [[None] * len(self.folds) for _ in grid]
        runs = 1 if self.solver.whole_path else -(-self.threads // len(self.folds))  # of a fold, so that all work
        places = [(k, range(r, len(grid), runs)) for k in range(len(self.folds)) for r in range(min(runs, len(grid)))]

        def score(place: tuple[int, range]) -> None:
            k, some = place
            fold = self.folds[k]
            train = self.equations - fold
            scale = train.weight if self.per_row else 1.0
            for i, coef, intercept in _solve_some(self.solver, train, [grid[i] * scale for i in some]):
                losses[some[i]][k] = fold.rounded_loss(coef, intercept)

        backend.parallel_map(score, places, min(self.threads, len(places)))
        if not self.mse and not any(all(each) for each in losses):
            self.solver.solve(self.equations, [max(grid) * (self.equations.weight if self.per_row else 1.0)])
            raise NotPositiveDefinite(
                f"No alpha up to {max(grid):g} could be solved in every fold; use larger alphas or float64"
            )
        for alpha, each in zip(grid, losses, strict=True):
            self.put(alpha, each)


def _solve_some(solver: Solver, equations: NormalEquations, alphas: list[float]) -> "list[tuple[int, F8, F8]]":
    """The solutions that exist, with their places: a penalty too small for the precision loses, it does not fail."""
    try:
        return [(i, s.coef, s.intercept) for i, s in enumerate(solver.solve(equations, alphas))]
    except NotPositiveDefinite:
        found = []
        for i, alpha in enumerate(alphas):
            try:
                (s,) = solver.solve(equations, [alpha])
            except NotPositiveDefinite:
                continue
            found.append((i, s.coef, s.intercept))
        return found
