"""The plan of a job: all that decides a result, resolved once from the data, m and the folds, and the memory it needs.

Legend: as in `ntkdist.planning.cut`.
"""

import bisect
import math
from typing import Any, NamedTuple

import msgspec

from ntkdist.cluster.shards import Source
from ntkdist.cluster.tree import most_held
from ntkdist.data.dataset import Layout, Shard
from ntkdist.display import Described
from ntkdist.errors import DataError, PlanTooLarge, SpecError
from ntkdist.planning import task_memory
from ntkdist.planning.cut import Cut
from ntkdist.planning.job import Job, Metric
from ntkdist.solvers import TiledCholesky, choose
from ntkdist.solvers.cross_validation import AUTO_GRID
from ntkdist.sums.gradients import GradientSums

GB = 1e9
FILLED = 0.7  # of a worker's memory limit, where what fills it is ours to choose: Dask pauses workers above
PROCESS_BYTES = 250 * 2**20  # of a process with NumPy, SciPy, Zarr, Dask and Numba loaded, where none is measured


class Plan(Described, Cut, frozen=True, tag=False):
    """A resolved job, and the memory that it needs.  Made by `plan`; see `Cut`."""

    def facts(self) -> dict[str, Any]:
        """Return what is shown of the plan, by name."""
        return {
            "dataset": self.dataset.store,
            "rows": self.layout.rows,
            "copies": self.copies if self.copies > 1 else None,
            "features": self.features,
            "folds": self.folds,
            "tasks": self.task_count,
            "solver": self.solver,
            "device": self.device,
            "dtype": self.dtype,
            "worker_memory": f"{self.projected_memory_bytes() / 1e9:.3g} GB",
        }

    def memory(self, workers: int = 1, tasks_at_once: int = 1, process: int = PROCESS_BYTES) -> dict[str, int]:
        """Return the peak bytes of a worker, by part: of the pass, or of a round for a metric, where that needs more.

        Parameters
        ----------
        workers : int
            Processes that additions and tiles are dealt to.
        tasks_at_once : int
            Dask threads of a worker.
        process : int
            Bytes that it has before it starts, as measured by `resources`.
        """
        peaks = [self._pass_memory(workers, tasks_at_once, process)]
        if plans := of_metric(self):
            peaks += [each._pass_memory(workers, tasks_at_once, process) for each in plans]
            peaks.append(
                plans.rounds._gradients_memory(self.job.metric.form == "full", workers, tasks_at_once, process)
            )
        return max(peaks, key=lambda parts: sum(parts.values()))

    def _pass_memory(self, workers: int, tasks_at_once: int, process: int) -> dict[str, int]:
        task = task_memory.of_task(self, self.columns, self.sample_rows)
        summing = self._summing_memory(self.sum_bytes, task, workers, tasks_at_once, process)
        return self.solver.worker_bytes(summing, self.sizes, workers, tasks_at_once)

    def _gradients_memory(self, full: bool, workers: int, tasks_at_once: int, process: int) -> dict[str, int]:
        nbytes = GradientSums.bytes_of(self.t, math.prod(self.mapped_shape), full)
        task = task_memory.of_gradients(self, nbytes)
        name = "metric" if full else "metric's diagonal"
        parts = self._summing_memory(nbytes, task, workers, tasks_at_once, process)
        sums = parts.pop("accumulator") + parts.pop("waiting sums")
        return parts | {name: sums}

    def _summing_memory(self, one: int, task: int, workers: int, tasks_at_once: int, process: int) -> dict[str, int]:
        """Return the peak bytes of a worker in a pass, whose sums have ``one`` bytes, and tasks ``task`` beside."""
        shape = self.mapped_shape
        kept = self.features.kept_bytes(shape, self.dtype)
        tasks = [self.tasks_of(fold) for fold in self.group_folds]
        return {
            "process": process,
            "map": kept + self.features.learnt_bytes(shape, self.dtype),
            "accumulator": tasks_at_once * one,
            "waiting sums": one * most_held(tasks, self.fan_in, tasks_at_once, workers),
            "batch": tasks_at_once * task,
        }

    def with_panels(self, limit: int, workers: int = 1, tasks_at_once: int = 1, process: int = PROCESS_BYTES) -> "Plan":
        """Return the plan with more panels, as many as a worker's ``limit`` bytes ask for and as need less memory."""
        most = self.solver.most_panels(self.sizes)

        def of(panels: int) -> Plan:
            return msgspec.structs.replace(self, panels=panels)

        def needs(panels: int) -> int:
            return of(panels).projected_memory_bytes(workers, tasks_at_once, process)

        room = max(FILLED * limit, needs(most))
        return of(self.panels + bisect.bisect_left(range(self.panels, most), True, key=lambda n: needs(n) <= room))

    @property
    def sample_rows(self) -> int:
        """The rows that a sample of the data holds, for the map or the preconditioner."""
        return max(self.features.sample_rows, self.solver.sampled_rows(self.layout.rows))

    def projected_memory_bytes(self, workers: int = 1, tasks_at_once: int = 1, process: int = PROCESS_BYTES) -> int:
        """Return the peak bytes of a worker process; see `memory`."""
        return sum(self.memory(workers, tasks_at_once, process).values())

    def driver_memory(self, process: int = PROCESS_BYTES) -> dict[str, int]:
        """Return the peak bytes, by part, of the process that selects and solves, and has ``process`` of before.

        Where half of the free memory holds more, more penalties are solved at once than one.
        """
        shape = self.mapped_shape
        process += self.features.learnt_bytes(shape, self.dtype)
        if self.solver.sums != "gram":  # rows are mapped here, too
            process += self.features.draw_bytes(shape, self.dtype)
        return {"process": process} | self.solver.driver_bytes(self.sizes)

    def driver_memory_bytes(self, process: int = PROCESS_BYTES) -> int:
        """Return the sum of `driver_memory`."""
        return sum(self.driver_memory(process).values())

    def check(self, limit: int, workers: int = 1, tasks_at_once: int = 1, process: int = PROCESS_BYTES) -> None:
        """Refuse the plan if a worker would need more than ``limit`` bytes.

        Raises
        ------
        PlanTooLarge
            With the parts of the sum.
        """
        parts = self.memory(workers, tasks_at_once, process)
        total = sum(parts.values())
        if total > limit:
            said = ", ".join(f"{name} {nbytes / GB:.1f}" for name, nbytes in parts.items())
            more = "more or " if self.solver.sums == "tiles" else ""
            first = 'use metric.form = "diagonal", or ' if "metric" in parts else ""
            raise PlanTooLarge(
                f"Plan needs {total / GB:.1f} GB per worker ({said}) but the limit is {limit / GB:.1f} GB; "
                f"{first}lower n_components, folds, fan_in or block_rows, or use {more}larger workers"
            )

    def check_data(self) -> None:
        """Refuse a dataset of other content than the plan was made for (DataError)."""
        if (layout := self.dataset.layout()) != self.layout:
            raise DataError(
                f"{self.dataset.store} is not the data that was fitted on (fingerprint {layout.fingerprint}, "
                f"then {self.layout.fingerprint}); restore it"
            )

    def check_driver(self, limit: int, process: int = PROCESS_BYTES) -> None:
        """Refuse the plan if selecting and solving would need more than ``limit`` bytes; see `check`."""
        parts = self.driver_memory(process)
        if (need := sum(parts.values())) > limit:
            if self.solver.sums != "gram":
                what = ", ".join(f"{name} {nbytes / GB:.1f}" for name, nbytes in parts.items())
                remedy = "n_components, folds, the number of alphas or sample_rows of solver PCG"
            else:
                apart = f" and {more} of rows without copies" if (more := self.groups - self.folds) else ""
                what = f"{self.folds} folds{apart} of {8 * self.m**2 / GB:.1f} GB, and the solver"
                remedy = "n_components or folds, or use solver TiledCholesky on a cluster, or PCG"
            raise PlanTooLarge(
                f"Solving needs {need / GB:.1f} GB in this process ({what}) but it has {limit / GB:.1f} GB; "
                f"lower {remedy}"
            )


