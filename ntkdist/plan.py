"""From a job to a plan: everything that decides a result, resolved once from the data, m and the folds.

Legend: m features, t targets; a task is one fold and some of its partitions, a shard is the sum that it returns.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.data import Dataset, Layout
from ntkdist.devices import Device
from ntkdist.errors import PlanTooLarge, SpecError
from ntkdist.features import AnyFeatureMap
from ntkdist.features.base import PIECE_BYTES
from ntkdist.job import Job, Positive
from ntkdist.select import AUTO_GRID
from ntkdist.solvers import PCG, AnySolver, TiledCholesky, choose
from ntkdist.solvers.tiled import TILE
from ntkdist.spec import Spec
from ntkdist.sums.tiles import Place, places, runs
from ntkdist.tree import evenly, most_alive

GB = 1e9
GROWTH = 6  # penalties that a grid may grow by at once
FILLED = 0.7  # of a worker's memory limit, where what fills it is ours to choose: Dask pauses workers above
SHARD_ROWS = 4096  # of a shard whose sum is not m×m, at least
FREED_BYTES = 2**25  # of what ran before, that a heap has not given back
PROCESS_BYTES = 250 * 2**20  # of a process with NumPy, SciPy, Zarr, Dask and Numba loaded, where none is measured


class Task(NamedTuple):
    """Some partitions of one fold, to become one sum."""

    fold: int
    partitions: tuple[int, ...]


class Plan(Spec, frozen=True, tag=False):
    """Everything resolved: equal plans give equal bits, on any number of workers.

    Made by `plan`; the fields are those of `Job` and `PlanTable`, what is known of the dataset, and the partitions to
    ``skip`` because they are damaged; None before anybody looked.  ``tile`` is 0 where the Gram is not cut into tiles;
    else rows are read and mapped ``panels`` times, which decides no bits.
    """

    job: Job
    layout: Layout
    folds: Positive
    shards: Positive
    fan_in: Positive
    block_rows: Positive
    threads: Positive
    dtype: Literal["float32", "float64"]
    solver: AnySolver
    tile: int = 0
    panels: Positive = 1
    skip: tuple[int, ...] | None = None
    device: Device = "cpu"

    @property
    def dataset(self) -> Dataset:
        return self.job.dataset

    @property
    def features(self) -> AnyFeatureMap:
        return self.job.features

    @property
    def m(self) -> int:
        return self.features.n_components

    @property
    def t(self) -> int:
        return len(self.layout.classes) or max(self.layout.targets, 1)

    @property
    def columns(self) -> int:
        """Right-hand sides that solver PCG iterates on at once: training sets, penalties and targets."""
        grid = len(self.job.grid() or AUTO_GRID)
        return (self.folds + (self.folds > 1)) * (max(grid, GROWTH) if grid > 1 else 1) * self.t

    @property
    def scored(self) -> tuple[int, ...] | None:
        """The folds whose error a penalty is chosen by; None for all."""
        return (1,) if self.dataset.holdout else None

    def tile_panels(self) -> list[Sequence[Place]]:
        """The tiles that are summed in one pass over the data, for every pass."""
        return evenly(places(self.m, self.tile), self.panels)

    @property
    def reads(self) -> int:
        """How often the pass over the equations reads a partition."""
        return self.folds if self.dataset.dealt else 1

    def parts(self, fold: int) -> range:
        """The partitions that hold rows of a fold: all, where rows are dealt to folds one by one.

        Else partition p belongs to fold p mod folds, or to p·folds // partitions if folds are contiguous.
        """
        count = self.layout.partitions
        if self.dataset.dealt:
            return range(count)
        if self.job.plan.contiguous:
            return range(-(-fold * count // self.folds), -(-(fold + 1) * count // self.folds))
        return range(fold, count, self.folds)

    def folds_of(self, partition: int) -> NDArray[np.int64]:
        """The fold of each row of a partition, as the equations have it; reads at most the array that deals rows."""
        start, stop = self.layout.span(partition)
        if self.dataset.dealt:
            return self.dataset.folds(self.layout, start, stop, self.folds)
        return np.full(stop - start, next(k for k in range(self.folds) if partition in self.parts(k)))

    def tasks_of(self, fold: int) -> int:
        """How many tasks a fold is cut into."""
        return min(len(self.parts(fold)), self.shards // self.folds + (fold < self.shards % self.folds))

    def tasks(self) -> list[Task]:
        """All tasks, fold by fold."""
        folds = range(self.folds)
        return [Task(k, tuple(some)) for k in folds for some in evenly(self.parts(k), self.tasks_of(k))]

    def memory(self, workers: int = 1, tasks_at_once: int = 1, process: int = PROCESS_BYTES) -> dict[str, int]:
        """Peak bytes of a worker, by part.

        Parameters
        ----------
        workers : int
            Processes that share the sums which wait to be added.
        tasks_at_once : int
            Dask threads of a worker.
        process : int
            Bytes that it has before it starts, as measured by `resources`.
        """
        size, shape = np.dtype(self.dtype).itemsize, self.layout.input_shape
        direct = not isinstance(self.solver, PCG)
        k = 0 if direct else self.columns
        one = self.sum_bytes(-(-len(places(self.m, self.tile)) // self.panels) if self.tile else 0)
        drawn = self.features.draw_bytes(shape, self.dtype)
        kept = drawn * size // (8 + size)  # at most: what is drawn is of float64, and kept beside it in what is used
        batch = max(self._block_bytes(k), self._before_bytes(), drawn - kept)
        tasks = [self.tasks_of(fold) for fold in range(self.folds)]
        copied = min(self.fan_in, max(tasks)) * (workers > 1)  # from others, to be added
        alive = most_alive(tasks, self.fan_in, tasks_at_once)
        waiting, adding = ((-(-count // workers) + copied) * one for count in alive)
        # Either shards run, or the last one's have ended and an addition makes a sum.
        freed = self.block_rows * self.m * size  # of the block before, in the heap of another thread
        running = {"waiting sums": waiting, "batch": tasks_at_once * (batch + freed * (freed <= FREED_BYTES))}
        between = {"waiting sums": adding, "batch": (tasks_at_once - 1) * batch + min(batch, FREED_BYTES)}
        summing = {
            "process": process,
            "map": kept + self.features.learnt_bytes(shape, self.dtype),
            "accumulator": tasks_at_once * one,
            **max(running, between, key=lambda parts: sum(parts.values())),
        } | ({} if direct else {"directions": (2 + tasks_at_once) * self.m * k * size})
        if not self.tile:
            return summing
        share = self._tile_bytes(-(-len(places(self.m, self.tile)) // workers))
        tiles = {"tiles": self.folds * share}
        solving = {
            "process": summing["process"],
            "training set and factor": 2 * share,
            "columns": 2 * (workers > 1) * self._tile_bytes(runs(self.m, self.tile)),  # those of others, two at a time
            "batch": tasks_at_once * self._tile_bytes(2),
        }
        return tiles | max(summing, solving, key=lambda parts: sum(parts.values()))

    def sum_bytes(self, tiles: int = 0) -> int:
        """Of a shard's sums: normal equations, or some of their tiles, or products of the Gram with some columns."""
        if tiles:
            return self._tile_bytes(tiles)
        if isinstance(self.solver, PCG):
            return 8 * (self.m + 1) * max(self.columns, self.t + 1)
        return 8 * (self.m**2 + self.m * (self.t + 1))

    def _block_bytes(self, k: int) -> int:
        """Of a block of rows as it is summed, and of the partition that it is from; products have ``k`` columns."""
        size, d, shape = np.dtype(self.dtype).itemsize, self.layout.row_values, self.layout.input_shape
        # A row as it is read, scaled and cast; then its features, beside them those of the last block or their product
        # with root weights, and what they multiply.
        several = 1 + bool(k or self.dataset.weight or self.job.class_weight)
        features = several * self.m * size + 32 * self.t + 2 * k * size
        row = self.layout.row_bytes + size * d + max((8 + 16 * self.layout.sparse) * d, features)
        if self.layout.sparse:
            mapped = self.features.sparse_row_bytes(shape, self.dtype, d)
        else:
            mapped = self.features.row_bytes(shape, self.dtype)
        # A thread maps a piece of the block, then multiplies it tile by tile.
        tile = 16 * backend.TILE * k if k else size * backend.TILE**2
        piece = max(tile, min(self.block_rows * mapped, max(PIECE_BYTES, self.features.piece_rows * mapped)))
        copies = 3 + bool(self.dataset.dealt)  # of a partition; one more for the rows of a fold among them
        longest = max(-(-len(self.parts(fold)) // self.tasks_of(fold)) for fold in range(self.folds))
        return (
            min(self.block_rows, longest * self._partition_rows) * row
            + self.threads * piece
            + copies * self._partition_rows * self.layout.row_bytes
        )

    def _before_bytes(self) -> int:
        """Of a partition and its float64 copy, of which moments are, and of the samples of which a pass adds two."""
        d = self.layout.row_values
        return self._partition_rows * (2 * self.layout.row_bytes + 8 * d) + 4 * self.sample_rows * (8 * d + 24)

    @property
    def _partition_rows(self) -> int:
        return min(self.layout.rows_per_partition, self.layout.rows)

    def _tile_bytes(self, count: int) -> int:
        return 8 * count * min(self.tile, self.m) ** 2

    def panelled(self, limit: int, workers: int = 1, tasks_at_once: int = 1, process: int = PROCESS_BYTES) -> "Plan":
        """The same, with more panels as far as a worker's ``limit`` bytes ask for it: the sums of one have to fit."""
        p, most = self, len(places(self.m, self.tile)) if self.tile else 1
        while p.panels < most:
            if p.projected_memory_bytes(workers, tasks_at_once, process) <= FILLED * limit:
                break
            p = msgspec.structs.replace(p, panels=p.panels + 1)
        return p

    @property
    def sample_rows(self) -> int:
        """Rows that a sample of the data holds, for the map or the preconditioner."""
        rows = self.features.sample_rows
        return rows if not isinstance(self.solver, PCG) else max(rows, min(self.solver.sample_rows, self.layout.rows))

    def projected_memory_bytes(self, workers: int = 1, tasks_at_once: int = 1, process: int = PROCESS_BYTES) -> int:
        """Peak bytes of a worker process; see `memory`."""
        return sum(self.memory(workers, tasks_at_once, process).values())

    def driver_memory(self, process: int = PROCESS_BYTES) -> dict[str, int]:
        """Peak bytes of the process that selects and solves, which has ``process`` before, by part."""
        if self.tile:
            sums = 8 * (2 * self.folds + 4) * self.m * (self.t + 1)
            return {"process": process + self.features.draw_bytes(self.layout.input_shape, self.dtype), "sums": sums}
        if isinstance(self.solver, PCG):
            s, grid = min(self.solver.sample_rows, self.layout.rows), len(self.job.grid() or AUTO_GRID) + GROWTH
            return {
                "process": process + self.features.draw_bytes(self.layout.input_shape, self.dtype),
                "sums": 8 * (2 * self.folds + 2) * self.m * (self.t + 1),
                "columns": 8 * 8 * self.m * self.columns + 8 * self.m * self.t * grid,
                "preconditioner": 16 * s * self.m + 32 * s**2,
            }
        copies = 6 if type(self.solver).__name__ == "Eigh" else 4
        process += self.features.learnt_bytes(self.layout.input_shape, self.dtype)
        return {"process": process, "folds": self.folds * 8 * self.m**2, "solver": copies * 8 * self.m**2}

    def driver_memory_bytes(self, process: int = PROCESS_BYTES) -> int:
        """The sum of `driver_memory`."""
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
            raise PlanTooLarge(
                f"Plan needs {total / GB:.1f} GB per worker ({said}) but the limit is {limit / GB:.1f} GB; "
                f"lower n_components, folds, fan_in or block_rows, or use {'more or ' * bool(self.tile)}larger workers"
            )

    def check_driver(self, limit: int, process: int = PROCESS_BYTES) -> None:
        """Refuse the plan if selecting and solving would need more than ``limit`` bytes; see `check`."""
        parts = self.driver_memory(process)
        if (need := sum(parts.values())) > limit:
            if self.tile or isinstance(self.solver, PCG):
                what = ", ".join(f"{name} {nbytes / GB:.1f}" for name, nbytes in parts.items())
                remedy = "n_components, folds, the number of alphas or sample_rows of solver PCG"
            else:
                what = f"{self.folds} folds of {8 * self.m**2 / GB:.1f} GB, and the solver"
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
        If the dataset cannot be used.
    SpecError
        If there are more folds than partitions, ``block_rows`` is below m/2 where a Gram is formed, or classes are
        weighed that there are not.
    """
    layout, table, m = job.dataset.layout(), job.plan, job.features.n_components
    folds = table.folds or (2 if job.dataset.holdout else 5)
    if folds > layout.partitions and not job.dataset.dealt:
        raise SpecError(
            f"folds is {folds} but {job.dataset.store} has {layout.partitions} partitions; lower folds, or "
            "convert with fewer rows per partition"
        )
    if layout.sparse:
        job.preprocess.resolve(layout)
        if not job.features.takes_sparse:
            raise SpecError(
                f"{type(job.features).__name__} does not take sparse rows but those of {job.dataset.store} are; "
                "use NTKSketch or Linear, or convert dense rows"
            )
    if job.class_weight and not layout.classes:
        raise SpecError(
            f'class_weight = "{job.class_weight}" but the targets of {job.dataset.store} are numbers; leave it out, or '
            "convert with --classes"
        )
    grid = job.grid()
    solver = job.solver or (TiledCholesky() if table.tile else choose(m, len(grid or AUTO_GRID)))
    direct, tile = not isinstance(solver, PCG), 0
    if isinstance(solver, TiledCholesky):
        tile = min(m, table.tile or solver.tile or TILE)
    elif direct and table.block_rows is not None and table.block_rows < m / 2:
        raise SpecError(
            f"block_rows is {table.block_rows}; expected at least n_components/2 = {m // 2}, else adding "
            "costs more than multiplying"
        )
    # A shard of 4m rows makes handling its m² sums cheap beside making them (so do a few thousand where the sums are
    # products with some columns); two a fold let workers even out.
    shards = table.shards or max(2 * folds, min(layout.rows // (4 * m if direct else SHARD_ROWS), 1024))
    most = layout.partitions * (folds if job.dataset.dealt else 1)
    return Plan(
        job=job,
        layout=layout,
        folds=folds,
        shards=max(folds, min(shards, most)),
        fan_in=table.fan_in,
        block_rows=min(table.block_rows or (TILE if tile else max(m, 1024) if direct else 1024), layout.rows),
        threads=table.threads or threads,
        dtype=table.dtype,
        solver=solver,
        tile=tile,
        device="cpu" if table.device == "auto" else table.device,
    )
