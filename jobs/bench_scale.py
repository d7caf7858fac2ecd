"""Growth with the rows, the workers and the tasks: seconds and memory of a fit, and the overhead of a task.

python jobs/bench_scale.py rows [--rows 100000,300000,1000000] [--components 512]
python jobs/bench_scale.py workers [--pairs 5] [--metric]
python jobs/bench_scale.py metric FLIGHTS.npz [--rows 100000,300000,1000000,3000000] [--workers 2]
python jobs/bench_scale.py tasks [--tasks 10000] [--partitions 1000000]
"""

import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from distributed import Client, LocalCluster
from harness import Result, dataset, file, median, normals, options, report, started, tiny_table

import ntkdist as nd
from ntkdist.backend import syrk_rate
from ntkdist.cluster.reduce import Pass, reduce
from ntkdist.data.dataset import Layout, Shard
from ntkdist.planning.plan import Plan, by_fold


@click.group()
def main() -> None:
    """Measure growth with rows, workers and tasks."""


@main.command("rows")
@click.option("--rows", default="100000,300000,1000000")
@click.option("--components", default=512)
@options(rows="24000,28000", components=64)
def rows_(rows: str, components: int, out: str) -> None:
    """Fit NTKRandomFeatures to more and more normals of 8 columns: seconds a million rows, peak of the worker.

    The number of features is the same; every fit is on a new worker process.
    """
    sizes = [int(n) for n in rows.split(",")]
    result = Result("Rows", [normals(n, 8) for n in sizes], out, [f"m = {components:,}"])
    for n in sizes:
        with tempfile.TemporaryDirectory() as place:
            x = np.random.default_rng(0).standard_normal((n, 8), "f4")
            job = nd.Job(
                dataset(f"{place}/x", x, x[:, 0], rows_per_partition=4096),
                nd.NTKRandomFeatures(components),
                alphas_per_row=(1e-3,),
                cluster=nd.Local(1),
            )
            run = nd.fit(job).report["run"]
        passes = run["seconds"]["prepare"] + run["seconds"]["equations"]
        (peak,) = run["peak_memory_bytes"].values()
        result.add({"rows": n, "seconds": passes, "s a million": 1e6 * passes / n, "peak MB": peak / 1e6})
    each = ", ".join(f"{row['s a million']:.1f}" for row in result.rows)
    at = ", ".join(f"{n:,}" for n in sizes)
    peaks = [row["peak MB"] for row in result.rows]
    claims = {
        f"a fit of more rows: normals, 8 columns, m={components:,}, one worker": (
            f"{each} s a million at {at} rows; peak {min(peaks):.0f} to {max(peaks):.0f} MB"
        )
    }
    result.end(claims)


@main.command()
@click.option("--pairs", default=5)
@click.option("--rows", default=200_000)
@click.option("--components", default=2048)
@click.option("--seconds", default=4.0, help="Of each bare syrk.")
@click.option("--metric", "learned", is_flag=True, help="Time a round for a metric in place of the main pass.")
@options(pairs=1, rows=2000, components=64, seconds=0.1)
def workers(pairs: int, rows: int, components: int, seconds: float, learned: bool, out: str) -> None:
    """Fit with one worker process and with two, a thread each, beside bare syrk in one and two processes, by turns."""
    notes = ["each row is a pair of fits and of syrk by turns"]
    result = Result("Two workers, a round for a metric" if learned else "Two workers", [normals(rows, 64)], out, notes)
    with tempfile.TemporaryDirectory() as place:
        x = np.random.default_rng(0).standard_normal((rows, 64), "f4")
        data = dataset(f"{place}/x", x, np.abs(x[:, 0]))
        for _ in range(pairs):
            fits = [rows / pass_seconds(data, components, count, learned) for count in (1, 2)]
            syrks = [bare_rate(components, count, seconds) for count in (1, 2)]
            gains = fits[1] / fits[0], syrks[1] / syrks[0]
            each = (*fits, *gains, gains[0] / gains[1], fits[0] * components**2 / syrks[0])
            result.add(dict(zip(GAINS, map(float, each), strict=True)))
    over = [row["gain of the fit over that of syrk"] for row in result.rows]
    what = " in a round for a metric" * learned
    claims = {
        f"what a second worker gains{what} beside a second process of bare `ssyrk`, m={components:,}, {rows:,} rows": (
            f"{median(over):.2f} of its gain, median of {pairs} pairs ({min(over):.2f} to {max(over):.2f})"
        )
    }
    result.end(claims)


