"""Fitting: moments → scaling (→ landmarks) → normal equations of every fold → penalty → weights.

Every arrow up to the equations is a pass of the one mapper in `reduce`; the others never see the data.
"""

import functools
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend, memory
from ntkdist.cluster import Client, phases, progress
from ntkdist.cluster.connect import Resources, connect, resources
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import on_each_worker, phase, reduce
from ntkdist.data import storage
from ntkdist.errors import DataError, SpecError, StoreError
from ntkdist.planning import resolve
from ntkdist.planning.job import Job, job_digest
from ntkdist.planning.plan import Plan, by_fold
from ntkdist.ridge import checkpoint, run_directory
from ntkdist.ridge.iterative import fit_by_products
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.ridge.prefix_curve import curve_of
from ntkdist.ridge.prepare import counting, prepare, verified
from ntkdist.ridge.tiled import fit_by_tiles
from ntkdist.solvers import PCG, AnySolver, choose
from ntkdist.solvers.cross_validation import CVResult, cross_validate, penalties
from ntkdist.solvers.uncertainty import Factor
from ntkdist.sums import NormalEquations
from ntkdist.sums.equations import EquationsOf, EquationsOnGpu

F8 = NDArray[np.float64]
Solved = tuple[RidgeModel, CVResult | None, dict[str, Any] | None]  # with the curve of fewer features


@dataclass(frozen=True)
class FitResult:
    """A model, how its penalty was chosen, a report of plain objects, and the sums it came from, if any were formed."""

    model: RidgeModel
    cv: CVResult | None
    report: dict[str, Any]
    equations: Equations | None


def fit(
    what: Job | Plan,
    *,
    out: str = "",
    resume: bool = False,
    client: Client | None = None,
    scheduler: str = "",
    watch: Watch | None = None,
    performance_report: bool = False,
) -> FitResult:
    """Fit a ridge on features to a dataset, choosing the penalty by cross-validation.

    The data are read twice: once for the moments that scale them (not if ``preprocess.reuse`` has those) and once for
    the Gram, which serves every fold and penalty.  A map that is fitted to a sample of rows needs one more read, or two
    if leverage scores draw its landmarks (none with ``preprocess.reuse``); ``damaged="skip"`` one before all others.
    In place of the Gram's one, `TiledCholesky` reads once for every panel of tiles, and rows that are dealt to folds by
    groups are read once for every fold.  `PCG` forms no Gram: it reads once for the right-hand sides, once for the
    preconditioner, and in every iteration what the workers do not remember.

    Parameters
    ----------
    what : Job or Plan
        A plan fixes what decides the bits; a job is resolved against the workers' machines: without a solver the
        first that fits their memory is taken, and with the device "auto" their GPUs where each has one.
    out : str
        Run directory for ``model.zarr``, ``equations.zarr`` and ``report.json``.  A complete run of the same job is
        loaded, an incomplete one goes on from the shards that it finished, to the same bits; another's is refused.
    resume : bool
        Insist that there is something to go on from.
    client : distributed.Client, optional
    scheduler : str
        Address of a scheduler.  For what happens without either see `connect`.
    watch : callable, optional
        Shows progress; by default a bar where somebody looks.
    performance_report : bool
        Save what Dask saw of the cluster as ``performance.html`` in the run directory; needs bokeh.

    Raises
    ------
    PlanTooLarge
        If the projected memory does not fit; nothing has run then.
    DataError, ClusterError, NotPositiveDefinite, NotConverged, StoreError
        One sentence each.
    """
    job = what.job if isinstance(what, Plan) else what
    name = job_digest(job)
    if out and (done := run_directory.existing_run(out, job)):
        return FitResult(*done)
    keep, page = _kept_at(job, out, resume), _seen_at(out, performance_report)
    start = time.perf_counter()
    with phases.run(name) as run:
        with connect(job.cluster, scheduler, client) as client:
            warm = functools.partial(job.features.warm, job.plan.dtype)
            found = resources(client, warm, gpus=job.plan.device != "cpu")
            p = resolve.panelled(what, found) if isinstance(what, Plan) else resolve.planned(what, found)
            resolve.check(p, found)
            settle = functools.partial(verified, client=client, watch=watch)
            seen = phases.performance_report(page, client)
            with run_directory.open_run(out, job), seen, checkpoint.open_checkpoint(keep, p, settle) as p:
                p = resolve.panelled(p, found)  # what a checkpoint resolved may have been meant for larger workers
                resolve.check(p, found)
                solved, equations, passed = _passes(p, found, client, watch, keep)
            passed.tally.saw(on_each_worker(client, memory.peak))
            if not passed.products:
                spent = min(0.2, passed.seconds["equations"] / 10)
                rate = functools.partial(backend.product_rate, p.m, p.block_rows, p.dtype, p.threads, p.device, spent)
                passed = passed._replace(syrk_rates=on_each_worker(client, rate))
        model, cv, curve = solved or _solved(p, equations, passed.seconds)
    passed.seconds.update(total=time.perf_counter() - start)
    report = run_directory.report(p, found, passed, model, cv, run) | {"curve": curve}
    if out:
        run_directory.write_run(out, model, equations, report)
        checkpoint.remove(keep)
    return FitResult(model, cv, report, equations)


