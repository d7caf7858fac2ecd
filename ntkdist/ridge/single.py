"""Fits with one Gram, in this process: it is summed without the rows held out, and factored in its own memory.

The rows held out have no Gram of their own.  The error of predictions for them chooses the penalty; then they are added
to the Gram, which is factored once more.  Their mapped rows stay in memory between these passes while they fit.

Legend: m features, t targets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.cluster.progress import Progress, ignore, timed
from ntkdist.cluster.reduce import Pass, phase, reduce_into
from ntkdist.cluster.shards import Part
from ntkdist.cluster.tally import Tally
from ntkdist.data.dataset import Shard
from ntkdist.errors import NotPositiveDefinite
from ntkdist.planning.in_place_cost import cache_bytes
from ntkdist.planning.job import Job
from ntkdist.planning.plan import Plan
from ntkdist.ridge.augmented import with_copies
from ntkdist.ridge.fitted import Clock, FitStatistics, Fitted
from ntkdist.ridge.model import RidgeModel
from ntkdist.ridge.prepare import Prepared
from ntkdist.ridge.solve import solve_at, solve_chosen
from ntkdist.solvers import Solution, check_sums
from ntkdist.solvers.cross_validation import CVResult, check_folds, penalties
from ntkdist.solvers.grid import Grid
from ntkdist.spec import digest
from ntkdist.sums import CrossSums, NormalEquations, TileSums
from ntkdist.sums.equations import EquationsOf, EquationsOfMapped
from ntkdist.sums.mapped_rows import RowMapper, forget
from ntkdist.sums.products import CrossOf, Folds, LossesOf
from ntkdist.sums.tiles import places

F8 = NDArray[np.float64]
KEPT_TILE = 2048  # columns of the tiles, 32 MB each, in which a checkpoint keeps the Gram


def fit(p: Plan, prepared: Prepared) -> Fitted:
    """Fit by factorisations of one Gram in its own memory; raise NotPositiveDefinite if no penalty is solved."""
    pre, clock, cv = prepared.empty.preprocessing, Clock(), None
    held = HeldOut(p, prepared)
    timeline: list[tuple[float, int]] = []
    try:
        with phase("equations", p.reads * p.rows_mapped, None, prepared.watch) as done:
            progress = timed(done, timeline)
            equations, tally = sum_in_place(p, prepared, progress)
            left_out = held.sums(progress)
        clock.lap("equations")
        weights = [equations.weight, *(each.weight for each in left_out)]
        with phase("factorisations", 0, None, prepared.watch), backend.own_threads():
            backend.use_threads(p.threads)
            if left_out:
                cv = HoldoutPath(p, equations, left_out[0], held).choose(p.job)
                clock.lap("solve")
                held.add_to(equations)
                clock.lap("equations")
                cv, coef, intercept = solve_chosen(p.solver, equations, cv)
                alpha = cv.alpha
            else:
                (only,), per_row = penalties(equations, p.job.alphas, p.job.alphas_per_row)
                alpha = np.full(p.t, only * (equations.weight if per_row else 1.0))
                coef, intercept = solve_at(p.solver, equations, alpha)
        clock.lap("solve")
    finally:
        kept = forget()
    model = RidgeModel.of_scaled(pre, prepared.empty.features, coef, intercept, alpha, p.dtype)
    model = replace(model, augment=p.job.augment)
    tally += held.tally
    statistics = FitStatistics(pre, weights, tally, clock.seconds, None, timeline, held_out_bytes=kept)
    return Fitted(statistics, lambda: (model, cv and cv.scaled(pre.y_scale), None))


def sum_in_place(p: Plan, prepared: Prepared, progress: Progress) -> tuple[NormalEquations, Tally]:
    """Sum the equations of all rows that are not held out, or go on from what a checkpoint holds of them."""
    training = [shard for shard in prepared.shards if shard.group not in (p.scored or ())]
    source, shards = with_copies(prepared.source, training, p.job.augment)
    total, tally, done = NormalEquations.zeros(p.m, p.t), Tally(), 0
    summand = EquationsOf(prepared.empty.features, prepared.empty.preprocessing, p.dtype)
    keep = prepared.kept and prepared.kept.tiles(KEPT_TILE, places(p.m, KEPT_TILE))
    stops = list(_stops(shards, p.solver.shard_rows(p.m)))
    for stop in reversed(stops):
        if keep and (kept := keep.load(_first(shards, stop))) is not None:
            total.fill(kept.total.tiles, KEPT_TILE, kept.total.rounding)
            tally, done = replace(kept.tally, resumed=stop), stop
            progress(sum(shard.rows for shard in shards[:stop]))
            del kept  # half as large as the Gram
            break
    for stop in (stop for stop in stops if stop > done):
        part = reduce_into(Pass(source, summand, shards[done:stop], p.fan_in, progress), total)
        tally, done = tally + part.tally, stop
        if keep:
            keep.save(_first(shards, stop), Part(TileSums(total.in_tiles(KEPT_TILE), total.squared_rounding), tally))
    return total, tally


def _stops(shards: Sequence[Shard], rows: int) -> Iterator[int]:
    """Yield the numbers of shards after which the sum is kept: of so many rows more, or all."""
    since = 0
    for stop, shard in enumerate(shards, 1):
        since += shard.rows
        if since >= rows or stop == len(shards):
            yield stop
            since = 0


def _first(shards: Sequence[Shard], count: int) -> Shard:
    """Return the first shards as one, by which their sum is kept."""
    return Shard(-1, tuple(span for shard in shards[:count] for span in shard.spans))


class HeldOut:
    """The rows held out, if there are any; ``tally`` is of the passes over them."""

    def __init__(self, p: Plan, prepared: Prepared) -> None:
        features, pre = prepared.empty.features, prepared.empty.preprocessing
        run, limit = digest(p, features.digest(), pre.digest()), cache_bytes(p, prepared.resources)
        self.mapped, self.tally = RowMapper(features, pre, p.dtype, run, limit), Tally()
        fold = p.scored[0] if p.scored else -1
        shards = [shard for shard in prepared.shards if shard.group == fold]
        self.rows = Pass(prepared.source, CrossOf(self.mapped), shards, p.fan_in)
        self.augment, self.of_copies = p.job.augment, EquationsOf(features, pre, p.dtype)
        self.folds = Folds(p.layout.rows, (fold,))  # of all rows that are read

    def sums(self, progress: Progress) -> list[CrossSums]:
        """Sum right-hand sides, in a list that is empty if no rows are held out."""
        return [self._sum(self.rows.summand, progress)] if self.rows.shards else []

    def losses(self, solutions: Sequence[Solution]) -> F8:
        """Sum w (y − ŷ)² of models of scaled targets, (k, t)."""
        coef = np.hstack([each.coef for each in solutions]).astype(self.mapped.dtype)
        intercept = np.concatenate([each.intercept for each in solutions])
        t, k = len(solutions[0].intercept), len(intercept)
        left_out = np.full(k, self.folds.of_partition[0])
        summand = LossesOf(self.mapped, self.folds, coef, intercept, np.arange(k) % t, left_out)
        losses: F8 = self._sum(summand)
        return losses.reshape(-1, t)

    def add_to(self, total: NormalEquations) -> None:
        """Add the rows to equations, in place, mapped anew if they have copies."""
        if self.augment.copies == 1:
            self._sum(EquationsOfMapped(self.mapped), total=total)
            return
        source, shards = with_copies(self.rows.source, self.rows.shards, self.augment)
        self._sum(self.of_copies, total=total, source=source, shards=shards)

    def _sum(self, summand: Any, progress: Progress = ignore, total: Any = None, **rows: Any) -> Any:
        one = self.rows._replace(summand=summand, progress=progress, **rows)
        part = reduce_into(one, summand.zero() if total is None else total)
        self.tally = (self.tally + part.tally).of_rows(self.tally) if self.tally.rows else part.tally
        return part.total


class HoldoutPath(Grid):
    """Penalties scored by predictions for the rows held out, of models of all others."""

    stride: ClassVar[int] = 4

    def __init__(self, p: Plan, equations: NormalEquations, left_out: CrossSums, held: HeldOut) -> None:
        train = CrossSums.of(equations)
        folds = [*(p.folds - 1) * [train], left_out]  # the others as one, for they are never apart
        check_folds(folds, p.scored)
        super().__init__(folds, p.scored or (), train + left_out, False)
        self.solver, self.equations, self.held = p.solver, equations, held

    def choose(self, job: Job) -> CVResult:
        """Score the penalties of a job and choose one for every target; see `cross_validate`."""
        check_sums(self.total)
        grid, self.per_row = penalties(self.total, job.alphas, job.alphas_per_row)
        thin = job.grid() is None
        return self.search(grid, thin, True, job.alpha_per_target)

    def add(self, grid: Sequence[float]) -> None:
        solved: dict[float, Solution] = {}
        failed: NotPositiveDefinite | None = None
        for alpha in grid:
            try:
                (solved[alpha],) = self.solver.solve(self.equations, [alpha * self.scale(self.equations.weight)])
            except NotPositiveDefinite as error:
                failed = error.with_traceback(None)  # whose frames would keep the Gram
        if failed and not solved and not self.mse:
            raise failed
        self.mse |= {alpha: np.full((1, self.total.t), np.inf) for alpha in grid}
        if solved:
            losses = self.held.losses(list(solved.values())) / self.weights[0]
            self.mse |= dict(zip(solved, losses[:, None], strict=True))
