"""Flat memory: the peak of a worker process does not grow with the rows, and is near the projection.

    python jobs/bench_memory.py FLIGHTS.npz [--m 1024] [--rows 300000 --rows 3000000]

FLIGHTS.npz is made by flights_table.py.  Every size runs on a new cluster, so that peaks are its own.
"""

import json
import tempfile
from pathlib import Path

import click
import numpy as np

import ntkdist as nd


@click.command()
@click.argument("source")
@click.option("--m", default=1024)
@click.option("--rows", multiple=True, type=int, default=(300_000, 3_000_000))
@click.option("--workers", default=1)
def main(source: str, m: int, rows: tuple[int, ...], workers: int) -> None:
    peaks, above = [], []
    with np.load(source) as f, tempfile.TemporaryDirectory() as place:
        order = np.random.default_rng(0).permutation(len(f["x"]))
        x, y = f["x"], f["y"]
        for n in rows:
            some = np.sort(order[:n])
            np.savez(Path(place) / f"{n}.npz", x=x[some], y=y[some])
            nd.convert(f"{place}/{n}.npz", f"{place}/{n}.zarr", target=["y"])
            job = nd.Job(nd.Dataset(f"{place}/{n}.zarr"), nd.NTKRandomFeatures(m), cluster=nd.Local(workers=workers))
            run = nd.fit(job).report["run"]
            peak, projected = max(run["peak_memory_bytes"].values()), sum(run["projected_memory_bytes"].values())
            peaks.append(peak)
            above += [n] if peak > projected else []
            found = {
                "rows": n,
                "peak_mb": peak / 1e6,
                "projected_mb": projected / 1e6,
                "peak_to_projected": peak / projected,
            }
            found |= {"rows_per_second": run["rows_per_second"], "seconds": run["seconds"]["equations"]}
            print(json.dumps({k: round(v, 3) for k, v in found.items()}), flush=True)
    print(json.dumps({"largest_to_smallest": round(max(peaks) / min(peaks), 3)}))
    assert not above, f"the peak is above the projection for {above} rows"


if __name__ == "__main__":
    main()
