"""What grows with the rows and the tasks: seconds and memory of a fit, and the overhead of planning and of a task.

    python jobs/bench_scale.py rows [--rows 100000,300000,1000000] [--components 512]
    python jobs/bench_scale.py workers [--pairs 5]
    python jobs/bench_scale.py tasks [--tasks 10000] [--partitions 1000000]

``rows`` fits NTKRandomFeatures to normals (8 columns, seed 0) at a fixed number of features, each on a new worker
process, and prints seconds a million rows and the worker's peak.  ``workers`` fits with one worker process and with
two, a thread each, beside bare ``syrk`` in one and in two processes, by turns.  ``tasks`` cuts a plan of partitions
that are not there into shards, and sends them through the mapper of every fit to a cluster of two worker processes with
a summand that sleeps instead of reading: what is beyond that is overhead.
"""

import json
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

import ntkdist as nd
from ntkdist.backend import syrk_rate
from ntkdist.data import Layout
from ntkdist.plan import Plan
from ntkdist.reduce import reduce
from ntkdist.shards import Shard, by_fold


@click.group()
def main() -> None:
    """Scale, measured."""


@main.command("rows")
@click.option("--rows", default="100000,300000,1000000")
@click.option("--components", default=512)
def rows_(rows: str, components: int) -> None:
    """Seconds and memory against the number of rows."""
    for n in map(int, rows.split(",")):
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
        said = {"rows": n, "seconds": passes, "seconds_per_million": 1e6 * passes / n, "peak_mb": peak / 1e6}
        print(json.dumps({name: round(value, 2) for name, value in said.items()}), flush=True)


@main.command()
@click.option("--pairs", default=5)
@click.option("--rows", default=200_000)
@click.option("--components", default=2048)
def workers(pairs: int, rows: int, components: int) -> None:
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
            found.append((*fits, *gains, gains[0] / gains[1], fits[0] * components**2 / syrks[0]))
            print(json.dumps(dict(zip(GAINS, np.round(found[-1], 3).tolist(), strict=True))), flush=True)
    print("median", json.dumps(dict(zip(GAINS, np.round(np.median(found, axis=0), 3).tolist(), strict=True))))


GAINS = ("rows_s_of_one", "rows_s_of_two", "gain_of_fit", "gain_of_syrk", "fit_over_syrk", "one_over_syrk")


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
def tasks(tasks: int, partitions: int, threads: int, sleep: float) -> None:
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
        begun, used = time.perf_counter(), time.process_time()
        parts = reduce(source, Nothing(sleep), shards, p.fan_in, client, lambda done: None)
        ended, spent = time.perf_counter(), time.process_time() - used
    assert sum(part.total for part in parts) == partitions
    found = {
        "tasks": tasks,
        "partitions": partitions,
        "projecting_s": projected - start,
        "cutting_s": cut - projected,
        "shard_bytes": len(pickle.dumps(shards[0])),
        "running_s": ended - begun,
        "overhead_s": ended - begun - sleep * -(-tasks // (2 * threads)),
        "client_and_scheduler_ms_a_task": 1e3 * spent / tasks,
    }
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
