"""What grows with the rows and the tasks: seconds and memory of a fit, and the overhead of planning and of a task.

    python jobs/bench_scale.py rows [--rows 100000,300000,1000000] [--components 512]
    python jobs/bench_scale.py workers [--pairs 5]
    python jobs/bench_scale.py tasks [--tasks 10000] [--partitions 1000000]

All take ``--json FILE``.

``rows`` fits NTKRandomFeatures to normals (8 columns, seed 0) at a fixed number of features, each on a new worker
process: seconds a million rows and the worker's peak.  ``workers`` fits with one worker process and with
two, a thread each, beside bare ``syrk`` in one and in two processes, by turns.  ``tasks`` cuts a plan of partitions
that are not there into shards, and sends them through the mapper of every fit to a cluster of two worker processes with
a summand that sleeps instead of reading: what is beyond that is overhead.
"""

import multiprocessing
import pickle
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from distributed import Client, LocalCluster
from harness import json_option, median, report, started

import ntkdist as nd
from ntkdist.backend import syrk_rate
from ntkdist.cluster.reduce import Pass, reduce
from ntkdist.data.dataset import Layout, Shard
from ntkdist.planning.plan import Plan, by_fold


@click.group()
def main() -> None:
    """Scale, measured."""


@main.command("rows")
@click.option("--rows", default="100000,300000,1000000")
@click.option("--components", default=512)
@json_option
def rows_(rows: str, components: int, out: str) -> None:
    """Seconds and memory against the number of rows."""
    found: list[dict[str, Any]] = []
    sizes = [int(n) for n in rows.split(",")]
    for n in sizes:
        with tempfile.TemporaryDirectory() as place:
            x = np.random.default_rng(0).standard_normal((n, 8), "f4")
            np.savez(Path(place) / "x.npz", x=x, y=x[:, 0])
            nd.convert(f"{place}/x.npz", f"{place}/x.zarr", target=["y"], rows_per_partition=4096)
            job = nd.Job(
                nd.Dataset(f"{place}/x.zarr"),
                nd.NTKRandomFeatures(components),
                alphas_per_row=(1e-3,),
                cluster=nd.Local(1),
            )
            run = nd.fit(job).report["run"]
        passes = run["seconds"]["prepare"] + run["seconds"]["equations"]
        (peak,) = run["peak_memory_bytes"].values()
        found.append({"rows": n, "seconds": passes, "s a million": 1e6 * passes / n, "peak MB": peak / 1e6})
        print(found[-1], flush=True)
    each = ", ".join(f"{row['s a million']:.1f}" for row in found)
    at = ", ".join(f"{n:,}" for n in sizes)
    peaks = [row["peak MB"] for row in found]
    claims = {
        f"a fit of more rows: normals, 8 columns, m={components:,}, one worker": (
            f"{each} s a million at {at} rows; peak {min(peaks):.0f} to {max(peaks):.0f} MB"
        )
    }
    data = [{"name": "normals, seed 0", "rows": n, "columns": 8} for n in sizes]
    report("Rows", found, data, out, notes=[f"m = {components:,}"], claims=claims)


