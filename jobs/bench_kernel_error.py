"""Relative error of each map's kernel matrix against the exact NTK, at equal columns, and the time of a row.

    python jobs/bench_kernel_error.py [TABLE.npz ...] [--m 2048] [--rows 600] [--seeds 3] [--plain] [--json FILE]

A TABLE has an array ``x`` (or ``x_train``) of rows or images; its columns are standardised, images divided by their
overall standard deviation.  Without any: normal rows in 9 and 90 dimensions.  Errors are ‖K̂ − K‖/‖K‖ (Frobenius) on a
seeded sample of rows, for every redraw of the map; times are processor microseconds a row in float32 on one thread.
Nystrom fits its landmarks to other rows.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from harness import Result, file, options, timed
from plain_forms import PlainRandomFeatures, PlainSketch

import ntkdist as nd
from ntkdist import backend

Make = Callable[[int, int, int, int], Any]  # of columns, dimension, depth, seed
MAPS: dict[str, Make] = {
    "published form": lambda m, d, depth, s: nd.NTKRandomFeatures(m, depth, variant="paper", seed=s),
    "published form, leverage scores": lambda m, d, depth, s: nd.NTKRandomFeatures(m, depth, True, "paper", seed=s),
    "NTKRandomFeatures": lambda m, d, depth, s: nd.NTKRandomFeatures(m, depth, seed=s),
    "NTKSketch, degree 8": lambda m, d, depth, s: nd.NTKSketch(m, depth, 8, seed=s),
    "ZonalFeatures": lambda m, d, depth, s: nd.ZonalFeatures(m, nd.NTK(depth), seed=s),
    "Nystrom": lambda m, d, depth, s: nd.Nystrom(m, nd.NTK(depth), seed=s),
}
PLAIN: dict[str, Make] = {
    "plain random features": PlainRandomFeatures,
    "plain sketch, degree 2": lambda m, d, depth, s: PlainSketch(m, d, depth, 2, s),
    "plain sketch, degree 4": lambda m, d, depth, s: PlainSketch(m, d, depth, 4, s),
    "plain sketch, degree 8": lambda m, d, depth, s: PlainSketch(m, d, depth, 8, s),
}


@click.command()
@click.argument("tables", nargs=-1)
@click.option("--m", default=2048)
@click.option("--rows", default=600)
@click.option("--seeds", default=3)
@click.option("--plain", is_flag=True, help="Also the plain forms of the published maps.")
@options(m=64, rows=40, seeds=2, plain=True)
def main(tables: tuple[str, ...], m: int, rows: int, seeds: int, plain: bool, out: str) -> None:
    """Compare every map's kernel matrix with the exact NTK."""
    notes = ["columns are depths 1, 2, 3; µs: of one row at depth 2, processor time of one thread, float32"]
    data = [file(table) for table in tables] or [{"name": "normals, seed 0", "rows": 2 * (2 * m + rows)}]
    result = Result(f"Kernel error of every map, m = {m:,}, {rows} rows, {seeds} seeds", data, out, notes)
    backend.use_threads(1)
    for table, sample, x in samples(tables, m, rows):
        exact = {depth: nd.NTK(depth)(x) for depth in (1, 2, 3)}
        for name, make in (MAPS | PLAIN if plain else MAPS).items():
            row: dict[str, Any] = {"rows": table, "map": name}
            for depth, k in exact.items():
                maps = [fitted(make(m, x.shape[1], depth, seed), sample) for seed in range(seeds)]
                row[f"depth {depth}"] = [float(np.linalg.norm((z := f(x)) @ z.T - k) / np.linalg.norm(k)) for f in maps]
                if depth == 2:
                    single = x.astype(np.float32)
                    maps[0](single[:1])
                    row["µs"] = round(1e6 * timed(functools.partial(maps[0], single)).processor / len(x), 1)
            result.add(row)
    result.end()


def fitted(features: Any, sample: Any) -> Any:
    """Fit a map to a sample of rows, if it needs one."""
    return features.fit(sample) if getattr(features, "sample_rows", 0) else features


def samples(tables: tuple[str, ...], m: int, count: int) -> Iterator[tuple[str, Any, Any]]:
    """Yield a name with the number of columns, 2m scaled rows to fit maps to, and others to compare kernels on."""
    rng = np.random.default_rng(0)
    for d in () if tables else (9, 90):
        yield f"normal, d = {d}", rng.standard_normal((2 * m, d)), rng.standard_normal((count, d))
    for path in tables:
        with np.load(path) as arrays:
            x = arrays["x" if "x" in arrays else "x_train"]
        image = x.ndim > 2
        x = x.reshape(len(x), -1).astype(np.float64)
        scale = x.std() if image else np.where(x.std(0) == 0, 1, x.std(0))
        chosen = ((x - x.mean(0)) / scale)[rng.choice(len(x), min(len(x), count + 2 * m), replace=False)]
        yield f"{Path(path).stem}, d = {x.shape[1]}", chosen[count:], chosen[:count]


if __name__ == "__main__":
    main()
