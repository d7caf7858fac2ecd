"""The first job for a source: a commented TOML file with the next commands, by what the first rows hold.

Only what is seen in the first rows is said; `convert` reads all of them.
"""

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ntkdist as nd
from ntkdist.data import storage, zarr_groups
from ntkdist.data.source_files import Format, ImageList, fetched, flags, holds_tables, images
from ntkdist.display import names as listed
from ntkdist.spec import encode, nearest

FEW_CLASSES = 20  # distinct integers of a target, up to which they may be class labels
MOST_VALUES = 2**16  # distinct values of a column that are counted
SHOWN = 12  # columns of a kind that are named
HELD = {"int": "numbers", "float": "numbers", "bool": "numbers", "time": "numbers", "date": "dates", "string": "names"}
IMPUTE = 'nan = "impute"'
MISSING = "empty cells get the column's median, and a column that marks them"
JOB = """\
# {summary}
#
{commands}
# Every key with its default: jobs/example.toml.  `ntkdist fit ... --set KEY=VALUE` sets one for a run.

[dataset]
store = {store}
{nan}
# weight = "weight"                # arrays that convert made by --weight, --groups and --holdout
# groups = "groups"
# holdout = "holdout"

{features}
[plan]
# folds = 5                        # of the cross-validation

# [cluster]                        # absent: this process, or the cluster of DASK_SCHEDULER_ADDRESS
# workers = 2                      # processes on this machine
"""
CHOSEN = """\
# [features]                       # absent: kernel, columns and metric are chosen by small fits to a sample
# type = "ZonalFeatures"
# n_components = 4096
"""
FOR_SPARSE = """\
[features]                         # of sparse rows none are chosen
type = "NTKSketch"
n_components = 2048
bias = 1.0
"""


class Column(NamedTuple):
    """A column as its first rows show it."""

    name: str
    kind: str  # "int", "float", "bool", "string", "date", "time", "image" or "nested"
    distinct: int  # values, or more than `MOST_VALUES`
    missing: bool


class Start(NamedTuple):
    """The text of a job, and how to come to its dataset and on from there."""

    text: str
    summary: str
    task: str  # "regression" or "classification"
    commands: list[str]
    columns: dict[str, str]  # kinds by name
    notes: list[str]


def start(source: str, targets: tuple[str, ...], classes: bool, out: str) -> Start:
    """Describe the first job for a table or images, as `convert` takes them, or for a dataset; nothing is written.

    Raises
    ------
    DataError
        If there is no such source or column, or the source is of another kind.
    """
    if found := images(source):
        return _of_images(source, found, targets, out)
    if holds_tables(source):
        return _of_table(source, targets, classes, out)
    if not zarr_groups.finished(source):
        raise nd.DataError(
            f"{source} is neither a table nor a dataset; convert other files first, and give the dataset that comes "
            "of it"
        )
    return _of_dataset(source, targets, out)


def write(job: Start, out: str) -> None:
    """Write the text of a job; raise StoreError if there is such a file."""
    if storage.exists(out) or storage.claim(out, job.text) != job.text:
        raise nd.StoreError(f"{out} already exists; choose another --out, or remove it")


def _of_table(source: str, targets: tuple[str, ...], classes: bool, out: str) -> Start:
    columns, rows = _first_rows(source)
    names = [column.name for column in columns]
    if not targets:
        raise nd.DataError(f"{source} has the columns {listed(names, SHOWN)}; name the target with --target")
    for name in targets:
        if name not in names:
            raise nd.DataError(f"{source} has no column '{name}' (named by --target){nearest(name, names)}")
    inputs = [column for column in columns if column.name not in targets]
    (first, *_), store = [c for c in columns if c.name == targets[0]], f"{_stem(source)}.zarr"
    task = "classification" if classes or (first.kind in ("string", "bool") and not targets[1:]) else "regression"
    useless = [column.name for column in inputs if column.kind in ("nested", *["image"] * bool(inputs[1:]))]
    options = [flags("target", targets), *["--classes"] * classes, *[flags("drop", useless)] * bool(useless)]
    summary = f"{task.capitalize()} of {listed(targets, SHOWN)} on {len(inputs) - len(useless)} columns of {source}."
    notes = list(_notes(first, inputs, task, rows))
    convert = " ".join(["ntkdist convert", shlex.quote(source), shlex.quote(store), *options])
    impute = any(column.missing for column in inputs if column.kind in ("int", "float", "bool"))
    return _job(summary, notes, store, impute, CHOSEN, task, [convert], out, {c.name: c.kind for c in columns})