@main.command()
@click.option("--pairs", default=5)
@click.option("--rows", default=200_000)
@click.option("--components", default=2048)
@json_option
def workers(pairs: int, rows: int, components: int, out: str) -> None:
    """What a second worker gains, beside what a second process of bare syrk does."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        x = np.random.default_rng(0).standard_normal((rows, 64), "f4")
        np.savez(Path(place) / "x.npz", x=x, y=x[:, 0])
        nd.convert(f"{place}/x.npz", f"{place}/x.zarr", target=["y"])
        for _ in range(pairs):
            fits = [rows / equations_seconds(f"{place}/x.zarr", components, count) for count in (1, 2)]
            syrks = [bare_rate(components, count) for count in (1, 2)]
            gains = fits[1] / fits[0], syrks[1] / syrks[0]
            each = (*fits, *gains, gains[0] / gains[1], fits[0] * components**2 / syrks[0])
            found.append(dict(zip(GAINS, map(float, each), strict=True)))
            print(found[-1], flush=True)
    over = [row["gain of the fit over that of syrk"] for row in found]
    claims = {
        f"what a second worker gains beside a second process of bare `ssyrk`, m={components:,}, {rows:,} rows": (
            f"{median(over):.2f} of its gain, median of {pairs} pairs ({min(over):.2f} to {max(over):.2f})"
        )
    }
    data = [{"name": "normals, seed 0", "rows": rows, "columns": 64}]
    report("Two workers", found, data, out, notes=["each row is a pair of fits and of syrk by turns"], claims=claims)


GAINS = (
    "rows/s of one",
    "rows/s of two",
    "gain of the fit",
    "gain of syrk",
    "gain of the fit over that of syrk",
    "one fit over one syrk",
)


def equations_seconds(store: str, m: int, count: int) -> float:
    """Of the Gram pass of a fit on new worker processes."""
    plan = nd.PlanTable(threads=1, folds=2)
    job = nd.Job(nd.Dataset(store), nd.NTKRandomFeatures(m), alphas_per_row=(1e-3,), plan=plan, cluster=nd.Local(count))
    return float(nd.fit(job).report["run"]["seconds"]["equations"])


def bare_rate(m: int, count: int) -> float:
    """Operations a second of bare syrk, of so many processes at once."""
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        arguments = [[m] * count, [2048] * count, ["float32"] * count, [1] * count]
        list(pool.map(syrk_rate, *arguments, [0.1] * count))  # imports
        return sum(pool.map(syrk_rate, *arguments, [4.0] * count))


@dataclass(frozen=True)
class Nothing:
    """A summand of which a task sleeps and reads no rows: the sum is a count of its spans."""

    sleep: float

    def zero(self) -> int:
        return 0

    def blocks(self, shard: Shard, read: Any) -> Any:
        time.sleep(self.sleep)
        yield len(shard.spans)

    def update(self, total: int, spans: Any) -> int:
        return total + int(spans)


@main.command()
@click.option("--tasks", default=10_000)
@click.option("--partitions", default=1_000_000)
@click.option("--threads", default=250, help="Of each of the two worker processes: so many workers of a large cluster.")
@click.option("--sleep", default=5.0, help="Seconds of a task.")
@json_option
def tasks(tasks: int, partitions: int, threads: int, sleep: float, out: str) -> None:
    """Seconds of planning and sending that many tasks, beyond those that they sleep."""
    layout = Layout(
        rows=1000 * partitions, rows_per_partition=1000, input_shape=(8,), x_dtype="float32", fingerprint="none"
    )
    p = Plan(
        job=nd.Job(nd.Dataset("nowhere.zarr"), nd.NTKRandomFeatures(512)),
        layout=layout,
        folds=5,
        shards=tasks,
        fan_in=4,
        block_rows=1024,
        threads=1,
        dtype="float32",
        solver=nd.Cholesky(),
    )
    start = time.perf_counter()
    p.memory(1000)
    projected = time.perf_counter()
    source, shards = by_fold(p)
    cut = time.perf_counter()
    with (
        LocalCluster(n_workers=2, threads_per_worker=threads, dashboard_address="127.0.0.1:0") as there,
        Client(there) as client,
    ):
        elapsed = started()
        parts = reduce(Pass(source, Nothing(sleep), shards, p.fan_in), client)
        ran = elapsed()
    assert sum(part.total for part in parts) == partitions
    slept = sleep * -(-tasks // (2 * threads))
    beyond, each = ran.wall - slept, 1e3 * ran.processor / tasks
    row = {
        "tasks": tasks,
        "partitions": partitions,
        "projecting s": projected - start,
        "cutting s": cut - projected,
        "bytes of a shard": len(pickle.dumps(shards[0])),
        "running s": ran.wall,
        "beyond the sleep s": beyond,
        "client and scheduler, processor ms a task": each,
    }
    claims = {
        f"the cost of client and scheduler: {tasks:,} shards over {partitions:,} partitions, tasks "
        f"that sleep {sleep:g} s on {2 * threads} threads of two processes": (
            f"{beyond:.1f} s beyond the {slept:.0f} s slept; {each:.1f} ms of processor a task"
        )
    }
    data = [{"name": "a layout without data", "rows": layout.rows}]
    report("Tasks", [row], data, out, claims=claims)


if __name__ == "__main__":
    main()
