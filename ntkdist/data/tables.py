"""Tables read in blocks of rows; a scan over all rows decides what their columns of text hold."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ntkdist.data import sources
from ntkdist.data.columns import MAX_CATEGORIES, NUMBERS, PATTERNS, Column, check_inputs, named
from ntkdist.data.image_columns import ImageColumn
from ntkdist.data.images import Decoder, check_installed
from ntkdist.data.source_files import Format, SourceFiles, flags
from ntkdist.data.sources import CODES, DTYPES, MAX_CLASSES, Block, Fields, RawTable, Wanted, refuse_images
from ntkdist.data.table_files import Batches, opened
from ntkdist.display import names as listed
from ntkdist.errors import DataError, SpecError
from ntkdist.spec import nearest


def open_table(files: SourceFiles, wanted: Wanted, form: Format) -> RawTable:
    """Open files of a table: a scan over what is text comes before the reading pass."""
    if wanted.x != "x":
        raise SpecError(f"{files.name} has columns, no array '{wanted.x}'; --x is for npz files")
    kinds, batches = opened(files, form)
    apart = (*wanted.target, *wanted.drop, *wanted.beside().values())
    for name in wanted.category:
        if name not in kinds or name in apart:
            raise DataError(
                f"{files.name} has no input column '{name}' (named by --category)"
                f"{nearest(name, [n for n in kinds if n not in apart])}"
            )
    for name in apart:
        if name not in kinds:
            raise DataError(f"{files.name} has no column '{name}'{nearest(name, list(kinds))}")
        if apart.count(name) > 1:
            raise SpecError(
                f"column '{name}' is named twice among --target, --weight, --groups, --holdout and --drop; once is "
                "possible"
            )
    if wanted.classes and len(wanted.target) != 1:
        raise SpecError(f"{files.name}: classes need one target, got {len(wanted.target)}; name it with --target")
    columns = {
        n: Column(n, f"column '{n}' of {files.name}", len(k) != 1, k or ("int", "float", *PATTERNS), MAX_CATEGORIES)
        for n, k in kinds.items()
        if n not in wanted.drop
    }
    for name in wanted.category:
        columns[name] = Column(name, columns[name].place, False, ("string",), MAX_CATEGORIES)
    batches = functools.partial(_with_names, batches, frozenset(wanted.category))
    for name in wanted.target:
        columns[name].most = MAX_CLASSES
    rows = 0
    for batch in batches(list(columns)):
        for name, column in columns.items():
            if column.text or column.kind == "string" or name in wanted.target:
                column.scan(batch[name], rows)
        rows += batch.num_rows
    return _raw_table(files, wanted, columns, rows, lambda: batches(list(columns)))


def _raw_table(
    files: SourceFiles, wanted: Wanted, columns: dict[str, Column], rows: int, batches: Callable[[], Iterator[Any]]
) -> RawTable:
    """Check scanned columns against their use, and describe the rows they make."""
    beside = {role: columns[name] for role, name in wanted.beside().items()}
    inputs = [c for n, c in columns.items() if n not in (*wanted.target, *wanted.beside().values())]
    targets = [columns[n] for n in wanted.target]
    if not inputs:
        raise DataError(f"{files.name} has no columns left for the inputs; drop fewer")
    if (images := _images(files, wanted, inputs)) is None:
        check_inputs(inputs, files.name)
    elif rows:
        images.images(next(batches())[images.name][:1], 0)
    categories = {c.name: c.categories() for c in inputs if c.kind == "string"}
    dates = tuple(c.name for c in inputs if c.kind == "date")
    fields: Fields = {"x": (np.dtype(np.float64), (len(inputs),))}
    if images is not None:
        fields["x"] = np.dtype(np.uint8), images.decoder.shape
    labels = None
    if len(targets) == 1 and (wanted.classes or targets[0].kind in ("string", "bool")):
        targets[0].expect((*NUMBERS, "string"), "class labels", "name another target")
        labels = targets[0].labels()
        fields["y"] = np.min_scalar_type(max(len(labels), 1) - 1), ()
    elif targets:
        for column in targets:
            column.expect(NUMBERS, "one of several targets" if targets[1:] else "a target", "name another target")
        fields["y"] = np.dtype(np.float64), (len(targets),) * (len(targets) > 1)
    for role, column in beside.items():
        kinds = (*NUMBERS, "string") if role == "groups" else NUMBERS
        column.expect(kinds, "weights" if role == "weight" else role, "name another column")
        fields[role] = DTYPES[role], ()
    row_bytes = sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in fields.values())

    def blocks() -> Iterator[Block]:
        count, at = max(1, sources.BLOCK_BYTES // row_bytes), 0
        for batch in batches():
            for start in range(0, batch.num_rows, count):
                part = batch.slice(start, count)
                x = _inputs(part, inputs, categories, at) if images is None else images.images(part[images.name], at)
                block: Block = {"x": x}
                if labels is not None:
                    block["y"] = targets[0].codes(part[targets[0].name], labels)
                elif targets:
                    y = np.stack([c.numbers(part[c.name]) for c in targets], axis=1)
                    block["y"] = y if targets[1:] else y[:, 0]
                for role, column in beside.items():
                    values = part[column.name]
                    code = CODES.get(role)
                    block[role] = code(column.whole(values), column.place, at) if code else column.numbers(values)
                at += part.num_rows
                yield block

    classes = () if labels is None else tuple(map(str, labels.to_pylist()))
    names = tuple(c.name for c in inputs) if images is None else ()
    notes = tuple(note for column in (*inputs, *targets) if (note := column.note(rows)))
    table = RawTable(
        rows, fields, blocks, {"source": files}, classes, names, wanted.target, categories, dates, notes=notes
    )
    return table if images is None else replace(table, images=images.decoder.form)


def _images(files: SourceFiles, wanted: Wanted, inputs: list[Column]) -> ImageColumn | None:
    """Return the column of images, if the inputs are one."""
    found = [column.name for column in inputs if column.kind == "image"]
    if not found:
        refuse_images(files.name, wanted)
        return None
    if others := [column.name for column in inputs if column.name != found[0]]:
        raise DataError(
            f"column '{found[0]}' of {files.name} holds bytes, as of images, beside the inputs {listed(others, 8)}; "
            f"convert images alone, with {flags('drop', others)}, or the others, with {flags('drop', found)}"
        )
    check_installed()
    form = msgspec.structs.replace(wanted.images, column=found[0])
    return ImageColumn(found[0], files.name, Decoder(form))


def _inputs(batch: Any, inputs: list[Column], categories: dict[str, list[str]], start: int) -> NDArray[np.float64]:
    """Return the inputs (rows, columns) of a batch whose first row is ``start``: numbers, seconds, codes of strings."""
    x = np.empty((batch.num_rows, len(inputs)))
    for i, column in enumerate(inputs):
        values = batch[column.name]
        if known := categories.get(column.name):
            x[:, i] = column.codes(values.fill_null(""), pa.array(known))
        else:
            x[:, i] = column.as_input(values, start)
    return x


def _with_names(batches: Batches, category: frozenset[str], columns: list[str]) -> Iterator[Any]:
    """Yield batches in which integers that are categories are strings."""
    for batch in batches(columns):
        each = [named(n, batch[n]) if n in category else batch[n] for n in columns]
        yield pa.record_batch(each, names=columns)
