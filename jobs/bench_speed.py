"""Speed of one pass, of the feature maps, of sparse rows and of choosing the penalty, beside plain alternatives.

    python jobs/bench_speed.py pass       # one pass over the data beside bare syrk
    python jobs/bench_speed.py maps       # feature maps beside plain forms of the published ones
    python jobs/bench_speed.py product    # maps of one matrix product beside that product alone
    python jobs/bench_speed.py sparse     # the time of a sparse row in NTKSketch follows its non-zeros
    python jobs/bench_speed.py select     # penalties: folds at once beside one fold after another

All data are random.  Every comparison is by turns in one process, with as many threads, and has a ratio for each pair.
"""

import functools
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import click
import numpy as np
from harness import Result, Seconds, dataset, in_turns, median, normals, options, ratios, report, started, timed
from plain_forms import PlainRandomFeatures, PlainSketch
from scipy.linalg.blas import ssyrk
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

import ntkdist as nd
from ntkdist import backend
from ntkdist.cluster.shards import Source, run_shard
from ntkdist.data.dataset import Rows, Shard
from ntkdist.data.scaling import Preprocessing
from ntkdist.features.landmarks import kernel_block, kernel_params, kernel_rows
from ntkdist.solvers.cross_validation import penalties
from ntkdist.sums import NormalEquations
from ntkdist.sums.equations import EquationsOf

Map = Callable[[Any], Any]


@click.group()
def main() -> None:
    """Measure speed beside plain alternatives."""


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


@main.command("pass")
@click.option("--rows", default=32768)
@click.option("--d", default=90)
@click.option("--m", default=4096)
@click.option("--depth", default=1)
@click.option("--threads", default=1)
@click.option("--pairs", default=3)
@click.option("--variant", default="default")
@options(rows=2048, d=8, m=64, pairs=1)
def one_pass(rows: int, d: int, m: int, depth: int, threads: int, pairs: int, variant: str, out: str) -> None:
    """Time a pass that reads, scales, maps and sums rows, beside bare syrk on as many blocks of the same shape."""
    shape = f"n={rows:,}, d={d}, m={m:,}, depth {depth}, float32, {threads} thread{'s' if threads > 1 else ''}"
    features = nd.NTKRandomFeatures(m, depth=depth, variant=variant)
    with tempfile.TemporaryDirectory() as place:
        x = np.random.default_rng(0).standard_normal((rows, d), dtype=np.float32)
        plan = nd.plan(nd.Job(dataset(f"{place}/x", x, x[:, 0]), features), threads=threads)
        scaling = Preprocessing(
            input_shape=(d,), x_mean=np.zeros(d), x_scale=np.ones(d), y_mean=np.zeros(1), y_scale=np.ones(1)
        )
        source = Source(plan.dataset, plan.layout, plan.block_rows, threads)
        shard = Shard(0, tuple(plan.layout.span(p) for p in range(plan.layout.partitions)))
        features(x[:8])
        notes = [f"{variant} variant, blocks of {plan.block_rows:,} rows; each row is a pair by turns"]
        result = Result("A pass beside bare syrk", [normals(rows, d)], out, notes)
        for _ in range(pairs):
            Timed.seconds.clear()
            elapsed = started()
            tally = run_shard(source, Timed(features, scaling, "float32"), shard).tally
            whole, bare = elapsed(), bare_syrk(rows, plan.block_rows, m, threads)
            row = {"pass s": whole.wall, "syrk s": bare.wall, "ratio": bare.wall / whole.wall}
            row |= {"processor s": whole.processor, "of syrk": bare.processor}
            row |= {"of them": bare.processor / whole.processor, "read s": tally.read_seconds}
            result.add(row | {f"{k} s": v for k, v in Timed.seconds.items()})
    wall, processor = (median([row[name] for row in result.rows]) for name in ("ratio", "of them"))
    subject = f"a pass (read, scale, map, sum) beside bare `ssyrk` on the same blocks, {shape}"
    result.end({subject: f"{wall:.2f} of its rate, {processor:.2f} by processor time, medians of {pairs} pairs"})


