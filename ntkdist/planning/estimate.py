"""What a plan will cost: counted from its shapes, timed on a few rows of this machine."""

import textwrap
from typing import Any

from ntkdist.cluster import Client
from ntkdist.cluster.connect import Resources, resources
from ntkdist.cluster.reduce import MAP_TASKS
from ntkdist.planning import resolve, resolve_gpu
from ntkdist.planning.job import Job
from ntkdist.planning.plan import GB, Plan
from ntkdist.planning.projected_memory import cache_bytes
from ntkdist.planning.rates import Rates, measured, of_solver
from ntkdist.solvers import PCG
from ntkdist.solvers.cross_validation import AUTO_GRID
from ntkdist.solvers.grid import THIN
from ntkdist.solvers.tiled import work
from ntkdist.sums.mapped_rows import row_bytes
from ntkdist.sums.tiles import nbytes, places, runs


def planned(job: Job, client: Client | None, price: float = 0.0) -> tuple[Plan, Resources, dict[str, Any]]:
    """A job's plan where it would run, what that has, and the `cost`."""
    found = resources(client, job.warm, gpus=job.plan.device != "cpu")
    p = resolve.planned(job, found)
    return p, found, cost(p, found, price, client)


def cost(p: Plan, found: Resources, price: float = 0.0, client: Client | None = None) -> dict[str, Any]:
    """Tasks, bytes, operations, memory, and what time and money they will about take.

    Parameters
    ----------
    p : Plan
    found : Resources
        What it would run on; the rates are measured in this process, and its workers are taken to be alike.
    price : float
        Of an hour of a worker's node.
    client : distributed.Client, optional
        Its tasks and what they send are timed.
    """
    rates = measured(p, client)
    other = {type(q.solver).__name__: _seconds(q, found, of_solver(rates, q)) for q in resolve.alternatives(p, found)}
    iterative = isinstance(p.solver, PCG)
    flops = p.layout.rows * (4 * p.m * p.columns if iterative else p.m**2)
    passes, reads = (p.solver.max_iterations, 4) if isinstance(p.solver, PCG) else (1 + p.reads * p.panels,) * 2
    each, memory = _seconds(p, found, rates), p.memory(*found.shape) | _remembered(p, found)
    seconds = sum(each.values())
    return {
        "rows": p.layout.rows,
        "partitions": p.layout.partitions,
        "shards": len(p.tasks()),
        "n_components": p.m,
        "targets": p.t,
        "passes": passes,
        "bytes_read": reads * p.layout.rows * p.layout.row_bytes,
        "network_bytes": _network_bytes(p, found.workers) * (passes if iterative else 1),
        "product_flops" if iterative else "gram_flops": flops,
        "workers": found.workers,
        "threads": p.threads,
        "syrk_flops_per_second": rates.syrk,
        "seconds": seconds,
        "seconds_of": each,
        "seconds_with": {name: sum(parts.values()) for name, parts in other.items()},
        **({"price": price * found.workers * seconds / 3600} if price else {}),
        "worker_memory_bytes": memory,
        "projected_memory_bytes": sum(memory.values()),
        "driver_memory_bytes": p.driver_memory_bytes(found.driver_process_bytes),
        "worker_limit_bytes": found.memory_bytes,
        "device": p.device,
        **({} if p.device == "cpu" else {"gpu_memory_bytes": resolve_gpu.memory(p)}),
    }


