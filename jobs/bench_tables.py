"""Errors, seconds and memory of our estimators and of the models that people take instead, on tables as they come.

    python jobs/bench_tables.py list --data DIR                      # the tables, their sizes and where they are from
    python jobs/bench_tables.py errors ames --json jobs/results/tables-ames.json
    python jobs/bench_tables.py errors protein --data DIR --budget 20 --model LightGBM --model ours
    python jobs/bench_tables.py errors ames --again ours --json jobs/results/tables-ames.json     # once more
    python jobs/bench_tables.py columns ames --json jobs/results/columns-ames.json   # ours, by the columns of numbers
    python jobs/bench_tables.py model LightGBM ames                  # one model in this process

The tables are in table_sources.py, the models in rivals.py.  All cores are used, or as many as OMP_NUM_THREADS says.
"""

import importlib
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
from harness import Result, options, started
from rivals import COLUMNS, MODELS, THREADS, Part, fitted, loss
from table_sources import SOURCES, Table, load

from ntkdist.memory import peak_memory_bytes, resident_bytes

ERROR, LOG_LOSS = "error", "log loss"
EVERY = MODELS | COLUMNS
place = click.option("--data", default="", metavar="DIR", help="Where the archives of some tables are.")
seconds = click.option("--budget", default=60.0, show_default=True, help="Processor seconds of a search.")


@click.group()
def main() -> None:
    """Compare models on tables."""


@main.command("list")
@place
def sizes(data: str) -> None:
    """List the tables, those of archives only where they are."""
    for name in SOURCES:
        try:
            table = load(name, data)
        except SystemExit as refused:
            print(f"{name}: {refused}")
        else:
            print(f"{name}: {table.size()}; {table.data['name']}", flush=True)


@main.command()
@click.argument("table", type=click.Choice(list(SOURCES)), default="tiny")
@place
@click.option("--splits", default=3, show_default=True, help="Only the first so many.")
@seconds
@click.option("--model", "models", multiple=True, type=click.Choice(list(MODELS)), help="All, if none is named.")
@click.option("--again", multiple=True, type=click.Choice(list(MODELS)), help="Measure this model once more.")
@click.option("--limit", default=3600.0, show_default=True, help="Seconds by the wall clock for a model and a split.")
@options(table="tiny", splits=1, budget=1.0)
def errors(
    table: str,
    data: str,
    splits: int,
    budget: float,
    models: tuple[str, ...],
    again: tuple[str, ...],
    limit: float,
    out: str,
) -> None:
    """Measure models on the splits of TABLE: test errors, seconds and peak memory.

    The error is the root of the mean squared error as a share of the deviation of the test targets, or the share of
    wrong classes.  Every model and split runs in a process of its own.  What the file has already is kept; models that
    are not installed are left out.
    """
    source = load(table, data)
    notes = [source.size(), f"{budget:g} processor seconds for a search, {THREADS} threads"]
    result = Result(table, [source.data], out, notes)
    rows = {row["model"]: row for row in earlier(out, table, notes) if row["model"] not in again}
    measured(source, result, rows, [*models, *again] or list(MODELS), splits, data, budget, limit)


@main.command()
@click.argument("table", type=click.Choice(list(SOURCES)), default="tiny")
@place
@click.option("--splits", default=1, show_default=True, help="Only the first so many.")
@options(table="tiny", splits=1)
def columns(table: str, data: str, splits: int, out: str) -> None:
    """Measure ours on TABLE with each choice of the columns that are made of numbers, for three kinds of metrics."""
    source = load(table, data)
    result = Result(table, [source.data], out, [source.size(), f"{THREADS} threads"])
    measured(source, result, {}, list(COLUMNS), splits, data, 0.0, 3600.0)


