"""Tables in Markdown from the result files of the benchmarks: those of the README, and all rows of every file.

    python jobs/tables.py jobs/results/*.json                           # the README's tables, between their marks
    python jobs/tables.py jobs/results/*.json --write README.md         # put them into it
    python jobs/tables.py jobs/results/*.json --write jobs/README.md    # summaries, all rows, and the list of scripts
    python jobs/tables.py jobs/results/*.json --full                    # print all rows

harness.py describes the form of a file.  A list is one quantity measured several times and is printed as its mean ±
standard error (± 95 % is about twice that).
"""

import ast
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
@click.option("--write", default="", help="Replace the tables that this file has marks for.")
def main(files: tuple[str, ...], full: bool, write: str) -> None:
    """Print or write tables of result FILES."""
    results = [json.loads(Path(name).read_text()) for name in files]
    if full:
        print(all_rows(results))
    elif write:
        Path(write).write_text(rewritten(Path(write).read_text(), results))
    else:
        print("\n\n".join(f"{mark(name)}\n{make(results)}\n{END}" for name, make in SUMMARIES.items()))


def rewritten(text: str, results: Results) -> str:
    """Replace the tables between marks."""
    marked = {name: make for name, make in (SUMMARIES | DETAILS).items() if mark(name) in text}
    if not marked:
        raise SystemExit(f"there is no mark such as {mark('promises')}; put one and {END} where its table belongs")
    for name, make in marked.items():
        start, end = map(re.escape, (mark(name), END))
        whole = f"{mark(name)}\n{make(results)}\n{END}"
        text = re.sub(f"{start}.*?{end}", lambda _, whole=whole: whole, text, flags=re.DOTALL)
    return text


def mark(name: str) -> str:
    """Return the mark before a table."""
    return f"<!-- {name}: python jobs/tables.py jobs/results/*.json -->"


END = "<!-- end -->"


def promises(results: Results) -> str:
    """Lay out the claim behind each promise of the README."""
    lines = []
    for promise, start in PROMISES.items():
        claim = next((c, value, r) for r in results for c, value in r.get("claims", {}).items() if c.startswith(start))
        lines.append([promise, f"{claim[0]}: **{claim[1]}**", f"`{command(claim[2])}`"])
    return grid(["promise", "measured", "command"], lines)


PROMISES = {  # and how the claim begins
    "Cross-validation is exact.": "cross-validated errors beside",
    "Memory does not grow with the rows, and is what was projected.": "peak of a worker",
    "A plan fixes the bits, on any workers.": "one plan: ",
    "A pass reaches most of the speed of its matrix product.": "a pass (read",
    "Intervals cover what they claim.": "unseen rows within conformal intervals",
}


def largest_tables(results: Results) -> str:
    """Lay out the errors of the README's models on the six largest tables that have all of them."""
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for r in of("bench_regression.py errors", results):
        tables.setdefault((r["title"], r["notes"][0]), {}).update({row["model"]: row for row in r["rows"]})
    whole = {name: models for name, models in tables.items() if models.keys() >= set(COMPARED)}
    by_rows = sorted(whole, key=lambda name: -int(name[1].split()[0].replace(",", "")))
    lines = []
    for title, size in by_rows[:6]:
        written = shares([row for model, row in whole[title, size].items() if model in SHOWN])
        lines.append(
            [f"{title}: {size.replace(' 1 splits', ' 1 split')}", *(written.get(model, "") for model in SHOWN)]
        )
    return grid(["table", *SHOWN], lines)


COMPARED = ("Nystrom, NTK", "Nystrom, Gaussian", "boosted trees", "linear")
SHOWN = (COMPARED[0], COMPARED[1], "Nystrom, Gaussian, metric", *COMPARED[2:])


def claims(results: Results) -> str:
    """Lay out the claims of all results, and the commands that measured them."""
    lines = [[subject, outcome, f"`{command(r)}`"] for r in results for subject, outcome in r.get("claims", {}).items()]
    return grid(["what", "measured", "command"], lines)