def _kept_at(job: Job, out: str, resume: bool) -> str:
    """Where the checkpoint of a fit is; nowhere if it has no place of its own."""
    keep = job.plan.checkpoint or (out and storage.join(out, "checkpoint"))
    keep = keep and storage.absolute(keep)
    if resume and not (keep and storage.exists(keep)):
        raise StoreError(
            f"Nothing to resume: there is no checkpoint {keep or 'and no run directory'}; fit without resume"
        )
    return keep


def _seen_at(out: str, asked: bool) -> str:
    """Where Dask's report of a fit goes, if it was asked for."""
    if asked and not out:
        raise SpecError("performance_report is given but no run directory to write it to; give out")
    return storage.join(out, "performance.html") if asked else ""


def _passes(
    p: Plan, found: Resources, client: Client | None, watch: Watch | None, keep: str
) -> tuple[Solved | None, Equations | None, run_directory.FitStatistics]:
    """All that looks at the data: the equations, or where the solver forms none, what it found."""
    if isinstance(p.solver, PCG):
        model, cv, passed = fit_by_products(p, p.solver, found, client, watch, keep)
        return (model, cv, None), None, passed
    if p.tile:
        _check_folds(p)
        model, cv, passed = fit_by_tiles(p, client, watch, keep)
        return (model, cv, None), None, passed
    return None, *_pass_over_data(p, client, watch, keep)


def _solved(p: Plan, equations: Equations | None, seconds: dict[str, float]) -> Solved:
    """The same from equations, in this process."""
    assert equations is not None
    job, began = p.job, time.perf_counter()
    with phases.phase("solve", None):
        model, cv = solve(
            equations,
            solver=p.solver,
            alphas=job.alphas,
            alphas_per_row=job.alphas_per_row,
            per_target=job.alpha_per_target,
        )
    solved = time.perf_counter()
    with phases.phase("curve", None):
        curve = curve_of(equations, cv, job.alpha_per_target)
    seconds.update(solve=solved - began, curve=time.perf_counter() - solved)
    return model, cv, curve


def normal_equations(p: Plan, *, client: Client | None = None) -> list[NormalEquations]:
    """The sums of every fold of a plan, over scaled inputs and targets."""
    with connect(p.job.cluster, "", client) as client:
        p = verified(p, client=client, watch=progress.silent)
        return _pass_over_data(p, client, progress.silent, "")[0].folds


