"""Conjugate gradients beside the Gram: seconds to the same cross-validated fit as m grows, and where they cross.

    python jobs/bench_cg.py [--rows 4000] [--d 16] [--m 512 --m 1024 --m 2048] [--samples 256 --samples 1024]

Makes rows of normals with a target that no line fits, converts them, and fits by turns, in this process, (a) with the
Gram and the direct solver that a plan chooses and (b) with PCG, on the same folds and penalties.  Seconds are those
after the scaling is known.  Prints a table of (a) and (b), and one of the preconditioner's rows against iterations.
"""

import tempfile
from typing import Any

import click
import msgspec
import numpy as np

import ntkdist as nd


@click.command()
@click.option("--rows", default=4000)
@click.option("--d", default=16)
@click.option("--m", "sizes", multiple=True, type=int, default=(512, 1024, 2048))
@click.option("--samples", multiple=True, type=int, default=(256, 1024), help="Rows of preconditioners, at the last m.")
@click.option("--alphas", default=0, help="Number of penalties per row, from 1e-6 to 1e-1; 0: automatic.")
@click.option("--folds", default=5)
@click.option("--pairs", default=1)
@click.option("--dtype", default="float32")
def main(
    rows: int,
    d: int,
    sizes: tuple[int, ...],
    samples: tuple[int, ...],
    alphas: int,
    folds: int,
    pairs: int,
    dtype: str,
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, d))
    y = np.abs(x[:, 0]) + x[:, 1] * x[:, 2] + 0.3 * rng.standard_normal(rows)
    with tempfile.TemporaryDirectory() as place:
        np.savez(f"{place}/data.npz", x=x, y=y)
        nd.convert(f"{place}/data.npz", f"{place}/data.zarr", target=["y"])
        grid = tuple(np.geomspace(1e-6, 1e-1, alphas).tolist()) if alphas > 1 else (1e-3,) if alphas else None
        job = nd.Job(
            nd.Dataset(f"{place}/data.zarr"),
            nd.NTKRandomFeatures(max(sizes)),
            alphas_per_row=grid,
            plan=nd.PlanTable(folds=folds, dtype=dtype),
        )
        nd.fit(msgspec.structs.replace(job, features=nd.NTKRandomFeatures(64), solver=nd.PCG()))  # imports, compilers
        print(f"{rows:,} rows, {folds} folds, {alphas or 'automatic'} alphas, {dtype}, medians of {pairs} pairs\n")
        head = (
            "m",
            "direct",
            "Gram s",
            "solve s",
            "PCG s",
            "iterations",
            "PCG / direct",
            "largest difference of CV mse",
        )
        print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
        ratios = [compare(msgspec.structs.replace(job, features=nd.NTKRandomFeatures(m)), pairs) for m in sizes]
        faster = [m for m, ratio in zip(sizes, ratios, strict=True) if ratio < 1]
        print(f"\nPCG is faster at m = {', '.join(map(str, faster)) or 'none of these'}.\n")
        print("| rows of the preconditioner | iterations | seconds | not converged |\n|---|---|---|---|")
        for s in samples:
            solver = nd.PCG(sample_rows=s, unconverged="keep")
            run = nd.fit(msgspec.structs.replace(job, solver=solver)).report["run"]
            counts = run["products"]
            late = f"{len(counts['unconverged'])} alphas"
            print(
                f"| {counts['sample_rows']} | {counts['iterations']} | {after_scaling(run):.2f} | {late} |", flush=True
            )


def compare(job: nd.Job, pairs: int) -> float:
    """One line of the table; PCG's seconds over the direct solver's."""
    found = []
    for _ in range(pairs):
        a = nd.fit(job)
        b = nd.fit(msgspec.structs.replace(job, solver=nd.PCG(unconverged="keep")))
        gram, solve, pcg = a.report["run"]["seconds"]["equations"], a.report["run"]["seconds"]["solve"], b.report["run"]
        shared = min(len(a.cv.alphas), len(b.cv.alphas))
        apart = np.abs(b.cv.path[-shared:] / a.cv.path[-shared:] - 1).max()
        found.append((gram, solve, after_scaling(pcg), pcg["products"]["iterations"], apart))
    gram, solve, pcg, iterations, apart = np.median(found, axis=0)
    ratio = float(pcg / (gram + solve))
    m, name = job.features.n_components, a.report["plan"]["solver"]["type"]
    cells: list[Any] = [f"{m:,}", name, f"{gram:.2f}", f"{solve:.2f}", f"{pcg:.2f}", f"{iterations:.0f}"]
    print(f"| {' | '.join([*cells, f'{ratio:.2f}', f'{apart:.1e}'])} |", flush=True)
    return ratio


def after_scaling(run: dict[str, Any]) -> float:
    """Seconds of a fit without a Gram, but for the scaling."""
    return sum(run["seconds"][part] for part in ("sums", "preconditioner", "iterations"))


if __name__ == "__main__":
    main()
