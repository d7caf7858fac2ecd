"""What a plan will cost: counted from its shapes, timed on a few rows of this machine."""

import functools
import time
from typing import Any

from distributed import Client

from ntkdist import draws, machine, runs
from ntkdist.cluster import Resources, resources
from ntkdist.features import AnyMap
from ntkdist.job import Job
from ntkdist.plan import GB, Plan
from ntkdist.solvers import PCG

SAMPLE_ROWS, SAMPLE_BYTES = 512, 2**30  # of what mapping is timed on, where it takes no more than these bytes


def planned(job: Job, client: Client | None) -> tuple[Plan, Resources, dict[str, Any]]:
    """A job's plan where it would run, what that has, and the `cost`."""
    found = resources(client, functools.partial(job.features.warm, job.plan.dtype))
    p = machine.planned(job, found)
    return p, found, cost(p, found)


def cost(p: Plan, found: Resources) -> dict[str, Any]:
    """Tasks, bytes, operations, memory and a guess of the time.

    Parameters
    ----------
    p : Plan
    found : Resources
        What it would run on; the rates are measured in this process, and its workers are taken to be alike.  A map
        that needs a sample is timed with one of random numbers.  Mapping a row is taken to cost as much as adding it
        to the Gram where drawing the map here would take a gigabyte, and where it is sparse.
    """
    rate = runs.syrk_rate(p.m, p.block_rows, p.dtype, p.threads)
    iterative = isinstance(p.solver, PCG)
    row_flops = 4 * p.m * p.columns if iterative else p.m**2
    feature_seconds = _seconds_a_row(p) or row_flops / rate
    flops = p.layout.rows * row_flops
    passes, reads = (p.solver.max_iterations, 4) if isinstance(p.solver, PCG) else (1 + p.reads * p.panels,) * 2
    slots = min(found.workers * found.tasks_at_once, p.shards)
    return {
        "rows": p.layout.rows,
        "partitions": p.layout.partitions,
        "shards": len(p.tasks()),
        "n_components": p.m,
        "targets": p.t,
        "passes": passes,
        "bytes_read": reads * p.layout.rows * p.layout.row_bytes,
        "product_flops" if iterative else "gram_flops": flops,
        "workers": found.workers,
        "threads": p.threads,
        "syrk_flops_per_second": rate,
        "seconds": (passes if iterative else 1) * (flops / rate + p.panels * p.layout.rows * feature_seconds) / slots,
        "worker_memory_bytes": p.memory(*found.shape),
        "projected_memory_bytes": p.projected_memory_bytes(*found.shape),
        "driver_memory_bytes": p.driver_memory_bytes(found.driver_process_bytes),
        "worker_limit_bytes": found.memory_bytes,
    }


def _seconds_a_row(p: Plan) -> float | None:
    """Of mapping, timed; None where rows are sparse or drawing the map takes too much for a dry run."""
    shape, rows = p.layout.input_shape, min(SAMPLE_ROWS, p.layout.rows)
    needed = p.features.draw_bytes(shape, p.dtype) + rows * p.features.row_bytes(shape, p.dtype)
    if p.layout.sparse or needed > SAMPLE_BYTES:
        return None
    x = draws.normals((rows, *shape), 0, 0, 0).astype(p.dtype)
    features: AnyMap = p.features
    if p.features.sample_rows:
        features = p.features.fit(draws.normals((p.m, *shape), 0, 0, 1))
    features(x[:8])  # the draw is made once a process
    start = time.perf_counter()
    features(x)
    return (time.perf_counter() - start) / rows


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
        took = f"about {cost['seconds']:.0f} s for the equations, then {type(p.solver).__name__}"
        read = f"{cost['bytes_read'] / GB:.2f} GB in {cost['passes']} passes"
    lines = {
        "data": f"{cost['rows']:,} rows in {cost['partitions']:,} partitions of {p.dataset.store}",
        "features": f"{type(p.features).__name__}, {p.m:,} columns, {p.dtype}",
        "tasks": f"{cost['shards']} shards in {p.folds} folds{by}, blocks of {p.block_rows:,} rows",
        "workers": f"{found.workers} with {found.tasks_at_once} task(s) of {p.threads} thread(s)",
        "read": read,
        "operations": operations,
        "time": took,
        "worker": f"{cost['projected_memory_bytes'] / GB:.2f} GB of {cost['worker_limit_bytes'] / GB:.2f}",
        "": f"({parts})",
        "driver": f"{cost['driver_memory_bytes'] / GB:.2f} GB{here and f' ({here})'}",
    }
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items())
