"""Exactness of a fit: scores beside scikit-learn's, sums over other cuttings, and bits over schedulers and failures.

    python jobs/bench_exact.py TABLE.npz [--m 512] [--json FILE]
    python jobs/bench_exact.py FLIGHTS.npz --rounds 1 --m 256    # only the bits, of a fit that learns a metric

TABLE.npz holds `x` (rows, columns) and `y` (rows).  Measures the difference of cross-validated scores from refitting
scikit-learn's Ridge on the same features fold by fold; the difference of sums over partition sizes, shards and
schedulers in float64, relative to √(G_ii G_jj); and compares the bits of one plan under the synchronous scheduler,
threads, tasks of two threads, two processes, and two processes of which one is killed: in the main pass, or in that
over gradients for a metric.
"""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import dask
import msgspec
import numpy as np
from distributed import Client, LocalCluster
from harness import dataset, file, options, report, tiny_table
from sklearn.linear_model import Ridge

import ntkdist as nd
from ntkdist.sums import NormalEquations

ALPHAS = (0.01, 1.0, 100.0)


@click.command()
@click.argument("table")
@click.option("--m", default=512)
@click.option("--partition", "sizes", multiple=True, type=int, default=(500, 2000, 7000), help="Rows of a partition.")
@click.option(
    "--rounds", default=0, help="Compare the bits of fits that learn a metric from all rows in so many rounds."
)
@options(table=tiny_table, m=32, sizes=[100, 200, 400])
def main(table: str, m: int, sizes: tuple[int, ...], rounds: int, out: str) -> None:
    """Compare a fit on TABLE with scikit-learn's, and with itself over partitions, schedulers and failures."""
    if rounds:
        with_metric(table, m, rounds, out)
    else:
        without_metric(table, m, sizes, out)


def with_metric(table: str, m: int, rounds: int, out: str) -> None:
    """Compare fits that learn a metric, over schedulers and failures."""
    with np.load(table) as f, tempfile.TemporaryDirectory() as place:
        data, count = dataset(f"{place}/rows", f["x"], f["y"]), len(f["x"])
        metric = nd.Metric(rounds, n_components=m, rows=count, scales=(1.0,))
        plan = nd.PlanTable(threads=1, shards=20)
        same = same_bits(nd.plan(nd.Job(data, nd.Nystrom(m, nd.Gaussian(1.0)), metric=metric, plan=plan)))
    size = f"{count:,} rows, m = {m:,}, {rounds} round{'s' * (rounds > 1)} on all rows"
    claim = f"one plan with a metric: {', '.join(same)}, beside one process"
    report("Bits of a metric", found(same), [file(table)], out, notes=[size], claims={claim: f"{said(same)} ({size})"})


def without_metric(table: str, m: int, sizes: tuple[int, ...], out: str) -> None:
    """Compare scores with scikit-learn's, sums over cuttings, and bits over schedulers and failures."""
    with tempfile.TemporaryDirectory() as place:
        stores = {n: f"{place}/{n}.zarr" for n in sizes}
        for n, store in stores.items():
            nd.convert(table, store, target=["y"], rows_per_partition=n, shuffle_seed=None)
        table64 = nd.PlanTable(dtype="float64", threads=1)
        job = nd.Job(nd.Dataset(stores[sizes[1]]), nd.NTKRandomFeatures(m), alphas=ALPHAS, plan=table64)
        apart = scores(job, table)
        changed = [(s, shards) for s in stores.values() for shards in (5, 20)]
        sums = [total(nd.normal_equations(nd.plan(with_plan(job, store=s, shards=n)))) for s, n in changed]
        with two_processes() as client:
            sums.append(total(nd.normal_equations(nd.plan(job), client=client)))
        moved = spread(sums)
        same = same_bits(nd.plan(with_plan(job, dtype="float32", shards=20)))
    rows: list[dict[str, Any]] = [
        {"what": "cross-validated errors against scikit-learn's, largest relative difference", "found": apart},
        {"what": "sums, largest difference relative to √(G_ii G_jj)", "found": moved},
        *found(same),
    ]
    size = f"m = {m:,}, {len(ALPHAS)} penalties, 5 folds"
    claims = {
        "cross-validated errors beside those of refitting scikit-learn's `Ridge` on the same features, fold by fold": (
            f"largest relative difference {apart:.1e} (float64, {size})"
        ),
        "sums over other partitions, shards and schedulers": (
            f"largest difference {moved:.1e} of √(G_ii G_jj), float64, {len(changed)} cuttings and 2 schedulers"
        ),
        f"one plan: {', '.join(same)}, beside one process": f"{said(same)} (float32)",
    }
    report("Exactness", rows, [file(table)], out, notes=[size], claims=claims)


