"""Fitting: moments → scaling → normal equations of every fold → penalty → weights.

Every arrow of the first three is a pass of the one mapper in `reduce`; the others never see the data.
"""

import functools
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client

from ntkdist import progress, runs, store
from ntkdist.cluster import connect, resources
from ntkdist.data import Rows
from ntkdist.errors import DataError, SpecError
from ntkdist.features import AnyFeatureMap
from ntkdist.groups import find
from ntkdist.model import Equations, RidgeModel
from ntkdist.plan import Job, Plan, plan
from ntkdist.preprocess import MomentsOf, Preprocess, Preprocessing
from ntkdist.progress import Watch
from ntkdist.reduce import Shard, Source, on_each_worker, reduce, reduce_all
from ntkdist.select import CVResult, cross_validate, penalties
from ntkdist.solvers import AnySolver, choose
from ntkdist.sums import NormalEquations


@dataclass(frozen=True)
class FitResult:
    """A model, how its penalty was chosen, the sums it came from, and a report of plain objects."""

    model: RidgeModel
    cv: CVResult | None
    report: dict[str, Any]
    equations: Equations


def fit(
    what: Job | Plan,
    *,
    out: str = "",
    client: Client | None = None,
    scheduler: str = "",
    watch: Watch | None = None,
) -> FitResult:
    """Fit a ridge on features to a dataset, choosing the penalty by cross-validation: two reads, one Gram.

    Parameters
    ----------
    what : Job or Plan
        A plan fixes what decides the bits; a job is resolved against the workers' machines.
    out : str
        Run directory for ``model.zarr``, ``equations.zarr`` and ``report.json``.  A complete run of the same job is
        loaded, an incomplete one is done again, one of another job is refused.
    client : distributed.Client, optional
    scheduler : str
        Address of a scheduler.  For what happens without either see `connect`.
    watch : callable, optional
        Shows progress; by default a bar where somebody looks.

    Raises
    ------
    PlanTooLarge
        If the projected memory does not fit; nothing has run then.
    DataError, ClusterError, NotPositiveDefinite, StoreError
        One sentence each.
    """
    job = what.job if isinstance(what, Plan) else what
    name = runs.job_digest(job)
    if out and (done := runs.begin(out, name)):
        return FitResult(*done)
    start = time.perf_counter()
    with connect(job.cluster, scheduler, client) as client:
        found = resources(client)
        p = what if isinstance(what, Plan) else plan(what, threads=found.threads)
        runs.check_memory(p, found)
        passed = _pass_over_data(p, client, watch)
        rates = on_each_worker(client, functools.partial(runs.syrk_rate, p.m, p.block_rows, p.dtype, p.threads))
    began = time.perf_counter()
    model, cv = solve(
        passed.equations,
        solver=p.solver,
        alphas=job.alphas,
        alphas_per_row=job.alphas_per_row,
        per_target=job.alpha_per_target,
    )
    passed.seconds.update(solve=time.perf_counter() - began, total=time.perf_counter() - start)
    report = runs.report(p, found, passed, rates, model, cv)
    if out:
        runs.finish(out, model, passed.equations, report)
    return FitResult(model, cv, report, passed.equations)


def normal_equations(p: Plan, *, client: Client | None = None) -> list[NormalEquations]:
    """The sums of every fold of a plan, over scaled inputs and targets."""
    with connect(p.job.cluster, "", client) as client:
        return _pass_over_data(p, client, progress.silent).equations.folds


