"""Predictions for the rows of tables as they are, written as a csv or parquet file, in their order."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist.data.frames import Known
from ntkdist.data.source_files import Format, fetched
from ntkdist.errors import DataError
from ntkdist.ridge.model import RidgeModel


@dataclass(frozen=True)
class TableReport:
    """Counts of the rows of a file that a model has predicted."""

    rows: int
    outside: int  # rows with values or names outside those of training
    outside_in: dict[str, int]  # the same by column
    unknown: dict[str, int]  # names that were not in training, by column

    def notes(self) -> Iterator[str]:
        """Say what a person should know of the rows."""
        if self.outside:
            each = ", ".join(f"'{name}' {count:,}" for name, count in self.outside_in.items())
            yield f"{self.outside:,} of {self.rows:,} rows had values or names outside those of training ({each})"
        for name, count in self.unknown.items():
            yield f"column '{name}' held {count:,} names that training had not, taken as unknown ones"


def predict_table(
    model: RidgeModel,
    source: str,
    out: str,
    *,
    keep: Sequence[str] = (),
    std: bool = False,
    sep: str = "",
    decimal: str = ".",
    encoding: str = "utf-8",
    header: bool = True,
    missing: Sequence[str] = (),
) -> TableReport:
    """Predict every row of a table, and write a csv or parquet file in the same order.

    Columns are found by name and read as what they held in training.  Names that training had not are taken as unknown
    ones, and values outside the range of training are clipped; both are counted.  Empty cells are filled in where the
    model knows how.  The output has the columns kept, then ``prediction`` (or ``prediction NAME`` for each target),
    then ``std``; it appears whole or not at all.  Memory does not grow with the rows.

    Parameters
    ----------
    model : RidgeModel
    source : str
        Path or URL of a table's file, a directory of such, or a pattern, as `convert` takes them.
    out : str
        Path; the ending says csv or parquet.
    keep : sequence of str
        Columns of the source to copy.
    std : bool
        Add the standard deviations of `RidgeModel.std`.
    sep, decimal, encoding, header, missing
        As of `convert`.

    Raises
    ------
    DataError
        If the model has no names of columns, a column is missing, or a value cannot be read or filled in.
    SpecError
        If ``out`` has another ending, or the model has no factor to compute ``std`` by.
    StoreError
        If ``out`` exists or cannot be written.
    """
    from ntkdist.data import new_rows  # Arrow, which takes a while to import

    pre, form = model.preprocessing, Format.of(sep, decimal, encoding, header, missing)
    if not pre.columns:
        raise DataError(
            f"the model was fitted to rows without names of columns, so those of {source} cannot be found; convert it, "
            "and predict the dataset"
        )
    rows, outside, outside_in, unknown = 0, 0, Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as scratch, new_rows.writer(out) as write:
        files = fetched(source, Path(scratch), form)
        for block in new_rows.blocks(files, form, pre.columns, Known.of(pre.encoding), keep):
            _check(model, block.x, files.name, rows)
            found = predicted(model, block.x, std)
            if clash := block.kept.keys() & found.keys():
                raise DataError(
                    f"column '{min(clash)}' of {files.name} is to be kept, but the predictions have one of that name; "
                    "rename it, or leave it out"
                )
            write(block.kept | found)
            rows += len(block.x)
            count, each = pre.range.rows_outside(block.x)
            outside += count
            outside_in.update({pre.columns[j]: int(each[j]) for j in np.flatnonzero(each)} if count else {})
            unknown.update(block.unknown)
    return TableReport(rows, outside, dict(outside_in), dict(unknown))


def predicted(model: RidgeModel, x: Any, std: bool) -> dict[str, Any]:
    """Return the columns that predict rows x (n, d), by name."""
    if model.classes:
        if std:
            raise DataError("the model predicts classes, which have no std; leave it out")
        return {"prediction": model.predict(x)}
    columns = by_target(model, "prediction", model(x))
    return columns | (by_target(model, "std", model.std(x)) if std else {})


def by_target(model: RidgeModel, name: str, values: Any) -> dict[str, Any]:
    """Return a column, or one for each target."""
    if values.ndim == 1:
        return {name: values}
    targets = model.preprocessing.target_names or tuple(map(str, range(values.shape[1])))
    return {f"{name} {target}": np.ascontiguousarray(values[:, i]) for i, target in enumerate(targets)}


def _check(model: RidgeModel, x: NDArray[np.float64], file: str, start: int) -> None:
    """Refuse empty cells of a model that cannot fill them in."""
    encoding = model.preprocessing.encoding
    if encoding is not None and encoding.impute:
        return
    bad = np.isnan(x)
    if bad.any():
        row, j = np.argwhere(bad)[0]
        raise DataError(
            f"column '{model.preprocessing.columns[j]}' of {file} is empty in row {start + row}, and training had no "
            'empty cells; fill it in, or fit with nan = "impute"'
        )