def bare_syrk(rows: int, block_rows: int, m: int, threads: int) -> Seconds:
    """Time syrk on the same blocks."""
    z = np.random.default_rng(1).standard_normal((block_rows, m), dtype=np.float32)
    c = np.zeros((m, m), np.float32, order="F")
    with backend.own_threads():
        threadpool_limits(threads)
        ssyrk(1.0, z.T, c=c, overwrite_c=1)
        elapsed = started()
        for i in range(0, rows, block_rows):
            ssyrk(1.0, z[: rows - i].T, c=c, overwrite_c=1)
        return elapsed()


@main.command()
@click.option("--rows", default=20_000)
@click.option("--d", default=90)
@click.option("--m", default=8192)
@click.option("--threads", default=2)
@click.option("--pairs", default=3)
@options(rows=64, d=8, m=128, pairs=1)
def maps(rows: int, d: int, m: int, threads: int, pairs: int, out: str) -> None:
    """Time feature maps beside plain forms of the published ones, in float32."""
    cases: dict[str, tuple[Map, Map]] = {
        "NTKRandomFeatures, depth 2": (nd.NTKRandomFeatures(m, 2), PlainRandomFeatures(m, d, 2)),
        "NTKSketch, depth 1, degree 8": (nd.NTKSketch(m, 1, 8), PlainSketch(m, d, 1, 8)),
        "NTKSketch, depth 2, degree 8": (nd.NTKSketch(m, 2, 8), PlainSketch(m, d, 2, 8)),
    }
    shape = f"n={rows:,}, d={d}, m={m:,}, {threads} threads"
    result = Result("Maps and the published ones", [normals(rows, d)], out, [shape])
    claims = {}
    for name, (ours, plain) in cases.items():
        wall, processor = compare(result, {"map": name}, ours, plain, (rows, d), threads, pairs)
        claims[f"{name}, beside a plain form of the published map, {shape}"] = (
            f"{wall:.1f} times the rows a second, {processor:.1f} by processor time, medians of {pairs} pairs"
        )
    result.end(claims)


@main.command()
@click.option("--rows", default=20_000)
@click.option("--d", default=90)
@click.option("--m", default=8192)
@click.option("--threads", default=2)
@click.option("--pairs", default=5)
@options(rows=600, d=8, m=128, pairs=1)
def product(rows: int, d: int, m: int, threads: int, pairs: int, out: str) -> None:
    """Time maps of one matrix product beside that product alone, in float32."""
    weights = np.random.default_rng(1).standard_normal((d, m), dtype=np.float32)
    cases: dict[str, Map] = {
        "ZonalFeatures, depth 3": nd.ZonalFeatures(m, nd.NTK(3)),
        "landmark block of Nystrom, depth 3, float32": landmark_block(m, d),
    }
    shape = f"n={rows:,}, d={d}, m={m:,}, {threads} threads"
    result = Result("Maps and one product", [normals(rows, d)], out, [shape])
    claims = {}
    for name, ours in cases.items():
        wall, processor = compare(result, {"what": name}, ours, lambda x: x @ weights, (rows, d), threads, pairs)
        claims[f"{name}, beside the bare product of the same shape, {shape}"] = (
            f"{wall:.2f} of its rate, {processor:.2f} by processor time, medians of {pairs} pairs"
        )
    result.end(claims)


def compare(
    result: Result, row: dict[str, Any], ours: Map, other: Map, shape: tuple[int, int], threads: int, pairs: int
) -> list[float]:
    """Time a map and another by turns; return the median ratios (other over ours) by wall and processor time."""
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    fast, slow = [], []
    for _ in range(pairs):
        with backend.own_threads():
            backend.use_threads(threads)
            ours(x[:64])  # draw the map outside the timing
            fast.append(timed(functools.partial(ours, x)))
        with threadpool_limits(threads):
            other(x[:64])
            slow.append(timed(functools.partial(other, x)))
    quotients = ratios(slow, fast)
    for clock, values in quotients.items():
        row |= {f"{clock} s": [getattr(seconds, clock) for seconds in fast], f"{clock} ratio": values}
    result.add(row)
    return [median(values) for values in quotients.values()]