def measured(
    source: Table,
    result: Result,
    rows: dict[str, dict[str, Any]],
    names: list[str],
    splits: int,
    data: str,
    budget: float,
    limit: float,
) -> None:
    """Measure models on splits, each in a process of its own, beside the rows that there are."""
    table = result.origin["title"]
    result.rows = list(rows.values())
    for name in names:
        if find_spec(EVERY[name].needs) is None:
            result.notes.append(f"{name}: {EVERY[name].needs} is not installed")
            continue
        for split in range(min(splits, len(source.tests))):
            if split in rows.get(name, {}).get("split", []):
                continue
            command = ["model", name, table, "--split", str(split), "--data", data, "--budget", str(budget)]
            found = of_process(command, limit)
            if isinstance(found, str):
                result.notes.append(f"{name}, split {split}: {found}")
                print(result.notes[-1], flush=True)
                continue
            row = rows.setdefault(name, {"model": name})
            for column, value in found.items():
                row.setdefault(column, []).append(value)
            retell(result, rows)
            result.rows.remove(row)
            result.add(row)
    retell(result, rows)
    result.end()


def retell(result: Result, rows: dict[str, dict[str, Any]]) -> None:
    """Put the rows in order, and the command that makes all of them in the place of one that made some."""
    result.rows = [rows[name] for name in EVERY if name in rows]
    result.origin["command"] = retold(result.origin["command"], list(rows))


def earlier(out: str, table: str, notes: list[str]) -> list[dict[str, Any]]:
    """Read the rows of an earlier run, which has to be of the same table and the same budget."""
    if not out or not Path(out).is_file():
        return []
    found = json.loads(Path(out).read_text())
    before = [found["title"], *found["notes"][: len(notes)]]
    if before != [table, *notes]:
        raise SystemExit(f"{out} holds {'; '.join(before)}, not {'; '.join([table, *notes])}; name another file")
    return found["rows"]


def of_process(command: list[str], limit: float) -> dict[str, Any] | str:
    """Measure in a process of its own, or say why it failed."""
    try:
        done = subprocess.run([sys.executable, __file__, *command], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not done in {limit:,.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def retold(command: str, models: list[str]) -> str:
    """Rewrite a command as the one that makes a whole file: with all its models, without the directory."""
    chosen = " --model " in command or " --again " in command
    base = re.sub(r" --(model|again)[ =]('[^']*'|\S+)", "", command)
    base = re.sub(r" --data[ =]('[^']*'|\S+)", " --data DIR", base)
    if not chosen or set(models) >= set(MODELS) or set(models) <= set(COLUMNS):
        return base
    return base + "".join(f" --model '{name}'" for name in MODELS if name in models)


@main.command()
@click.argument("name", type=click.Choice(list(EVERY)))
@click.argument("table", type=click.Choice(list(SOURCES)))
@click.option("--split", default=0)
@place
@seconds
def model(name: str, table: str, split: int, data: str, budget: float) -> None:
    """Fit one model in this process and print its row as JSON."""
    source = load(table, data)
    test = np.zeros(len(source.x), dtype=bool)
    test[source.tests[split]] = True
    whole = Part(source.x, source.y, source.classes, budget)
    train, held = whole.take(np.flatnonzero(~test)), whole.take(np.flatnonzero(test))
    importlib.import_module(EVERY[name].needs)
    del source, whole
    resident_bytes()
    elapsed = started()
    found, chosen = fitted(EVERY[name], train)
    fit = elapsed()
    predicted = found.predict(held.x)
    row = {"split": split} | measures(held, predicted)
    row |= {
        "seconds": fit.wall,
        "processor s": fit.processor,
        "processor s to predict": elapsed().processor - fit.processor,
    }
    print(json.dumps(row | {"peak MB": peak_memory_bytes() / 1e6, "chosen": chosen}))


def measures(part: Part, predicted: Any) -> dict[str, float]:
    """Compute the errors of predictions."""
    if part.classes:
        return {ERROR: float((predicted.argmax(1) != part.y).mean()), LOG_LOSS: loss(part, predicted)}
    return {ERROR: float(np.sqrt(loss(part, predicted)) / part.y.std())}


if __name__ == "__main__":
    main()
