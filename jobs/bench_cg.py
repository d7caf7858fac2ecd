"""Conjugate gradients beside the Gram: seconds to the same cross-validated fit as m grows, and where they cross.

    python jobs/bench_cg.py [TABLE.npz] [--rows 8192] [--m 1024 --m 2048 --m 4096 --m 8192] [--pairs 2]
    python jobs/bench_cg.py protein.npz --m 2048 --pairs 1 --samples 256 --samples 1024 --samples 2048

Takes some rows of a table, or makes normals with a target that no line fits, converts them, and fits by turns, in this
process, (a) with the Gram and the direct solver that a plan chooses and (b) with PCG, on the same folds and the
automatic penalties.  Seconds are those after the scaling is known.  Prints a line for every m: seconds of (a) and (b),
the ratio of every pair and their median, the ratio that a plan predicts, iterations of the slowest penalty and of one
in the mean (which the prediction takes from `PCG.expected`), and both errors.  Some eight minutes on two idle cores,
most of them at the last m.  With ``--samples`` also the preconditioner's rows against iterations, at the last m.
"""

import tempfile
from typing import Any

import click
import msgspec
import numpy as np

import ntkdist as nd
from ntkdist import estimate

HEAD = ("m", "direct", "Gram s", "solve s", "PCG s", "PCG / direct", "of pairs", "predicted", "iterations", "mean")


@click.command()
@click.argument("table", default="")
@click.option("--rows", default=8192)
@click.option("--m", "sizes", multiple=True, type=int, default=(1024, 2048, 4096, 8192))
@click.option("--samples", multiple=True, type=int, help="Rows of preconditioners.")
@click.option("--folds", default=2)
@click.option("--pairs", default=2)
def main(table: str, rows: int, sizes: tuple[int, ...], samples: tuple[int, ...], folds: int, pairs: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        x, y = some_rows(table, rows)
        np.savez(f"{place}/data.npz", x=x, y=y)
        nd.convert(f"{place}/data.npz", f"{place}/data.zarr", target=["y"])
        job = nd.Job(nd.Dataset(f"{place}/data.zarr"), features_of(64), plan=nd.PlanTable(folds=folds))
        nd.fit(msgspec.structs.replace(job, solver=nd.PCG(max_iterations=5, unconverged="keep")))  # imports, compilers
        print(f"{len(x):,} rows of {table or 'normals'}, {folds} folds, {pairs} pairs\n")
        head = (*HEAD, "CV RMSE direct", "PCG")
        print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
        ratios = [compare(msgspec.structs.replace(job, features=features_of(m)), pairs) for m in sizes]
        faster = [m for m, ratio in zip(sizes, ratios, strict=True) if ratio < 1]
        print(f"\nPCG is faster at m = {', '.join(map(str, faster)) or 'none of these'}.\n")
        if samples:
            print("| rows of the preconditioner | iterations | mean | seconds | not converged |\n|---|---|---|---|---|")
        for s in samples:
            solver = nd.PCG(sample_rows=s, unconverged="keep")
            run = nd.fit(msgspec.structs.replace(job, features=features_of(sizes[-1]), solver=solver)).report["run"]
            counts, late = run["products"], len(run["products"]["unconverged"])
            cells = [counts["sample_rows"], counts["iterations"], f"{counts['mean_iterations']:.0f}"]
            print(f"| {' | '.join(map(str, [*cells, f'{after_scaling(run):.2f}', f'{late} alphas']))} |", flush=True)


def some_rows(table: str, rows: int) -> tuple[Any, Any]:
    """Of a table with arrays x and y, drawn without replacement, or made."""
    rng = np.random.default_rng(0)
    if table:
        data = np.load(table)
        some = rng.permutation(len(data["x"]))[:rows]
        return data["x"][some], data["y"][some]
    x = rng.standard_normal((rows, 16))
    return x, np.abs(x[:, 0]) + x[:, 1] * x[:, 2] + 0.3 * rng.standard_normal(rows)


def features_of(m: int) -> nd.ZonalFeatures:
    return nd.ZonalFeatures(m, kernel=nd.NTK(depth=2, bias=1.0))


def compare(job: nd.Job, pairs: int) -> float:
    """One line of the table; the median of PCG's seconds over the direct solver's."""
    cost = estimate.planned(job, None)[2]
    predicted = cost["seconds_with"].get("PCG", np.nan) / cost["seconds"]
    found, ratios = [], []
    for _ in range(pairs):
        a = nd.fit(job)
        b = nd.fit(msgspec.structs.replace(job, solver=nd.PCG(unconverged="keep")))
        gram, solve, pcg = a.report["run"]["seconds"]["equations"], a.report["run"]["seconds"]["solve"], b.report["run"]
        counts = pcg["products"]
        found.append((gram, solve, after_scaling(pcg), counts["iterations"], counts["mean_iterations"]))
        ratios.append(after_scaling(pcg) / (gram + solve))
    gram, solve, seconds, most, mean = np.median(found, axis=0)
    ratio = float(np.median(ratios))
    cells = [f"{job.features.n_components:,}", a.report["plan"]["solver"]["type"], f"{gram:.1f}", f"{solve:.1f}"]
    cells += [f"{seconds:.1f}", f"{ratio:.2f}", ", ".join(f"{r:.2f}" for r in ratios), f"{predicted:.2f}"]
    cells += [f"{most:.0f}", f"{mean:.0f}", f"{a.cv.rmse:.5g}", f"{b.cv.rmse:.5g}"]
    print(f"| {' | '.join(cells)} |", flush=True)
    return ratio


def after_scaling(run: dict[str, Any]) -> float:
    """Seconds of a fit without a Gram, but for the scaling."""
    return sum(run["seconds"][part] for part in ("sums", "preconditioner", "iterations"))


if __name__ == "__main__":
    main()
