"""Plans beside what they planned: memory of a worker and seconds, projected and measured, over plans of many kinds.

    python jobs/bench_plans.py [--only NAME]... [--scale 1.0] [--json plans.json]

Every plan runs on new worker processes, so that peaks are its own; rows are normals (images: uniform bytes) written to
a temporary dataset.  Rates are measured just before each run, as `ntkdist plan` does.  Prints a line a plan, then the
least and the largest ratio of peak to projection, and the median relative difference of seconds.  Ends with an error if
a peak is above its projection, or below 0.85 of it.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from harness import Result, options

import ntkdist as nd
from ntkdist.cluster.connect import connect
from ntkdist.planning import estimate

LEAST = 0.85  # of its projection that a peak may be
ITERATIVE = nd.PCG(512, max_iterations=20, unconverged="keep")
# Name: rows, shape of a row, features, options of the job, of [plan], workers.
PLANS: dict[str, tuple[int, tuple[int, ...], Any, dict[str, Any], dict[str, Any], int]] = {
    "small": (400_000, (8,), nd.NTKRandomFeatures(512), {}, {}, 1),
    "flights": (200_000, (8,), nd.NTKRandomFeatures(1024), {}, {}, 1),
    "zonal": (60_000, (16,), nd.ZonalFeatures(2048), {}, {}, 1),
    "float64": (60_000, (90,), nd.ZonalFeatures(1024), {}, {"dtype": "float64", "folds": 3}, 1),
    "deep": (100_000, (30,), nd.NTKRandomFeatures(1024, depth=3), {}, {"threads": 2}, 1),
    "wide": (20_000, (784,), nd.ZonalFeatures(3072), {}, {"folds": 2}, 1),
    "fourier": (60_000, (9,), nd.RandomFourier(2048, nd.Gaussian(2.0)), {}, {"folds": 3, "fan_in": 2}, 1),
    "landmarks": (60_000, (9,), nd.Nystrom(768), {}, {"folds": 4, "shards": 20}, 1),
    "sketch": (60_000, (50,), nd.NTKSketch(768), {}, {"block_rows": 4096}, 1),
    "images": (600, (32, 32, 3), nd.CNTKRandomFeatures(512), {}, {"folds": 2}, 1),
    "workers": (120_000, (16,), nd.ZonalFeatures(1536), {}, {"shards": 20}, 2),
    "tiles": (20_000, (16,), nd.ZonalFeatures(3072), {"solver": nd.TiledCholesky(1024)}, {"folds": 2}, 2),
    "conjugate": (40_000, (16,), nd.ZonalFeatures(2048), {"solver": ITERATIVE, "alphas_per_row": (1e-3, 1e-2)}, {}, 1),
}


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(PLANS)))
@click.option("--scale", default=1.0, help="Of the rows of every plan.")
@options(only=("zonal",), scale=0.05)
def main(only: tuple[str, ...], scale: float, out: str) -> None:
    """Run plans of many kinds, and compare memory and seconds with what was projected."""
    names = only or tuple(PLANS)
    rows = [{"name": f"random numbers for {name}", "rows": int(PLANS[name][0] * scale)} for name in names]
    result = Result("Plans, projected and measured", rows, out)
    for name in names:
        result.add(one(name, scale))
    memory = {row["plan"]: row["peak"] / row["projected"] for row in result.rows}
    off = 100 * float(np.median([abs(row["predicted_s"] / row["seconds"] - 1) for row in result.rows]))
    what = f"memory and seconds of {len(result.rows)} plans beside what `ntkdist plan` says beforehand"
    peaks = f"peaks are {min(memory.values()):.2f} to {max(memory.values()):.2f} of the projection"
    result.end({what: f"{peaks}; seconds {off:.0f} % off in the median"})
    wrong = {name: round(ratio, 3) for name, ratio in memory.items() if not LEAST <= ratio <= 1}
    assert not wrong, f"peaks are not {LEAST} to 1 of their projections: {wrong}"


def one(name: str, scale: float) -> dict[str, Any]:
    """Run a plan and return what was projected and measured."""
    rows, shape, features, options, table, workers = PLANS[name]
    rng, rows = np.random.default_rng(0), int(rows * scale)
    with tempfile.TemporaryDirectory() as place:
        images = len(shape) == 3
        x = rng.integers(0, 256, (rows, *shape), np.uint8) if images else rng.standard_normal((rows, *shape), "f4")
        np.savez(Path(place) / "x.npz", x=x, y=x.reshape(rows, -1)[:, 0] + rng.standard_normal(rows))
        nd.convert(f"{place}/x.npz", f"{place}/x.zarr", target=["y"])
        job = nd.Job(
            nd.Dataset(f"{place}/x.zarr"),
            features,
            plan=nd.PlanTable(**table),
            cluster=nd.Local(workers),
            **options,
        )
        with connect(job.cluster) as client:
            resolved, _, cost = estimate.planned(job, client)
            run = nd.fit(job, client=client).report["run"]
    peak, predicted = max(run["peak_memory_bytes"].values()), cost["projected_memory_bytes"]
    seconds = sum(run["seconds"][k] for k in run["seconds"] if k != "total")
    return {
        "plan": name,
        "m": resolved.m,
        "rows": rows,
        "projected": predicted,
        "peak": peak,
        "memory": round(peak / predicted, 3),
        "predicted_s": round(cost["seconds"], 2),
        "seconds": round(seconds, 2),
        "time": round(cost["seconds"] / seconds, 2),
        "parts, MB": listed({k: v / 1e6 for k, v in cost["worker_memory_bytes"].items()}),
        "shards": cost["shards"],
        "predicted phases, s": listed(cost["seconds_of"]),
        "phases, s": listed(run["seconds"]),
    }


def listed(values: dict[str, float]) -> str:
    """Write named numbers in one cell."""
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())


if __name__ == "__main__":
    main()
