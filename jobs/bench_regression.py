"""Test errors, seconds and memory of our maps and of others' models on the same splits, and how honest intervals are.

    python jobs/bench_regression.py errors protein.npz --splits 1 --m 8192 --json jobs/results/protein-8192.json
    python jobs/bench_regression.py errors protein.npz --protocol blocks     # four folds in source order: the papers'
    python jobs/bench_regression.py errors protein.npz --protocol random     # four folds at random
    python jobs/bench_regression.py errors uci_regression_small.npz:yacht --m 512
    python jobs/bench_regression.py uncertainty protein.npz --m 1024 --rows 20000 --seeds 3
    python jobs/bench_regression.py model linear split.npz                   # one model in this process

The models are in models.py.
"""

import json
import subprocess
import sys
import tempfile
from typing import Any

import click
import numpy as np
from harness import Result, file, options, started, tiny_table
from models import MODELS, Part
from prepare import tests_of
from scipy.special import ndtri
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss

import ntkdist as nd
from ntkdist.memory import peak_memory_bytes

FOLDS = 4
PROTOCOLS = {
    "own": "the splits that come with the table",
    "blocks": f"{FOLDS} folds in source order, as the papers have them; penalties per row of the training set",
    "random": f"{FOLDS} folds at random, seed 0",
}


@click.group()
def main() -> None:
    """Measure regression on tables."""


