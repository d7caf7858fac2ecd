"""What a plan will cost: counted from its shapes, timed on a few rows of this machine."""

import functools
from typing import Any

from distributed import Client

from ntkdist import gpu_plan, machine
from ntkdist.cluster import Resources, resources
from ntkdist.job import Job
from ntkdist.plan import GB, Plan
from ntkdist.rates import Rates, measured
from ntkdist.reduce import MAP_TASKS
from ntkdist.select import AUTO_GRID, THIN
from ntkdist.solvers import PCG
from ntkdist.sums.tiles import places, runs


def planned(job: Job, client: Client | None, price: float = 0.0) -> tuple[Plan, Resources, dict[str, Any]]:
    """A job's plan where it would run, what that has, and the `cost`."""
    warm = functools.partial(job.features.warm, job.plan.dtype)
    found = resources(client, warm, gpus=job.plan.device != "cpu")
    p = machine.planned(job, found)
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
    iterative = isinstance(p.solver, PCG)
    flops = p.layout.rows * (4 * p.m * p.columns if iterative else p.m**2)
    passes, reads = (p.solver.max_iterations, 4) if isinstance(p.solver, PCG) else (1 + p.reads * p.panels,) * 2
    each = _seconds(p, found, rates, flops)
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
        **({"price": price * found.workers * seconds / 3600} if price else {}),
        "worker_memory_bytes": p.memory(*found.shape),
        "projected_memory_bytes": p.projected_memory_bytes(*found.shape),
        "driver_memory_bytes": p.driver_memory_bytes(found.driver_process_bytes),
        "worker_limit_bytes": found.memory_bytes,
        "device": p.device,
        **({} if p.device == "cpu" else {"gpu_memory_bytes": gpu_plan.memory(p)}),
    }


def _network_bytes(p: Plan, workers: int) -> int:
    """Of sums, at most: one that is added stays where it is, the others come to it; the last go to this process."""
    moved = (p.shards - p.folds) * (workers > 1) + p.folds
    tiles = len(places(p.m, p.tile)) if p.tile else 0
    return moved * p.sum_bytes(tiles)


def _seconds(p: Plan, found: Resources, rates: Rates, flops: int) -> dict[str, float]:
    """Of every phase, on workers that are like this process."""
    rows, slots = p.layout.rows, min(found.workers * found.tasks_at_once, p.shards)
    sampled = bool(p.features.sample_rows)
    tasks = (1 + sampled) * min(p.layout.partitions, MAP_TASKS)  # half of a task is sent while another runs
    prepare = rows * (rates.read + rates.moments) * (1 + sampled) / slots + rates.learnt + tasks * rates.task / 2
    if isinstance(p.solver, PCG):
        products = p.solver.max_iterations * (flops / rates.syrk + rows * rates.mapped)
        return {"prepare": prepare, "iterations": products / slots + rates.drawn}
    a_row = p.panels * (p.reads * rates.read + rates.mapped) + rates.added
    sent = 2 * rates.task + _network_bytes(p, 1) * rates.moved
    equations = (rows * a_row + p.shards * (rates.shard + rates.task / 2)) / slots + rates.drawn + sent
    several = p.folds > 1
    solves = (len(p.scored or range(p.folds)) if several else 0) * _penalties(p) + 1
    # Fewer features, a half and so on, are solved as well, to draw their curve.
    curve = 0.0 if p.tile or not several else (solves - 1) * rates.solved / 7
    return {
        "prepare": prepare,
        "equations": equations,
        "solve": solves * (rates.solved / (found.workers if p.tile else 1) + _tile_tasks(p) * rates.task),
        "curve": curve,
    }


def _tile_tasks(p: Plan) -> int:
    """That factor one matrix of tiles and solve for its right-hand sides."""
    n = runs(p.m, p.tile) if p.tile else 0
    return n * (n + 1) * (n + 2) // 6 + n * (n + 1)


def _penalties(p: Plan) -> int:
    """That are solved one by one, if the grid does not grow."""
    if p.solver.whole_path:
        return 1
    if grid := p.job.grid():
        return len(grid)
    return len(AUTO_GRID) // 2 + 3 if p.m >= THIN else len(AUTO_GRID)  # every second, and those beside the best


def table(p: Plan, found: Resources, cost: dict[str, Any]) -> str:
    """The same for a reader of 80 columns."""
    parts = ", ".join(f"{name} {nbytes / GB:.2f}" for name, nbytes in cost["worker_memory_bytes"].items())
    by = f" by '{p.dataset.dealt}'" if p.dataset.dealt else " of consecutive rows" if p.job.plan.contiguous else ""
    speed, here = f"{cost['syrk_flops_per_second'] / 1e9:.0f} GF/s a worker", ""
    if isinstance(p.solver, PCG):
        operations = f"{cost['product_flops']:.2e} in a product with {p.columns} columns, {speed}"
        took = f"{cost['seconds'] / cost['passes']:.1f} s an iteration, at most {cost['passes']}, solver PCG"
        read = f"{cost['bytes_read'] / GB:.2f} GB in four passes, then what workers do not remember, every iteration"
        here = ", ".join(
            f"{name} {nbytes / GB:.2f}" for name, nbytes in p.driver_memory(found.driver_process_bytes).items()
        )
    else:
        operations = f"{cost['gram_flops']:.2e} in the Gram, {speed}"
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in cost["seconds_of"].items())
        took = f"about {cost['seconds']:.0f} s with {type(p.solver).__name__} ({phases})"
        read = f"{cost['bytes_read'] / GB:.2f} GB in {cost['passes']} passes"
    lines = {
        "data": f"{cost['rows']:,} rows in {cost['partitions']:,} partitions of {p.dataset.store}",
        "features": f"{type(p.features).__name__}, {p.m:,} columns, {p.dtype}",
        "tasks": f"{cost['shards']} shards in {p.folds} folds{by}, blocks of {p.block_rows:,} rows",
        "workers": f"{found.workers} with {found.tasks_at_once} task(s) of {p.threads} thread(s)",
        "device": gpu_plan.table(p, found),
        "read": read,
        "network": f"{cost['network_bytes'] / GB:.2f} GB of sums at most",
        "operations": operations,
        "time": took,
        **({"price": f"{cost['price']:,.2f}"} if "price" in cost else {}),
        "worker": f"{cost['projected_memory_bytes'] / GB:.2f} GB of {cost['worker_limit_bytes'] / GB:.2f}",
        "": f"({parts})",
        "driver": f"{cost['driver_memory_bytes'] / GB:.2f} GB{here and f' ({here})'}",
    }
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items())
