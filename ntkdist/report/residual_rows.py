"""The rows with the largest errors, each with its inputs."""

import math
from collections.abc import Sequence
from typing import Any

from ntkdist import display
from ntkdist.data.scaling import Preprocessing, column_names
from ntkdist.planning.plan import Plan
from ntkdist.report.numbers import plain
from ntkdist.report.out_of_fold import OutOfFold
from ntkdist.report.parts import Table

COLUMNS = 8  # inputs that are shown


def largest_errors(p: Plan, sums: OutOfFold | None, pre: Preprocessing, importances: dict[str, float]) -> Table:
    """List the rows with the largest errors, by their place in the source where that is known, with their inputs."""
    title = "Largest residuals"
    if sums is None:
        return Table(title, [("left out: they need the data, folds and equations",)])
    source = p.dataset.source_rows(p.layout, sums.largest.places.tolist())
    shown = _shown(p, importances)
    names = column_names(p.layout, len(p.layout.kinds)) if shown else ()
    rows = []
    for i, (error, place, y, guess) in enumerate(zip(*sums.largest, strict=True)):
        row = place if source is None else source[i]
        pair = (pre.classes[int(y)], pre.classes[int(guess)]) if pre.classes else (plain(y, 5), plain(guess, 5))
        rows.append((f"{row:,}", *pair, plain(error), *_inputs(p, int(place), shown)))
    head = ("row" if source is None else "row of the source", "true", "predicted out of fold", "error")
    text = "The error is the lead of the wrong class's score over the true class's." if pre.classes else ""
    if 0 < len(shown) < len(p.layout.kinds):
        which = "of largest importance" if importances else "that come first"
        text += f" Of {len(p.layout.kinds):,} inputs, the {len(shown)} {which} are shown."
    return Table(title, rows, (*head, *(names[j] for j in shown)), text.strip())


def _shown(p: Plan, importances: dict[str, float]) -> Sequence[int]:
    """Return the columns that are shown: of tables, the most important or the first."""
    if p.layout.sparse or len(p.layout.input_shape) > 1:
        return ()
    names = column_names(p.layout, len(p.layout.kinds))
    order = sorted(range(len(names)), key=lambda j: -importances.get(names[j], 0.0))
    return order[:COLUMNS]


def _inputs(p: Plan, place: int, shown: Sequence[int]) -> list[str]:
    """Read a row as it is in the dataset, and write the columns that are shown."""
    if not shown:
        return []
    (row,) = p.dataset.column(p.layout, p.dataset.x, place, place + 1)
    return [_written(row[j], p.layout.kinds[j], p.layout.names[j]) for j in shown]


def _written(value: Any, kind: str, names: tuple[str, ...]) -> str:
    if math.isnan(value):
        return "–"
    if kind == "category":
        return names[int(value)] or "–"
    if kind == "date":
        return display.date(float(value))
    return plain(float(value), 5)
