"""One pass beside bare syrk: how much of the machine a fit uses, and where the rest goes.

    python jobs/bench_speed.py [--rows 32768] [--d 90] [--m 4096] [--depth 1] [--threads 1] [--pairs 3] [--json FILE]

Makes rows of normals, converts them, and times by turns (a) one pass that reads, scales, maps and sums them and (b)
bare ``syrk`` on as many blocks of the same shape, in the same process with the same BLAS threads.  A row is a pair:
both clocks of both, their ratios, and the seconds of every part of (a).
"""

import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import click
import numpy as np
from harness import Seconds, json_option, median, report, started
from scipy.linalg.blas import ssyrk
from threadpoolctl import threadpool_limits

import ntkdist as nd
from ntkdist import backend
from ntkdist.cluster.shards import Source, run_shard
from ntkdist.data.dataset import Rows, Shard
from ntkdist.data.scaling import Preprocessing
from ntkdist.sums import NormalEquations
from ntkdist.sums.equations import EquationsOf


class Timed(EquationsOf):
    """`EquationsOf` that notes the seconds of its parts."""

    seconds: ClassVar[Counter[str]] = Counter()

    def update(self, total: NormalEquations, rows: Rows) -> NormalEquations:
        marks = [time.perf_counter()]
        x = self.preprocessing.inputs(rows.x, self.dtype)
        marks.append(time.perf_counter())
        z = self.features(x)
        marks.append(time.perf_counter())
        total.update(z, self.preprocessing.targets(rows.y), rows.weight)
        marks.append(time.perf_counter())
        for name, start, stop in zip(("scale", "features", "sums"), marks, marks[1:], strict=False):
            self.seconds[name] += stop - start
        return total


@click.command()
@click.option("--rows", default=32768)
@click.option("--d", default=90)
@click.option("--m", default=4096)
@click.option("--depth", default=1)
@click.option("--threads", default=1)
@click.option("--pairs", default=3)
@click.option("--variant", default="default")
@json_option
def main(rows: int, d: int, m: int, depth: int, threads: int, pairs: int, variant: str, out: str) -> None:
    rng = np.random.default_rng(0)
    features = nd.NTKRandomFeatures(m, depth=depth, variant=variant)
    with tempfile.TemporaryDirectory() as place:
        x = rng.standard_normal((rows, d), dtype=np.float32)
        np.savez(Path(place) / "x.npz", x=x, y=x[:, 0])
        nd.convert(f"{place}/x.npz", f"{place}/x.zarr", target=["y"])
        plan = nd.plan(nd.Job(nd.Dataset(f"{place}/x.zarr"), features), threads=threads)
        scaling = Preprocessing(
            input_shape=(d,), x_mean=np.zeros(d), x_scale=np.ones(d), y_mean=np.zeros(1), y_scale=np.ones(1)
        )
        source = Source(plan.dataset, plan.layout, plan.block_rows, threads)
        shard = Shard(0, tuple(plan.layout.span(p) for p in range(plan.layout.partitions)))
        features(x[:8])
        found: list[dict[str, Any]] = []
        for _ in range(pairs):
            Timed.seconds.clear()
            elapsed = started()
            tally = run_shard(source, Timed(features, scaling, "float32"), shard).tally
            whole, bare = elapsed(), bare_syrk(rows, plan.block_rows, m, threads)
            row = {"pass s": whole.wall, "syrk s": bare.wall, "ratio": bare.wall / whole.wall}
            row |= {
                "processor s": whole.processor,
                "of syrk": bare.processor,
                "of them": bare.processor / whole.processor,
            }
            found.append(row | {"read s": tally.read_seconds} | {f"{k} s": v for k, v in Timed.seconds.items()})
            print(found[-1], flush=True)
    shape = f"n={rows:,}, d={d}, m={m:,}, depth {depth}, float32, {threads} thread{'s' if threads > 1 else ''}"
    wall, processor = (median([row[name] for row in found]) for name in ("ratio", "of them"))
    claims = {
        f"a pass (read, scale, map, sum) beside bare `ssyrk` on the same blocks, {shape}": (
            f"{wall:.2f} of its rate, {processor:.2f} by processor time, medians of {pairs} pairs"
        )
    }
    notes = [f"{variant} variant, blocks of {plan.block_rows:,} rows; each row is a pair by turns"]
    data = [{"name": "normals, seed 0", "rows": rows, "columns": d}]
    report("A pass beside bare syrk", found, data, out, notes=notes, claims=claims)


def bare_syrk(rows: int, block_rows: int, m: int, threads: int) -> Seconds:
    """Seconds of syrk on the same blocks."""
    z = np.random.default_rng(1).standard_normal((block_rows, m), dtype=np.float32)
    c = np.zeros((m, m), np.float32, order="F")
    with backend.own_threads():
        threadpool_limits(threads)
        ssyrk(1.0, z.T, c=c, overwrite_c=1)
        elapsed = started()
        for i in range(0, rows, block_rows):
            ssyrk(1.0, z[: rows - i].T, c=c, overwrite_c=1)
        return elapsed()


if __name__ == "__main__":
    main()
