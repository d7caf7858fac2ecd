"""Feature maps beside the published ones, written plainly: rows a second, and errors at equal columns.

    python jobs/bench_maps.py speed [--rows 20000] [--d 90] [--m 8192] [--threads 2] [--pairs 3]
    python jobs/bench_maps.py product [--rows 20000] [--d 90] [--m 8192] [--threads 2] [--pairs 5]
    python jobs/bench_maps.py error [--rows 600] [--m 2048] [--seeds 3]

``speed`` times each map and its plain form by turns in one process, in float32, with as many threads.  ``product``
times maps of one matrix product beside that product alone.  ``error`` has ‖K̂ − K‖/‖K‖ (Frobenius) on rows of standard
normals, every seed.  All take ``--json FILE``.
"""

import functools
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from harness import json_option, median, ratios, report, timed
from plain_maps import PlainRandomFeatures, PlainSketch
from threadpoolctl import threadpool_limits

import ntkdist as nd
from ntkdist import backend

Map = Callable[[Any], Any]


@click.group()
def main() -> None:
    pass


@main.command()
@click.option("--rows", default=20_000)
@click.option("--d", default=90)
@click.option("--m", default=8192)
@click.option("--threads", default=2)
@click.option("--pairs", default=3)
@json_option
def speed(rows: int, d: int, m: int, threads: int, pairs: int, out: str) -> None:
    x = np.random.default_rng(0).standard_normal((rows, d), dtype=np.float32)
    cases: dict[str, tuple[Map, Map]] = {
        "NTKRandomFeatures, depth 2": (nd.NTKRandomFeatures(m, 2), PlainRandomFeatures(m, d, 2)),
        "NTKSketch, depth 1, degree 8": (nd.NTKSketch(m, 1, 8), PlainSketch(m, d, 1, 8)),
        "NTKSketch, depth 2, degree 8": (nd.NTKSketch(m, 2, 8), PlainSketch(m, d, 2, 8)),
    }
    shape = f"n={rows:,}, d={d}, m={m:,}, {threads} threads"
    found, claims = [], {}
    for name, (ours, plain) in cases.items():
        found.append({"map": name, **turns(ours, plain, x, threads, pairs)})
        print(found[-1], flush=True)
        wall, processor = (median(found[-1][f"{clock} ratio"]) for clock in ("wall", "processor"))
        claims[f"{name}, beside a plain form of the published map, {shape}"] = (
            f"{wall:.1f} times the rows a second, {processor:.1f} by processor time, medians of {pairs} pairs"
        )
    report("Maps and the published ones", found, normals(rows, d), out, notes=[shape], claims=claims)


@main.command()
@click.option("--rows", default=20_000)
@click.option("--d", default=90)
@click.option("--m", default=8192)
@click.option("--threads", default=2)
@click.option("--pairs", default=5)
@json_option
def product(rows: int, d: int, m: int, threads: int, pairs: int, out: str) -> None:
    x = np.random.default_rng(0).standard_normal((rows, d), dtype=np.float32)
    weights = np.random.default_rng(1).standard_normal((d, m), dtype=np.float32)
    cases: dict[str, Map] = {
        "ZonalFeatures, depth 3": nd.ZonalFeatures(m, nd.NTK(3)),
        "landmark block of Nystrom, depth 3, float32": landmark_block(m, d),
    }
    shape = f"n={rows:,}, d={d}, m={m:,}, {threads} threads"
    found, claims = [], {}
    for name, ours in cases.items():
        found.append({"what": name, **turns(ours, lambda x: x @ weights, x, threads, pairs)})
        print(found[-1], flush=True)
        wall, processor = (median(found[-1][f"{clock} ratio"]) for clock in ("wall", "processor"))
        claims[f"{name}, beside the bare product of the same shape, {shape}"] = (
            f"{wall:.2f} of its rate, {processor:.2f} by processor time, medians of {pairs} pairs"
        )
    report("Maps and one product", found, normals(rows, d), out, notes=[shape], claims=claims)


def turns(ours: Map, other: Map, x: Any, threads: int, pairs: int) -> dict[str, Any]:
    """Time a map and another by turns, on as many threads; a ratio is the other's seconds over the map's."""
    fast, slow = [], []
    for _ in range(pairs):
        with backend.own_threads():
            backend.use_threads(threads)
            ours(x[:64])  # what threads draw once is not timed
            fast.append(timed(functools.partial(ours, x)))
        with threadpool_limits(threads):
            other(x[:64])
            slow.append(timed(functools.partial(other, x)))
    row: dict[str, Any] = {}
    for clock, values in ratios(slow, fast).items():
        row |= {f"{clock} s": [getattr(seconds, clock) for seconds in fast], f"{clock} ratio": values}
    return row


def normals(rows: int, d: int) -> list[dict[str, Any]]:
    return [{"name": "normals, seed 0", "rows": rows, "columns": d}]


def landmark_block(m: int, d: int) -> Map:
    """k(x, Z) of m landmarks Z, as `Nystrom` has it, in pieces on the threads of the task."""
    spec = nd.Nystrom(m, nd.NTK(3))
    params = spec._kernel_at(spec._rows(np.random.default_rng(2).standard_normal((m, d)))[0])
    params = {name: value.astype(np.float32) for name, value in params.items()}
    out: dict[int, Any] = {}

    def call(x: Any) -> None:
        def piece(start: int) -> None:
            out[start] = spec._block(params, spec._rows(x[start : start + 256])[0])

        backend.parallel_for(piece, range(0, len(x), 256))

    return call


@main.command()
@click.option("--rows", default=600)
@click.option("--m", default=2048)
@click.option("--seeds", default=3)
@json_option
def error(rows: int, m: int, seeds: int, out: str) -> None:
    kinds: dict[str, Callable[[int, int, int], Map]] = {
        "plain sketch, degree 2": lambda d, depth, s: PlainSketch(m, d, depth, 2, s),
        "plain sketch, degree 4": lambda d, depth, s: PlainSketch(m, d, depth, 4, s),
        "plain sketch, degree 8": lambda d, depth, s: PlainSketch(m, d, depth, 8, s),
        "NTKSketch, degree 8": lambda d, depth, s: nd.NTKSketch(m, depth, 8, seed=s),
        "plain random features": lambda d, depth, s: PlainRandomFeatures(m, d, depth, s),
        "NTKRandomFeatures": lambda d, depth, s: nd.NTKRandomFeatures(m, depth, seed=s),
    }
    found: list[dict[str, Any]] = []
    for d in (9, 90):
        x = np.random.default_rng(0).standard_normal((rows, d))
        for depth in (1, 2, 3):
            exact = nd.NTK(depth)(x)
            row: dict[str, Any] = {"d, depth": f"{d}, {depth}"}
            for name, make in kinds.items():
                features = [make(d, depth, s)(x) for s in range(seeds)]
                row[name] = [float(np.linalg.norm(z @ z.T - exact) / np.linalg.norm(exact)) for z in features]
            found.append(row)
            print(row, flush=True)
    notes = [f"m = {m:,}, {seeds} seeds"]
    report(
        "Kernel errors of maps and of the published ones",
        found,
        [*normals(rows, 9), *normals(rows, 90)],
        out,
        notes=notes,
    )


if __name__ == "__main__":
    main()
