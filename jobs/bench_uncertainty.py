"""How honest intervals and probabilities are: measured on rows that were not seen.

``python jobs/bench_uncertainty.py protein.npz --m 1024 --rows 20000 --seeds 3``: half of the rows of a table (arrays x
and y) to fit on, half to measure, for every seed.  Without a table, the probabilities on the digits of scikit-learn.
``--json FILE`` keeps the result.
"""

from typing import Any

import click
import numpy as np
from harness import file, json_option, report, started
from scipy.special import ndtri
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss

import ntkdist as nd


@click.command()
@click.argument("table", default="")
@click.option("--m", default=1024, show_default=True)
@click.option("--rows", default=20_000, show_default=True, help="At most, drawn at random.")
@click.option("--seeds", default=3, show_default=True)
@json_option
def main(table: str, m: int, rows: int, seeds: int, out: str) -> None:
    found: list[dict[str, Any]] = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        found.append({"seed": seed} | (of_numbers(table, m, rows, rng) if table else of_classes(m, rng)))
        print(found[-1], flush=True)
    claims = {}
    if table:
        data, held = file(table), [100 * row["conformal 0.9"] for row in found]
        what = f"unseen rows within conformal intervals of 90 %: {data['name']}, m={m:,}, {seeds} seeds"
        claims = {what: f"{min(held):.1f} to {max(held):.1f} %"}
    else:
        data = {"name": "digits of scikit-learn", "rows": len(load_digits().target)}
    report("Intervals and probabilities", found, [data], out, notes=[f"m = {m:,}"], claims=claims)


def of_numbers(table: str, m: int, rows: int, rng: np.random.Generator) -> dict[str, float]:
    """Shares of targets within intervals: conformal ones, and normal ones of the predictive variance."""
    data = np.load(table)
    x, y = data["x"].astype(np.float64), data["y"].astype(np.float64).reshape(len(data["x"]), -1)[:, 0]
    order = rng.permutation(len(x))[:rows]
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    elapsed = started()
    plain = nd.NTKRidgeCV(features(m)).fit(x[train], y[train])
    without, elapsed = elapsed(), started()
    fitted = nd.NTKRidgeCV(features(m), keep_factor=True).fit(x[train], y[train])
    found = {"processor s": without.processor, "with factor over without": elapsed().processor / without.processor}
    mean, std = fitted.predict(x[test], return_std=True, noise=True)
    found |= {"RMSE": float(np.sqrt(np.mean((mean - y[test]) ** 2))), "CV RMSE": plain.cv_.rmse}
    for coverage in (0.5, 0.9):
        low, high = fitted.predict_interval(x[test], coverage)
        found[f"conformal {coverage}"] = float(((y[test] >= low) & (y[test] <= high)).mean())
        off = np.abs(mean - y[test]) / std
        found[f"normal {coverage}"] = float((off <= ndtri((1 + coverage) / 2)).mean())
    curve = nd.prefix_curve(fitted.equations_, fitted.cv_)
    return found | {f"RMSE at {k}": float(e) for k, e in zip(curve.components, curve.rmse, strict=True)}


def of_classes(m: int, rng: np.random.Generator) -> dict[str, float]:
    """Log loss of probabilities, calibrated out of fold and not."""
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(x))
    train, test = order[: len(x) // 2], order[len(x) // 2 :]
    found = {}
    for name, calibrated in (("calibrated", True), ("clipped", False)):
        fitted = nd.NTKRidgeClassifier(features(m), calibrated=calibrated).fit(x[train], y[train])
        found[f"log loss, {name}"] = float(log_loss(y[test], fitted.predict_proba(x[test])))
    return found | {"accuracy": float(fitted.score(x[test], y[test]))}


def features(m: int) -> nd.ZonalFeatures:
    return nd.ZonalFeatures(m, nd.NTK(depth=2, bias=1.0))


if __name__ == "__main__":
    main()
