"""Cross-validated error beside a linear model's and a gradient-boosted tree's.

    python jobs/bench_accuracy.py TABLE.npz... [--m 2048] [--depth 3] [--bias 1.0] [--seeds 2]

Every TABLE.npz holds `x` (rows, columns) and `y` (rows).  All models see the same five folds of the same shuffled rows;
rows with a NaN are dropped.  Prints a table in Markdown: root mean squared error with its standard error over folds,
for random features the mean over seeds, and the seconds of the three kernel fits, from Zarr to model.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

import ntkdist as nd

FOLDS = 5


@click.command()
@click.argument("tables", nargs=-1, required=True)
@click.option("--m", default=2048)
@click.option("--depth", default=3)
@click.option("--bias", default=1.0)
@click.option("--seeds", default=2)
@click.option("--workers", default=2)
def main(tables: tuple[str, ...], m: int, depth: int, bias: float, seeds: int, workers: int) -> None:
    print("| table | rows × columns | linear | boosted trees | NTK, published form | NTK | NTK, zonal | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for table in tables:
        with tempfile.TemporaryDirectory() as place:
            store = f"{place}/table.zarr"
            layout = nd.convert(table, store, target=["y"])
            d = layout.input_shape[0]
            linear, _ = cross_validated(store, [nd.Linear(n_components=d)], workers)
            kinds = (
                lambda seed: nd.NTKRandomFeatures(m, depth, variant="paper", bias=bias, seed=seed),
                lambda seed: nd.NTKRandomFeatures(m, depth, bias=bias, seed=seed),
                lambda seed: nd.ZonalFeatures(m, nd.NTK(depth, bias), seed=seed),
            )
            found = [cross_validated(store, [make(seed) for seed in range(seeds)], workers) for make in kinds]
            cells = [Path(table).stem, f"{layout.rows:,} × {d}", linear, trees(store)]
            cells += [*(error for error, _ in found), " / ".join(f"{seconds:.0f}" for _, seconds in found)]
            print("| " + " | ".join(cells) + " |", flush=True)


def cross_validated(store: str, maps: list[Any], workers: int) -> tuple[str, float]:
    """Error of some maps, and the mean seconds of a fit."""
    rmse, errors, seconds = [], [], []
    for features in maps:
        job = nd.Job(nd.Dataset(store, nan="drop"), features, cluster=nd.Local(workers=workers))
        result = nd.fit(job)
        assert result.cv is not None
        rmse.append(result.cv.rmse)
        errors.append(result.cv.standard_error / (2 * result.cv.rmse))  # of the root, from that of the square
        seconds.append(result.report["run"]["seconds"]["total"])
    return f"{np.mean(rmse):.4g} ± {np.mean(errors):.2g}", float(np.mean(seconds))


def trees(store: str) -> str:
    """The same for scikit-learn's gradient-boosted trees with early stopping, on the same folds."""
    dataset = nd.Dataset(store, nan="drop")
    layout = dataset.layout()
    parts = [dataset.read(layout, *layout.span(p)) for p in range(layout.partitions)]
    fold = np.concatenate([np.full(len(rows.x), p % FOLDS) for p, rows in enumerate(parts)])
    x, y = np.concatenate([rows.x for rows in parts]), np.concatenate([rows.y for rows in parts])
    mse = []
    for k in range(FOLDS):
        model = HistGradientBoostingRegressor(max_iter=2000, learning_rate=0.05, early_stopping=True, random_state=0)
        model.fit(x[fold != k], y[fold != k])
        mse.append(np.mean((model.predict(x[fold == k]) - y[fold == k]) ** 2))
    rmse = float(np.sqrt(np.mean(mse)))
    return f"{rmse:.4g} ± {np.std(mse, ddof=1) / np.sqrt(FOLDS) / (2 * rmse):.2g}"


if __name__ == "__main__":
    main()