def given_splits(results: Results) -> str:
    """Lay out the errors of all models on the splits that come with the tables, one line for each table."""
    lines = errors(results, "the splits")
    models = sorted({model for line in lines.values() for model in line})
    return grid(
        ["table", *models], [[name, *(line.get(model, "") for model in models)] for name, line in lines.items()]
    )


def four_folds(results: Results) -> str:
    """Lay out the errors of all models on four folds, at random or in source order, one line for each model."""
    columns = errors(results, "4 folds")
    models = sorted({model for column in columns.values() for model in column})
    body = [[model, *(column.get(model, "") for column in columns.values())] for model in models]
    return grid(["model", *columns], body)


def errors(results: Results, protocol: str) -> dict[str, dict[str, str]]:
    """Collect the errors of every model, by table, of the results that were split in one way."""
    rows: dict[str, dict[str, Any]] = {}
    for r in of("bench_regression.py errors", results):
        size, how = r["notes"][:2]
        if how.startswith(protocol):
            name = ", ".join(
                [
                    r["title"],
                    *([how.split(",")[0]] if "4 folds" in how else []),
                    *size.replace(" 1 splits", " 1 split").split(", ")[2:],
                ]
            )
            rows.setdefault(name, {}).update({row["model"]: row for row in r["rows"]})
    return {name: shares(list(models.values())) for name, models in rows.items()}


def shares(rows: Results) -> dict[str, str]:
    """Write errors as shares of the target's standard deviation, the least in bold."""
    best = min(f"{np.mean(row[SHARE]):.3f}" for row in rows)
    return {row["model"]: share(row, best) for row in rows}


SHARE = "of the deviation"


def share(row: dict[str, Any], best: str) -> str:
    """Write an error, bold if it is the best, and the processor seconds of a split."""
    mean = f"{np.mean(row[SHARE]):.3f}"
    error = mean + deviation(row[SHARE])
    error = f"**{error}**" if mean == best else error
    return f"{error} ({np.mean(row['processor s']):,.0f} s)"


def table_errors(results: Results) -> str:
    """Lay out the losses of all models on tables as they come, one line for each table."""
    losses = table_losses(results)
    models = list(dict.fromkeys(model for line in losses.values() for model in line))
    body = []
    for name, line in losses.items():
        written = {model: f"{np.mean(values):.3f}{deviation(values)}" for model, values in line.items()}
        best = f"{min(map(np.mean, line.values())):.3f}"
        bold = {model: f"**{text}**" if text.split()[0] == best else text for model, text in written.items()}
        body.append([name, *(bold.get(model, "") for model in models)])
    return grid(["table", *models], body) if body else NOTHING


def table_ranks(results: Results) -> str:
    """Lay out ranks, wins, errors, seconds and memory of all models over tables, those of numbers and those of classes.

    A model is ranked on the tables that it has a row for; of equal losses each has the mean of their ranks.
    """
    losses = table_losses(results)
    lines = []
    for kind, measure in MEASURES.items():
        rows = [(r["title"], row) for r in of(TABLES, results) if measure_of(r) == measure for row in r["rows"]]
        for model in dict.fromkeys(row["model"] for _, row in rows):
            mine = {title: row for title, row in rows if row["model"] == model}
            ranks = [rank(losses[title], model) for title in mine]
            means = [float(np.mean(losses[title][model])) for title in mine]
            wins = sum(each == 1 for each in ranks)
            cost = [f"{np.median([np.mean(row[name]) for row in mine.values()]):,.0f}" for name in COSTS]
            error = f"{np.mean(means):.3f}{deviation(means)}"
            lines.append([kind, model, f"{len(mine)}", f"{np.mean(ranks):.2f}", f"{wins}", error, *cost])
    columns = ["target", "model", "tables", "mean rank", "wins", "mean error", *(f"median {name}" for name in COSTS)]
    return grid(columns, lines) if lines else NOTHING


