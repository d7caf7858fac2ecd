"""The plan of a job for the workers at hand: a solver that fits them, and as few panels of tiles as fit."""

from collections.abc import Iterator

import msgspec

from ntkdist import runs
from ntkdist.cluster import Resources
from ntkdist.errors import PlanTooLarge
from ntkdist.job import Job
from ntkdist.plan import Plan, plan
from ntkdist.solvers import PCG, AnySolver, TiledCholesky


def planned(job: Job, found: Resources) -> Plan:
    """Resolve a job; reads metadata only.

    Without a solver in the job it is the first of these whose projected memory fits: dense; tiled, on two workers or
    more; conjugate gradients, which are not exact.  If none does, it is the plan of the first.

    Raises
    ------
    DataError, SpecError
        As `plan`.
    """
    first = panelled(plan(job, threads=found.threads), found)
    if job.solver or job.plan.tile or _fits(first, found):
        return first
    for solver in _others(first, found):
        other = plan(msgspec.structs.replace(job, solver=solver), threads=found.threads)
        if _fits(p := panelled(msgspec.structs.replace(other, job=job), found), found):
            return p
    return first


def panelled(p: Plan, found: Resources) -> Plan:
    """A plan with as many panels as the workers' memory asks for; see `Plan.panelled`."""
    return p.panelled(found.memory_bytes, *found.shape)


def _others(p: Plan, found: Resources) -> Iterator[AnySolver]:
    if found.workers > 1 and not p.tile:
        yield TiledCholesky()
    if not p.dataset.dealt:
        yield PCG()


def _fits(p: Plan, found: Resources) -> bool:
    try:
        runs.check_memory(p, found)
    except PlanTooLarge:
        return False
    return True
