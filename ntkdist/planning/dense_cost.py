"""Passes, bytes, operations and seconds of a fit that sums Grams, from the shapes in its plan and `Rates`."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkdist import random
from ntkdist.cluster.connect import Resources
from ntkdist.cluster.reduce import MAP_TASKS
from ntkdist.planning.plan import Plan
from ntkdist.planning.rates import Rates, median_seconds
from ntkdist.solvers import Cholesky
from ntkdist.solvers.cross_validation import AUTO_GRID, cross_validate
from ntkdist.solvers.grid import THIN
from ntkdist.sums import NormalEquations

SOLVED = 1536  # columns that solving is timed on, at most


@dataclass(frozen=True)
class GramCost:
    """The cost of a fit that sums the Gram of every fold, on workers that are like this process."""

    p: Plan
    machines: Resources
    rates: Rates
    operations = "gram_flops"

    @staticmethod
    def timed(rates: Rates, p: Plan) -> Rates:
        """Measure the rates of the solver, too."""
        return rates._replace(solved=_solved(p))

    @property
    def passes(self) -> int:
        """The most passes over the data."""
        return 1 + self.p.reads * self.p.panels

    @property
    def reads(self) -> int:
        """The number of times that every partition is read for sure."""
        return self.passes

    @property
    def row_operations(self) -> int:
        """Operations for a row in a pass."""
        return self.p.m**2

    @property
    def slots(self) -> int:
        """Tasks at once."""
        return min(self.machines.workers * self.machines.tasks_at_once, self.p.shards)

    @property
    def remembered(self) -> dict[str, int]:
        """Bytes of mapped rows that a worker keeps between passes."""
        return {}

    @property
    def counts(self) -> dict[str, int]:
        """Further counts of a solver's own, by name."""
        return {}

    @property
    def shards(self) -> int:
        """Tasks of a pass that sums."""
        return self.p.shards * self.p.groups // self.p.folds

    @property
    def network_bytes(self) -> int:
        """Bytes of sums that are sent, at most: to the worker that adds them, and the last ones to this process."""
        return self._added * self.p.sum_bytes + self._collected

    @property
    def _added(self) -> int:
        return (self.shards - self.p.groups) * (self.machines.workers > 1)

    @property
    def _collected(self) -> int:
        return self.p.groups * self.p.sum_bytes

    def seconds(self) -> dict[str, float]:
        """Estimate the seconds of every phase."""
        solve, solves = self.rates.solved, self.solves
        equations = self.summing + 2 * self.rates.task + self._collected * self.rates.moved
        # Fewer features, a half and so on, are solved as well, for their curve.
        return self._prepare() | {"equations": equations, "solve": solves * solve, "curve": (solves - 1) * solve / 7}

    def _prepare(self) -> dict[str, float]:
        p, rates = self.p, self.rates
        reads = 1 + bool(p.features.sample_rows)
        tasks = reads * min(p.layout.partitions, MAP_TASKS)  # half of a task is sent while another runs
        reading = p.layout.rows * (rates.read + rates.moments) * reads / self.slots
        return {"prepare": reading + rates.learnt + tasks * rates.task / 2}

    @property
    def summing(self) -> float:
        """The seconds of a pass that sums."""
        p, rates = self.p, self.rates
        row = p.panels * (p.reads * rates.read + p.copies * rates.mapped) + p.copies * rates.added
        shards = self.shards * (rates.shard + p.panels * rates.task / 2)
        return (p.layout.rows * row + shards) / self.slots + rates.drawn

    @property
    def solves(self) -> int:
        """Systems that are solved one by one, or a whole path of them, if the grid does not grow."""
        p = self.p
        if p.solver.whole_path:
            penalties = 1
        elif grid := p.job.grid():
            penalties = len(grid)
        else:  # every second, and those beside the best
            penalties = len(AUTO_GRID) // 2 + 3 if p.m >= THIN else len(AUTO_GRID)
        return (p.sets - 1) * penalties + 1

    @staticmethod
    def described(p: Plan, cost: dict[str, Any]) -> tuple[str, str, str]:
        """Describe passes, operations, and what the seconds are of, for a reader."""
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in cost["seconds_of"].items())
        operations = f"{cost['gram_flops']:.2e} in the Gram"
        return f"{cost['passes']} passes", operations, f"{type(p.solver).__name__} ({phases})"


def _solved(p: Plan) -> float:
    """Time a penalty as a cross-validation solves it, on all cores; two sizes separate m² from m³ operations."""
    path = p.solver.whole_path
    solver = p.solver if path else Cholesky()
    sizes, times = (min(p.m, SOLVED) // 2, min(p.m, SOLVED)), []
    for m in sizes:
        z = random.normals((2 * m, m), 0, 0, 0)
        folds = [NormalEquations.zeros(m, p.t).update(z, np.ones((2 * m, p.t))) for _ in range(2)]
        alphas = [1.0] if path else [1.0, 2.0]
        each = functools.partial(cross_validate, folds, solver, alphas, extend=False)
        times.append(median_seconds(each) / (len(folds) * (1 if path else len(alphas))))
    square, cube = np.linalg.solve([[m**2, m**3] for m in sizes], times)
    if min(square, cube) < 0:
        square, cube = 0.0, times[1] / sizes[1] ** 3
    return float(square * p.m**2 + cube * p.m**3)
