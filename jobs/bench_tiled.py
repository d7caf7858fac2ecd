"""A Gram in tiles beside one that is whole: seconds, memory of every worker, and a Gram that does not fit a worker.

    python jobs/bench_tiled.py [--rows 8000] [--d 16] [--m 3072] [--pairs 5] [--workers 2] [--limit 4.0] [--json FILE]
    python jobs/bench_tiled.py --m 12000 --rows 6000 --tile 2048 --pairs 0 --limit 2 --folds 1

Makes rows of normals with a target that no line fits, converts them, and fits on worker processes of a limited memory
(GB), by turns with the Gram in tiles and whole, in float64; a row is a fit.  Each of the two takes a few minutes on two
idle cores.  With no pairs only in tiles, and why it does not fit whole.  With pairs also factors one Gram of m/4
columns in this process, with the tiles here and with Dask's own ``linalg.cholesky``.
"""

import tempfile
from typing import Any

import click
import dask
import dask.array as da
import msgspec
import numpy as np
from distributed import Client, LocalCluster
from harness import Rows, in_turns, json_option, median, report

import ntkdist as nd
from ntkdist.cluster.connect import resources
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
@json_option
def main(rows: int, d: int, m: int, tile: int, folds: int, pairs: int, workers: int, limit: float, out: str) -> None:
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
        found = in_pairs(job, tiled, pairs, client) if pairs else [row("tiles", nd.fit(tiled, client=client))]
        shape = f"{rows:,} rows, m={m:,}, {folds} fold{'s' * (folds > 1)}, {workers} workers of {limit:g} GB"
        refused = refusal(job, limit, workers)
        notes = [f"{resources(client).threads} threads a task", *refused]
    claims = compared(found, shape) if pairs else alone(found[0], shape) if refused else {}
    found += beside_dask(m // 4, tile // 4) if pairs else []
    data = [{"name": "normals, seed 0", "rows": rows, "columns": d}]
    report(f"A Gram in tiles, {shape}", found, data, out, notes=notes, claims=claims)


def refusal(job: nd.Job, limit: float, workers: int) -> list[str]:
    """Say why a job does not fit such workers whole; nothing if it does."""
    try:
        nd.plan(job).check(int(limit * 1e9), workers)
    except nd.PlanTooLarge as error:
        return [f"whole: {error}"]
    return []


def in_pairs(job: nd.Job, tiled: nd.Job, pairs: int, client: Client) -> list[dict[str, Any]]:
    """Fit by turns; the second of a pair also has how far the two are apart."""
    nd.fit(tiled, client=client)  # workers load what they need
    found = []
    for _ in range(pairs):
        a, b = nd.fit(tiled, client=client), nd.fit(job, client=client)
        mse = float(np.abs(a.cv.mse / b.cv.mse - 1).max())
        coef = float(np.abs(a.model.coef - b.model.coef).max() / np.abs(b.model.coef).max())
        found += [row("tiles", a), row("whole", b) | {"errors apart": mse, "weights apart": coef}]
    return found


def row(name: str, fit: nd.FitResult) -> dict[str, Any]:
    """Take the seconds of a fit, and the largest peak of a worker beside its projection."""
    run_ = fit.report["run"]
    peak, projected = max(run_["peak_memory_bytes"].values()), sum(run_["projected_memory_bytes"].values())
    found = {"gram": name, "sums s": run_["seconds"]["equations"], "solve s": run_["seconds"]["solve"]}
    found |= {"panels": fit.report["plan"]["panels"], "peak GB": peak / 1e9, "projected GB": projected / 1e9}
    print(found, flush=True)
    return found


def compared(found: Rows, shape: str) -> dict[str, str]:
    """Say what tiles cost, by the medians of pairs."""
    pairs = list(zip(found[::2], found[1::2], strict=True))
    seconds = median([(a["sums s"] + a["solve s"]) / (b["sums s"] + b["solve s"]) for a, b in pairs])
    peak = median([a["peak GB"] / b["peak GB"] for a, b in pairs])
    said = f"{seconds:.2f} times the seconds and {peak:.2f} of a worker's memory, medians of {len(pairs)} pairs"
    return {f"a Gram in tiles beside a whole one, {shape}": said}


def alone(row: dict[str, Any], shape: str) -> dict[str, str]:
    """Say what a Gram that would not fit whole took."""
    seconds = row["sums s"] + row["solve s"]
    return {f"a Gram in tiles that fits no worker whole, {shape}": f"{seconds:.0f} s, peak {row['peak GB']:.2f} GB"}


def beside_dask(m: int, tile: int) -> list[dict[str, Any]]:
    """Time the factoring of one Gram on one thread, ours and Dask's."""
    m -= m % tile  # Dask's wants tiles of one size
    z = np.random.default_rng(0).standard_normal((2 * m, m))
    gram, n = z.T @ z, runs(m, tile)
    tiles = {
        (i, j): (gram[:1] if i == n else gram[run(m, tile, i)])[:, run(m, tile, j)] for i, j in places(m, tile) if j < n
    }
    lower = da.linalg.cholesky(da.from_array(gram + np.eye(m), chunks=tile), lower=True)
    calls = {
        "ours": lambda: solve_tiles(tiles, m, tile, 1.0, lambda place, function, *args: function(*args)),
        "da.linalg.cholesky": lambda: dask.compute(lower, scheduler="synchronous"),
    }
    return [
        {"gram": f"factored, m = {m:,} in tiles of {tile:,}: {name}", "wall s": median([s.wall for s in seconds])}
        for name, seconds in in_turns(calls, 3).items()
    ]


if __name__ == "__main__":
    main()
