"""Solvers beside the dense Gram: conjugate gradients as m grows, and a Gram in tiles.

    python jobs/bench_solvers.py pcg [TABLE.npz] [--rows 8192] [--m 1024 --m 2048 --m 4096 --m 8192] [--pairs 2]
    python jobs/bench_solvers.py pcg protein.npz --m 2048 --pairs 1 --samples 256 --samples 1024 --samples 2048
    python jobs/bench_solvers.py tiles [--rows 8000] [--d 16] [--m 3072] [--pairs 5] [--workers 2] [--limit 4.0]
    python jobs/bench_solvers.py tiles --m 12000 --rows 6000 --tile 2048 --pairs 0 --limit 2 --folds 1

Fits are by turns, on the same folds; the target is one that no line fits.  On two idle cores the first takes some eight
minutes, most of them at the last m, and each of the last two a few.
"""

import tempfile
from typing import Any

import click
import dask
import dask.array as da
import msgspec
import numpy as np
from distributed import Client, LocalCluster
from harness import Result, Rows, dataset, file, in_turns, median, normals, options

import ntkdist as nd
from ntkdist.cluster.connect import resources
from ntkdist.planning import estimate
from ntkdist.solvers.tiled import solve_tiles
from ntkdist.sums.tiles import places, run, runs


@click.group()
def main() -> None:
    """Measure solvers beside the dense Gram."""


@main.command()
@click.argument("table", default="")
@click.option("--rows", default=8192)
@click.option("--m", "sizes", multiple=True, type=int, default=(1024, 2048, 4096, 8192))
@click.option("--samples", multiple=True, type=int, help="Rows of preconditioners to compare, at the last m.")
@click.option("--folds", default=2)
@click.option("--pairs", default=2)
@options(rows=400, sizes=[64, 128], samples=[32], pairs=1)
def pcg(
    table: str, rows: int, sizes: tuple[int, ...], samples: tuple[int, ...], folds: int, pairs: int, out: str
) -> None:
    """Compare PCG with the direct solver that a plan chooses: seconds to the same cross-validated fit as m grows.

    Takes some rows of TABLE, or makes normals, and fits in this process with the automatic penalties.  Seconds are
    those after the scaling is known.  A row for every m: seconds of both and their ratios, the ratio that a plan
    predicts, iterations of the slowest penalty and of one in the mean (which the prediction takes from
    `PCG.expected`), and both errors.
    """
    with tempfile.TemporaryDirectory() as place:
        x, y = some_rows(table, rows)
        job = nd.Job(dataset(f"{place}/data", x, y), features_of(64), plan=nd.PlanTable(folds=folds))
        nd.fit(msgspec.structs.replace(job, solver=nd.PCG(max_iterations=5, unconverged="keep")))  # imports, compilers
        data = [file(table)] if table else [{"name": "normals, seed 0", "rows": rows}]
        size = f"{len(x):,} rows, {folds} folds"
        result = Result("PCG and the Gram", data, out, [f"{size}, {pairs} pairs"])
        for m in sizes:
            result.add(compare(msgspec.structs.replace(job, features=features_of(m)), pairs))
        compared = ", ".join(f"{median(row['PCG / direct']):.2g} at m = {row['m']:,}" for row in result.rows)
        for count in samples:
            result.add(preconditioned(msgspec.structs.replace(job, features=features_of(sizes[-1])), count))
    result.end({f"seconds of PCG over those of a dense Gram, {size}": compared})


def some_rows(table: str, rows: int) -> tuple[Any, Any]:
    """Draw rows of a table with arrays x and y without replacement, or make some."""
    rng = np.random.default_rng(0)
    if table:
        data = np.load(table)
        some = rng.permutation(len(data["x"]))[:rows]
        return data["x"][some], data["y"][some]
    x = rng.standard_normal((rows, 16))
    return x, target(x, rng)


