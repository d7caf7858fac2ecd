"""Files of tables as batches of named columns in bounded memory: csv, Parquet, Arrow IPC (Feather) and JSON lines.

The columns of csv, and those that folders say, are text; the others have the types of their files.
"""

import contextlib
import gzip
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, json, parquet

from ntkdist.data import sources
from ntkdist.data.image_columns import may_hold_images
from ntkdist.data.npy import readable
from ntkdist.data.source_files import JSON, TEXT, Format, SourceFiles, ending
from ntkdist.errors import DataError

Batches = Callable[[list[str]], Iterator[Any]]  # of some columns, in order
DECIMAL_COMMA = r"^([+-]?\d*),(\d+(?:[eE][+-]?\d+)?)$"
DECIMAL_POINT = r"^[+-]?\d*\.\d+(?:[eE][+-]?\d+)?$"
DELIMITERS = {";": ";", "\t": "tab", "|": "|"}  # and how to say them


class Opened(NamedTuple):
    """A table: the Arrow types of its columns by name, None for text, and batches of some of them."""

    types: Mapping[str, Any]
    batches: Batches
    written: frozenset[str] = frozenset()  # columns of strings that may be dates and times, as JSON has no others


def opened(files: SourceFiles, form: Format) -> tuple[dict[str, tuple[str, ...]], Batches]:
    """Open tables, and return the kinds that their columns may have, and batches of some columns, file by file.

    A column of text may have any kind, which () says, or several; all else is of one kind.

    Raises
    ------
    DataError
        If a file cannot be read, or has other columns than the first.
    """
    each = [_with_keys(_open(path, form), keys) for path, keys in zip(files.paths, files.keys, strict=True)]
    known = dict(each[0].types)
    for path, one in zip(files.paths[1:], each[1:], strict=True):
        known = _together(known, one.types, files.paths[0], path)
    missing = pa.array(form.missing, pa.string())

    def batches(columns: list[str]) -> Iterator[Any]:
        for path, one in zip(files.paths, each, strict=True):
            with readable(path.name):
                for batch in one.batches(columns):
                    values = [_as(batch[n], known[n], missing) for n in columns]
                    yield pa.record_batch(values, names=columns)

    written = frozenset.intersection(*(one.written for one in each))
    kinds: dict[str, tuple[str, ...]]
    kinds = {n: () if t is None else ("date", "time") if n in written else (_kind(t),) for n, t in known.items()}
    return kinds, batches


def _as(values: Any, type: Any, missing: Any) -> Any:
    """Return values of a column as of one type, strings that stand for a missing value as null."""
    kind = "string" if type is None else _kind(type)
    if kind == "string":
        values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        values = values.cast(pa.string())
        return pc.if_else(pc.is_in(values, value_set=missing), None, values) if len(missing) else values
    return values if values.type == type else values.cast(type)


def _together(types: Mapping[str, Any], other: Mapping[str, Any], first: Path, path: Path) -> dict[str, Any]:
    """Return types that the columns of two files have in common."""
    for (have, a), (lack, b) in (((types, first), (other, path)), ((other, path), (types, first))):
        if absent := [name for name in have if name not in lack]:
            raise DataError(
                f"{b.name} has no column '{absent[0]}', which {a.name} has; convert tables of the same columns"
            )
    return {name: _common(name, types[name], other[name], path) for name in types}


def _common(name: str, one: Any, other: Any, path: Path) -> Any:
    """Return a type for the values of two."""
    if one is None or other is None or one == other:
        return None if one is None or other is None else one
    if _kind(one) == _kind(other) == "string":
        return pa.string()
    fields = [pa.schema([(name, pa.string() if _kind(t) == "string" else t)]) for t in (one, other)]
    try:
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except pa.ArrowException:
        raise DataError(
            f"column '{name}' of {path.name} is {other}, but {one} in files before it; convert it to one type"
        ) from None


def _with_keys(file: Opened, keys: Mapping[str, str | None]) -> Opened:
    """Add to a file the columns that its folders say, unless it has them."""
    said = {name: value for name, value in keys.items() if name not in file.types}
    if not said:
        return file

    def batches(columns: list[str]) -> Iterator[Any]:
        own = [name for name in columns if name in file.types]
        for batch in file.batches(own or list(file.types)[:1]):
            each = [batch[n] if n in own else pa.array([said[n]] * batch.num_rows, pa.string()) for n in columns]
            yield pa.record_batch(each, names=columns)

    return file._replace(types={**file.types, **dict.fromkeys(said)}, batches=batches)


