"""A Gram in tiles beside one that is whole: seconds, memory of every worker, and a Gram that does not fit a worker.

    python jobs/bench_tiled.py [--rows 8000] [--d 16] [--m 3072] [--pairs 5] [--workers 2] [--limit 4.0]
    python jobs/bench_tiled.py --m 12000 --rows 6000 --tile 2048 --pairs 0 --limit 2 --folds 1

Makes rows of normals with a target that no line fits, converts them, and fits on worker processes of a limited memory
(GB), by turns with the Gram in tiles and whole, in float64.  Prints every fit, then medians of the pairs' ratios; each
of the two takes a few minutes on two idle cores.  With no pairs only in tiles, after saying why it does not fit whole.
Then factors one Gram of m/4 columns in this process, with the tiles here and with Dask's own ``linalg.cholesky``.
"""

import tempfile
import time

import click
import dask
import dask.array as da
import msgspec
import numpy as np
from distributed import Client, LocalCluster

import ntkdist as nd
from ntkdist.cluster import resources
from ntkdist.solvers.tiled import solve_tiles
from ntkdist.sums.tiles import places, run, runs


@click.command()
@click.option("--rows", default=8_000)
@click.option("--d", default=16)
@click.option("--m", default=3072)
@click.option("--tile", default=768)
@click.option("--folds", default=2)
@click.option("--pairs", default=5)
@click.option("--workers", default=2)
@click.option("--limit", default=4.0, help="Memory of a worker, GB.")
def main(rows: int, d: int, m: int, tile: int, folds: int, pairs: int, workers: int, limit: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, d), dtype=np.float32)
    y = np.abs(x[:, 0]) + x[:, 1] * x[:, 2] + 0.3 * rng.standard_normal(rows)
    alphas = (1e-3,)  # one: a grid would grow, and by how much is not what is asked here
    with (
        tempfile.TemporaryDirectory() as place,
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=int(limit * 1e9), dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        np.savez(f"{place}/data.npz", x=x, y=y)
        nd.convert(f"{place}/data.npz", f"{place}/data.zarr", target=["y"])
        table = nd.PlanTable(folds=folds, dtype="float64" if pairs else "float32")
        features = nd.ZonalFeatures(m, kernel=nd.NTK(depth=2, bias=1.0))
        job = nd.Job(
            nd.Dataset(f"{place}/data.zarr"), features, alphas_per_row=alphas, plan=table, solver=nd.Cholesky()
        )
        tiled = msgspec.structs.replace(job, solver=nd.TiledCholesky(tile))
        print(f"{rows:,} rows, m = {m:,}, {folds} folds, {len(alphas)} alphas, {workers} workers of {limit} GB\n")
        if not pairs:
            try:
                nd.plan(job).check(int(limit * 1e9), workers)
            except nd.PlanTooLarge as error:
                print(f"Whole: {error}\n")
            show("tiles", nd.fit(tiled, client=client))
            print(f"limit {limit} GB; threads a task {resources(client).threads}")
            return
        in_pairs(job, tiled, pairs, client)
    beside_dask(m // 4, tile // 4)


def in_pairs(job: nd.Job, tiled: nd.Job, pairs: int, client: Client) -> None:
    """Fits by turns, and the medians of tiles over whole."""
    nd.fit(tiled, client=client)  # workers load what they need
    found = []
    for _ in range(pairs):
        a, b = nd.fit(tiled, client=client), nd.fit(job, client=client)
        memory_a, memory_b = show("tiles", a), show("whole", b)
        each = [(seconds(a, phase), seconds(b, phase)) for phase in ("equations", "solve")]
        ratios = [x / y for x, y in [*each, np.sum(each, axis=0)]]
        found.append([*ratios, memory_a[0] / memory_b[0], memory_a[1] / memory_a[0], memory_b[1] / memory_b[0]])
        mse = np.abs(a.cv.mse / b.cv.mse - 1).max()
        coef = np.abs(a.model.coef - b.model.coef).max() / np.abs(b.model.coef).max()
        print(f"apart: cross-validated errors {mse:.1e} of each, weights {coef:.1e} of the largest", flush=True)
    sums, solve, both, peak, projected, whole = np.median(found, axis=0)
    print(f"\nmedians of {pairs} pairs, tiles over whole:")
    print(f"sums {sums:.2f}, choosing and solving {solve:.2f}, both {both:.2f}, a worker's peak {peak:.2f}")
    print(f"projected over peak: {projected:.2f} in tiles, {whole:.2f} whole\n")


def seconds(fit: nd.FitResult, phase: str) -> float:
    return float(fit.report["run"]["seconds"][phase])


def show(name: str, fit: nd.FitResult) -> tuple[int, int]:
    """Seconds, and the largest peak of a worker beside its projection, which are returned."""
    run_ = fit.report["run"]
    peak, projected = max(run_["peak_memory_bytes"].values()), sum(run_["projected_memory_bytes"].values())
    times = f"sums {seconds(fit, 'equations'):.1f} s, solve {seconds(fit, 'solve'):.1f} s"
    panels = fit.report["plan"]["panels"]
    print(
        f"{name}: {times}, {panels} panel(s), peak {peak / 1e9:.2f} GB of {projected / 1e9:.2f} projected", flush=True
    )
    return peak, projected


def beside_dask(m: int, tile: int) -> None:
    """Seconds of factoring the same Gram, one thread, ours with Dask's."""
    m -= m % tile  # Dask's wants tiles of one size
    z = np.random.default_rng(0).standard_normal((2 * m, m))
    gram, n = z.T @ z, runs(m, tile)
    tiles = {
        (i, j): (gram[:1] if i == n else gram[run(m, tile, i)])[:, run(m, tile, j)] for i, j in places(m, tile) if j < n
    }
    lower = da.linalg.cholesky(da.from_array(gram + np.eye(m), chunks=tile), lower=True)
    times = []
    for _ in range(3):
        a = time.perf_counter()
        solve_tiles(tiles, m, tile, 1.0, lambda place, function, *args: function(*args))
        b = time.perf_counter()
        dask.compute(lower, scheduler="synchronous")
        times.append((b - a, time.perf_counter() - b))
    ours, theirs = np.median(times, axis=0)
    print(
        f"m = {m:,} in tiles of {tile:,}: factoring and solving {ours:.2f} s, da.linalg.cholesky alone {theirs:.2f} s"
    )


if __name__ == "__main__":
    main()
