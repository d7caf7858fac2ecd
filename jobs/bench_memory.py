"""Flat memory: the peak of a worker process hardly grows with the rows, and is what was projected, or a little less.

    python jobs/bench_memory.py FLIGHTS.npz [--m 1024] [--rows 300000 --rows 3000000] [--json memory.json]

FLIGHTS.npz is made by prepare.py flights.  Every size runs on a new cluster, so that peaks are its own: in partitions
of the default length, which grows with the rows, and the largest also in those of the smallest.  Ends with an error if
a peak is above its projection, or below 0.85 of it.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from harness import Result, file, options, tiny_table

import ntkdist as nd

LEAST = 0.85  # of its projection that a peak may be


@click.command()
@click.argument("source")
@click.option("--m", default=1024)
@click.option("--rows", multiple=True, type=int, default=(300_000, 3_000_000))
@click.option("--workers", default=1)
@options(source=tiny_table, m=64, rows=(300, 500))
def main(source: str, m: int, rows: tuple[int, ...], workers: int, out: str) -> None:
    """Measure a worker's peak beside its projection at every number of rows of SOURCE."""
    result = Result(f"Memory of a worker, m = {m:,}", [file(source)], out)
    with np.load(source) as f, tempfile.TemporaryDirectory() as place:
        order = np.random.default_rng(0).permutation(len(f["x"]))
        x, y = f["x"], f["y"]
        for n in sorted(rows):
            some = np.sort(order[:n])
            np.savez(Path(place) / f"{n}.npz", x=x[some], y=y[some])
            result.add(one(f"{place}/{n}", None, m, workers))
        if len(rows) > 1:
            result.add(one(f"{place}/{max(rows)}", result.rows[0]["rows_per_partition"], m, workers))
    peaks = [f"{row['peak_mb']:.0f} MB at {row['rows']:,} rows ({row['projected_mb']:.0f})" for row in result.rows]
    what = (
        f"peak of a worker, NTKRandomFeatures, m={m:,}, {Path(source).name} (projected); the last in short partitions"
    )
    result.end({what: ", ".join(peaks)})
    wrong = [row for row in result.rows if not LEAST <= row["peak_to_projected"] <= 1]
    assert not wrong, f"peaks are not {LEAST} to 1 of their projections: {wrong}"


def one(name: str, rows_per_partition: int | None, m: int, workers: int) -> dict[str, Any]:
    """Fit, and return the peak beside its projection."""
    store = f"{name}-{rows_per_partition}.zarr"
    layout = nd.convert(f"{name}.npz", store, target=["y"], rows_per_partition=rows_per_partition)
    job = nd.Job(nd.Dataset(store), nd.NTKRandomFeatures(m), cluster=nd.Local(workers=workers))
    run = nd.fit(job).report["run"]
    peak, projected = max(run["peak_memory_bytes"].values()), sum(run["projected_memory_bytes"].values())
    return {
        "rows": layout.rows,
        "rows_per_partition": layout.rows_per_partition,
        "peak_mb": peak / 1e6,
        "projected_mb": projected / 1e6,
        "peak_to_projected": peak / projected,
        "rows_per_second": run["rows_per_second"],
        "seconds": run["seconds"]["equations"],
    }


if __name__ == "__main__":
    main()