def _open(path: Path, form: Format) -> Opened:
    """Open one file by its ending; any other ending is a text's."""
    with readable(path.name):
        kind = ending(path.name)
        if kind in JSON:
            return _open_json(path)
        if kind in (".feather", ".arrow"):
            return _open_ipc(path)
        return _open_parquet(path) if kind == ".parquet" else _open_csv(path, form)


def _open_csv(path: Path, form: Format) -> Opened:
    """Return the columns and a function that yields batches of text, trimmed, with decimal points."""
    sep = form.separator(path)

    def reader(column_types: dict[str, Any]) -> Any:
        # one thread, so that an error names the row; newlines allowed, or a quoted one at a block's end is misparsed
        return csv.open_csv(
            path,
            csv.ReadOptions(
                use_threads=False,
                block_size=sources.BLOCK_BYTES // 2,
                encoding=form.encoding,
                autogenerate_column_names=not form.header,
            ),
            csv.ParseOptions(delimiter=sep, newlines_in_values=True),
            csv.ConvertOptions(column_types=column_types, strings_can_be_null=True),
        )

    with _decoded(path, form), reader({}) as file:
        written = file.schema.names
    names = _distinct(written if form.header else [f"column_{i + 1}" for i in range(len(written))], path)
    if form.header:
        _check_header(names, path, sep)
    positions = dict(zip(names, written, strict=True))

    def batches(columns: list[str]) -> Iterator[Any]:
        with _decoded(path, form), reader({n: pa.string() for n in written}) as file:
            start = 0
            for batch in file:
                trimmed = [pc.utf8_trim_whitespace(batch[positions[n]]) for n in columns]
                if form.decimal == ",":
                    trimmed = [_pointed(v, n, path, start) for v, n in zip(trimmed, columns, strict=True)]
                start += batch.num_rows
                yield pa.record_batch(trimmed, names=columns)

    return Opened(dict.fromkeys(names), batches)


@contextlib.contextmanager
def _decoded(path: Path, form: Format) -> Iterator[None]:
    """Translate errors of a wrong encoding or separator into a `DataError` that says so."""
    try:
        yield
    except (UnicodeError, pa.ArrowInvalid) as error:
        why = " ".join(str(error).split())[:200]
        if isinstance(error, UnicodeError) or "utf8" in why.lower():
            raise DataError(
                f"{path.name} cannot be read as {form.encoding} ({why}); give its encoding, as in --encoding latin-1"
            ) from error
        if "Expected 1 columns" in why:
            raise DataError(
                f"{path.name} cannot be read as one column ({why}); give what is between its columns, as in --sep ';'"
            ) from error
        raise


def _check_header(names: list[str], path: Path, sep: str) -> None:
    """Refuse a first row that cannot be names of columns."""
    numbered = [[str(i) for i in range(k, k + len(names))] for k in (0, 1)]  # pandas' names of unnamed columns
    if all(map(_is_number, names)) and names not in numbered:
        raise DataError(
            f"{path.name}: its first row is all numbers ({names[0]}, …); expected the names of the columns: write them "
            "there, or have them named column_1, column_2, … by --no-header"
        )
    for other, said in DELIMITERS.items():
        if len(names) == 1 and other != sep and other in names[0]:
            raise DataError(
                f"{path.name} has one column, '{names[0]}'; give what is between its columns: --sep '{said}'"
            )


def _pointed(values: Any, name: str, path: Path, start: int) -> Any:
    """Write decimal commas as points; refuse numbers with points, which may be of thousands."""
    if (at := pc.index(pc.match_substring_regex(values, DECIMAL_POINT), True).as_py()) >= 0:
        raise DataError(
            f"column '{name}' of {path.name} holds '{values[at]}' in row {start + at}, a number with a point, but the "
            "decimal mark is to be a comma; mend it, or leave out --decimal"
        )
    return pc.replace_substring_regex(values, DECIMAL_COMMA, r"\1.\2")


