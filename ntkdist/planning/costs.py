"""Passes, bytes, operations and seconds of a fit, by what its solver sums; from the shapes in its plan and `Rates`."""

from dataclasses import dataclass
from typing import Any, cast

from ntkdist.cluster.connect import Resources
from ntkdist.cluster.reduce import MAP_TASKS
from ntkdist.planning.plan import FILLED, Plan
from ntkdist.planning.rates import Rates
from ntkdist.solvers import PCG
from ntkdist.solvers.cross_validation import AUTO_GRID
from ntkdist.solvers.grid import THIN
from ntkdist.solvers.tiled import work
from ntkdist.sums.mapped_rows import row_bytes
from ntkdist.sums.tiles import nbytes, places, runs


@dataclass(frozen=True)
class GramCost:
    """The cost of a fit that sums the Gram of every fold, on workers that are like this process."""

    p: Plan
    machines: Resources
    rates: Rates
    operations = "gram_flops"

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
    def network_bytes(self) -> int:
        """Bytes of sums that are sent, at most: to the worker that adds them, and the last ones to this process."""
        return self._added * self.p.sum_bytes + self._collected

    @property
    def _added(self) -> int:
        return (self.p.shards - self.p.folds) * (self.machines.workers > 1)

    @property
    def _collected(self) -> int:
        return self.p.folds * self.p.sum_bytes

    def seconds(self) -> dict[str, float]:
        """Estimate the seconds of every phase."""
        solve, solves = self.rates.solved, self.solves
        equations = self._summing() + 2 * self.rates.task + self._collected * self.rates.moved
        # Fewer features, a half and so on, are solved as well, for their curve.
        return self._prepare() | {"equations": equations, "solve": solves * solve, "curve": (solves - 1) * solve / 7}

    def _prepare(self) -> dict[str, float]:
        p, rates = self.p, self.rates
        reads = 1 + bool(p.features.sample_rows)
        tasks = reads * min(p.layout.partitions, MAP_TASKS)  # half of a task is sent while another runs
        reading = p.layout.rows * (rates.read + rates.moments) * reads / self.slots
        return {"prepare": reading + rates.learnt + tasks * rates.task / 2}

    def _summing(self) -> float:
        p, rates = self.p, self.rates
        row = p.panels * (p.reads * rates.read + rates.mapped) + rates.added
        shards = p.shards * (rates.shard + p.panels * rates.task / 2)
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


class TilesCost(GramCost):
    """The cost of a fit that sums tiles, sends them to the workers that own them, and solves there, task by task."""

    @property
    def network_bytes(self) -> int:
        """Bytes of added sums, of tiles sent to their owners, and of a factor's tiles sent to all that use them."""
        p, workers = self.p, self.machines.workers
        n, everything = runs(p.m, p.tile), sum(nbytes(p.m, p.t, p.tile))
        copies = sum((n - k) * min(workers - 1, n - 1 - k) for k in range(n))
        away = p.folds * everything * (workers - 1) // workers
        return self._added * everything + away + self.solves * copies * 8 * (p.m // n) ** 2

    def seconds(self) -> dict[str, float]:
        """Estimate the seconds of every phase."""
        p, rates, workers, sets, solves = self.p, self.rates, self.machines.workers, self.p.sets, self.solves
        n, each = runs(p.m, p.tile), len(places(p.m, p.tile))
        operations, longest, calls = work(n)
        # Workers wait for one another: at most as long as if all but one did while the longest chain is worked off.
        spread = 1 / workers + (1 - 1 / workers) * longest / operations
        tasks = sets * (each - 1) + solves * calls + (solves - 1) * n * (n + 1) // 2
        solve = solves * rates.solved * spread + sets * p.folds / 2 * rates.shard / workers
        return self._prepare() | {
            "equations": self._summing() + p.folds * (2 * each + p.panels + n) * rates.task / 2,
            "solve": solve + tasks * rates.task / 2 + self.network_bytes * rates.moved,
        }


class ProductsCost(GramCost):
    """The cost of a fit by products of the Gram with vectors."""

    operations = "product_flops"

    @property
    def solver(self) -> PCG:
        return cast(PCG, self.p.solver)

    @property
    def passes(self) -> int:
        return self.solver.max_iterations

    @property
    def reads(self) -> int:
        return 4

    @property
    def row_operations(self) -> int:
        return 4 * self.p.m * self.p.columns

    @property
    def remembered(self) -> dict[str, int]:
        room = cache_bytes(self.p, self.solver, self.machines, self.machines.workers == 1)
        rows = -(-self.p.layout.rows // self.machines.workers)
        return {"remembered rows": min(room, rows * row_bytes(self.p.m, self.p.t, self.p.dtype))}

    @property
    def network_bytes(self) -> int:
        return super().network_bytes * self.passes

    def seconds(self) -> dict[str, float]:
        """Estimate the seconds of as many iterations as `PCG.expected`; rows that are not kept are mapped in each."""
        p, rates, rows = self.p, self.rates, self.p.layout.rows
        passes, _ = self.solver.expected(p.penalties)
        kept = self.machines.workers * sum(self.remembered.values())
        anew = max(0.0, 1 - kept / (rows * row_bytes(p.m, p.t, p.dtype)))
        s = self.solver.sampled_rows(rows)
        # The process that solves multiplies the rows of the preconditioner in float64.
        near = 2 * (passes * s * rates.multiplied + (32 * s**3 + 8 * s**2 * p.m) / rates.syrk)
        mapping = (1 + (passes + 1) * anew) * rows * (rates.read + rates.mapped)
        tasks = (passes + 2) * p.shards * rates.task / 2
        spread = (mapping + (passes + 1) * rows * rates.multiplied + tasks) / self.slots
        return self._prepare() | {"iterations": spread + near + rates.drawn}

    @staticmethod
    def described(p: Plan, cost: dict[str, Any]) -> tuple[str, str, str]:
        mean = cast(PCG, p.solver).expected(p.penalties)[1]
        return (
            "four passes, then what workers do not remember, every iteration",
            f"{cost['product_flops']:.2e} in a product with {p.columns} columns",
            f"solver PCG, if a penalty takes {mean} iterations in the mean",
        )


COSTS = {"gram": GramCost, "tiles": TilesCost, "products": ProductsCost}  # by `Solver.sums`


def cost_of(p: Plan, machines: Resources, rates: Rates) -> GramCost:
    """Return the cost of a plan on the workers at hand."""
    return COSTS[p.solver.sums](p, machines, rates)


def cache_bytes(p: Plan, solver: PCG, machines: Resources, here: bool) -> int:
    """Return the bytes of mapped rows that a worker may keep: a share of its limit, within what projections leave."""
    free = FILLED * machines.memory_bytes - p.projected_memory_bytes(*machines.shape)
    free -= p.driver_memory_bytes(0) if here else 0
    return max(0, int(min(solver.cache * machines.memory_bytes, free)))