def plan(job: Job, *, threads: int = 1) -> Plan:
    """Resolve a job against its dataset.  Reads metadata only.

    Parameters
    ----------
    job : Job
    threads : int
        Threads of a task unless the job says: the cores of a node over the tasks on it.

    Raises
    ------
    DataError
        If the dataset cannot be used, or its rows have a shape that the features do not take.
    SpecError
        If there are more folds than partitions, ``block_rows`` is below m/2 where a Gram is formed, classes are weighed
        that there are not, or rows that are no images are augmented.
    """
    layout, table = job.dataset.layout(), job.plan
    check_choice(job, layout)
    job.augment.check(layout, job.dataset.store)
    job = job.provisional(layout.rows, layout.input_shape)
    m = job.map.n_components
    job.map.check_shape(layout.input_shape, job.dataset.store)
    folds = table.folds or (2 if job.dataset.holdout else 5)
    if folds > layout.partitions and not job.dataset.fold_array:
        raise SpecError(
            f"folds is {folds} but {job.dataset.store} has {layout.partitions} partitions; lower folds, or "
            "convert with fewer rows per partition"
        )
    if layout.sparse:
        job.preprocess.resolve(layout)
        if not job.map.takes_sparse:
            raise SpecError(
                f"{type(job.map).__name__} does not take sparse rows but those of {job.dataset.store} are; "
                "use NTKSketch or Linear, or convert dense rows"
            )
    if job.class_weight and not layout.classes:
        raise SpecError(
            f'class_weight = "{job.class_weight}" but the targets of {job.dataset.store} are numbers; leave it out, or '
            "convert with --classes"
        )
    grid = job.grid()
    solver = job.solver or (TiledCholesky() if table.tile else choose(m, len(grid or AUTO_GRID)))
    if solver.sums == "gram" and table.block_rows is not None and table.block_rows < m / 2:
        raise SpecError(
            f"block_rows is {table.block_rows}; expected at least n_components/2 = {m // 2}, else adding "
            "costs more than multiplying"
        )
    # Two shards a fold let workers even out.
    rows = job.augment.copies * layout.rows
    shards = table.shards or max(2 * folds, min(rows // solver.shard_rows(m), 1024))
    most = layout.partitions * (folds if job.dataset.fold_array else 1)
    return Plan(
        job=job,
        layout=layout,
        folds=folds,
        shards=max(folds, min(shards, most)),
        fan_in=table.fan_in,
        block_rows=min(table.block_rows or solver.block_rows(m), rows),
        threads=table.threads or threads,
        dtype=table.dtype,
        solver=solver,
        tile=solver.tile_size(m, table.tile),
        device="cpu" if table.device == "auto" else table.device,
    )


def check_choice(job: Job, layout: Layout) -> None:
    """Refuse rows for which no features are chosen, if the job has none."""
    if job.features is None and layout.sparse:
        raise SpecError(
            f"the job has no [features], and the rows of {job.dataset.store} are sparse, for which none are chosen; "
            "give some, such as NTKSketch or Linear"
        )


class MetricPlans(NamedTuple):
    """The plans of the fits by which a metric is learned."""

    rounds: Plan
    lengths: Plan  # of the fits that choose the length of rows once more


def of_metric(p: Plan) -> MetricPlans | None:
    """Return the plans of the fits by which a metric is learned; None if none is."""
    if not p.job.metric.rounds or p.job.preprocess.reuse:
        return None
    few = p.job.metric.components(p.m)
    return MetricPlans(_small(p, few), _small(p, p.m if p.solver.sums == "gram" else few))


def _small(p: Plan, m: int) -> Plan:
    job = p.job
    features = p.features if m == p.m else msgspec.structs.replace(p.features, n_components=m)
    solver = choose(m, len(AUTO_GRID))
    table = msgspec.structs.replace(job.plan, tile=None, block_rows=None, device="cpu")
    small = {"features": features, "solver": None, "metric": Metric(), "alphas": "auto", "alphas_per_row": None}
    rows = min(solver.block_rows(m), p.layout.rows)
    cut = {"block_rows": rows, "solver": solver, "tile": 0, "panels": 1, "device": "cpu"}
    return msgspec.structs.replace(p, job=msgspec.structs.replace(job, plan=table, **small), **cut)


def by_fold(p: Plan) -> tuple[Source, list[Shard]]:
    """Return the source of a plan's rows, and its tasks as shards, the folds as groups."""
    shards = [Shard(t.fold, tuple(p.layout.span(i) for i in t.partitions), t.fold) for t in p.tasks()]
    return source_of(p)._replace(folds=p.folds if p.dataset.fold_array else 0), shards


def source_of(p: Plan) -> Source:
    """Return the source of all rows of a plan, whatever their fold."""
    return Source(p.dataset, p.layout, p.block_rows, p.threads, skip=p.skip or ())