def _of_images(source: str, found: ImageList, targets: tuple[str, ...], out: str) -> Start:
    classes = sorted({name.partition("/")[0] for name in found.names if "/" in name})
    if targets or not classes:
        raise nd.DataError(f"{source} holds images, whose classes are their folders; sort them so, without --target")
    summary, store = f"Classification of {listed(classes, SHOWN)} on the images of {source}.", f"{_stem(source)}.zarr"
    notes = ["Images of several sizes or modes: add --size 32x32 or --mode rgb, which predict repeats."]
    commands = [f"ntkdist convert {shlex.quote(source)} {shlex.quote(store)}"]
    return _job(summary, notes, store, False, CHOSEN, "classification", commands, out, {})


def _of_dataset(source: str, targets: tuple[str, ...], out: str) -> Start:
    layout = nd.Dataset(source).layout()
    if targets:
        raise nd.DataError(f"{source} is a dataset, whose target was named when it was converted; leave out --target")
    task = "classification" if layout.classes else "regression"
    shape = " x ".join(map(str, layout.input_shape))
    of = f"{len(layout.classes)} classes" if layout.classes else listed(layout.target_names or ["the target"], SHOWN)
    summary = f"{task.capitalize()} of {of} on {layout.rows:,} rows of {shape} in {source}."
    features, kinds = FOR_SPARSE if layout.sparse else CHOSEN, dict(zip(layout.columns, layout.kinds, strict=False))
    return _job(summary, [], source, bool(layout.missing), features, task, [], out, dict(kinds))


def _job(
    summary: str,
    notes: list[str],
    store: str,
    impute: bool,
    features: str,
    task: str,
    commands: list[str],
    out: str,
    columns: dict[str, str],
) -> Start:
    run = shlex.quote(f"{_stem(out)}-run")
    commands = [*commands, f"ntkdist plan {shlex.quote(out)}", f"ntkdist fit {shlex.quote(out)} --out {run}"]
    commands.append(f"ntkdist report {run}")
    lines = "".join(f"#     {command}\n" for command in commands) + "".join(f"#\n# {note}\n" for note in notes)
    nan = f"{'# ' * (not impute) + IMPUTE:<34} # {MISSING}"
    text = JOB.format(summary=summary, commands=lines + "#", store=encode(store), nan=nan, features=features)
    return Start(text, summary, task, commands, columns, notes)


def _first_rows(source: str) -> tuple[list[Column], int]:
    """Scan the first batch of a file; return its columns and the number of rows that were seen."""
    from ntkdist.data import columns, table_files  # Arrow, which takes a while to import

    with tempfile.TemporaryDirectory() as scratch:
        form = Format()
        kinds, batches = table_files.opened(fetched(source, Path(scratch), form), form)
        every = ("int", "float", *columns.PATTERNS)
        scanned = [columns.Column(n, f"column '{n}'", len(k) != 1, k or every, MOST_VALUES) for n, k in kinds.items()]
        batch = next(batches(list(kinds)), None)
        if batch is None or not batch.num_rows:
            raise nd.DataError(f"{source} has no rows; give a source that has some")
        for column in scanned:
            column.scan(batch[column.name], 0)
        found = [Column(c.name, c.kind, len(c.values - {None}), c.first_null >= 0) for c in scanned]
        return found, batch.num_rows


def _notes(target: Column, inputs: list[Column], task: str, rows: int) -> Iterator[str]:
    """Say what the columns of the first rows hold, and what may be meant otherwise."""
    for held in ("numbers", "names", "dates"):
        if named := [column.name for column in inputs if HELD.get(column.kind) == held]:
            yield f"Columns of {held} in the first {rows:,} rows: {listed(named, SHOWN)}."
    if task == "regression" and target.kind == "int" and target.distinct <= FEW_CLASSES:
        yield f"{target.name} has {target.distinct} distinct integers: if they are class labels, add --classes."
    for column in inputs:
        if column.kind == "string" and rows > FEW_CLASSES and column.distinct == rows:
            yield f"{column.name} has another name in every row: if they mean nothing, add --drop {column.name}."


def _stem(path: str) -> str:
    """Return a file's name without its endings."""
    return Path(path).name.split(".")[0]
