"""Estimates of a plan: counted from its shapes, timed on a few rows of this machine."""

import textwrap
from dataclasses import replace
from typing import Any

from ntkdist import backend
from ntkdist.cluster import Client
from ntkdist.cluster.connect import Resources, resources
from ntkdist.planning import resolve, resolve_gpu
from ntkdist.planning.dense_cost import GramCost
from ntkdist.planning.in_place_cost import InPlaceCost
from ntkdist.planning.iterative_cost import ProductsCost
from ntkdist.planning.job import Job
from ntkdist.planning.plan import GB, Plan, of_metric
from ntkdist.planning.rates import Rates, measured
from ntkdist.planning.tiled_cost import TilesCost

GRADIENT_COST = 2.5  # gradients of a function, in units of mapping its row
LAST_TRIALS = 3  # of the length for the fit's own features, as a rule
# By `Solver.sums`.
COSTS = {"gram": GramCost, "single": InPlaceCost, "tiles": TilesCost, "products": ProductsCost}


def planned(job: Job, client: Client | None, price: float = 0.0) -> tuple[Plan, Resources, dict[str, Any]]:
    """Return a job's plan on the workers of a client, what these have, and the `cost`."""
    machines = resources(client, job.warm, gpus=job.plan.device != "cpu")
    p = resolve.planned(job, machines)
    return p, machines, cost(p, machines, price, client)


def cost(p: Plan, machines: Resources, price: float = 0.0, client: Client | None = None) -> dict[str, Any]:
    """Return tasks, bytes, operations, memory, and estimates of time and money.

    Rates are measured in this process, and its workers are taken to be alike; with a client, its tasks and what they
    send are timed.  ``price`` is that of an hour of a worker's node.
    """
    rates = measured(p, client)
    one, *others = (
        COSTS[q.solver.sums](q, machines, of_solver(rates, q)) for q in (p, *resolve.alternatives(p, machines))
    )
    each, memory = _metric_seconds(p, machines) | one.seconds(), p.memory(*machines.shape) | one.remembered
    seconds = sum(each.values())
    return {
        "rows": p.layout.rows,
        "copies": p.copies,
        "partitions": p.layout.partitions,
        "shards": p.task_count,
        "n_components": p.m,
        "targets": p.t,
        "passes": one.passes,
        "bytes_read": one.reads * p.layout.rows * p.layout.row_bytes,
        "network_bytes": one.network_bytes,
        one.operations: p.rows_mapped * one.row_operations,
        **one.counts,
        "workers": machines.workers,
        "threads": p.threads,
        "syrk_flops_per_second": rates.syrk,
        "seconds": seconds,
        "seconds_of": each,
        "seconds_with": {type(other.p.solver).__name__: sum(other.seconds().values()) for other in others},
        **({"price": price * machines.workers * seconds / 3600} if price else {}),
        "worker_memory_bytes": memory,
        "projected_memory_bytes": sum(memory.values()),
        "driver_memory_bytes": p.driver_memory_bytes(machines.driver_process_bytes),
        "worker_limit_bytes": machines.memory_bytes,
        "device": p.device,
        **({} if p.device == "cpu" else {"gpu_memory_bytes": resolve_gpu.memory(p)}),
    }


def _metric_seconds(p: Plan, machines: Resources) -> dict[str, float]:
    """Estimate the seconds of all rounds for a metric, and of the length that follows them, if there are any."""
    if (plans := of_metric(p)) is None:
        return {}
    metric, rows = p.job.metric, p.layout.rows
    (trial, mapped), (last_trial, _) = (
        _trial_seconds(plans.rounds, machines, metric.share(rows)),
        _trial_seconds(plans.lengths, machines, metric.last_share(rows, plans.lengths.m)),
    )
    rounds = (metric.rounds + 1) * len(metric.scales) * trial + metric.rounds * GRADIENT_COST * mapped
    return {"metric": rounds + LAST_TRIALS * last_trial}


def _trial_seconds(p: Plan, machines: Resources, share: float) -> tuple[float, float]:
    """Estimate the seconds of a fit to a share of the rows, and of reading and mapping them once."""
    rates = of_solver(measured(p), p)
    cost = GramCost(p, machines, rates)
    thinned = rates._replace(mapped=share * rates.mapped, added=share * rates.added)
    mapping = p.layout.rows * (rates.read + thinned.mapped) / cost.slots
    return replace(cost, rates=thinned).summing + cost.solves * rates.solved, mapping


def of_solver(rates: Rates, p: Plan) -> Rates:
    """Return the rates with those of a plan's solver."""
    with backend.own_threads():
        return COSTS[p.solver.sums].timed(rates, p)


def table(p: Plan, machines: Resources, cost: dict[str, Any]) -> str:
    """Write a `cost` in 80 columns."""
    by = " of consecutive rows" if p.job.plan.contiguous else ""
    by = f" by '{p.dataset.fold_array}'" if p.dataset.fold_array else by
    passes, operations, time = COSTS[p.solver.sums].described(p, cost)
    driver = "" if p.solver.sums == "gram" else f" ({_in_gb(p.driver_memory(machines.driver_process_bytes))})"
    others = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in cost["seconds_with"].items())
    lines = {
        "data": f"{cost['rows']:,} rows in {cost['partitions']:,} partitions of {p.dataset.store}",
        **(
            {"augment": f"{p.copies} rows of each image, of which one is as it is: {p.rows_mapped:,} rows"}
            if p.copies > 1
            else {}
        ),
        "features": f"{type(p.features).__name__}, {p.m:,} columns, {p.dtype}",
        **({"metric": _rounds(p, cost["seconds_of"]["metric"])} if "metric" in cost["seconds_of"] else {}),
        "tasks": f"{cost['shards']} shards in {p.folds} folds{by}, blocks of {p.block_rows:,} rows",
        "workers": f"{machines.workers} with {machines.tasks_at_once} task(s) of {p.threads} thread(s)",
        "device": resolve_gpu.table(p, machines),
        "read": f"{cost['bytes_read'] / GB:.2f} GB in {passes}",
        "network": f"{cost['network_bytes'] / GB:.2f} GB of sums at most",
        "operations": _wrapped(f"{operations}, {cost['syrk_flops_per_second'] / 1e9:.0f} GF/s a worker"),
        "time": _wrapped(f"about {cost['seconds']:.0f} s with {time}"),
        **({"others": f"{others}, which fit too"} if others else {}),
        **({"price": f"{cost['price']:,.2f}"} if "price" in cost else {}),
        "worker": f"{cost['projected_memory_bytes'] / GB:.2f} GB of {cost['worker_limit_bytes'] / GB:.2f}",
        "": _wrapped(f"({_in_gb(cost['worker_memory_bytes'])})"),
        "driver": f"{cost['driver_memory_bytes'] / GB:.2f} GB{driver}",
    }
    return "\n".join(f"{name:<11}{text}" for name, text in lines.items())


def _rounds(p: Plan, seconds: float) -> str:
    """Describe the rounds in which a metric is learned."""
    metric = p.job.metric
    rows, rounds = min(metric.rows, p.layout.rows), f"{metric.rounds} round{'s' * (metric.rounds > 1)}"
    return f"at most {rounds} on {metric.components(p.m):,} columns and {rows:,} rows: about {seconds:.0f} s"


def _wrapped(text: str) -> str:
    """Break a text into lines that begin in the table's second column."""
    return f"\n{'':<11}".join(textwrap.wrap(text, 69))


def _in_gb(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {nbytes / GB:.2f}" for name, nbytes in parts.items())
