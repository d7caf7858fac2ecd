"""The plan of a job for the workers at hand: a solver that fits them, as few panels of tiles as fit, and a device."""

from collections.abc import Iterator

import msgspec

from ntkdist.cluster.connect import Resources
from ntkdist.errors import PlanTooLarge, SpecError
from ntkdist.planning import resolve_gpu
from ntkdist.planning.job import Job, gram_of
from ntkdist.planning.plan import Plan, plan
from ntkdist.solvers import PCG, AnySolver, InPlaceCholesky, TiledCholesky, choose

# The fields of a plan that decide bits, beside those of its job.
RESOLVED = ("folds", "shards", "fan_in", "block_rows", "threads", "dtype", "tile", "skip", "device")
STEP = 64  # of features that are proposed


def resolve(what: Job | Plan, machines: Resources, kept: Plan | None = None) -> Plan:
    """Resolve a job on the machines at hand, or fit a plan to them, and check that it fits; reads metadata only.

    What decides the bits is taken from ``kept``, the plan of a checkpoint, if there is one.

    Raises
    ------
    DataError, SpecError, PlanTooLarge, ClusterError
        As `plan` and `check`.
    """
    p = what if isinstance(what, Plan) else planned(what, machines)
    if kept is not None:
        fields = RESOLVED if gram_of(kept.solver) == gram_of(p.solver) else (*RESOLVED, "solver")
        p = msgspec.structs.replace(p, **{field: getattr(kept, field) for field in fields})
    p = with_panels(p, machines)
    check(p, machines)
    return p


def planned(job: Job, machines: Resources) -> Plan:
    """Resolve a job without checking that it fits."""
    return resolve_gpu.resolved(on_hosts(job, machines), machines)


def on_hosts(job: Job, machines: Resources) -> Plan:
    """Resolve a job as far as it concerns the memory of processes.

    Without a solver in the job, this takes the first whose projected memory fits: dense; tiled, on two workers or more;
    in place, without a cluster, which scores the last fold alone; conjugate gradients, which are not exact.  If none
    fits, the plan is that of the first.
    """
    first = with_panels(plan(job, threads=machines.threads), machines)
    if job.solver or job.plan.tile or _fits(first, machines):
        return first
    for solver in _others(first, machines):
        if _fits(p := _resolved(job, machines, solver), machines):
            return p
    return first


def with_panels(p: Plan, machines: Resources) -> Plan:
    """Return a plan with as many panels as the workers' memory asks for; see `Plan.with_panels`."""
    return p.with_panels(machines.memory_bytes, *machines.shape)


def check(p: Plan, machines: Resources) -> None:
    """Refuse a plan that does not fit where it would run, and propose plans that do.

    Raises
    ------
    PlanTooLarge
        If a process or a GPU has too little memory.
    SpecError
        If the plan solves in place, but not in this process.
    ClusterError
        If the plan computes on GPUs and there are none.
    """
    resolve_gpu.check(p, machines)
    if p.solver.sums == "single" and not machines.here:
        raise SpecError(
            f"solver {type(p.solver).__name__} sums and solves in one process, but this run has a cluster of "
            f"{machines.workers} worker(s); run without a cluster, or use solver TiledCholesky"
        )
    try:
        check_memory(p, machines)
    except PlanTooLarge as error:
        raise PlanTooLarge(f"{error}; {_proposal(p, machines)}") from None


def _proposal(p: Plan, machines: Resources) -> str:
    """Describe the nearest plans that fit: other solvers for the same features, and the most features for the same
    solver.
    """
    fitting = []
    bare = _bare(p)
    for solver in _others(p, machines):
        if type(solver) is not type(p.solver) and _fits(other := _resolved(bare, machines, solver), machines):
            tiles = f" with tile {size}" if (size := other.sizes.tile) else ""
            fitting.append(f"solver {type(solver).__name__}{tiles}")
    if most := _most_components(p, bare, machines):
        fitting.append(f"n_components {most} with solver {type(p.solver).__name__}")
    return f"what fits here is {' or '.join(fitting)}" if fitting else "no other solver or n_components fits here"


def alternatives(p: Plan, machines: Resources) -> list[Plan]:
    """Return plans of the same job with other solvers that fit, too: dense, tiled, conjugate gradients."""
    dense = choose(p.m, p.penalties)
    some = [*_others(p, machines), *([dense] if p.solver.sums != "gram" else [])]
    kinds = {type(solver): solver for solver in some if type(solver) is not type(p.solver)}
    plans = [_resolved(_bare(p), machines, solver) for solver in kinds.values()]
    return [q for q in plans if _fits(q, machines)]


def _bare(p: Plan) -> Job:
    """Return the plan's job without solver-specific settings (tile, block_rows)."""
    return msgspec.structs.replace(p.job, plan=msgspec.structs.replace(p.job.plan, tile=None, block_rows=None))


def _most_components(p: Plan, bare: Job, machines: Resources) -> int:
    """Return the most features, in steps of 64, whose plan fits; 0 if none does."""

    def fits(steps: int) -> bool:
        features = msgspec.structs.replace(p.features, n_components=STEP * steps)
        return _fits(_resolved(msgspec.structs.replace(bare, features=features), machines, p.solver), machines)

    low, high = 0, p.m // STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return STEP * low


def _resolved(job: Job, machines: Resources, solver: AnySolver) -> Plan:
    other = plan(msgspec.structs.replace(job, solver=solver), threads=machines.threads)
    return with_panels(msgspec.structs.replace(other, job=job), machines)


def _others(p: Plan, machines: Resources) -> Iterator[AnySolver]:
    if machines.workers > 1 and p.solver.sums != "tiles":
        yield TiledCholesky()
    if machines.here and p.solver.sums != "single":
        yield InPlaceCholesky()
    if not p.dataset.fold_array:
        yield PCG()


def _fits(p: Plan, machines: Resources) -> bool:
    try:
        check_memory(p, machines)
    except PlanTooLarge:
        return False
    return True


def check_memory(p: Plan, machines: Resources) -> None:
    """Refuse a plan that does not fit where it would run, by PlanTooLarge."""
    p.check(machines.memory_bytes, *machines.shape)
    p.check_driver(machines.driver_memory_bytes, machines.driver_process_bytes)
