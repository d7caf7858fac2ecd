"""Fitting: moments → scaling (→ landmarks) → normal equations of every fold → penalty → weights.

Every arrow up to the equations is a pass of the one mapper, `ntkdist.cluster.reduce`; the others never see the data.
Start here, then `prepare` and `dense`.
"""

import functools
from dataclasses import dataclass
from typing import Any

from ntkdist import backend, memory
from ntkdist.cluster import Client, phases, progress
from ntkdist.cluster.connect import connect, resources
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import on_each_worker
from ntkdist.data import storage
from ntkdist.errors import SpecError, StoreError
from ntkdist.planning import resolve
from ntkdist.planning.job import Job, job_digest
from ntkdist.planning.plan import Plan
from ntkdist.ridge import checkpoint, dense, iterative, run_directory, tiled
from ntkdist.ridge.fitted import Clock
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.ridge.prepare import prepare, verified
from ntkdist.solvers.cv_result import CVResult
from ntkdist.sums import NormalEquations

FITS = {"gram": dense.fit, "tiles": tiled.fit, "products": iterative.fit}  # by `Solver.sums`


@dataclass(frozen=True)
class FitResult:
    """A model, the scores of its penalty, a report of plain objects, and the equations, if any were formed."""

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

    The data are read twice: once for the moments of the columns and once for the Gram, which serves every fold and
    penalty.  A map that is fitted to a sample of rows needs one more read, or two if leverage scores draw its landmarks
    (none with ``preprocess.reuse``); ``damaged="skip"`` one before all others.  In place of the Gram's one,
    `TiledCholesky` reads once for every panel of tiles, and rows that are dealt to folds by groups are read once for
    every fold.  `PCG` forms no Gram: it reads once for the right-hand sides, once for the preconditioner, and in every
    iteration what the workers do not remember.

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
    if out and (done := run_directory.existing_run(out, job)):
        model, cv, report, equations = done
        return FitResult(model, cv, report.to_dict(), equations)
    keep, page, clock = _kept_at(job, out, resume), _seen_at(out, performance_report), Clock()
    with phases.run(job_digest(job)) as run:
        with connect(job.cluster, scheduler, client) as client:
            machines = resources(client, job.warm, job.plan.device != "cpu")

            def plan_on_machines(kept: Plan | None) -> Plan:
                return verified(resolve.resolve(what, machines, kept), client=client, watch=watch)

            opened = run_directory.open_run(out, job), phases.performance_report(page, client)
            with opened[0], opened[1], checkpoint.open_checkpoint(keep, job, plan_on_machines) as p:
                prepared = prepare(p, machines, client, watch, keep)
                fitted = FITS[p.solver.sums](p, prepared)
            statistics = fitted.statistics
            statistics.tally.saw(on_each_worker(client, memory.peak))
            if not statistics.products:
                spent = min(0.2, statistics.seconds["equations"] / 10)
                rate = functools.partial(backend.product_rate, p.m, p.block_rows, p.dtype, p.threads, p.device, spent)
                statistics = statistics._replace(syrk_rates=on_each_worker(client, rate))
        model, cv, curve = fitted.solve()
    clock.lap("total")
    statistics.seconds.update(clock.seconds, prepare=prepared.seconds)
    report = run_directory.report(p, machines, statistics, model, cv, curve, run)
    if out:
        run_directory.write_run(out, model, fitted.equations, report)
        checkpoint.remove(keep)
    return FitResult(model, cv, report.to_dict(), fitted.equations)


def normal_equations(p: Plan, *, client: Client | None = None) -> list[NormalEquations]:
    """Return the sums of every fold of a plan, over scaled inputs and targets."""
    with connect(p.job.cluster, "", client) as client:
        p = verified(p, client=client, watch=progress.silent)
        prepared = prepare(p, resources(client), client, progress.silent)
        equations = dense.fit(p, prepared).equations
    assert equations is not None
    return equations.folds


def _kept_at(job: Job, out: str, resume: bool) -> str:
    """Return where the checkpoint of a fit is; "" if it has no place of its own."""
    keep = job.plan.checkpoint or (out and storage.join(out, "checkpoint"))
    keep = keep and storage.absolute(keep)
    if resume and not (keep and storage.exists(keep)):
        raise StoreError(
            f"Nothing to resume: there is no checkpoint {keep or 'and no run directory'}; fit without resume"
        )
    return keep


def _seen_at(out: str, asked: bool) -> str:
    """Return where Dask's report of a fit goes, if it was asked for."""
    if asked and not out:
        raise SpecError("performance_report is given but no run directory to write it to; give out")
    return storage.join(out, "performance.html") if asked else ""
