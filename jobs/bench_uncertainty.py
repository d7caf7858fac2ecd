"""How honest intervals and probabilities are: measured on rows that were not seen.

``python jobs/bench_uncertainty.py protein.npz --m 1024 --rows 20000 --seeds 3``: half of the rows of a table (arrays x
and y) to fit on, half to measure, for every seed.  Without a table, the probabilities on the digits of scikit-learn.
"""

import json
import time

import click
import numpy as np
from scipy.special import ndtri
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss

import ntkdist as nd


@click.command()
@click.argument("table", default="")
@click.option("--m", default=1024, show_default=True)
@click.option("--rows", default=20_000, show_default=True, help="At most, drawn at random.")
@click.option("--seeds", default=3, show_default=True)
def main(table: str, m: int, rows: int, seeds: int) -> None:
    """Print one JSON object a seed."""
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        print(
            json.dumps({"seed": seed} | (of_numbers(table, m, rows, rng) if table else of_classes(m, rng))), flush=True
        )


def of_numbers(table: str, m: int, rows: int, rng: np.random.Generator) -> dict[str, float]:
    """Shares of targets within intervals: conformal ones, and normal ones of the predictive variance."""
    data = np.load(table)
    x, y = data["x"].astype(np.float64), data["y"].astype(np.float64).reshape(len(data["x"]), -1)[:, 0]
    order = rng.permutation(len(x))[:rows]
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    began = time.perf_counter()
    plain = nd.NTKRidgeCV(features(m)).fit(x[train], y[train])
    without = time.perf_counter() - began
    began = time.perf_counter()
    fitted = nd.NTKRidgeCV(features(m), keep_factor=True).fit(x[train], y[train])
    found = {"seconds": without, "with_factor_over_without": (time.perf_counter() - began) / without}
    mean, std = fitted.predict(x[test], return_std=True, noise=True)
    found |= {"rmse": float(np.sqrt(np.mean((mean - y[test]) ** 2))), "cv_rmse": plain.cv_.rmse}
    for coverage in (0.5, 0.9):
        low, high = fitted.predict_interval(x[test], coverage)
        found[f"conformal_{coverage}"] = float(((y[test] >= low) & (y[test] <= high)).mean())
        off = np.abs(mean - y[test]) / std
        found[f"normal_{coverage}"] = float((off <= ndtri((1 + coverage) / 2)).mean())
    curve = nd.prefix_curve(fitted.equations_, fitted.cv_)
    return found | {f"rmse_at_{k}": float(e) for k, e in zip(curve.components, curve.rmse, strict=True)}


def of_classes(m: int, rng: np.random.Generator) -> dict[str, float]:
    """Log loss of probabilities, calibrated out of fold and not."""
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(x))
    train, test = order[: len(x) // 2], order[len(x) // 2 :]
    found = {}
    for name, calibrated in (("calibrated", True), ("clipped", False)):
        fitted = nd.NTKRidgeClassifier(features(m), calibrated=calibrated).fit(x[train], y[train])
        found[f"log_loss_{name}"] = float(log_loss(y[test], fitted.predict_proba(x[test])))
    return found | {"accuracy": float(fitted.score(x[test], y[test]))}


def features(m: int) -> nd.ZonalFeatures:
    return nd.ZonalFeatures(m, nd.NTK(depth=2, bias=1.0))


if __name__ == "__main__":
    main()
