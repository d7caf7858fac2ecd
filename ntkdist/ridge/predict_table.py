"""Predictions for the rows of tables as they are, in their order, written as a csv or parquet file or a Zarr group."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ntkdist.data import zarr_groups
from ntkdist.data.frames import Known
from ntkdist.data.partitions import Content, partition_rows
from ntkdist.data.ranges import FEW, first_outside
from ntkdist.data.scaling import Preprocessing, column_names
from ntkdist.data.source_files import Format, fetched, images
from ntkdist.data.sources import output_format
from ntkdist.errors import DataError, SpecError
from ntkdist.ridge.model import RidgeModel
from ntkdist.ridge.outputs import PREDICTIONS, Outputs, PredictionReport

if TYPE_CHECKING:  # these import Arrow
    from ntkdist.data.new_images import NewFiles, NewImageColumn
    from ntkdist.data.new_rows import NewTable

    NewRows = NewTable | NewFiles | NewImageColumn

Write = Callable[[dict[str, Any]], None]


def predict_table(
    model: RidgeModel,
    source: str,
    out: str,
    *,
    keep: Sequence[str] = (),
    std: bool = False,
    proba: bool = False,
    interval: float = 0.0,
    sep: str = "",
    decimal: str = ".",
    encoding: str = "utf-8",
    header: bool = True,
    missing: Sequence[str] = (),
) -> PredictionReport:
    """Predict every row of a table, or every image, and write a csv or parquet file or a Zarr group in the same order.

    Columns are found by name and read as what they held in training.  Names that training had not are taken as unknown
    ones, and values outside the range of training are clipped; both are counted.  Empty cells are filled in where the
    model knows how, and counted in columns that had none in training.  Other columns are ignored, and named.  The
    output appears whole or not at all.  Memory does not grow with the rows.

    Images in files, or in a column of parquet and the like, are decoded as those of the training were, see `convert`.

    A csv or parquet file has the columns kept (of images in files ``file``, their names below the folder), then
    ``prediction``, ``std``, ``low`` and ``high``, each followed by the name of the target where there are several; for
    classes ``prediction``, by name, and ``probability NAME`` of every class.  A Zarr group has the arrays of
    `ntkdist.predict`.

    Parameters
    ----------
    model : RidgeModel
    source : str
        Path or URL of a file of a table or an image, a directory of such, or a pattern, as `convert` takes them.
    out : str
        Path or URL; the ending says csv, parquet or Zarr.
    keep : sequence of str
        Columns of the source to copy; not to Zarr.
    std : bool
        Add the standard deviations of `RidgeModel.std`.
    proba : bool
        Add `RidgeModel.probabilities`.
    interval : float
        Add the ends of intervals of this coverage, see `RidgeModel.interval`; 0 for none.
    sep, decimal, encoding, header, missing
        As of `convert`.

    Returns
    -------
    PredictionReport

    Raises
    ------
    DataError
        If the model has no names of columns, a column is missing, or a value cannot be read or filled in; of csv, the
        line of the file is named.  If an image cannot be read, or is not of the model's shape; it is named.
    SpecError
        If ``out`` has another ending, or the model has not what is asked for.
    StoreError
        If ``out`` exists or cannot be written.
    """
    pre, outputs = model.preprocessing, Outputs(model, std, proba, interval)
    form, as_zarr = Format.of(sep, decimal, encoding, header, missing), output_format(out) == "zarr"
    check_kept(keep, outputs, out)
    report = PredictionReport(uncalibrated=proba and np.isnan(model.temperature))
    attrs: dict[str, Any] = {"source": source, "order": "source"}
    first: list[tuple[int, list[str]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        rows = _opened(pre, source, form, keep, Path(scratch))
        report.ignored = rows.ignored
        with _group_writer(out, model, attrs) if as_zarr else _file_writer(out) as write:
            for block in rows.blocks():
                _check(pre, block.x, rows, report.rows)
                arrays = outputs.arrays(block.x)
                write(arrays if as_zarr else block.kept | outputs.columns(arrays))
                _count(report, first, pre, block.x)
            words = rows.places([row for row, _ in first])
            report.first = list(zip(words, (names for _, names in first), strict=True))
            attrs |= report.to_attributes()
    return report


def _opened(pre: Preprocessing, source: str, form: Format, keep: Sequence[str], scratch: Path) -> "NewRows":
    """Open a source by what it is, and by what the model was fitted to."""
    from ntkdist.data import new_images, new_rows  # Arrow, which takes a while to import

    if not form.sep and (found := images(source)):
        return new_images.NewFiles.open(found, pre, keep)
    if not pre.columns and len(pre.input_shape) != 3:
        raise DataError(
            f"the model was fitted to rows without names of columns, so those of {source} cannot be found; convert it, "
            "and predict the dataset"
        )
    files = fetched(source, scratch, form)
    if not pre.columns:
        return new_images.NewImageColumn.open(files, form, pre, keep)
    return new_rows.NewTable.open(files, form, pre.columns, Known.of(pre.encoding), keep)


def check_kept(keep: Sequence[str], outputs: Outputs, out: str) -> None:
    """Refuse columns to keep in Zarr, or of names that predictions have."""
    if keep and output_format(out, bare="zarr") == "zarr":
        raise SpecError(
            f"{out} is a Zarr group by its name, which keeps no columns (keep: {', '.join(keep)}); write csv or "
            "parquet, or leave out keep"
        )
    if clash := set(keep) & outputs.columns(_no_rows(outputs)).keys():
        raise DataError(
            f"column '{min(clash)}' is to be kept, but the predictions have one of that name; rename it, or leave it "
            "out"
        )


def _no_rows(outputs: Outputs) -> dict[str, NDArray[Any]]:
    return {name: np.empty((0, *shape), dtype) for name, dtype, shape in outputs.fields}


def _file_writer(out: str) -> AbstractContextManager[Write]:
    from ntkdist.data import written_tables

    return written_tables.writer(out)


@contextmanager
def _group_writer(out: str, model: RidgeModel, attrs: dict[str, Any]) -> Iterator[Write]:
    """Write arrays block by block to a new group, which appears when the block ends; attributes are as they are then.

    The number of rows is known in the end: till then arrays lie in scratch files of this machine.
    """
    zarr_groups.refuse_existing(out)
    with tempfile.TemporaryDirectory() as scratch:
        files: dict[str, tuple[Path, np.dtype[Any], tuple[int, ...]]] = {}

        def write(arrays: dict[str, Any]) -> None:
            for name, values in arrays.items():
                files[name] = Path(scratch) / name, values.dtype, values.shape[1:]
                with files[name][0].open("ab") as file:
                    np.ascontiguousarray(values).tofile(file)

        yield write
        attrs |= {"classes": model.classes, "target_names": model.preprocessing.target_names}
        with zarr_groups.new_group(out, PREDICTIONS, attrs) as place:
            content = Content()
            for name, (path, dtype, shape) in files.items():
                content += _copied(place, name, path, dtype, shape)
            attrs["content"] = content.to_dict()


def _copied(place: str, name: str, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Content:
    """Copy a file of rows to a new array, partition by partition, and return its digest."""
    width = dtype.itemsize * int(np.prod(shape))
    rows, content = path.stat().st_size // width, Content()
    size = partition_rows(max(rows, 1), shape, dtype)
    zarr_groups.create_array(place, name, (rows, *shape), dtype, size)
    with path.open("rb") as file:
        for start in range(0, rows, size):
            values = np.frombuffer(file.read(size * width), dtype).reshape(-1, *shape)
            content += zarr_groups.write_content(place, name, start, values)
    return content


def _check(pre: Preprocessing, x: NDArray[Any], rows: "NewRows", start: int) -> None:
    """Refuse empty cells of a model that cannot fill them in; categories have a name for them."""
    if x.dtype.kind != "f" or (pre.encoding is not None and pre.encoding.impute):
        return
    bad = np.isnan(x)
    if pre.encoding is not None:
        bad[:, [kind == "category" for kind in pre.encoding.kinds]] = False
    if bad.any():
        row, j = np.argwhere(bad)[0]
        place = rows.places([start + int(row)])[0]
        place += " (counted from 0)" * place.startswith("row")
        raise DataError(
            f"column '{pre.columns[j]}' of {rows.name} is empty in {place}, and training had no empty cells; "
            'fill it in, or fit with nan = "impute"'
        )


def _count(report: PredictionReport, first: list[tuple[int, list[str]]], pre: Preprocessing, x: NDArray[Any]) -> None:
    """Count rows, and what is odd in them."""
    count, each = pre.range.rows_outside(x)
    names = column_names(pre, len(each))
    report.outside += count
    if count:
        report.outside_in.update({names[j]: int(each[j]) for j in np.flatnonzero(each)})
        some = first_outside(pre.range, x)[: FEW - len(first)] if len(first) < FEW else []
        first += [(report.rows + i, [names[j] for j in columns]) for i, columns in some]
    report.rows += len(x)
    if pre.encoding is not None:
        unknown, empty, kinds = (x < 0).sum(axis=0), pre.encoding.seen_range.empty(x), pre.encoding.kinds
        report.unknown += Counter(
            {n: int(unknown[j]) for j, n in enumerate(names) if kinds[j] == "category" and unknown[j]}
        )
        report.empty += Counter({n: int(empty[j]) for j, n in enumerate(names) if empty[j]})
