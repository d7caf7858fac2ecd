"""Fitting: moments → scaling (→ landmarks) → normal equations of every fold → penalty → weights.

Every arrow up to the equations is a pass of the mapper, `ntkdist.cluster.reduce`; the others do not need the data.
Read `prepare` and `dense` next.
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
from ntkdist.display import Described
from ntkdist.errors import SpecError, StoreError
from ntkdist.planning import resolve
from ntkdist.planning.job import Job, job_digest
from ntkdist.planning.plan import Plan
from ntkdist.ridge import checkpoint, choose, dense, iterative, run_directory, single, tiled
from ntkdist.ridge.fitted import Clock, Fitted
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.ridge.prepare import Prepared, prepare, verified
from ntkdist.solvers.cv_result import CVResult
from ntkdist.sums import NormalEquations

FITS = {"gram": dense.fit, "single": single.fit, "tiles": tiled.fit, "products": iterative.fit}  # by `Solver.sums`


@dataclass(frozen=True, repr=False)
class FitResult(Described):
    """The result of a fit.

    Attributes
    ----------
    model : RidgeModel
    cv : CVResult, optional
        Scores of the penalties; absent with a single fold.
    report : dict
        The contents of ``report.json``, as plain objects.
    equations : Equations, optional
        Absent if the solver formed no Gram, or left it in tiles on the workers.
    """

    model: RidgeModel
    cv: CVResult | None
    report: dict[str, Any]
    equations: Equations | None

    def facts(self) -> dict[str, Any]:
        """Return what is shown of the result, by name."""
        cv = {} if self.cv is None else {"cv_rmse": self.cv.rmse, "cv_r2": self.cv.r2}
        of_run = {"rows": self.report["data"]["rows"], "seconds": round(self.report["run"]["seconds"]["total"], 1)}
        return self.model.facts() | cv | of_run


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
    (none with ``preprocess.reuse``); a metric takes one for each length in each round, and one a round for gradients;
    ``damaged="skip"`` needs one before all others.  `TiledCholesky` reads once for every panel of tiles in place of
    once for the Gram, `InPlaceCholesky` reads the last fold again for every few penalties where its mapped rows do not
    fit the memory, and rows that are assigned to folds by groups are read once for every fold.  With `Augment`,
    scored folds are read once more, though no row is mapped twice.  `PCG` forms no Gram: it reads once for the
    right-hand sides, once for the preconditioner, and in every iteration those rows that do not fit the workers'
    memory.

    Parameters
    ----------
    what : Job or Plan
        A plan fixes what decides the bits.  A job is resolved against the workers' machines: without a solver the
        first that fits their memory is taken, and with the device "auto" their GPUs where each has one.
    out : str
        Run directory for ``model.zarr``, ``equations.zarr`` and ``report.json``; its name is that of the run in logs
        and on dashboards.  A complete run of the same job is loaded; an incomplete one continues from its finished
        shards, to the same bits; another job's is refused.
    resume : bool
        Refuse to start without a checkpoint to continue from.
    client : distributed.Client, optional
    scheduler : str
        Address of a scheduler.  Without this and a client, see `connect`.
    watch : callable, optional
        Shows progress; by default a bar in a terminal or a notebook.
    performance_report : bool
        Save Dask's report of the cluster as ``performance.html`` in the run directory; needs bokeh.

    Raises
    ------
    PlanTooLarge
        If the projected memory does not fit; nothing has run then.
    DataError
        If the data cannot be read, or do not suit the job.
    ClusterError
        If there is no cluster, its workers die, or the connection is lost.
    NotPositiveDefinite, NotConverged
        If the equations cannot be solved with any, or with the chosen penalty.
    StoreError
        If ``out`` or the checkpoint is of another job, or cannot be written.

    Examples
    --------
    >>> import ntkdist as nd
    >>> x = np.random.default_rng(0).standard_normal((400, 3))
    >>> np.savez("waves.npz", x=x, y=np.sin(2 * x[:, 0]))
    >>> layout = nd.convert("waves.npz", "waves.zarr")
    >>> job = nd.Job(nd.Dataset("waves.zarr"), nd.Nystrom(100, nd.Gaussian(2.0)))
    >>> result = nd.fit(job, out="waves-run")
    >>> bool(result.cv.r2 > 0.9)
    True
    >>> model = nd.load("waves-run/model.zarr")
    >>> model(x[:5]).shape
    (5,)
    """
    job = what.job if isinstance(what, Plan) else what
    if out and (done := run_directory.existing_run(out, job)):
        model, cv, report, equations = done
        return FitResult(model, cv, report.to_dict(), equations)
    keep, page, clock = _checkpoint_place(job, out, resume), _report_place(out, performance_report), Clock()
    with phases.run(storage.name(out) or job_digest(job)) as run:
        with (
            connect(job.cluster, scheduler, client) as client,
            run_directory.open_run(out, job),
            phases.performance_report(page, client),
        ):
            what, trials = (what, ()) if isinstance(what, Plan) or job.features else choose.complete(job, client, watch)
            p, prepared, fitted = _fit_on_cluster(what, keep, client, watch)
        model, cv, curve = fitted.solve()
    clock.lap("total")
    statistics = fitted.statistics
    statistics.seconds.update(clock.seconds, prepare=prepared.seconds)
    report = run_directory.report(p, prepared.resources, statistics, model, cv, curve, run, choose.described(trials))
    if out:
        run_directory.write_run(out, model, fitted.equations, report)
        storage.remove(keep)
    return FitResult(model, cv, report.to_dict(), fitted.equations)


