"""Print the tables of the README from the files in which benchmarks leave their results.

    python jobs/tables.py jobs/results/*.json                      # the README's tables, between their marks
    python jobs/tables.py jobs/results/*.json --write README.md    # the same, put into it
    python jobs/tables.py jobs/results/*.json --full               # all rows of every file

See harness.py for what a file holds.  A list is one quantity measured several times and is printed as its mean ±
standard error (± 95 % is about twice that).
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

Results = Sequence[dict[str, Any]]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--full", is_flag=True, help="All rows of every file.")
@click.option("--write", default="", help="A file whose tables to replace.")
def main(files: tuple[str, ...], full: bool, write: str) -> None:
    results = [json.loads(Path(name).read_text()) for name in files]
    if full:
        print("\n".join(map(markdown, results)), end="")
    elif write:
        Path(write).write_text(rewritten(Path(write).read_text(), results))
    else:
        print("\n\n".join(f"{mark(name)}\n{make(results)}\n{END}" for name, make in TABLES.items()))


def rewritten(text: str, results: Results) -> str:
    """Replace what stands between the marks of every table by the table."""
    for name, make in TABLES.items():
        start, end = map(re.escape, (mark(name), END))
        if not re.search(start, text):
            raise SystemExit(f"there is no {mark(name)}; put it and {END} where the table belongs")
        whole = f"{mark(name)}\n{make(results)}\n{END}"
        text = re.sub(f"{start}.*?{end}", lambda _, whole=whole: whole, text, flags=re.DOTALL)
    return text


def mark(name: str) -> str:
    """Write what stands before a table."""
    return f"<!-- {name}: python jobs/tables.py jobs/results/*.json -->"


END = "<!-- end -->"


def claims(results: Results) -> str:
    """Lay out what benchmarks found, in words, and the commands that found it."""
    lines = [[what, said, f"`{command(r)}`"] for r in results for what, said in r.get("claims", {}).items()]
    return grid(["what", "measured", "command"], lines)


def given_splits(results: Results) -> str:
    """Lay out the errors of all models on the splits that come with the tables, a line a table."""
    lines = errors(results, "the splits")
    models = sorted({model for line in lines.values() for model in line})
    return grid(
        ["table", *models], [[name, *(line.get(model, "") for model in models)] for name, line in lines.items()]
    )


def four_folds(results: Results) -> str:
    """Lay out the errors of all models on four folds of a table, at random or in source order, a line a model."""
    columns = errors(results, "4 folds")
    models = sorted({model for column in columns.values() for model in column})
    body = [[model, *(column.get(model, "") for column in columns.values())] for model in models]
    return grid(["model", *columns], body)


def errors(results: Results, protocol: str) -> dict[str, dict[str, str]]:
    """Collect the errors of every model, by table, of the results that were split in one way."""
    found: dict[str, dict[str, Any]] = {}
    for r in of("bench_regression", results):
        size, how = r["notes"][:2]
        if how.startswith(protocol):
            name = ", ".join(
                [
                    r["title"],
                    *([how.split(",")[0]] if "4 folds" in how else []),
                    *size.replace(" 1 splits", " 1 split").split(", ")[2:],
                ]
            )
            found.setdefault(name, {}).update({row["model"]: row for row in r["rows"]})
    return {name: shares(list(models.values())) for name, models in found.items()}


def shares(rows: Results) -> dict[str, str]:
    """Write errors as shares of the target's standard deviation, the least in bold."""
    best = min(f"{np.mean(row[SHARE]):.3f}" for row in rows)
    return {row["model"]: share(row, best) for row in rows}


SHARE = "of the deviation"


def share(row: dict[str, Any], best: str) -> str:
    """Write an error, bold if it is the best, and the processor seconds of a split."""
    mean = f"{np.mean(row[SHARE]):.3f}"
    spread = f" ± {standard_error(row[SHARE]):.3f}" if len(row[SHARE]) > 1 else ""
    error = f"**{mean}{spread}**" if mean == best else mean + spread
    return f"{error} ({np.mean(row['processor s']):,.0f} s)"


def images(results: Results) -> str:
    """Lay out the accuracies of image jobs."""
    lines = [
        [
            f"{r['title']}: {r['notes'][0]}",
            row["features"],
            *map(cell, (row["m"], row[ACCURACY], row["processor seconds"])),
        ]
        for r in of("bench_images", results)
        for row in r["rows"]
    ]
    return grid(["images", "job", "m", ACCURACY, "processor seconds"], lines)


ACCURACY = "accuracy, %"


def kernel_errors(results: Results) -> str:
    """Lay out errors of kernel matrices at depths 1 and 3, and the time of a row at depth 2, a column a map."""
    rows = [row for r in of("bench_kernel_error", results) for row in r["rows"]]
    maps = list(dict.fromkeys(row["map"] for row in rows))
    lines = []
    for name in dict.fromkeys(row["rows"] for row in rows):
        of_map = {row["map"]: row for row in rows if row["rows"] == name}
        for depth in ("depth 1", "depth 3"):
            lines.append([f"{name}, {depth}", *(f"{np.mean(of_map[each][depth]):.4f}" for each in maps)])
        lines.append([f"{name}, µs a row at depth 2", *(f"{of_map[each]['µs']:.0f}" for each in maps)])
    return grid(["rows", *maps], lines)


TABLES: dict[str, Callable[[Results], str]] = {
    "claims": claims,
    "given splits": given_splits,
    "four folds": four_folds,
    "images": images,
    "kernel errors": kernel_errors,
}


def of(script: str, results: Results) -> list[dict[str, Any]]:
    """Select the results of one benchmark."""
    return [r for r in results if f"/{script}.py" in r["command"]]


def command(found: dict[str, Any]) -> str:
    """Shorten the command of a result to what chose its numbers."""
    return re.sub(r"^python jobs/| --(json|out) \S+", "", found["command"])


def markdown(found: dict[str, Any]) -> str:
    """Print a title, all rows and the notes."""
    rows = found["rows"]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    right = [all(not isinstance(row.get(name), str) for row in rows) for name in columns]
    body = [[cell(row.get(name)) for name in columns] for row in rows]
    where = found["machine"]
    notes = [
        *found["notes"],
        *(f"{what}: {said}" for what, said in found.get("claims", {}).items()),
        f"`{found['command']}` on {where['cores']} cores of {where['processor']}, {where['memory_gb']} GB",
    ]
    return "\n".join([f"**{found['title']}**\n", grid(columns, body, right), "", *(f"* {n}." for n in notes)]) + "\n"


def grid(columns: Sequence[str], body: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> str:
    """Lay out lines as a Markdown table."""
    rule = ["---:" if r else "---" for r in right] or ["---"] * len(columns)
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, rule, *body])


def cell(value: Any) -> str:
    """Write a value: a number to four digits, a list as mean ± standard error, text as it is."""
    if value is None:
        return ""
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            return value[0] if len(set(value)) == 1 else "; ".join(dict.fromkeys(value))
        mean = float(np.mean(value))
        return f"{cell(mean)} ± {standard_error(value):.2g}" if len(value) > 1 else cell(mean)
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def standard_error(values: Sequence[float]) -> float:
    """Estimate the standard error of a mean."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


if __name__ == "__main__":
    main()