def target(x: Any, rng: np.random.Generator) -> Any:
    """Make a target that no line fits."""
    return np.abs(x[:, 0]) + x[:, 1] * x[:, 2] + 0.3 * rng.standard_normal(len(x))


def features_of(m: int) -> nd.ZonalFeatures:
    """Return the map of both comparisons."""
    return nd.ZonalFeatures(m, kernel=nd.NTK(depth=2, bias=1.0))


def compare(job: nd.Job, pairs: int) -> dict[str, Any]:
    """Fit with the Gram and with PCG by turns."""
    cost = estimate.planned(job, None)[2]
    row: dict[str, Any] = {"m": job.features.n_components}
    lists: dict[str, list[float]] = {}
    for _ in range(pairs):
        a = nd.fit(job)
        b = nd.fit(msgspec.structs.replace(job, solver=nd.PCG(unconverged="keep")))
        gram, solve = (a.report["run"]["seconds"][part] for part in ("equations", "solve"))
        iterative = after_scaling(b.report["run"])
        each = {"Gram s": gram, "solve s": solve, "PCG s": iterative, "PCG / direct": iterative / (gram + solve)}
        for name, value in each.items():
            lists.setdefault(name, []).append(value)
    counts = b.report["run"]["products"]
    row |= {"direct": a.report["plan"]["solver"]["type"], **lists}
    row |= {"predicted": cost["seconds_with"].get("PCG", np.nan) / cost["seconds"]}
    row |= {"iterations": counts["iterations"], "mean iterations": counts["mean_iterations"]}
    return row | {"CV RMSE direct": a.cv.rmse, "CV RMSE PCG": b.cv.rmse}


def preconditioned(job: nd.Job, rows: int) -> dict[str, Any]:
    """Fit with PCG, its preconditioner made of so many rows."""
    report = nd.fit(msgspec.structs.replace(job, solver=nd.PCG(sample_rows=rows, unconverged="keep"))).report["run"]
    counts = report["products"]
    row = {"m": job.features.n_components, "rows of the preconditioner": counts["sample_rows"]}
    row |= {"PCG s": [after_scaling(report)], "iterations": counts["iterations"]}
    return row | {"mean iterations": counts["mean_iterations"], "alphas not converged": len(counts["unconverged"])}


def after_scaling(report: dict[str, Any]) -> float:
    """Add the seconds of a fit without a Gram, except those of the scaling."""
    return sum(report["seconds"][part] for part in ("sums", "preconditioner", "iterations"))


