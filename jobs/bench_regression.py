"""Test errors, seconds and memory of our maps and of others' models on the same splits of a table.

    python jobs/bench_regression.py protein.npz --splits 1 --m 8192 --json jobs/results/protein-8192.json
    python jobs/bench_regression.py protein.npz --protocol blocks        # four folds in source order: the papers'
    python jobs/bench_regression.py protein.npz --protocol random        # four folds at random
    python jobs/bench_regression.py uci_regression_small.npz:yacht --m 512

``--protocol own`` takes the splits that come with a table: ``test_index`` (splits, rows of the test part), or
``test_fold`` (the split in which a row is tested).  Rows with a NaN are dropped.  Every model runs in a process of its
own, one after another (see models.py): the peak is of all that this process held.
"""

import tempfile
from typing import Any

import click
import numpy as np
from harness import file, json_option, result, save
from models import MODELS, run
from tables import markdown

FOLDS = 4


@click.command()
@click.argument("table")
@click.option("--protocol", type=click.Choice(["own", "blocks", "random"]), default="own")
@click.option("--splits", default=0, help="Only the first so many.")
@click.option("--m", default=1024)
@click.option("--folds", default=3, help="Of the cross-validation within a training set.")
@click.option("--model", "models", multiple=True, help="All, if none is named.")
@json_option
def main(table: str, protocol: str, splits: int, m: int, folds: int, models: tuple[str, ...], out: str) -> None:
    title, x, y, tests = load(table, protocol)
    tests = tests[: splits or None]
    rows, notes = [], [f"{len(x):,} rows, {x.shape[1]} columns, {len(tests)} splits, m = {m:,}"]
    notes.append(SAID[protocol])
    with tempfile.NamedTemporaryFile(suffix=".npz") as split:
        np.savez(split, x=x, y=y, test=tests)
        split.flush()
        for model in models or MODELS:
            found = run(model, split.name, m, folds)
            if isinstance(found, str):
                notes.append(f"{model}: {found}")
                print(notes[-1], flush=True)
                continue
            rows.append({"model": model, **found})
            print(rows[-1], flush=True)
            if out:
                save(out, result(title, rows, [file(table)], notes))
    print(markdown(result(title, rows, [file(table)], notes)))


SAID = {
    "own": "the splits that come with the table",
    "blocks": f"{FOLDS} folds in source order, as the papers have them; penalties per row of the training set",
    "random": f"{FOLDS} folds at random, seed 0",
}


def load(table: str, protocol: str) -> tuple[str, Any, Any, Any]:
    """A name, x, y, and which rows each split is tested on."""
    path, _, name = table.partition(":")
    with np.load(path) as arrays:
        prefix = f"{name}/" if name else ""
        held = {key.removeprefix(prefix): arrays[key] for key in arrays.files if key.startswith(prefix)}
    x, y = held["x"].astype(np.float64), held["y"].astype(np.float64)
    place = np.arange(len(x))
    if protocol != "own":
        fold = place * FOLDS // len(x)
        fold = np.random.default_rng(0).permutation(fold) if protocol == "random" else fold
        tests = np.stack([fold == k for k in range(FOLDS)])
    elif "test_fold" in held:
        tests = np.stack([held["test_fold"] == k for k in range(int(held["test_fold"].max()) + 1)])
    else:
        tests = np.stack([np.isin(place, rows) for rows in held["test_index"]])
    whole = np.isfinite(x).all(1)
    return name or path.rsplit("/", 1)[-1].removesuffix(".npz"), x[whole], y[whole], tests[:, whole]


if __name__ == "__main__":
    main()
