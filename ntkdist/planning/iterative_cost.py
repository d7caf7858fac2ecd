"""Passes, bytes, operations and seconds of a fit by conjugate gradients."""

from typing import Any, cast

import numpy as np

from ntkdist import backend
from ntkdist.cluster.connect import Resources
from ntkdist.planning.dense_cost import GramCost
from ntkdist.planning.plan import FILLED, Plan
from ntkdist.planning.rates import ADDED, Rates, median_seconds
from ntkdist.solvers import PCG
from ntkdist.sums.mapped_rows import row_bytes
from ntkdist.sums.products import add_products


class ProductsCost(GramCost):
    """The cost of a fit by products of the Gram with vectors."""

    operations = "product_flops"

    @staticmethod
    def timed(rates: Rates, p: Plan) -> Rates:
        return rates._replace(multiplied=_multiplied(p))

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
        rows = -(-self.p.rows_mapped // self.machines.workers)
        return {"remembered rows": min(room, rows * row_bytes(self.p.m, self.p.t, self.p.dtype))}

    @property
    def network_bytes(self) -> int:
        return super().network_bytes * self.passes

    def seconds(self) -> dict[str, float]:
        """Estimate the seconds of as many iterations as `PCG.expected`; rows that are not kept are mapped in each."""
        p, rates, rows = self.p, self.rates, self.p.rows_mapped
        passes, _ = self.solver.expected(p.penalties)
        kept = self.machines.workers * sum(self.remembered.values())
        anew = max(0.0, 1 - kept / (rows * row_bytes(p.m, p.t, p.dtype)))
        s = self.solver.sampled_rows(p.layout.rows)
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


def cache_bytes(p: Plan, solver: PCG, machines: Resources, here: bool) -> int:
    """Return the bytes of mapped rows that a worker may keep: a share of its limit, within what projections leave."""
    free = FILLED * machines.memory_bytes - p.projected_memory_bytes(*machines.shape)
    free -= p.driver_memory_bytes(0) if here else 0
    return max(0, int(min(solver.cache * machines.memory_bytes, free)))


def _multiplied(p: Plan) -> float:
    backend.use_threads(p.threads)
    passes, mean = cast(PCG, p.solver).expected(p.penalties)
    n, left = min(p.block_rows, ADDED), max(1, round(p.sets * p.penalties * p.t * mean / passes))
    z, v, total = np.ones((n, p.m), p.dtype), np.ones((p.m, left), p.dtype), np.zeros((p.m + 1, left))
    return median_seconds(lambda: add_products(total, z, None, v, np.zeros(left), np.arange(left))) / n
