"""The cut of a job: tasks of some partitions of one fold, and a Gram cut into panels of tiles.

Legend: m features, t targets; a task is one fold and some of its partitions, a shard is the sum that it returns.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ntkdist.data import encoding
from ntkdist.data.dataset import Dataset, Layout
from ntkdist.data.partitions import evenly
from ntkdist.features import AnyFeatureMap
from ntkdist.gpu import Device
from ntkdist.planning.job import Job, Positive
from ntkdist.solvers import AnySolver
from ntkdist.solvers.base import Sizes
from ntkdist.solvers.cross_validation import AUTO_GRID
from ntkdist.spec import Spec


class Task(NamedTuple):
    """The partitions of one task, all of one fold."""

    fold: int
    partitions: tuple[int, ...]


def mapped_shape(job: Job, layout: Layout) -> tuple[int, ...]:
    """Return the shape of a row that the feature map takes, or where the data decide, the largest possible."""
    if not encoding.needed(layout, job.preprocess, job.dataset.nan):
        return layout.input_shape
    return (encoding.widest(layout, job.preprocess, job.dataset.nan),)


class Cut(Spec, frozen=True, tag=False):
    """A job and its cut: equal cuts give equal bits, on any number of workers.

    The fields are those of `Job` and `PlanTable`, the dataset's layout, and the partitions to ``skip`` because they are
    damaged; None before they were looked for.  ``tile`` is 0 where the Gram is not cut into tiles; else rows are read
    and mapped ``panels`` times, which changes no bits.
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
        return self.job.map

    @property
    def m(self) -> int:
        return self.features.n_components

    @property
    def mapped_shape(self) -> tuple[int, ...]:
        """The shape of a row that the feature map takes; an upper bound where the data decide."""
        return mapped_shape(self.job, self.layout)

    @property
    def t(self) -> int:
        return len(self.layout.classes) or max(self.layout.targets, 1)

    @property
    def sizes(self) -> Sizes:
        """The sizes that decide what the solver needs."""
        size = np.dtype(self.dtype).itemsize
        known = self.m, self.t, self.layout.rows, self.groups, self.sets, self.penalties, self.threads, size
        return Sizes(*known, self.tile, self.panels)

    @property
    def columns(self) -> int:
        """The most columns that the Gram is multiplied with at once; 0 if it is formed."""
        return self.solver.columns(self.sizes)

    @property
    def sum_bytes(self) -> int:
        """The bytes of a shard's sum."""
        return self.solver.sum_bytes(self.sizes)

    @property
    def penalties(self) -> int:
        """The number of penalties of the grid, before it grows."""
        return len(self.job.grid() or AUTO_GRID)

    @property
    def sets(self) -> int:
        """The number of training sets: those that a penalty is chosen by, and that of all rows."""
        return 1 + (len(self.scored or range(self.folds)) if self.folds > 1 else 0)

    @property
    def scored(self) -> tuple[int, ...] | None:
        """The folds whose error a penalty is chosen by; None for all."""
        one = self.dataset.holdout or self.job.metric.rounds or (self.solver.scores_one_fold and self.folds > 1)
        return (self.folds - 1,) if one else None

    @property
    def copies(self) -> int:
        """The number of rows that the equations have of each row of the dataset."""
        return self.job.augment.copies

    @property
    def rows_mapped(self) -> int:
        """The number of rows of the equations, copies and all."""
        return self.copies * self.layout.rows

    @property
    def weighs_rows(self) -> bool:
        """The answer whether rows have weights in the equations, so that their product with the features is made."""
        return bool(self.dataset.weight or self.job.class_weight or self.copies > 1)

    @property
    def group_folds(self) -> tuple[int, ...]:
        """The fold of each sum: one of every fold, and with copies one of the scored folds' rows without theirs."""
        every = tuple(range(self.folds))
        apart = self.copies > 1 and self.folds > 1 and self.solver.sums not in ("products", "single")
        return (*every, *(self.scored or every)) if apart else every

    @property
    def groups(self) -> int:
        """The number of sums that the pass over the equations returns."""
        return len(self.group_folds)

    @property
    def task_count(self) -> int:
        """The number of tasks of that pass."""
        return sum(map(self.tasks_of, self.group_folds))

    @property
    def reads(self) -> int:
        """The number of times that it reads a partition, at most."""
        return self.groups if self.dataset.fold_array else -(-self.groups // self.folds)

    def parts(self, fold: int) -> range:
        """Return the partitions that hold rows of a fold: all, where rows are dealt to folds one by one.

        Else partition p belongs to fold p mod folds, or to p·folds // partitions if folds are contiguous.
        """
        count = self.layout.partitions
        if self.dataset.fold_array:
            return range(count)
        if self.job.plan.contiguous:
            return range(-(-fold * count // self.folds), -(-(fold + 1) * count // self.folds))
        return range(fold, count, self.folds)

    def folds_of(self, partition: int) -> NDArray[np.int64]:
        """Return the fold of each row of a partition, as the equations have it; reads at most the array that deals
        rows.
        """
        start, stop = self.layout.span(partition)
        if self.dataset.fold_array:
            return self.dataset.folds(self.layout, start, stop, self.folds)
        return np.full(stop - start, next(k for k in range(self.folds) if partition in self.parts(k)))

    def tasks_of(self, fold: int) -> int:
        """Return the number of tasks that a fold is cut into."""
        return min(len(self.parts(fold)), self.shards // self.folds + (fold < self.shards % self.folds))

    def tasks(self) -> list[Task]:
        """Return all tasks, fold by fold."""
        folds = range(self.folds)
        return [Task(k, tuple(some)) for k in folds for some in evenly(self.parts(k), self.tasks_of(k))]
