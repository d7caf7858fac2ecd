"""Test errors of several maps and of boosted trees on a standard split.

    python jobs/split.py protein.npz 0
    python jobs/bench_regression.py protein jobs/maps/zonal.toml jobs/maps/nystrom.toml [--folds 2]

Converts TABLE-train.npz and TABLE-test.npz once, fits every job to the first with its own cross-validation, and prints
a table in Markdown: root mean squared error on the second, the same as a share of the target's standard deviation, and
the seconds of the whole fit.  The trees are scikit-learn's, 2,000 rounds of rate 0.05, stopped early.
"""

import time
from pathlib import Path

import click
import msgspec
import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

import ntkdist as nd


@click.command()
@click.argument("table")
@click.argument("jobs", nargs=-1, required=True)
@click.option("--folds", default=5)
@click.option("--m", default=0, help="Columns, if not those of the jobs.")
def main(table: str, jobs: tuple[str, ...], folds: int, m: int) -> None:
    train, test = (np.load(f"{table}-{part}.npz") for part in ("train", "test"))
    for part in ("train", "test"):
        if not Path(f"{table}-{part}.zarr").exists():
            nd.convert(f"{table}-{part}.npz", f"{table}-{part}.zarr")
    print(f"{table}: {len(train['x']):,} + {len(test['x']):,} rows")
    print("| model | m | test RMSE | of the standard deviation | seconds | alpha per row |\n|---|---|---|---|---|---|")

    def row(name: str, columns: object, rmse: float, seconds: float, alpha: str) -> None:
        print(
            f"| {name} | {columns} | {rmse:.4f} | {rmse / test['y'].std():.3f} | {seconds:.0f} | {alpha} |", flush=True
        )

    for path in jobs:
        job = nd.Job.read(path, f"{table}-train.zarr")
        features = msgspec.structs.replace(job.features, n_components=m) if m else job.features
        plan = msgspec.structs.replace(job.plan, folds=folds)
        job = msgspec.structs.replace(job, features=features, plan=plan, cluster=None)
        start = time.perf_counter()
        result = nd.fit(job)
        seconds = time.perf_counter() - start
        rmse = nd.evaluate(result.model, f"{table}-test.zarr")["rmse"]
        alpha = f"{result.model.alpha[0] / len(train['x']):.1e}"
        row(Path(path).stem, f"{features.n_components:,}", rmse, seconds, alpha)
    start = time.perf_counter()
    trees = HistGradientBoostingRegressor(max_iter=2000, learning_rate=0.05, early_stopping=True, random_state=0)
    trees.fit(train["x"], train["y"])
    error = float(np.sqrt(np.mean((trees.predict(test["x"]) - test["y"]) ** 2)))
    row("boosted trees", "", error, time.perf_counter() - start, "")


if __name__ == "__main__":
    main()