def solve(
    equations: Equations,
    *,
    solver: AnySolver | None = None,
    alphas: Sequence[float] | str = "auto",
    alphas_per_row: Sequence[float] | None = None,
    per_target: bool = False,
) -> tuple[RidgeModel, CVResult | None]:
    """A model from saved equations: no pass over the data.

    Parameters
    ----------
    equations : Equations
    solver, alphas, alphas_per_row, per_target
        As in `cross_validate`.  With a single fold there must be a single penalty, and there is no CVResult.
    """
    pre, total = equations.preprocessing, equations.total
    grid, per_row = penalties(total, alphas, alphas_per_row)
    solver = solver or choose(total.m, len(grid))
    if len(equations.folds) > 1:
        cv = cross_validate(equations.folds, solver, alphas, alphas_per_row=alphas_per_row, per_target=per_target)
        cv, alpha = cv.scaled(pre.y_scale), cv.alpha
    elif len(grid) == 1:
        cv, alpha = None, np.full(total.t, grid[0] * (total.weight if per_row else 1.0))
    else:
        raise SpecError(f"a single fold leaves nothing to choose among {len(grid)} alphas by; give one alpha")
    each = sorted(set(alpha.tolist()))
    solutions = dict(zip(each, solver.solve(total, each), strict=True))
    coef = np.stack([solutions[a].coef[:, j] for j, a in enumerate(alpha.tolist())], axis=1)
    intercept = np.array([solutions[a].intercept[j] for j, a in enumerate(alpha.tolist())])
    model = RidgeModel(
        pre,
        equations.features,
        coef * pre.y_scale,
        intercept * pre.y_scale + pre.y_mean,
        alpha,
        equations.dtype,
    )
    return model, cv


@dataclass(frozen=True)
class EquationsOf:
    """Normal equations of the features of scaled rows."""

    features: AnyFeatureMap
    preprocessing: Preprocessing
    dtype: str

    def zero(self) -> NormalEquations:
        return NormalEquations.zeros(self.features.n_components, self.preprocessing.t)

    def update(self, total: NormalEquations, rows: Rows) -> NormalEquations:
        assert rows.y is not None
        z = self.features(self.preprocessing.inputs(rows.x, self.dtype))
        total.update(z, self.preprocessing.targets(rows.y), rows.weight)
        if not np.isfinite(total.z_sum).all():
            raise DataError(
                f"Features of rows from {rows.start} on are not finite in {self.dtype}; look for huge values there, "
                "or use dtype float64"
            )
        return total


def _pass_over_data(p: Plan, client: Client | None, watch: Watch | None) -> runs.Passed:
    """Scaling, then the equations of every fold."""
    source = Source(p.dataset, p.layout, p.block_rows, p.threads)
    start = time.perf_counter()
    pre, constant = scaling(p.job.preprocess, source, client, watch)
    between = time.perf_counter()
    shards = [Shard(t.fold, tuple(p.layout.span(i) for i in t.partitions)) for t in p.tasks()]
    with (watch or progress.default_watch())("equations", p.layout.rows) as done:
        parts = reduce(source, EquationsOf(p.features, pre, p.dtype), shards, p.fan_in, client, done)
    return runs.Passed(
        Equations([part.total for part in parts], p.features, pre, p.dtype),
        functools.reduce(operator.add, (part.tally for part in parts)),
        constant,
        {"moments": between - start, "equations": time.perf_counter() - between},
    )


def scaling(
    preprocess: Preprocess, source: Source, client: Client | None, watch: Watch | None
) -> tuple[Preprocessing, list[str]]:
    """Fit or reuse the scaling of a dataset; also the names of columns without variance."""
    layout = source.layout
    if preprocess.reuse:
        before = store.load(find(preprocess.reuse, "model.zarr"))
        pre: Preprocessing = before.preprocessing
        pre.match(layout, source.dataset.store)
        if pre.classes != layout.classes or pre.columns != layout.columns:
            raise DataError(f"{source.dataset.store}: classes or columns differ from those of {preprocess.reuse}")
        return pre, []
    mode = preprocess.resolve(layout)
    part = reduce_all(source, MomentsOf(mode, layout), layout.rows_per_partition, client, "moments", watch)
    pre = Preprocessing.fit(mode, layout, part.total)
    if layout.sparse:  # where a column that is all zero is nothing to speak of
        return pre, []
    inputs = part.total.split(MomentsOf(mode, layout).d)[0]
    names = layout.columns or tuple(f"column {i}" for i in range(len(inputs.mean)))
    return pre, [names[i] for i in np.flatnonzero(inputs.constant())]