def _remembered(p: Plan, found: Resources) -> dict[str, int]:
    """Mapped rows that a worker keeps between products, as far as they fit it."""
    if not isinstance(p.solver, PCG):
        return {}
    room = cache_bytes(p, p.solver, found, found.workers == 1)
    return {"remembered rows": min(room, -(-p.layout.rows // found.workers) * row_bytes(p.m, p.t, p.dtype))}


def _network_bytes(p: Plan, workers: int) -> int:
    """Of sums, at most: one that is added stays where it is, the others come to it; the last go to this process.

    Tiles go to where they are at home, and those of a factor to all that need them.
    """
    added = (p.shards - p.folds) * (workers > 1)
    if not p.tile:
        return (added + p.folds) * p.sum_bytes
    n, everything = runs(p.m, p.tile), sum(nbytes(p.m, p.t, p.tile))
    copies = sum((n - k) * min(workers - 1, n - 1 - k) for k in range(n))
    away = p.folds * everything * (workers - 1) // workers
    return added * everything + away + _solves(p) * copies * 8 * (p.m // n) ** 2


def _seconds(p: Plan, found: Resources, rates: Rates) -> dict[str, float]:
    """Of every phase, on workers that are like this process."""
    rows, slots = p.layout.rows, min(found.workers * found.tasks_at_once, p.shards)
    sampled = bool(p.features.sample_rows)
    tasks = (1 + sampled) * min(p.layout.partitions, MAP_TASKS)  # half of a task is sent while another runs
    prepare = rows * (rates.read + rates.moments) * (1 + sampled) / slots + rates.learnt + tasks * rates.task / 2
    if isinstance(p.solver, PCG):
        return {"prepare": prepare, "iterations": _seconds_of_products(p, p.solver, found, rates)}
    a_row = p.panels * (p.reads * rates.read + rates.mapped) + rates.added
    equations = (rows * a_row + p.shards * (rates.shard + p.panels * rates.task / 2)) / slots + rates.drawn
    if p.tile:
        seconds = _seconds_of_tiles(p, found.workers, rates)
        return {"prepare": prepare, "equations": equations + seconds["equations"], "solve": seconds["solve"]}
    equations += 2 * rates.task + _network_bytes(p, 1) * rates.moved
    # Fewer features, a half and so on, are solved as well, to draw their curve.
    curve = (_solves(p) - 1) * rates.solved / 7
    return {"prepare": prepare, "equations": equations, "solve": _solves(p) * rates.solved, "curve": curve}


def _seconds_of_products(p: Plan, solver: PCG, found: Resources, rates: Rates) -> float:
    """As many as `PCG.expected`, of rows that are mapped once, or each time where workers cannot remember them."""
    rows, slots = p.layout.rows, min(found.workers * found.tasks_at_once, p.shards)
    passes, _ = solver.expected(p.penalties)
    kept = found.workers * sum(_remembered(p, found).values())
    anew = max(0.0, 1 - kept / (rows * row_bytes(p.m, p.t, p.dtype)))
    s = min(solver.sample_rows, rows)
    # The process that solves multiplies the rows of the preconditioner in float64.
    near = 2 * (passes * s * rates.multiplied + (32 * s**3 + 8 * s**2 * p.m) / rates.syrk)
    mapping = (1 + (passes + 1) * anew) * rows * (rates.read + rates.mapped)
    tasks = (passes + 2) * p.shards * rates.task / 2
    return (mapping + (passes + 1) * rows * rates.multiplied + tasks) / slots + near + rates.drawn


def _seconds_of_tiles(p: Plan, workers: int, rates: Rates) -> dict[str, float]:
    """Beyond summing them: sending them home, then solving where they are, task by task."""
    n, each = runs(p.m, p.tile), len(places(p.m, p.tile))
    operations, longest, calls = work(n)
    # Workers wait for one another: at most as long as if all but one did while the longest chain is worked off.
    spread = 1 / workers + (1 - 1 / workers) * longest / operations
    sets, solves = p.sets, _solves(p)
    tasks = sets * (each - 1) + solves * calls + (solves - 1) * n * (n + 1) // 2
    return {
        "equations": p.folds * (2 * each + p.panels + n) * rates.task / 2,
        "solve": solves * rates.solved * spread
        + sets * p.folds / 2 * rates.shard / workers
        + tasks * rates.task / 2
        + _network_bytes(p, workers) * rates.moved,
    }


def _solves(p: Plan) -> int:
    """Systems that are solved one by one, or a whole path of them."""
    return (p.sets - 1) * _penalties(p) + 1


def _penalties(p: Plan) -> int:
    """That are solved one by one, if the grid does not grow."""
    if p.solver.whole_path:
        return 1
    if grid := p.job.grid():
        return len(grid)
    return len(AUTO_GRID) // 2 + 3 if p.m >= THIN else len(AUTO_GRID)  # every second, and those beside the best


def table(p: Plan, found: Resources, cost: dict[str, Any]) -> str:
    """The same for a reader of 80 columns."""
    by = (
        f" by '{p.dataset.fold_array}'"
        if p.dataset.fold_array
        else " of consecutive rows"
        if p.job.plan.contiguous
        else ""
    )
    speed, here = f"{cost['syrk_flops_per_second'] / 1e9:.0f} GF/s a worker", ""
    if isinstance(p.solver, PCG):
        operations = f"{cost['product_flops']:.2e} in a product with {p.columns} columns, {speed}"
        mean = p.solver.expected(p.penalties)[1]
        took = f"about {cost['seconds']:.0f} s with solver PCG, if a penalty takes {mean} iterations in the mean"
        read = f"{cost['bytes_read'] / GB:.2f} GB in four passes, then what workers do not remember, every iteration"
        here = _in_gb(p.driver_memory(found.driver_process_bytes))
    else:
        operations = f"{cost['gram_flops']:.2e} in the Gram, {speed}"
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in cost["seconds_of"].items())
        took = f"about {cost['seconds']:.0f} s with {type(p.solver).__name__} ({phases})"
        read = f"{cost['bytes_read'] / GB:.2f} GB in {cost['passes']} passes"
    others = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in cost["seconds_with"].items())
    lines = {
        "data": f"{cost['rows']:,} rows in {cost['partitions']:,} partitions of {p.dataset.store}",
        "features": f"{type(p.features).__name__}, {p.m:,} columns, {p.dtype}",
        "tasks": f"{cost['shards']} shards in {p.folds} folds{by}, blocks of {p.block_rows:,} rows",
        "workers": f"{found.workers} with {found.tasks_at_once} task(s) of {p.threads} thread(s)",
        "device": resolve_gpu.table(p, found),
        "read": read,
        "network": f"{cost['network_bytes'] / GB:.2f} GB of sums at most",
        "operations": operations,
        "time": took,
        **({"others": f"{others}, which fit too"} if others else {}),
        **({"price": f"{cost['price']:,.2f}"} if "price" in cost else {}),
        "worker": f"{cost['projected_memory_bytes'] / GB:.2f} GB of {cost['worker_limit_bytes'] / GB:.2f}",
        "": f"\n{'':<11}".join(textwrap.wrap(f"({_in_gb(cost['worker_memory_bytes'])})", 69)),
        "driver": f"{cost['driver_memory_bytes'] / GB:.2f} GB{here and f' ({here})'}",
    }
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items())


def _in_gb(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {nbytes / GB:.2f}" for name, nbytes in parts.items())
