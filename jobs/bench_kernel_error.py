"""Relative error of each map's kernel matrix against the exact NTK, at equal columns.

    python jobs/bench_kernel_error.py [TABLE.npz ...] [--m 2048] [--rows 600] [--seeds 3]

A TABLE has an array ``x`` (or ``x_train``) of rows or images; its columns are standardised, images divided by their
overall standard deviation.  Without any: normal rows in 9 and 90 dimensions.  Prints a table in Markdown of ‖K̂ − K‖/‖K‖
(Frobenius) on a seeded sample of rows, mean over seeds ± their standard deviation, and how many times the error of the
zonal features the published form has.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

import ntkdist as nd


@click.command()
@click.argument("tables", nargs=-1)
@click.option("--m", default=2048)
@click.option("--rows", default=600)
@click.option("--seeds", default=3)
def main(tables: tuple[str, ...], m: int, rows: int, seeds: int) -> None:
    print("| rows, depth | published form | with leverage scores | NTKRandomFeatures | ZonalFeatures | ratio |")
    print("|---|---|---|---|---|---|")
    for name, x in samples(tables, rows):
        for depth in (1, 2, 3):
            exact = nd.NTK(depth)(x)
            kinds = (
                lambda s, depth=depth: nd.NTKRandomFeatures(m, depth, variant="paper", seed=s),
                lambda s, depth=depth: nd.NTKRandomFeatures(m, depth, True, "paper", seed=s),
                lambda s, depth=depth: nd.NTKRandomFeatures(m, depth, seed=s),
                lambda s, depth=depth: nd.ZonalFeatures(m, nd.NTK(depth), seed=s),
            )
            found = [errors((make(s)(x) for s in range(seeds)), exact) for make in kinds]
            cells = [f"{np.mean(e):.4f} ± {np.std(e):.4f}" for e in found]
            ratio = np.mean(found[0]) / np.mean(found[-1])
            print(f"| {name}, {depth} | " + " | ".join(cells) + f" | {ratio:.1f} |", flush=True)


def samples(tables: tuple[str, ...], count: int) -> Iterator[tuple[str, Any]]:
    """A name with the number of columns, and scaled rows."""
    rng = np.random.default_rng(0)
    for d in () if tables else (9, 90):
        yield f"normal, d = {d}", rng.standard_normal((count, d))
    for path in tables:
        with np.load(path) as arrays:
            x = arrays["x" if "x" in arrays else "x_train"]
        image = x.ndim > 2
        x = x.reshape(len(x), -1).astype(np.float64)
        scale = x.std() if image else np.where(x.std(0) == 0, 1, x.std(0))
        chosen = ((x - x.mean(0)) / scale)[rng.choice(len(x), count, replace=False)]
        yield f"{Path(path).stem}, d = {x.shape[1]}", chosen


def errors(features: Iterator[Any], exact: Any) -> list[float]:
    """Of each seed."""
    return [float(np.linalg.norm(z @ z.T - exact) / np.linalg.norm(exact)) for z in features]


if __name__ == "__main__":
    main()