def landmark_block(m: int, d: int) -> Map:
    """Return x ↦ k(x, Z) of m landmarks Z, as `Nystrom` computes it, in pieces on the threads of the task."""
    kernel = nd.NTK(3)
    params = kernel_params(kernel, kernel_rows(kernel, np.random.default_rng(2).standard_normal((m, d)))[0])
    params = {name: value.astype(np.float32) for name, value in params.items()}
    out: dict[int, Any] = {}

    def call(x: Any) -> None:
        def piece(start: int) -> None:
            out[start] = kernel_block(kernel, params, kernel_rows(kernel, x[start : start + 256])[0])

        backend.parallel_for(piece, range(0, len(x), 256))

    return call


@main.command()
@click.option("--d", default=100_000)
@click.option("--m", default=2048)
@click.option("--depth", default=1)
@click.option("--rows", default=2000)
@click.option("--threads", default=1)
@click.option("--repeats", default=5)
@options(d=4000, m=64, rows=50, repeats=1)
def sparse(d: int, m: int, depth: int, rows: int, threads: int, repeats: int, out: str) -> None:
    """Time sparse rows in NTKSketch by their non-zeros, and fit a line to the least times."""
    backend.use_threads(threads)
    features, counts = nd.NTKSketch(m, depth), [30, 100, 300, 1000, 3000]
    cases = {k: sparse_rows(rows, d, k) for k in counts}
    for x in cases.values():
        features(x[:64])
    seconds = in_turns({str(k): functools.partial(features, x) for k, x in cases.items()}, repeats)
    micro = {k: [1e6 * s.processor / rows for s in seconds[str(k)]] for k in counts}
    slope, base = np.polyfit(counts, [min(t) for t in micro.values()], 1)
    lines = [{"non-zeros a row": k, "µs a row": t, "line": float(base + slope * k)} for k, t in micro.items()]
    least = ", ".join(f"{min(t):.0f}" for t in micro.values())
    claims = {
        f"a sparse row in `NTKSketch`: {d:,} columns, m={m:,}, depth {depth}": (
            f"{least} processor µs a row at {', '.join(f'{k:,}' for k in counts)} non-zeros"
        )
    }
    data = [{"name": "random sparse rows, seeds the non-zeros", "rows": rows, "columns": d}]
    report("Sparse rows", lines, data, out, notes=[f"{base:.0f} µs + {1000 * slope:.0f} ns a non-zero"], claims=claims)


def sparse_rows(n: int, d: int, k: int) -> csr_array:
    """Draw n rows of d columns with k non-zeros each, in random places."""
    rng = np.random.default_rng(k)
    indices = np.sort(rng.integers(d // k, size=(n, k)) + np.arange(k) * (d // k), axis=1)
    return csr_array((rng.standard_normal(n * k, np.float32), indices.ravel(), np.arange(n + 1) * k), (n, d))


@main.command()
@click.option("--m", default=2048)
@click.option("--folds", default=5)
@click.option("--pairs", default=3)
@options(m=32, pairs=1)
def select(m: int, folds: int, pairs: int, out: str) -> None:
    """Time the choice of the penalty: fold by fold, folds at once, and as `cross_validate` thins the grid."""
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(folds):
        z = rng.standard_normal((m // 2, m)) * np.geomspace(1, 1e-2, m)
        parts.append(NormalEquations.zeros(m, 1).update(z, z @ np.ones(m) + rng.standard_normal(len(z))))
    total = sum(parts[1:], parts[0])
    grid, _ = penalties(total)

    def one_by_one() -> None:
        for part in parts:
            train = total - part
            for each in nd.Cholesky().solve(train, [a * train.weight for a in grid]):
                part.loss(each.coef, each.intercept)

    calls = {
        "fold by fold": one_by_one,
        "folds at once": lambda: nd.cross_validate(parts, nd.Cholesky(), alphas_per_row=grid, extend=False),
        "thin grid": lambda: nd.cross_validate(parts, nd.Cholesky(), extend=False),
    }
    rows = [
        {"how": name, "wall s": [s.wall for s in seconds], "processor s": [s.processor for s in seconds]}
        for name, seconds in in_turns(calls, pairs).items()
    ]
    notes = [f"m = {m:,}, {folds} folds, {len(grid)} penalties"]
    report("Choosing the penalty", rows, [normals(folds * (m // 2), m)], out, notes=notes)


if __name__ == "__main__":
    main()
