"""Conjugate gradients beside the Gram: seconds to the same cross-validated fit as m grows, and where they cross.

    python jobs/bench_cg.py [TABLE.npz] [--rows 8192] [--m 1024 --m 2048 --m 4096 --m 8192] [--pairs 2] [--json FILE]
    python jobs/bench_cg.py protein.npz --m 2048 --pairs 1 --samples 256 --samples 1024 --samples 2048

Takes some rows of a table, or makes normals with a target that no line fits, converts them, and fits by turns, in this
process, (a) with the Gram and the direct solver that a plan chooses and (b) with PCG, on the same folds and the
automatic penalties.  Seconds are those after the scaling is known.  A row for every m: seconds of (a) and (b)
and their ratios, the ratio that a plan predicts, iterations of the slowest penalty and of one in the mean (which the
prediction takes from `PCG.expected`), and both errors.  Some eight minutes on two idle cores,
most of them at the last m.  With ``--samples`` also the preconditioner's rows against iterations, at the last m.
"""

import tempfile
from typing import Any

import click
import msgspec
import numpy as np
from harness import Rows, file, json_option, median, report

import ntkdist as nd
from ntkdist.planning import estimate


@click.command()
@click.argument("table", default="")
@click.option("--rows", default=8192)
@click.option("--m", "sizes", multiple=True, type=int, default=(1024, 2048, 4096, 8192))
@click.option("--samples", multiple=True, type=int, help="Rows of preconditioners.")
@click.option("--folds", default=2)
@click.option("--pairs", default=2)
@json_option
def main(
    table: str, rows: int, sizes: tuple[int, ...], samples: tuple[int, ...], folds: int, pairs: int, out: str
) -> None:
    with tempfile.TemporaryDirectory() as place:
        x, y = some_rows(table, rows)
        np.savez(f"{place}/data.npz", x=x, y=y)
        nd.convert(f"{place}/data.npz", f"{place}/data.zarr", target=["y"])
        job = nd.Job(nd.Dataset(f"{place}/data.zarr"), features_of(64), plan=nd.PlanTable(folds=folds))
        nd.fit(msgspec.structs.replace(job, solver=nd.PCG(max_iterations=5, unconverged="keep")))  # imports, compilers
        found = [compare(msgspec.structs.replace(job, features=features_of(m)), pairs) for m in sizes]
        found += [preconditioned(msgspec.structs.replace(job, features=features_of(sizes[-1])), s) for s in samples]
    data = [file(table)] if table else [{"name": "normals, seed 0", "rows": rows}]
    size = f"{len(x):,} rows, {folds} folds"
    report("PCG and the Gram", found, data, out, notes=[f"{size}, {pairs} pairs"], claims=claims(size, found))


def claims(size: str, rows: Rows) -> dict[str, str]:
    """Say where conjugate gradients are faster than the Gram."""
    pairs = [(row["m"], median(row["PCG / direct"])) for row in rows if "direct" in row]
    if not pairs:
        return {}
    said = ", ".join(f"{ratio:.2g} at m = {m:,}" for m, ratio in pairs)
    return {f"seconds of PCG over those of a dense Gram, {size}": said}


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


def compare(job: nd.Job, pairs: int) -> dict[str, Any]:
    """Fit with the Gram and with PCG by turns."""
    cost = estimate.planned(job, None)[2]
    row: dict[str, Any] = {"m": job.features.n_components}
    lists: dict[str, list[float]] = {}
    for _ in range(pairs):
        a = nd.fit(job)
        b = nd.fit(msgspec.structs.replace(job, solver=nd.PCG(unconverged="keep")))
        gram, solve = (a.report["run"]["seconds"][part] for part in ("equations", "solve"))
        pcg = after_scaling(b.report["run"])
        each = {"Gram s": gram, "solve s": solve, "PCG s": pcg, "PCG / direct": pcg / (gram + solve)}
        for name, value in each.items():
            lists.setdefault(name, []).append(value)
    counts = b.report["run"]["products"]
    row |= {"direct": a.report["plan"]["solver"]["type"], **lists}
    row |= {"predicted": cost["seconds_with"].get("PCG", np.nan) / cost["seconds"]}
    row |= {"iterations": counts["iterations"], "mean iterations": counts["mean_iterations"]}
    row |= {"CV RMSE direct": a.cv.rmse, "CV RMSE PCG": b.cv.rmse}
    print(row, flush=True)
    return row


def preconditioned(job: nd.Job, rows: int) -> dict[str, Any]:
    """Fit with PCG, its preconditioner made of so many rows."""
    run = nd.fit(msgspec.structs.replace(job, solver=nd.PCG(sample_rows=rows, unconverged="keep"))).report["run"]
    counts = run["products"]
    row = {"m": job.features.n_components, "rows of the preconditioner": counts["sample_rows"]}
    row |= {"PCG s": [after_scaling(run)], "iterations": counts["iterations"]}
    return row | {"mean iterations": counts["mean_iterations"], "alphas not converged": len(counts["unconverged"])}


def after_scaling(run: dict[str, Any]) -> float:
    """Seconds of a fit without a Gram, but for the scaling."""
    return sum(run["seconds"][part] for part in ("sums", "preconditioner", "iterations"))


if __name__ == "__main__":
    main()
