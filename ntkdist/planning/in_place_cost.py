"""Passes, bytes, factorisations and seconds of a fit with one Gram, which this process sums and factors in place."""

from typing import Any

import numpy as np

from ntkdist import backend, random
from ntkdist.cluster.connect import Resources
from ntkdist.planning.dense_cost import GramCost
from ntkdist.planning.plan import FILLED, Plan
from ntkdist.planning.rates import Rates, median_seconds
from ntkdist.solvers import InPlaceCholesky
from ntkdist.solvers.cross_validation import AUTO_GRID
from ntkdist.solvers.grid import THIN
from ntkdist.sums.mapped_rows import row_bytes

SOLVED = 2048  # columns that a factorisation is timed on, at most


class InPlaceCost(GramCost):
    """The cost of a fit that sums one Gram, and factors it in its own memory for one penalty after another."""

    @staticmethod
    def timed(rates: Rates, p: Plan) -> Rates:
        return rates._replace(solved=_solved(p))

    @property
    def counts(self) -> dict[str, int]:
        return {"factorisations": self.solves}

    @property
    def slots(self) -> int:
        return 1

    @property
    def network_bytes(self) -> int:
        return 0

    @property
    def remembered(self) -> dict[str, int]:
        rows = held_out_rows(self.p)
        return {"remembered rows": min(cache_bytes(self.p, self.machines), rows * _row_bytes(self.p))}

    def seconds(self) -> dict[str, float]:
        """Estimate the seconds of every phase, if the grid does not grow and the rows held out fit the memory."""
        p, rates = self.p, self.rates
        rows = p.rows_mapped + held_out_rows(p) * (p.copies > 1)  # scored without copies, added with them
        equations = p.reads * p.layout.rows * rates.read + rows * (rates.mapped + rates.added) + rates.drawn
        return self._prepare() | {"equations": equations, "solve": self.solves * rates.solved}

    @property
    def solves(self) -> int:
        p = self.p
        # Of a thinned grid every fourth, then two on either side of the best, twice.
        penalties = p.penalties if p.job.grid() or p.m < THIN else len(AUTO_GRID[::4]) + 4
        return (p.sets - 1) * penalties + 1

    @staticmethod
    def described(p: Plan, cost: dict[str, Any]) -> tuple[str, str, str]:
        passes, operations, time = GramCost.described(p, cost)
        by = f"'{p.dataset.holdout}'" if p.dataset.holdout else f"the last of {p.folds} folds alone"
        chosen = f", which chooses alpha by {by}" if p.folds > 1 else ""
        count, each = cost["factorisations"], p.m**3 / 3
        return passes, f"{operations}, {count} factorisations of {each:.2e}", f"{time}{chosen}"


def held_out_rows(p: Plan) -> int:
    """Return the rows held out, at most."""
    if not p.scored:
        return 0
    return p.layout.rows if p.dataset.fold_array else p.layout.rows_of(p.parts(p.scored[0]))


def cache_bytes(p: Plan, machines: Resources) -> int:
    """Return the bytes of mapped rows held out that this process may keep, within what the projection leaves free."""
    return max(0, int(FILLED * machines.memory_bytes - p.projected_memory_bytes(*machines.shape)))


def _row_bytes(p: Plan) -> int:
    return row_bytes(p.m, p.t, p.dtype)


def _solved(p: Plan) -> float:
    """Time one factorisation, on all threads; two sizes separate m² from m³ operations."""
    backend.use_threads(p.threads)
    sizes, times = (min(p.m, SOLVED) // 2, min(p.m, SOLVED)), []
    for m in sizes:
        z = random.normals((2 * m, m), 0, 0, 0)
        gram, rhs = z.T @ z, np.ones((m, p.t))
        times.append(median_seconds(lambda gram=gram, rhs=rhs: list(InPlaceCholesky().weights(gram, rhs, [1.0]))))  # type: ignore[misc]
    square, cube = np.linalg.solve([[m**2, m**3] for m in sizes], times)
    if min(square, cube) < 0:
        square, cube = 0.0, times[1] / sizes[1] ** 3
    return float(square * p.m**2 + cube * p.m**3)
