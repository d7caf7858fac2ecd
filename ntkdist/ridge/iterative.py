"""Fits without a Gram: sums of the right-hand sides, a preconditioner, then one pass over the data in each iteration.

Legend: m features, t targets, c columns that are iterated on: one for each training set, penalty and target.  Training
sets are the data without fold k, for every k, and all data.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist.cluster import Client
from ntkdist.cluster.progress import Progress, Watch
from ntkdist.cluster.reduce import Pass, on_each_worker, phase, reduce
from ntkdist.cluster.shards import Source
from ntkdist.cluster.tally import Tally
from ntkdist.data.augment import Augment
from ntkdist.data.dataset import Shard
from ntkdist.data.scaling import Preprocessing
from ntkdist.errors import NotConverged
from ntkdist.features import AnyMap
from ntkdist.planning.iterative_cost import cache_bytes
from ntkdist.planning.plan import Plan
from ntkdist.ridge import fitted_map
from ntkdist.ridge.augmented import with_copies
from ntkdist.ridge.fit_report import Products
from ntkdist.ridge.fitted import Clock, FitStatistics, Fitted
from ntkdist.ridge.model import RidgeModel
from ntkdist.ridge.prepare import Prepared
from ntkdist.solvers import PCG, check_sums
from ntkdist.solvers.cg import FLOOR, KeepsState, LowRank, conjugate_gradients, not_converged
from ntkdist.solvers.cross_validation import CVResult, check_folds, penalties
from ntkdist.solvers.grid import Grid
from ntkdist.spec import digest
from ntkdist.sums import CrossSums
from ntkdist.sums.mapped_rows import OverMappedRows, RowMapper, forget
from ntkdist.sums.products import CrossOf, Folds, LossesOf, ProductsOf
from ntkdist.sums.sample import PRECONDITIONER, SampleOf

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]


class Passes:
    """Repeated passes over the rows of a run; ``count`` is their number, ``tally`` of all, with the rows of one."""

    def __init__(
        self,
        source: Source,
        shards: Sequence[Shard],
        fan_in: int,
        client: Client | None,
        mapped: RowMapper,
        augment: Augment,
    ) -> None:
        self.source, self.shards, self.fan_in, self.client = source, list(shards), fan_in, client
        self.mapped, self.count, self.tally = mapped, 0, Tally()
        self.copied = with_copies(source, shards, augment)
        of = {i // source.layout.rows_per_partition: shard.group for shard in shards for i, _ in shard.spans}
        self.folds = Folds(source.layout.rows_per_partition, tuple(of[p] for p in range(source.layout.partitions)))

    def cross(self, progress: Progress) -> list[CrossSums]:
        """Sum the right-hand sides of every fold."""
        return self._sum(CrossOf(self.mapped), *self.copied, progress)

    def total(self, summand: OverMappedRows, progress: Progress, copies: bool = True) -> F8:
        """Sum over all rows, with the copies of an augmentation or without."""
        total: F8
        source, shards = self.copied if copies else (self.source, self.shards)
        (total,) = self._sum(summand, source, [shard._replace(group=0) for shard in shards], progress)
        return total

    def _sum(self, summand: Any, source: Source, shards: Sequence[Shard], progress: Progress) -> list[Any]:
        parts = reduce(Pass(source, summand, shards, self.fan_in, progress), self.client)
        tally = functools.reduce(operator.add, (part.tally for part in parts), self.tally)
        self.tally, self.count = tally.of_rows(self.tally) if self.count else tally, self.count + 1
        return [part.total for part in parts]


class DataGram:
    """The centred Gram of every column as an operator: each product is a pass over the data."""

    def __init__(
        self,
        passes: Passes,
        sets: Sequence[CrossSums],  # of the training sets
        of: I8,  # (c,) training set of every column
        left_out: I8,  # (c,) the fold that it leaves out, or −1
        rhs: F8,  # (m, c)
        progress: Progress,
    ) -> None:
        self.passes, self.of, self.left_out, self.rhs, self.progress = passes, of, left_out, rhs, progress
        self.means = np.stack([each.z_sum / each.weight for each in sets], axis=1)
        self.dtype = np.dtype(passes.mapped.dtype)

    def matmul(self, v: NDArray[Any], columns: I8) -> F8:
        """Compute Σ w (z − z̄)(z − z̄)ᵀv for some columns."""
        # Centring one factor is enough in exact arithmetic; centring the rounded sum too keeps it accurate.
        means = self.means[:, self.of[columns]]
        shift = np.einsum("ij,ij->j", means, v)
        summand = ProductsOf(self.passes.mapped, self.passes.folds, v, shift, self.left_out[columns])
        total = self.passes.total(summand, self.progress)
        product: F8 = total[:-1]
        means *= total[-1]
        product -= means
        return product


def fit(p: Plan, prepared: Prepared) -> Fitted:
    """Fit by conjugate gradients over the data.

    Raises NotConverged if the chosen penalty has not converged for all rows, unless the solver only notes that.
    """
    assert isinstance(p.solver, PCG)
    solver, features, pre = p.solver, prepared.empty.features, prepared.empty.preprocessing
    client, watch, kept, clock = prepared.client, prepared.watch, prepared.kept, Clock()
    limit = cache_bytes(p, solver, prepared.resources, client is None)
    mapped = RowMapper(features, pre, p.dtype, digest(p, features.digest(), pre.digest()), limit)
    passes = Passes(prepared.source, prepared.shards, p.fan_in, client, mapped, p.job.augment)
    try:
        with phase("sums", p.rows_mapped, client, watch) as done:
            sums = passes.cross(done)
        if len(sums) > 1:
            check_folds(sums, p.scored)
        total = functools.reduce(operator.add, sums)
        check_sums(total)
        clock.lap("sums")
        near = preconditioner(p, solver, passes, total, watch)
        clock.lap("preconditioner")
        with phase("iterations", p.rows_mapped * (solver.max_iterations + 1), client, watch) as done:
            of = (p.shards, p.fan_in, p.threads, p.device, solver.sample_rows, solver.seed, solver.tol)
            scored = p.scored or tuple(range(len(sums)))
            path = Path(passes, sums, scored, total, solver, near, p.job.alphas_per_row, p.job.alphas, done)
            path.keeping = functools.partial(kept.state, of) if kept is not None else None
            cv, alphas = path.choose(p.job.alpha_per_target)
        clock.lap("iterations")
    finally:
        remembered = on_each_worker(client, forget)
    model = replace(_model(path, cv, alphas, pre, features, p.dtype), augment=p.job.augment)
    counts = Products(
        passes=passes.count,
        iterations=path.iterations,
        mean_iterations=float(path.each.mean()),
        sample_rows=near.s,
        largest_residual=path.largest_residual(path.residuals),
        unconverged=path.unconverged(),
        remembered_bytes=max(remembered, default=0),
    )
    weights = [fold.weight for fold in sums]
    if cv is not None:
        cv = replace(cv.scaled(pre.y_scale), note="; ".join(said for said in (cv.note, path.note()) if said))
    return Fitted(FitStatistics(pre, weights, passes.tally, clock.seconds, counts), lambda: (model, cv, None))


def preconditioner(p: Plan, solver: PCG, passes: Passes, total: CrossSums, watch: Watch | None) -> LowRank:
    """Make the preconditioner from a sample of rows, drawn by weight and centred at the mean of all."""
    mapped = passes.mapped
    summand = SampleOf(
        solver.sample_rows,
        solver.seed,
        mapped.preprocessing,
        role=PRECONDITIONER,
        by_weight=True,
        sparse=p.layout.sparse,
    )
    rows = fitted_map.sample(summand, passes.source, passes.client, watch, "sample")
    z = mapped.features(rows.astype(p.dtype)).astype(np.float64)
    z -= total.z_sum / total.weight
    return LowRank(z, whole=p.copies == 1 and len(z) == passes.tally.rows)


class Path(Grid):
    """Solutions of every penalty for every training set, and their errors on the rows that the set leaves out."""

    def __init__(
        self,
        passes: Passes,
        sums: Sequence[CrossSums],
        scored: tuple[int, ...],
        total: CrossSums,
        solver: PCG,
        near: LowRank,
        per_row: Sequence[float] | None,
        alphas: Sequence[float] | str,
        done: Progress,
    ) -> None:
        grid, is_per_row = penalties(total, alphas, per_row)
        super().__init__(sums, scored, total, is_per_row)
        self.passes, self.solver, self.near, self.done, self.first = passes, solver, near, done, grid
        left_out = scored if len(sums) > 1 else ()
        self.sets = [*(total - sums[k] for k in left_out), total]
        self.left_out = np.array([*left_out, -1])
        self.coef: dict[float, F8] = {}  # (m, t) for all rows, by penalty of the grid
        self.residuals: dict[float, F8] = {}  # relative, (training sets, t), by penalty of the grid; all rows are last
        self.iterations, self.each = 0, np.zeros(0, np.int64)  # of the slowest columns, and of every one
        self.keeping: Callable[[list[float]], KeepsState] | None = None  # keeps the iterations of some penalties

    def choose(self, per_target: bool) -> tuple[CVResult | None, list[float]]:
        """Score the penalties, unless there is one fold, and choose one of the grid for every target."""
        self.add(self.first)
        if len(self.sets) == 1:
            return None, self.first * self.total.t
        note = self.extend(per_target) if len(self.first) > 1 else ""
        cv = self.result(per_target, note)
        return cv, cv.alphas[cv.best].tolist()

    def add(self, grid: Sequence[float]) -> None:
        t, sets = self.total.t, len(self.sets)
        shape = (sets, len(grid), t)
        of = np.repeat(np.arange(sets), len(grid) * t)
        alphas = np.repeat([[self.scale(each.weight) * a for a in grid] for each in self.sets], t)
        weights = np.array([each.weight for each in self.sets])
        shifts = np.maximum(alphas, FLOOR * np.array([each.trace() for each in self.sets])[of])
        shifts[shifts <= 0] = 1.0  # features without variance: any shift serves
        scales = weights[of] / self.near.s
        rhs = np.hstack([np.tile(each.centred_rhs(), len(grid)) for each in self.sets])

        def near(r: F8, columns: I8) -> F8:
            return self.near.solve(r, shifts[columns], scales[columns])

        gram = DataGram(self.passes, self.sets, of, self.left_out[of], rhs, self.done)
        keep = self.keeping and self.keeping(alphas.tolist())
        solved = conjugate_gradients(gram, alphas, near, self.solver.tol, self.solver.max_iterations, keep)
        self.iterations += int(solved.iterations.max(initial=0))
        self.each = np.append(self.each, solved.iterations)
        residual = solved.residual.reshape(shape)
        coef = solved.x.reshape(-1, *shape)
        for i, a in enumerate(grid):
            self.coef[a], self.residuals[a] = coef[:, -1, i].copy(), residual[:, i]
        if sets > 1:
            scored = np.flatnonzero(self.left_out[of] >= 0)
            losses = self._losses(solved.x[:, scored], of[scored], np.tile(np.arange(t), sets * len(grid))[scored])
            mse = losses.reshape(sets - 1, len(grid), t) / np.array(self.weights)[:, None, None]
            self.mse.update(zip(grid, mse.swapaxes(0, 1), strict=True))

    def _losses(self, coef: F8, of: I8, target: I8) -> F8:
        """Sum w (y − ŷ)² of every column over the fold that its training set leaves out."""
        means = np.stack([each.z_sum / each.weight for each in self.sets], axis=1)[:, of]
        y_means = np.stack([each.y_sum / each.weight for each in self.sets])[of, target]
        intercept = y_means - np.einsum("ij,ij->j", means, coef)
        mapped, folds = self.passes.mapped, self.passes.folds
        summand = LossesOf(mapped, folds, coef.astype(mapped.dtype), intercept, target, self.left_out[of])
        return self.passes.total(summand, self.done, copies=False)

    def may_grow(self) -> bool:
        """Return whether all penalties have converged: beyond the grid, convergence is slower."""
        return not self.unconverged()

    def unconverged(self) -> list[float]:
        """List the penalties that have not converged for every training set and target, ascending."""
        return sorted(a for a, residual in self.residuals.items() if residual.max() > self.solver.tol)

    def largest_residual(self, grid: Iterable[float]) -> float:
        """Return the largest residual of some penalties, of any training set and target."""
        return max(float(self.residuals[a].max()) for a in grid)

    def note(self) -> str:
        """Return a note of penalties that have not converged."""
        if not (late := self.unconverged()):
            return ""
        said = not_converged(self.solver, late, self.largest_residual(late))
        return f"{said}{' (alphas per row)' if self.per_row else ''}; their scores are of what was reached"


def _model(
    path: Path, cv: CVResult | None, alphas: list[float], pre: Preprocessing, features: AnyMap, dtype: str
) -> RidgeModel:
    """Return the model of all rows, each target with its penalty; raise NotConverged if that is asked for."""
    late = [a for j, a in enumerate(alphas) if path.residuals[a][-1, j] > path.solver.tol]
    if late and path.solver.unconverged == "error":
        worst = max(float(path.residuals[a][-1].max()) for a in late)
        raise NotConverged(f"The chosen {not_converged(path.solver, sorted(set(late)), worst)}")
    total = path.total
    coef = np.stack([path.coef[a][:, j] for j, a in enumerate(alphas)], axis=1)
    intercept = (total.y_sum - total.z_sum @ coef) / total.weight
    alpha = np.array(alphas) * path.scale(total.weight)
    return RidgeModel.of_scaled(pre, features, coef, intercept, alpha, dtype)