@main.command()
@click.option("--rows", default=8_000)
@click.option("--d", default=16)
@click.option("--m", default=3072)
@click.option("--tile", default=768)
@click.option("--folds", default=2)
@click.option("--pairs", default=5, help="Fits in tiles and whole by turns; 0: one in tiles, and why none whole.")
@click.option("--workers", default=2)
@click.option("--limit", default=4.0, help="Memory of a worker, GB.")
@options(rows=800, d=4, m=64, tile=16, pairs=1)
def tiles(rows: int, d: int, m: int, tile: int, folds: int, pairs: int, workers: int, limit: float, out: str) -> None:
    """Compare a Gram in tiles with a whole one: seconds, and memory of every worker; a row is a fit.

    Fits on worker processes of a limited memory, in float64.  With pairs also factors one Gram of m/4 columns in this
    process, with the tiles here and with Dask's own ``linalg.cholesky``.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, d), dtype=np.float32)
    alphas = (1e-3,)  # one: a grid would grow by an unknown number
    with (
        tempfile.TemporaryDirectory() as place,
        LocalCluster(
            n_workers=workers, threads_per_worker=1, memory_limit=int(limit * 1e9), dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        data = dataset(f"{place}/data", x, target(x, rng))
        table = nd.PlanTable(folds=folds, dtype="float64" if pairs else "float32")
        job = nd.Job(data, features_of(m), alphas_per_row=alphas, plan=table, solver=nd.Cholesky())
        tiled = msgspec.structs.replace(job, solver=nd.TiledCholesky(tile))
        shape = f"{rows:,} rows, m={m:,}, {folds} fold{'s' * (folds > 1)}, {workers} workers of {limit:g} GB"
        refused = refusal(job, limit, workers)
        notes = [f"{resources(client).threads} threads a task", *refused]
        result = Result(f"A Gram in tiles, {shape}", [normals(rows, d)], out, notes)
        first = nd.fit(tiled, client=client)  # with pairs: workers load what they need
        for _ in range(pairs):
            a, b = nd.fit(tiled, client=client), nd.fit(job, client=client)
            mse = float(np.abs(a.cv.mse / b.cv.mse - 1).max())
            coef = float(np.abs(a.model.coef - b.model.coef).max() / np.abs(b.model.coef).max())
            result.add(of_fit("tiles", a))
            result.add(of_fit("whole", b) | {"errors apart": mse, "weights apart": coef})
    if not pairs:
        result.add(of_fit("tiles", first))
        return result.end(alone(result.rows[0], shape) if refused else {})
    claims = compared(result.rows, shape)
    for row in beside_dask(m // 4, tile // 4):
        result.add(row)
    return result.end(claims)


def refusal(job: nd.Job, limit: float, workers: int) -> list[str]:
    """Return why a job does not fit such workers with a whole Gram; nothing if it does."""
    try:
        nd.plan(job).check(int(limit * 1e9), workers)
    except nd.PlanTooLarge as error:
        return [f"whole: {error}"]
    return []


def of_fit(name: str, fit: nd.FitResult) -> dict[str, Any]:
    """Take the seconds of a fit, and the largest peak of a worker beside its projection."""
    report = fit.report["run"]
    peak, projected = max(report["peak_memory_bytes"].values()), sum(report["projected_memory_bytes"].values())
    row = {"gram": name, "sums s": report["seconds"]["equations"], "solve s": report["seconds"]["solve"]}
    return row | {"panels": fit.report["plan"]["panels"], "peak GB": peak / 1e9, "projected GB": projected / 1e9}


def compared(rows: Rows, shape: str) -> dict[str, str]:
    """State the cost of tiles, by the medians of pairs."""
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    seconds = median([(a["sums s"] + a["solve s"]) / (b["sums s"] + b["solve s"]) for a, b in pairs])
    peak = median([a["peak GB"] / b["peak GB"] for a, b in pairs])
    outcome = f"{seconds:.2f} times the seconds and {peak:.2f} of a worker's memory, medians of {len(pairs)} pairs"
    return {f"a Gram in tiles beside a whole one, {shape}": outcome}


def alone(row: dict[str, Any], shape: str) -> dict[str, str]:
    """State the cost of a Gram that would not fit whole."""
    seconds = row["sums s"] + row["solve s"]
    return {f"a Gram in tiles that fits no worker whole, {shape}": f"{seconds:.0f} s, peak {row['peak GB']:.2f} GB"}


def beside_dask(m: int, tile: int) -> list[dict[str, Any]]:
    """Time the factoring of one Gram on one thread, ours and Dask's."""
    m -= m % tile  # Dask's takes tiles of one size
    z = np.random.default_rng(0).standard_normal((2 * m, m))
    gram, n = z.T @ z, runs(m, tile)
    cut = {
        (i, j): (gram[:1] if i == n else gram[run(m, tile, i)])[:, run(m, tile, j)] for i, j in places(m, tile) if j < n
    }
    lower = da.linalg.cholesky(da.from_array(gram + np.eye(m), chunks=tile), lower=True)
    calls = {
        "ours": lambda: solve_tiles(cut, m, tile, 1.0, lambda place, function, *args: function(*args)),
        "da.linalg.cholesky": lambda: dask.compute(lower, scheduler="synchronous"),
    }
    return [
        {"gram": f"factored, m = {m:,} in tiles of {tile:,}: {name}", "wall s": median([s.wall for s in seconds])}
        for name, seconds in in_turns(calls, 3).items()
    ]


if __name__ == "__main__":
    main()
