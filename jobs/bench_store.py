"""Seconds of a fit from an object store beside the same fit from disk, as a ratio of medians.

    python jobs/bench_store.py s3://bucket/place [--rows 100000] [--columns 64] [--m 1024] [--workers 0] [--repeats 5]

Random rows in float32, the same in both places; two folds, one penalty.  Fits are by turns, and seconds are those of
their passes over the data (scaling and equations), with the share of reading in them; a first fit of each warms up.
"""

import tempfile
import uuid
from pathlib import Path

import click
import numpy as np
from harness import median, normals, options, report

import ntkdist as nd
from ntkdist.cluster.connect import connect
from ntkdist.data import storage


@click.command()
@click.argument("url")
@click.option("--rows", default=100_000)
@click.option("--columns", default=64)
@click.option("--m", default=1024)
@click.option("--workers", default=0, help="Worker processes; 0 for none.")
@click.option("--repeats", default=5)
@options(url=lambda place: f"file://{place}", rows=500, columns=4, m=64, repeats=1)
def main(url: str, rows: int, columns: int, m: int, workers: int, repeats: int, out: str) -> None:
    """Time fits from the object store at URL, beside fits from disk."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, columns), np.float32)
    far = storage.join(url, f"bench-{uuid.uuid4().hex}.zarr")
    with tempfile.TemporaryDirectory() as name, connect(nd.Local(workers) if workers else None) as client:
        np.savez(Path(name) / "data.npz", x=x, y=np.abs(x).sum(axis=1))
        stores = {"disk": f"{name}/data.zarr", "store": far}
        try:
            for store in stores.values():
                nd.convert(f"{name}/data.npz", store)
            plan = nd.PlanTable(folds=2)
            jobs = {
                k: nd.Job(nd.Dataset(s), nd.NTKRandomFeatures(m), alphas=(1.0,), plan=plan) for k, s in stores.items()
            }
            seconds: dict[str, list[float]] = {k: [] for k in jobs}
            read: dict[str, list[float]] = {k: [] for k in jobs}
            for repeat in range(repeats + 1):
                for kind, job in jobs.items():
                    run = nd.fit(job, client=client).report["run"]
                    if repeat:
                        seconds[kind].append(run["seconds"]["prepare"] + run["seconds"]["equations"])
                        read[kind].append(run["read_share"])
        finally:
            storage.remove(far)
    lines = [{"from": k, "seconds": seconds[k], "share of reading": read[k]} for k in jobs]
    ratio = [a / b for a, b in zip(seconds["store"], seconds["disk"], strict=True)]
    shape = f"{rows:,} rows of {columns}, m={m:,}, {workers} workers"
    scheme = url.partition("://")[0]
    claims = {
        f"a fit from {scheme} beside one from disk, {shape}": f"{median(ratio):.2f} of its seconds, {repeats} pairs"
    }
    report(f"A fit from {scheme}", lines, [normals(rows, columns)], out, notes=[shape], claims=claims)


if __name__ == "__main__":
    main()