@main.command()
@click.argument("table")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="own", help="How to split.", show_default=True)
@click.option("--splits", default=0, help="Only the first so many.")
@click.option("--m", default=1024)
@click.option("--folds", default=3, help="Of the cross-validation within a training set.")
@click.option("--model", "models", multiple=True, type=click.Choice(list(MODELS)), help="All, if none is named.")
@options(table=tiny_table, splits=1, m=128, folds=2, models=["linear", "ZonalFeatures, NTK"])
def errors(table: str, protocol: str, splits: int, m: int, folds: int, models: tuple[str, ...], out: str) -> None:
    """Compare models on the splits of TABLE: test errors, seconds and peak memory.

    The splits that come with a table are ``test_index`` (splits, rows of the test part) or ``test_fold`` (the split in
    which a row is tested).  Rows with a NaN are dropped.  Every model runs in a process of its own, one after another,
    so that its peak is that of this process.
    """
    title, x, y, tests = load(table, protocol)
    tests = tests[: splits or None]
    notes = [f"{len(x):,} rows, {x.shape[1]} columns, {len(tests)} splits, m = {m:,}", PROTOCOLS[protocol]]
    result = Result(title, [file(table)], out, notes)
    with tempfile.NamedTemporaryFile(suffix=".npz") as split:
        np.savez(split, x=x, y=y, test=tests)
        split.flush()
        for name in models or MODELS:
            command = [sys.executable, __file__, "model", name, split.name, "--m", str(m), "--folds", str(folds)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
                result.notes.append(f"{name}: {reason}")
                print(result.notes[-1], flush=True)
            else:
                result.add({"model": name, **json.loads(done.stdout.splitlines()[-1])})
    result.end()


def load(table: str, protocol: str) -> tuple[str, Any, Any, Any]:
    """Return a name, x, y, and the rows that each split is tested on."""
    path, _, name = table.partition(":")
    with np.load(path) as arrays:
        prefix = f"{name}/" if name else ""
        held = {key.removeprefix(prefix): arrays[key] for key in arrays.files if key.startswith(prefix)}
    x, y = held["x"].astype(np.float64), held["y"].astype(np.float64)
    if protocol == "own":
        tests = tests_of(held)
    else:
        fold = np.arange(len(x)) * FOLDS // len(x)
        fold = np.random.default_rng(0).permutation(fold) if protocol == "random" else fold
        tests = np.stack([fold == k for k in range(FOLDS)])
    whole = np.isfinite(x).all(1)
    return name or path.rsplit("/", 1)[-1].removesuffix(".npz"), x[whole], y[whole], tests[:, whole]


@main.command()
@click.argument("name", metavar="MODEL", type=click.Choice(list(MODELS)))
@click.argument("table")
@click.option("--m", default=1024)
@click.option("--folds", default=3)
def model(name: str, table: str, m: int, folds: int) -> None:
    """Fit MODEL on the splits of TABLE in this process, and print one line of JSON.

    TABLE is an .npz of x (n, d), y (n,) and test (splits, n), true for the rows that a split is tested on.
    """
    with np.load(table) as arrays:
        x, y, tests = arrays["x"], arrays["y"], arrays["test"]
    columns = ("test RMSE", "of the deviation", "seconds", "processor s", "chosen")
    row: dict[str, Any] = {column: [] for column in columns}
    for test in tests:
        elapsed = started()
        fitted = MODELS[name](Part(x[~test], y[~test], m, folds))
        seconds = elapsed()
        rmse = float(np.sqrt(np.mean((np.ravel(fitted.predict(x[test])) - y[test]) ** 2)))
        values = (rmse, rmse / float(y[test].std()), *seconds, fitted.chosen)
        for column, value in zip(columns, values, strict=True):
            row[column].append(value)
    print(json.dumps(row | {"peak MB": peak_memory_bytes() / 1e6}))


@main.command()
@click.argument("table", default="")
@click.option("--m", default=1024, show_default=True)
@click.option("--rows", default=20_000, show_default=True, help="At most, drawn at random.")
@click.option("--seeds", default=3, show_default=True)
@options(table=tiny_table, m=64, seeds=1)
def uncertainty(table: str, m: int, rows: int, seeds: int, out: str) -> None:
    """Measure intervals on unseen rows of TABLE: for every seed half of the rows to fit on, half to measure.

    Without a table: probabilities on the digits of scikit-learn.
    """
    data = file(table) if table else {"name": "digits of scikit-learn", "rows": len(load_digits().target)}
    result = Result("Intervals and probabilities", [data], out, [f"m = {m:,}"])
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        result.add({"seed": seed} | (of_numbers(table, m, rows, rng) if table else of_classes(m, rng)))
    if not table:
        return result.end()
    shares = [100 * row["conformal 0.9"] for row in result.rows]
    subject = f"unseen rows within conformal intervals of 90 %: {data['name']}, m={m:,}, {seeds} seeds"
    return result.end({subject: f"{min(shares):.1f} to {max(shares):.1f} %"})


def of_numbers(table: str, m: int, rows: int, rng: np.random.Generator) -> dict[str, float]:
    """Measure the shares of targets within conformal intervals, and within normal ones of the predictive variance."""
    data = np.load(table)
    x, y = data["x"].astype(np.float64), data["y"].astype(np.float64).reshape(len(data["x"]), -1)[:, 0]
    order = rng.permutation(len(x))[:rows]
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    elapsed = started()
    plain = nd.NTKRidgeCV(features(m)).fit(x[train], y[train])
    without, elapsed = elapsed(), started()
    fitted = nd.NTKRidgeCV(features(m), keep_factor=True).fit(x[train], y[train])
    row = {"processor s": without.processor, "with factor over without": elapsed().processor / without.processor}
    mean, std = fitted.predict(x[test], return_std=True, noise=True)
    row |= {"RMSE": float(np.sqrt(np.mean((mean - y[test]) ** 2))), "CV RMSE": plain.cv_.rmse}
    for coverage in (0.5, 0.9):
        low, high = fitted.predict_interval(x[test], coverage)
        row[f"conformal {coverage}"] = float(((y[test] >= low) & (y[test] <= high)).mean())
        off = np.abs(mean - y[test]) / std
        row[f"normal {coverage}"] = float((off <= ndtri((1 + coverage) / 2)).mean())
    curve = nd.prefix_curve(fitted.equations_, fitted.cv_)
    return row | {f"RMSE at {k}": float(e) for k, e in zip(curve.components, curve.rmse, strict=True)}


def of_classes(m: int, rng: np.random.Generator) -> dict[str, float]:
    """Measure the log loss of probabilities, calibrated out of fold and not."""
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(x))
    train, test = order[: len(x) // 2], order[len(x) // 2 :]
    row = {}
    for name, calibrated in (("calibrated", True), ("clipped", False)):
        fitted = nd.NTKRidgeClassifier(features(m), calibrated=calibrated).fit(x[train], y[train])
        row[f"log loss, {name}"] = float(log_loss(y[test], fitted.predict_proba(x[test])))
    return row | {"accuracy": float(fitted.score(x[test], y[test]))}


def features(m: int) -> nd.ZonalFeatures:
    """Return the map of both measurements."""
    return nd.ZonalFeatures(m, nd.NTK(depth=2, bias=1.0))


if __name__ == "__main__":
    main()
