"""Relative error of each map's kernel matrix against the exact NTK, at equal columns, and the time of a row.

    python jobs/bench_kernel_error.py [TABLE.npz ...] [--m 2048] [--rows 600] [--seeds 3] [--json RESULT.json]

A TABLE has an array ``x`` (or ``x_train``) of rows or images; its columns are standardised, images divided by their
overall standard deviation.  Without any: normal rows in 9 and 90 dimensions.  ‖K̂ − K‖/‖K‖ (Frobenius) on a seeded
sample of rows, every redraw of the map; microseconds a row of mapping them in float32 on one thread, processor time.
Nystrom learns its landmarks from other rows.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from harness import file, json_option, result, save, timed
from tables import markdown

import ntkdist as nd
from ntkdist import backend

MAPS: dict[str, Callable[[int, int], Any]] = {
    "published form": lambda m, depth: nd.NTKRandomFeatures(m, depth, variant="paper"),
    "published form, leverage scores": lambda m, depth: nd.NTKRandomFeatures(m, depth, True, "paper"),
    "NTKRandomFeatures": lambda m, depth: nd.NTKRandomFeatures(m, depth),
    "NTKSketch, degree 8": lambda m, depth: nd.NTKSketch(m, depth, 8),
    "ZonalFeatures": lambda m, depth: nd.ZonalFeatures(m, nd.NTK(depth)),
    "Nystrom": lambda m, depth: nd.Nystrom(m, nd.NTK(depth)),
}


@click.command()
@click.argument("tables", nargs=-1)
@click.option("--m", default=2048)
@click.option("--rows", default=600)
@click.option("--seeds", default=3)
@json_option
def main(tables: tuple[str, ...], m: int, rows: int, seeds: int, out: str) -> None:
    found: list[dict[str, Any]] = []
    title = f"Kernel error of every map, m = {m:,}, {rows} rows, {seeds} seeds"
    notes = ["columns are depths 1, 2, 3; µs: of one row at depth 2, processor time of one thread, float32"]
    data = [file(table) for table in tables] or [{"name": "normals, seed 0", "rows": 2 * (2 * m + rows)}]
    backend.use_threads(1)
    for table, sample, x in samples(tables, m, rows):
        exact = {depth: nd.NTK(depth)(x) for depth in (1, 2, 3)}
        for name, make in MAPS.items():
            row: dict[str, Any] = {"rows": table, "map": name}
            for depth, k in exact.items():
                maps = [learnt(msgspec.structs.replace(make(m, depth), seed=s), sample) for s in range(seeds)]
                row[f"depth {depth}"] = [float(np.linalg.norm((z := f(x)) @ z.T - k) / np.linalg.norm(k)) for f in maps]
                if depth == 2:
                    maps[0](x[:1].astype(np.float32))
                    single = x.astype(np.float32)
                    row["µs"] = round(1e6 * timed(functools.partial(maps[0], single)).processor / len(x), 1)
            found.append(row)
            if out:
                save(out, result(title, found, data, notes))
    print(markdown(result(title, found, data, notes)))


def learnt(features: Any, sample: Any) -> Any:
    return features.fit(sample) if features.sample_rows else features


def samples(tables: tuple[str, ...], m: int, count: int) -> Iterator[tuple[str, Any, Any]]:
    """A name with the number of columns; scaled rows to learn from, twice m, and others to be compared on."""
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
