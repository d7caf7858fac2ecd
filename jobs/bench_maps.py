"""Feature maps beside the published ones, written plainly: rows a second, and errors at equal columns.

    python jobs/bench_maps.py speed [--rows 20000] [--d 90] [--m 8192] [--threads 2] [--pairs 3]
    python jobs/bench_maps.py product [--rows 20000] [--d 90] [--m 8192] [--threads 2] [--pairs 5]
    python jobs/bench_maps.py error [--rows 600] [--m 2048] [--seeds 3]

``speed`` times each map and its plain form by turns in one process, in float32, with as many threads; prints the median
of the ratios.  ``product`` times maps of one matrix product beside that product alone, by the wall and by the
processor, which counts where others use the machine too.  ``error`` prints ‖K̂ − K‖/‖K‖ (Frobenius) on rows of standard
normals, mean over seeds ± deviation.
"""

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from plain_maps import PlainRandomFeatures, PlainSketch
from threadpoolctl import threadpool_limits

import ntkdist as nd
from ntkdist import backend


@click.group()
def main() -> None:
    pass


@main.command()
@click.option("--rows", default=20_000)
@click.option("--d", default=90)
@click.option("--m", default=8192)
@click.option("--threads", default=2)
@click.option("--pairs", default=3)
def speed(rows: int, d: int, m: int, threads: int, pairs: int) -> None:
    x = np.random.default_rng(0).standard_normal((rows, d), dtype=np.float32)
    cases: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
        "NTKRandomFeatures, depth 2": (nd.NTKRandomFeatures(m, 2), PlainRandomFeatures(m, d, 2)),
        "NTKSketch, depth 1, degree 8": (nd.NTKSketch(m, 1, 8), PlainSketch(m, d, 1, 8)),
        "NTKSketch, depth 2, degree 8": (nd.NTKSketch(m, 2, 8), PlainSketch(m, d, 2, 8)),
    }
    print("| map | rows/s | published form, rows/s | ratio, median | ratios |\n|---|---|---|---|---|")
    for name, (ours, plain) in cases.items():
        pairs_ = []
        for _ in range(pairs):
            with backend.own_threads():
                backend.use_threads(threads)
                ours(x[:64])
                fast = seconds(ours, x)
            with threadpool_limits(threads):
                plain(x[:64])
                slow = seconds(plain, x)
            pairs_.append((fast, slow))
        fast, slow = np.median(pairs_, axis=0)
        ratios = sorted(s / f for f, s in pairs_)
        said = ", ".join(f"{r:.1f}" for r in ratios)
        print(f"| {name} | {rows / fast:,.0f} | {rows / slow:,.0f} | {np.median(ratios):.1f} | {said} |", flush=True)


@main.command()
@click.option("--rows", default=20_000)
@click.option("--d", default=90)
@click.option("--m", default=8192)
@click.option("--threads", default=2)
@click.option("--pairs", default=5)
def product(rows: int, d: int, m: int, threads: int, pairs: int) -> None:
    x = np.random.default_rng(0).standard_normal((rows, d), dtype=np.float32)
    weights = np.random.default_rng(1).standard_normal((d, m), dtype=np.float32)
    zonal = nd.ZonalFeatures(m, nd.NTK(3))
    print("| what | rate beside the bare product, median (wall) | ratios | (processor) |\n|---|---|---|---|")
    for name, ours in {
        "ZonalFeatures, depth 3": zonal,
        "landmark block of Nystrom, depth 3": landmark_block(m, d),
    }.items():
        wall, cpu = [], []
        for _ in range(pairs):
            with backend.own_threads():
                backend.use_threads(threads)
                ours(x[:64])
                fast = both_seconds(ours, x)
            with threadpool_limits(threads):
                bare = both_seconds(lambda x: x @ weights, x)
            wall.append(bare[0] / fast[0])
            cpu.append(bare[1] / fast[1])
        said = ", ".join(f"{r:.2f}" for r in sorted(wall))
        print(f"| {name} | {np.median(wall):.2f} | {said} | {np.median(cpu):.2f} |", flush=True)


def landmark_block(m: int, d: int) -> Callable[[Any], None]:
    """k(x, Z) of m landmarks Z, as `Nystrom` has it, in pieces on the threads of the task."""
    spec = nd.Nystrom(m, nd.NTK(3))
    params = spec._kernel_at(spec._rows(np.random.default_rng(2).standard_normal((m, d)))[0])
    params = {name: value.astype(np.float32) for name, value in params.items()}
    out: dict[int, Any] = {}

    def call(x: Any) -> None:
        def piece(start: int) -> None:
            out[start] = spec._block(params, spec._rows(x[start : start + 256])[0])

        backend.each(piece, range(0, len(x), 256))

    return call


def both_seconds(call: Callable[[Any], Any], x: Any) -> tuple[float, float]:
    """By the wall and by the processor."""
    start = time.perf_counter(), time.process_time()
    call(x)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def seconds(call: Callable[[Any], Any], x: Any) -> float:
    return both_seconds(call, x)[0]


@main.command()
@click.option("--rows", default=600)
@click.option("--m", default=2048)
@click.option("--seeds", default=3)
def error(rows: int, m: int, seeds: int) -> None:
    kinds: dict[str, Callable[[int, int, int], Callable[[Any], Any]]] = {
        "plain sketch, degree 2": lambda d, depth, s: PlainSketch(m, d, depth, 2, s),
        "plain sketch, degree 4": lambda d, depth, s: PlainSketch(m, d, depth, 4, s),
        "plain sketch, degree 8": lambda d, depth, s: PlainSketch(m, d, depth, 8, s),
        "NTKSketch, degree 8": lambda d, depth, s: nd.NTKSketch(m, depth, 8, seed=s),
        "plain random features": lambda d, depth, s: PlainRandomFeatures(m, d, depth, s),
        "NTKRandomFeatures": lambda d, depth, s: nd.NTKRandomFeatures(m, depth, seed=s),
    }
    print("| columns d, depth | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    for d in (9, 90):
        x = np.random.default_rng(0).standard_normal((rows, d))
        for depth in (1, 2, 3):
            exact = nd.NTK(depth)(x)
            cells = []
            for make in kinds.values():
                features = [make(d, depth, s)(x) for s in range(seeds)]
                found = [np.linalg.norm(z @ z.T - exact) / np.linalg.norm(exact) for z in features]
                cells.append(f"{np.mean(found):.3f} ± {np.std(found):.3f}")
            print(f"| {d}, {depth} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
