"""Relative error of each map's kernel matrix against the exact NTK, at equal columns.

    python jobs/bench_kernel_error.py [--m 2048] [--rows 600] [--seeds 3]

Rows of standard normals in 9 and 90 dimensions; prints a table in Markdown of ‖K̂ − K‖/‖K‖ (Frobenius), mean over seeds
± their standard deviation.
"""

from typing import Any

import click
import numpy as np

import ntkdist as nd


@click.command()
@click.option("--m", default=2048)
@click.option("--rows", default=600)
@click.option("--seeds", default=3)
def main(m: int, rows: int, seeds: int) -> None:
    print("| columns d, depth | published form | with leverage scores | NTKRandomFeatures | ZonalFeatures |")
    print("|---|---|---|---|---|")
    for d in (9, 90):
        x = np.random.default_rng(0).standard_normal((rows, d))
        for depth in (1, 2, 3):
            exact = nd.NTK(depth)(x)
            kinds = (
                lambda s, depth=depth: nd.NTKRandomFeatures(m, depth, variant="paper", seed=s),
                lambda s, depth=depth: nd.NTKRandomFeatures(m, depth, True, "paper", seed=s),
                lambda s, depth=depth: nd.NTKRandomFeatures(m, depth, seed=s),
                lambda s, depth=depth: nd.ZonalFeatures(m, nd.NTK(depth), seed=s),
            )
            cells = [error([make(s)(x) for s in range(seeds)], exact) for make in kinds]
            print(f"| {d}, {depth} | " + " | ".join(cells) + " |", flush=True)


def error(features: list[Any], exact: Any) -> str:
    """Mean and standard deviation over seeds."""
    found = [np.linalg.norm(z @ z.T - exact) / np.linalg.norm(exact) for z in features]
    return f"{np.mean(found):.3f} ± {np.std(found):.3f}"


if __name__ == "__main__":
    main()