def table_summary(results: Results) -> str:
    """Lay out the mean rank of models on tables as they come, and on how many each is the best.

    Models are ranked among those of their set, on the tables that have all of it.
    """
    losses, lines = table_losses(results), []
    for how, models in SETS.items():
        for kind, measure in MEASURES.items():
            titles = [r["title"] for r in of(TABLES, results) if measure_of(r) == measure]
            whole = [{m: losses[t][m] for m in models} for t in titles if losses[t].keys() >= set(models)]
            ranks = [[rank(each, model) for each in whole] for model in models]
            cells = [f"{np.mean(each):.1f} ({sum(one == 1 for one in each)})" for each in ranks if each]
            if cells:
                absent = [""] * (len(SETS["by default"]) - len(cells))
                lines.append([f"{how}, {len(whole)} tables with {kind} as the target", *cells, *absent])
    return grid(["mean rank (wins)", *SETS["by default"]], lines) if lines else NOTHING


SETS = {
    "by default": ("ours", "LightGBM", "CatBoost", "scikit-learn trees"),
    "tuned": ("ours, averaged", "LightGBM, tuned", "CatBoost, tuned"),
}


def table_columns(results: Results) -> str:
    """Lay out, for each kind of fit of ours, the mean over tables of its loss with each choice of columns.

    Losses are in units of that with standardised columns; in brackets is the number of tables where it is least.
    """
    lines: dict[str, dict[str, list[float]]] = {}
    for result in of("bench_tables.py columns", results):
        measure = measure_of(result)
        for row in result["rows"]:
            kind, _, front = row["model"].rpartition(", ")
            lines.setdefault(kind, {}).setdefault(front, []).append(float(np.mean(row[measure])))
    body = []
    for kind, fronts in lines.items():
        losses = np.array(list(fronts.values())) / fronts["standard"]  # (fronts, tables)
        wins = np.bincount(losses.argmin(axis=0), minlength=len(losses))
        cells = [f"{mean:.3f} ({count})" for mean, count in zip(losses.mean(axis=1), wins, strict=True)]
        body.append([kind, *cells])
    count = len(of("bench_tables.py columns", results))
    return grid([f"{count} tables", *next(iter(lines.values()))], body) if body else NOTHING


TABLES = "bench_tables.py errors"
MEASURES = {"numbers": "error", "classes": "log loss"}  # that models are ranked by
COSTS = ("processor s", "peak MB")
NOTHING = "Not measured yet."


def table_losses(results: Results) -> dict[str, dict[str, list[float]]]:
    """Collect what models are ranked by, by table and model."""
    return {r["title"]: {row["model"]: row[measure_of(r)] for row in r["rows"]} for r in of(TABLES, results)}


def measure_of(result: dict[str, Any]) -> str:
    """Return what the models of a table are ranked by."""
    return MEASURES["classes" if MEASURES["classes"] in result["rows"][0] else "numbers"]


def rank(losses: dict[str, list[float]], model: str) -> float:
    """Rank a model among those of a table, from 1; equal ones share the mean of their ranks."""
    means = np.array([np.mean(values) for values in losses.values()])
    mine = np.mean(losses[model])
    return float((means < mine).sum() + ((means == mine).sum() + 1) / 2)


def deviation(values: Sequence[float]) -> str:
    """Write the standard error of several values."""
    return f" ± {standard_error(values):.3f}" if len(values) > 1 else ""


def images(results: Results) -> str:
    """Lay out the accuracies of image jobs."""
    lines = [
        [
            f"{r['title']}: {r['notes'][0]}",
            row["features"],
            *map(cell, (row["m"], row[ACCURACY], row["processor seconds"])),
        ]
        for r in of("bench_images.py accuracy", results)
        for row in r["rows"]
    ]
    return grid(["images", "job", "m", ACCURACY, "processor seconds"], lines)


ACCURACY = "accuracy, %"


def kernel_errors(results: Results) -> str:
    """Lay out errors of kernel matrices at depths 1 and 3, and times of a row at depth 2, one column for each map."""
    rows = [row for r in of("bench_kernel_error.py", results) for row in r["rows"]]
    maps = list(dict.fromkeys(row["map"] for row in rows))
    lines = []
    for name in dict.fromkeys(row["rows"] for row in rows):
        of_map = {row["map"]: row for row in rows if row["rows"] == name}
        for depth in ("depth 1", "depth 3"):
            lines.append([f"{name}, {depth}", *(f"{np.mean(of_map[each][depth]):.4f}" for each in maps)])
        lines.append([f"{name}, µs a row at depth 2", *(f"{of_map[each]['µs']:.0f}" for each in maps)])
    return grid(["rows", *maps], lines)