def _open_parquet(path: Path) -> Opened:
    """Return the columns and a function that yields batches."""
    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow

    def batches(columns: list[str]) -> Iterator[Any]:
        with parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:  # else all of it is read
            images = any(may_hold_images(schema.field(name).type) for name in columns)
            count = max(1, sources.BLOCK_BYTES // (_row_bytes(file.metadata) if images else 8 * len(columns)))
            yield from file.iter_batches(count, columns=columns, use_threads=False)

    return _typed(schema, path, batches)


def _row_bytes(metadata: Any) -> int:
    """Return the mean bytes of a row in the row group where they are most."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return max((-(-group.total_byte_size // max(1, group.num_rows)) for group in groups), default=1) or 1


def _open_ipc(path: Path) -> Opened:
    """Return the columns of an Arrow file or stream, and a function that yields batches."""

    def reader() -> Any:
        file = pa.memory_map(str(path))
        with contextlib.suppress(pa.ArrowInvalid):
            return pa.ipc.open_file(file)
        return pa.ipc.open_stream(pa.memory_map(str(path)))

    def batches(columns: list[str]) -> Iterator[Any]:
        with reader() as file:
            several = hasattr(file, "num_record_batches")
            for batch in map(file.get_batch, range(file.num_record_batches)) if several else file:
                yield batch.select(columns)

    with reader() as file:
        return _typed(file.schema, path, batches)


def _open_json(path: Path) -> Opened:
    """Return the fields of JSON lines, whose types are decided by a scan over the whole file, and batches."""
    found: dict[str, Any] = {}
    for lines in _lines(path):
        schema = json.read_json(io.BytesIO(lines), _of_size(lines)).schema
        for field in schema:
            type = pa.string() if _kind(field.type) == "date" else field.type  # JSON writes dates as strings
            found[field.name] = _common(field.name, found.get(field.name, type), type, path)
    if not found:
        raise DataError(f"{path.name} holds no JSON lines; expected an object in each")
    schema = pa.schema(found)

    def batches(columns: list[str]) -> Iterator[Any]:
        options = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        for lines in _lines(path):
            for batch in json.read_json(io.BytesIO(lines), _of_size(lines), options).combine_chunks().to_batches():
                yield batch.select(columns)

    return Opened(found, batches, frozenset(name for name, type in found.items() if _kind(type) == "string"))


def _lines(path: Path) -> Iterator[bytes]:
    """Yield whole lines of a file, some MiB at a time."""
    zipped = path.name.lower().endswith(".gz")
    with cast(IO[bytes], gzip.open(path)) if zipped else path.open("rb") as file:
        while lines := file.readlines(sources.BLOCK_BYTES // 4):
            if content := b"".join(lines).strip():
                yield content


def _of_size(lines: bytes) -> Any:
    return json.ReadOptions(use_threads=False, block_size=len(lines) + 1)


def _typed(schema: Any, path: Path, batches: Batches) -> Opened:
    _distinct(schema.names, path)
    return Opened({field.name: field.type for field in schema}, batches)


def _kind(type: Any) -> str:
    if may_hold_images(type):
        return "image"
    if (
        pa.types.is_dictionary(type)
        or pa.types.is_string(type)
        or pa.types.is_large_string(type)
        or pa.types.is_string_view(type)
    ):
        return "string"
    if pa.types.is_boolean(type):
        return "bool"
    if pa.types.is_integer(type):
        return "int"
    if pa.types.is_floating(type) or pa.types.is_decimal(type) or pa.types.is_null(type):
        return "float"
    if pa.types.is_date(type) or pa.types.is_timestamp(type):
        return "date"
    return "time" if pa.types.is_time(type) or pa.types.is_duration(type) else "nested"


def _is_number(name: str) -> bool:
    with contextlib.suppress(ValueError):
        float(name)
        return True
    return False


def _distinct(names: list[str], path: Path) -> list[str]:
    """Return names of columns, or raise a `DataError` if one occurs twice."""
    if twice := [n for n in names if names.count(n) > 1]:
        where = "in the first row" if ending(path.name) in (*TEXT, "") else "there"
        raise DataError(f"{path.name} has several columns named '{twice[0]}'; give each its own name {where}")
    return names


def of_frame(frame: Any, scratch: Path) -> SourceFiles:
    """Write a frame of Dask, pandas or polars, or a table of Arrow, as Parquet; one partition is computed at a time.

    The index of a frame is left out.

    Raises
    ------
    DataError
        If it is no such frame, or a column holds values of several types.
    """
    lazy = hasattr(frame, "npartitions") and hasattr(frame, "get_partition")
    (folder := scratch / "source").mkdir()
    paths = tuple(folder / f"part-{i:06}.parquet" for i in range(frame.npartitions if lazy else 1))
    for i, path in enumerate(paths):
        part = frame.get_partition(i).compute() if lazy else frame
        try:
            parquet.write_table(_arrow(part), path)
        except (pa.ArrowException, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            raise DataError(f"the frame cannot be written as a table ({why}); give each column one type") from error
    return SourceFiles("the frame", paths, ({},) * len(paths))


def _arrow(frame: Any) -> Any:
    """Convert a frame in memory to a table of Arrow."""
    if isinstance(frame, pa.Table):
        return frame
    if hasattr(frame, "to_arrow"):
        return frame.to_arrow()
    if type(frame).__module__.partition(".")[0] == "pandas" and getattr(frame, "ndim", 0) == 2:
        return pa.Table.from_pandas(frame, preserve_index=False)
    raise DataError(
        f"the source is of type {type(frame).__name__}; expected a path, a URL, or a frame of Dask, pandas, polars or "
        "Arrow"
    )