def solve(
    equations: Equations,
    *,
    solver: AnySolver | None = None,
    alphas: Sequence[float] | str = "auto",
    alphas_per_row: Sequence[float] | None = None,
    per_target: bool = False,
    keep_factor: bool = False,
) -> tuple[RidgeModel, CVResult | None]:
    """A model from saved equations: no pass over the data.

    Parameters
    ----------
    equations : Equations
    solver, alphas, alphas_per_row, per_target
        As in `cross_validate`.  With a single fold there must be a single penalty, and there is no CVResult.
    keep_factor : bool
        Keep what the standard deviation of predictions needs, `RidgeModel.std`: m² numbers, saved with the model.
    """
    pre, several = equations.preprocessing, len(equations.folds) > 1
    one = max(equations.folds, key=lambda fold: fold.weight)  # of several, only the number of penalties counts
    grid, per_row = penalties(one, alphas, alphas_per_row)
    solver = solver or choose(equations.folds[0].m, len(grid))
    if several:
        cv = cross_validate(
            equations.folds,
            solver,
            alphas,
            alphas_per_row=alphas_per_row,
            per_target=per_target,
            scored=equations.scored,
        )
        cv, alpha = cv.scaled(pre.y_scale), cv.alpha
    elif len(grid) == 1:
        (total,) = equations.folds
        cv, alpha = None, np.full(total.t, grid[0] * (total.weight if per_row else 1.0))
    else:
        raise SpecError(f"a single fold leaves nothing to choose among {len(grid)} alphas by; give one alpha")
    total = equations.total  # now, not before: two sums of all folds would not always fit
    coef, intercept = solve_at(solver, total, alpha)
    model = RidgeModel.of_scaled(pre, equations.features, coef, intercept, alpha, equations.dtype)
    if keep_factor:
        if cv is None:
            raise SpecError("a single fold has no error out of fold, which standard deviations need; use more folds")
        model = replace(model, factor=Factor.of(total, alpha, cv.chosen))
    return model, cv


def solve_at(solver: AnySolver, equations: NormalEquations, alpha: F8) -> tuple[F8, F8]:
    """Weights (m, t) and intercepts (t,) of targets with a penalty each, (t,)."""
    each = sorted(set(alpha.tolist()))
    solutions = dict(zip(each, solver.solve(equations, each), strict=True))
    coef = np.stack([solutions[a].coef[:, j] for j, a in enumerate(alpha.tolist())], axis=1)
    return coef, np.array([solutions[a].intercept[j] for j, a in enumerate(alpha.tolist())])


def _pass_over_data(
    p: Plan, client: Client | None, watch: Watch | None, keep: str
) -> tuple[Equations, run_directory.FitStatistics]:
    """Scaling, what the map learns if it does, then the equations of every fold."""
    source, shards = by_fold(p)
    _check_folds(p)
    start = time.perf_counter()
    empty, kept = checkpoint.prepared(keep, p, lambda: prepare(p, source._replace(folds=0), client, watch))
    source = counting(source, p, empty.preprocessing)
    between = time.perf_counter()
    of = empty.features, empty.preprocessing, p.dtype
    summand = EquationsOf(*of) if p.device == "cpu" else EquationsOnGpu(*of, tf32=p.device == "gpu-tf32")
    timeline: list[tuple[float, int]] = []
    with phase("equations", p.reads * p.layout.rows, client, watch) as done:
        parts = reduce(source, summand, shards, p.fan_in, client, progress.timed(done, timeline), kept)
    equations = replace(empty, folds=[part.total for part in parts])
    tally = functools.reduce(operator.add, (part.tally for part in parts))
    seconds = {"prepare": between - start, "equations": time.perf_counter() - between}
    weights = [fold.weight for fold in equations.folds]
    return equations, run_directory.FitStatistics(empty.preprocessing, weights, tally, seconds, {}, timeline)


def _check_folds(p: Plan) -> None:
    """See that each fold gets rows, before any work: read who is in which, up to where all folds have been seen.

    Raises
    ------
    DataError
        If one gets none.
    """
    if not (name := p.dataset.fold_array):
        return
    seen: set[int] = set()
    for i in sorted(set(range(p.layout.partitions)) - set(p.skip or ())):
        seen |= set(p.folds_of(i).tolist())
        if len(seen) == p.folds:
            return
    if p.dataset.holdout:
        found = "no row is" if seen == {0} else "all rows are"
        raise DataError(f"{p.dataset.store}: {found} held out by '{name}'; expected 1 for some rows and 0 for others")
    raise DataError(
        f"{p.dataset.store}: only {len(seen)} of {p.folds} folds get rows from the groups of '{name}', which are fewer "
        "than folds or too few to be dealt to all; lower folds"
    )