def headline(results: Results) -> str:
    """Lay out, for each number of images, the least m at which features reach the exact kernel, and both seconds."""
    lines = []
    for r in of("bench_headline.py", results):
        exact = {row["n"]: row for row in r["rows"] if STANDARD_ERROR in row}
        models = dict.fromkeys(row["model"] for row in r["rows"] if REACHES in row)
        for n, model in ((n, model) for n in exact for model in models):
            mine = [row for row in r["rows"] if row["model"] == model and row["n"] == n]
            met = next((row for row in mine if row[REACHES]), None)
            line = [r["title"], f"{n:,}", f"{exact[n][ACCURACY]:.1f} ± {exact[n][STANDARD_ERROR]:.1f}"]
            line += [f"{exact[n][SECONDS]:,.0f}", model]
            if met is None:
                lines.append([*line, f"more than {max(row['m'] for row in mine):,}", "", "", "", ""])
                continue
            far = [row for row in r["rows"] if row["model"] == f"{model}, extrapolated" and n == max(exact)]
            cost = [cell(np.mean(met[SECONDS])), cell(met[TIMES]), *(cell(row[TIMES]) for row in far)]
            lines.append([*line, f"{met['m']:,}", cell(met[ACCURACY]), *cost, *([] if far else [""])])
    heads = ["exact kernel and images", "n", ACCURACY, "processor s", "features", "m", ACCURACY, "processor s"]
    return grid([*heads, "times less", "at 50,000, extrapolated"], lines) if lines else NOTHING


REACHES, STANDARD_ERROR, SECONDS, TIMES = "reaches", "standard error", "processor s", "times less processor time"


def scripts(_: Results) -> str:
    """List the scripts beside this one, with the first sentence of each."""
    paths = sorted(Path(__file__).parent.glob("*.py"))
    first = {path.name: (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0] for path in paths}
    return "\n".join(f"* [{name}]({name}): {line}" for name, line in first.items())


def all_rows(results: Results) -> str:
    """Write all rows of all results."""
    return "\n\n".join(map(markdown, results))


SUMMARIES: dict[str, Callable[[Results], str]] = {
    "headline": headline,
    "table summary": table_summary,
    "largest tables": largest_tables,
    "promises": promises,
}
DETAILS: dict[str, Callable[[Results], str]] = {
    "scripts": scripts,
    "claims": claims,
    "given splits": given_splits,
    "four folds": four_folds,
    "table ranks": table_ranks,
    "table errors": table_errors,
    "table columns": table_columns,
    "images": images,
    "kernel errors": kernel_errors,
    "all rows": all_rows,
}


def of(benchmark: str, results: Results) -> list[dict[str, Any]]:
    """Select the results of one benchmark."""
    return [r for r in results if f"/{benchmark} " in r["command"]]


def command(result: dict[str, Any]) -> str:
    """Shorten the command of a result to the words that chose its numbers."""
    return re.sub(r"^python jobs/| --json \S+", "", result["command"])


def markdown(result: dict[str, Any]) -> str:
    """Write a title, all rows and the notes."""
    rows = result["rows"]
    columns = list(dict.fromkeys(name for row in rows for name in row if "split" not in row or name not in PER_SPLIT))
    right = [all(not isinstance(row.get(name), str) for row in rows) for name in columns]
    body = [[cell(row.get(name)) for name in columns] for row in rows]
    where = result["machine"]
    notes = [
        *result["notes"],
        *(f"{subject}: {outcome}" for subject, outcome in result.get("claims", {}).items()),
        f"`{result['command']}` on {where['cores']} cores of {where['processor']}, {where['memory_gb']} GB",
    ]
    return "\n".join([f"**{result['title']}**\n", grid(columns, body, right), "", *(f"* {n}." for n in notes)])


PER_SPLIT = {"split", "chosen"}  # lists that have no mean: they are in the files only


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
