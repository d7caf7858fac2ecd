"""Projected memory: what a worker and the solving process need, from the shapes in a plan."""

from ntkdist.cluster.connect import Resources
from ntkdist.planning.plan import FILLED, Plan
from ntkdist.solvers import PCG


def cache_bytes(p: Plan, solver: PCG, found: Resources, here: bool) -> int:
    """Bytes of mapped rows that a worker may keep: a share of its limit, within what projections leave over."""
    free = FILLED * found.memory_bytes - p.projected_memory_bytes(*found.shape)
    free -= p.driver_memory_bytes(0) if here else 0
    return max(0, int(min(solver.cache * found.memory_bytes, free)))