GAINS = (
    "rows/s of one",
    "rows/s of two",
    "gain of the fit",
    "gain of syrk",
    "gain of the fit over that of syrk",
    "one fit over one syrk",
)


def pass_seconds(data: nd.Dataset, m: int, count: int, learned: bool) -> float:
    """Return the seconds of the Gram pass of a fit on new worker processes, or those of a round for a metric."""
    clock, plan = Clock(), nd.PlanTable(threads=1, folds=2)
    job = nd.Job(data, nd.NTKRandomFeatures(m), alphas_per_row=(1e-3,), plan=plan, cluster=nd.Local(count))
    if learned:
        metric = nd.Metric(1, n_components=m, rows=data.layout().rows, scales=(1.0,))
        job = msgspec.structs.replace(job, features=nd.ZonalFeatures(m), metric=metric)
    nd.fit(job, watch=clock)
    return clock.round if learned else clock.seconds["equations"]


def bare_rate(m: int, count: int, seconds: float) -> float:
    """Measure the operations a second of bare syrk in so many processes at once."""
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        arguments = [[m] * count, [2048] * count, ["float32"] * count, [1] * count]
        list(pool.map(syrk_rate, *arguments, [0.1] * count))  # imports
        return sum(pool.map(syrk_rate, *arguments, [seconds] * count))


@main.command()
@click.argument("source")
@click.option("--rows", default="100000,300000,1000000,3000000")
@click.option("--components", default=512)
@click.option("--workers", default=1)
@options(source=tiny_table, rows="500,1000", components=64)
def metric(source: str, rows: str, components: int, workers: int, out: str) -> None:
    """Learn a metric from all rows of SOURCE, more and more of them: seconds of a round beside those of the main pass.

    A round is a pass of gradients and a fit.  SOURCE is made by prepare.py flights; every fit is on new workers.
    """
    sizes, clock = [int(n) for n in rows.split(",")], Clock()
    result = Result("Rounds of a metric", [file(source)], out, [f"Gaussian kernel, m = {components:,}, one length"])
    with np.load(source) as f, tempfile.TemporaryDirectory() as place:
        order = np.random.default_rng(0).permutation(len(f["x"]))
        x, y = f["x"], f["y"]
        for n in sizes:
            some = np.sort(order[:n])
            job = nd.Job(
                dataset(f"{place}/{n}", x[some], y[some]),
                nd.Nystrom(components, nd.Gaussian(1.0)),
                metric=nd.Metric(1, n_components=components, rows=n, scales=(1.0,)),
                cluster=nd.Local(workers),
            )
            run = nd.fit(job, watch=clock).report["run"]
            seconds = {name: clock.seconds[name] for name in (*ROUND, "equations")}
            row = {"rows": n, "workers": workers} | {f"{name}, s": value for name, value in seconds.items()}
            row |= {"a round over the main pass": clock.round / seconds["equations"]}
            result.add(row | {"peak MB": max(run["peak_memory_bytes"].values()) / 1e6})
    over = ", ".join(f"{row['a round over the main pass']:.2f}" for row in result.rows)
    peaks = ", ".join(f"{row['peak MB']:.0f}" for row in result.rows)
    what = f"a round for a metric from all rows, {Path(source).name}, m={components:,}, {workers} worker(s)"
    at = ", ".join(f"{n:,}" for n in sizes)
    result.end({what: f"{over} of the main pass at {at} rows; peak of a worker {peaks} MB"})


class Clock:
    """A watch that keeps the seconds of each phase."""

    def __init__(self) -> None:
        self.seconds = dict[str, float]()

    @contextmanager
    def __call__(self, phase: str, rows: int) -> Iterator[Any]:
        start = time.perf_counter()
        yield lambda done: None
        self.seconds[phase] = time.perf_counter() - start

    @property
    def round(self) -> float:
        return sum(self.seconds[name] for name in ROUND)


ROUND = ("gradients 0", "round 1")  # the phases of a round: a pass of gradients and a fit


@dataclass(frozen=True)
class Nothing:
    """A summand whose tasks sleep and read no rows: the sum is a count of spans."""

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
@options(tasks=20, partitions=200, threads=4, sleep=0.1)
def tasks(tasks: int, partitions: int, threads: int, sleep: float, out: str) -> None:
    """Measure the overhead of planning and sending tasks, beyond the seconds that they sleep.

    Cuts a plan of partitions that do not exist into shards, and sends them through the mapper of every fit to a cluster
    of two worker processes, with a summand that sleeps instead of reading.
    """
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