def found(same: dict[str, bool]) -> list[dict[str, Any]]:
    """Lay out whether each way to run a plan has the same bits."""
    return [{"what": f"float32, {name}", "found": said({name: bits})} for name, bits in same.items()]


def said(same: dict[str, bool]) -> str:
    """Say whether all ways have the same bits."""
    return "the same bits" if all(same.values()) else "OTHER BITS"


def with_plan(job: nd.Job, store: str = "", **changes: Any) -> nd.Job:
    """Return a job with another dataset or other entries of its plan."""
    dataset = nd.Dataset(store) if store else job.dataset
    return msgspec.structs.replace(job, dataset=dataset, plan=msgspec.structs.replace(job.plan, **changes))


def total(folds: list[NormalEquations]) -> NormalEquations:
    """Add the sums of all folds."""
    return sum(folds[1:], folds[0])


def spread(sums: list[NormalEquations]) -> float:
    """Return the largest difference of any Gram from the first, relative to √(G_ii G_jj)."""
    root = np.sqrt(np.diag(sums[0].gram))
    return max(float(np.max(np.abs(s.gram - sums[0].gram) / np.outer(root, root))) for s in sums)


def scores(job: nd.Job, table: str) -> float:
    """Return the largest relative difference of any score on any fold at any penalty from scikit-learn's."""
    cv = nd.fit(job).cv
    assert cv is not None
    with np.load(table) as f:
        x, y = f["x"].astype(np.float64), f["y"].astype(np.float64)
    z = job.features((x - x.mean(axis=0)) / x.std(axis=0))
    target = (y - y.mean()) / y.std()
    fold = np.arange(len(x)) // job.dataset.layout().rows_per_partition % nd.plan(job).folds
    worst = 0.0
    for a, alpha in enumerate(cv.alphas):
        for k in range(cv.mse.shape[1]):
            ridge = Ridge(alpha=alpha, solver="cholesky").fit(z[fold != k], target[fold != k])
            mse = np.mean((ridge.predict(z[fold == k]) - target[fold == k]) ** 2) * np.var(y)
            worst = max(worst, abs(float(cv.mse[a, k, 0] / mse) - 1))
    return worst


@contextmanager
def two_processes() -> Iterator[Client]:
    """Start two worker processes of one thread each."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as c, Client(c) as client:
        yield client


def same_bits(plan: nd.Plan) -> dict[str, bool]:
    """Compare the bits of each way to run a plan with those of the synchronous scheduler."""
    expected = nd.fit(plan)

    def same(result: nd.FitResult) -> bool:
        pairs = zip(expected.equations.folds, result.equations.folds, strict=True)
        alike = all(bool((a.gram == b.gram).all() and (a.rhs == b.rhs).all()) for a, b in pairs)
        one, other = (each.model.preprocessing.metric for each in (expected, result))
        return alike and np.array_equal(one, other)

    equal = {}
    with dask.config.set(scheduler="threads", num_workers=2):
        equal["Dask threads"] = same(nd.fit(plan))
    equal["tasks of two threads"] = same(nd.fit(msgspec.structs.replace(plan, threads=2)))
    with two_processes() as client:
        equal["two processes"] = same(nd.fit(plan, client=client))
    with two_processes() as client:
        equal["a worker killed (SIGKILL) in the middle"] = same(nd.fit(plan, client=client, watch=kill_one(client)))
    return equal


def kill_one(client: Client) -> Any:
    """Return a watch that kills a worker when a third of the rows of the main pass, or of one of gradients, is done."""
    killed: list[int] = []

    @contextmanager
    def watch(phase: str, rows: int) -> Iterator[Any]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if phase in ("gradients 0", "equations") and done > rows / 3 and not killed:
                killed.append(min(client.run(os.getpid).values()))
                os.kill(killed[0], signal.SIGKILL)

        yield advance

    return watch


if __name__ == "__main__":
    main()