def _fit_on_cluster(
    what: Job | Plan, keep: str, client: Client | None, watch: Watch | None
) -> tuple[Plan, Prepared, Fitted]:
    """Resolve the plan, pass over the data, and measure the workers; solving dense equations is left."""
    job = what.job if isinstance(what, Plan) else what
    machines = resources(client, job.warm, job.plan.device != "cpu")

    def plan_on_machines(kept: Plan | None) -> Plan:
        return verified(resolve.resolve(what, machines, kept), client=client, watch=watch)

    with checkpoint.open_checkpoint(keep, job, plan_on_machines) as p:
        prepared = prepare(p, machines, client, watch, keep)
        fitted = FITS[p.solver.sums](p, prepared)
    statistics = fitted.statistics
    statistics.tally.saw(on_each_worker(client, memory.peak))
    if not statistics.products:
        spent = min(0.2, statistics.seconds["equations"] / 10)
        rate = functools.partial(backend.product_rate, p.m, p.block_rows, p.dtype, p.threads, p.device, spent)
        statistics = statistics._replace(syrk_rates=on_each_worker(client, rate))
    return p, prepared, fitted._replace(statistics=statistics)


def normal_equations(p: Plan, *, client: Client | None = None) -> list[NormalEquations]:
    """Sum the equations of every fold of a plan, over scaled inputs and targets; client and errors as in `fit`.

    With `Augment`, they have the copies of images, too.
    """
    with connect(p.job.cluster, "", client) as client:
        p = verified(p, client=client, watch=progress.silent)
        prepared = prepare(p, resources(client), client, progress.silent)
        equations = dense.fit(p, prepared).equations
    assert equations is not None
    return equations.folds


def _checkpoint_place(job: Job, out: str, resume: bool) -> str:
    """Return the place of a fit's checkpoint, or "" for none; refuse to resume without one."""
    keep = job.plan.checkpoint or (out and storage.join(out, "checkpoint"))
    keep = keep and storage.absolute(keep)
    if resume and not (keep and storage.exists(keep)):
        raise StoreError(
            f"Nothing to resume: there is no checkpoint {keep or 'and no run directory'}; fit without resume"
        )
    return keep


def _report_place(out: str, asked: bool) -> str:
    """Return the place of Dask's report, or "" if it was not asked for."""
    if asked and not out:
        raise SpecError("performance_report is given but no run directory to write it to; give out")
    return storage.join(out, "performance.html") if asked else ""
