"""The summary of what columns became, and what it draws attention to."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import in_process
from converted import IMAGES, X, Y, attrs, convert

import ntkdist as nd
from ntkdist.data import sources
from ntkdist.data.dataset import Dataset
from ntkdist.errors import DataError


def text(folder: Path, content: str, name: str = "a.csv") -> str:
    (folder / name).write_text(content)
    return str(folder / name)


def lines(header: str, *rows: Any) -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


TABLE = lines(
    "a,city,day,t,w",
    *[("1.5", "Rome", "2024-01-01", 7, 1), ("", "Oslo", "2024-01-02T12:30", 8, 2), ("-3", "", "", 9, 0.5)],
)


@pytest.mark.parametrize("block", [80, 16 * 2**20])
def test_what_each_column_became(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    source = text(tmp_path, TABLE)
    convert(source, str(tmp_path / "d"), target=["t"], weight="w")
    a, city, day, t, w = nd.columns(str(tmp_path / "d")).columns
    assert a == nd.ColumnSummary("a", "input", "number", -3.0, 1.5, None, 1)
    assert city == nd.ColumnSummary("city", "input", "category", None, None, 2, 1, ("Oslo", "Rome"))
    assert day == nd.ColumnSummary("day", "input", "date", 1704067200.0, 1704198600.0, None, 1)
    assert t == nd.ColumnSummary("t", "target", "number", 7.0, 9.0, None, 0)
    assert w == nd.ColumnSummary("weight", "weight", "number", 0.5, 2.0, None, 0)
    assert str(nd.columns(Dataset(str(tmp_path / "d")))) == (
        "column  role    kind      values                         missing\n"
        "a       input   number    -3 … 1.5                       1\n"
        "city    input   category  2: Oslo, Rome                  1\n"
        "day     input   date      2024-01-01 … 2024-01-02 12:30  1\n"
        "t       target  number    7 … 9                          0\n"
        "weight  weight  number    0.5 … 2                        0\n"
        "Note: numbers are missing ('a' 1, 'day' 1), so that fit needs nan = \"impute\", or \"drop\" to leave these "
        "rows out."
    )


def test_the_commands_show_it(tmp_path: Path) -> None:
    source, dest = text(tmp_path, TABLE), str(tmp_path / "d")
    done = in_process("convert", source, dest, "--target", "t", "--drop", "w", "--drop", "city")
    shown = in_process("columns", dest)
    assert (done.exit_code, shown.exit_code) == (0, 0), done.output + shown.output
    assert shown.output == str(nd.columns(dest)) + "\n"
    assert done.output.partition("\n")[2] == shown.output
    found = json.loads(in_process("columns", dest, "--json").output)
    assert found["rows"] == 3
    assert [c["name"] for c in found["columns"]] == ["a", "day", "t"]
    assert found["columns"][0] == {
        "name": "a",
        "role": "input",
        "kind": "number",
        "low": -3.0,
        "high": 1.5,
        "levels": None,
        "missing": 1,
        "names": [],
    }
    assert len(found["notes"]) == 1


def test_classes_and_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=IMAGES, y=np.array(["p", "q"] * 68 + ["p"]))
    convert(str(tmp_path / "a.npz"), str(tmp_path / "d"))
    x, y = nd.columns(str(tmp_path / "d")).columns
    assert (x.name, x.low, x.high) == ("x (5 × 4 × 1)", IMAGES.min(), IMAGES.max())
    assert (y.kind, y.levels, y.names) == ("class", 2, ("p", "q"))
    np.savez(tmp_path / "b.npz", x=X, y=np.stack([Y, -Y], axis=1))
    convert(str(tmp_path / "b.npz"), str(tmp_path / "e"))
    _, first, second = nd.columns(str(tmp_path / "e")).columns
    assert (first.name, second.name) == ("y 0", "y 1")
    assert (first.low, second.high) == (Y.min(), -Y.min())


def test_datasets_of_earlier_versions_have_kinds_only(tmp_path: Path) -> None:
    convert(text(tmp_path, TABLE), str(tmp_path / "d"), target=["t"])
    meta = json.loads((tmp_path / "d" / "zarr.json").read_text())
    del meta["attributes"]["summary"]
    (tmp_path / "d" / "zarr.json").write_text(json.dumps(meta))
    found = nd.columns(str(tmp_path / "d")).columns
    assert [(c.kind, c.low, c.missing) for c in found[:3]] == [(k, None, None) for k in ("number", "category", "date")]


def test_wide_tables_are_cut_after_a_conversion(tmp_path: Path) -> None:
    source = text(tmp_path, lines(",".join(f"c{i}" for i in range(60)), [0.5] * 60, [2.5] * 60))
    done = in_process("convert", source, str(tmp_path / "d"))
    assert "… and 20 more: ntkdist columns" in done.output
    assert "\nc59 " in in_process("columns", str(tmp_path / "d")).output


# notes

ROWS = range(100)
NOTES = {
    "index from 0": (lines(",a", *((i, i % 7) for i in ROWS)), {}, "'' numbers the rows", "--drop ''"),
    "index from 1": (lines("id,a", *((i + 1, i % 7) for i in ROWS)), {}, "'id' numbers the rows", "--drop id"),
    "old index": (lines("Unnamed: 0,a", *((7 * i, 1) for i in ROWS)), {}, "'Unnamed: 0' numb", "--drop 'Unnamed: 0'"),
    "names of rows": (
        lines("who,a", *((f"n{i}", i % 7) for i in ROWS)),
        {},
        "column 'who' has 100 names in 100 rows",
        "--drop who",
    ),
    "few strays": (
        lines("a,b", *(("?" if i in (17, 40) else "-" if i == 60 else i / 8, 1) for i in ROWS)),
        {},
        "column 'a' was taken as names, as 3 of its 100 values are no numbers: '?' (2, first in row 17), '-' (1, "
        "first in row 60)",
        "--missing '?' --missing -",
    ),
    "strays of a target": (
        lines("a,t", *((i % 7, "?" if i == 9 else i / 8) for i in ROWS)),
        {"target": ["t"]},
        "column 't' was taken as names, as 1 of its 100 values are no numbers: '?' (1, first in row 9)",
        "--missing '?'",
    ),
    "labels": (
        lines("a,t", *((i % 7, i % 2) for i in ROWS)),
        {"target": ["t"]},
        "the target holds 2 whole numbers, from 0 to 1, taken as numbers to regress on",
        "--classes",
    ),
    "gaps": (lines("a,b", *(("" if i < 9 else i % 7, 1) for i in ROWS)), {}, "numbers are missing ('a' 9)", ""),
}


@pytest.mark.parametrize("block", [200, 16 * 2**20])
@pytest.mark.parametrize(("content", "options", "sentence", "flags"), NOTES.values(), ids=NOTES.keys())
def test_notes_name_flags_that_help(
    tmp_path: Path,
    content: str,
    options: dict[str, Any],
    sentence: str,
    flags: str,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    source = text(tmp_path, content)
    convert(source, str(tmp_path / "d"), **options)
    (note,) = nd.columns(str(tmp_path / "d")).notes
    assert sentence in note
    assert flags in note
    if flags:
        target = [part for name in options.get("target", ()) for part in ("--target", name)]
        done = in_process("convert", source, str(tmp_path / "e"), *target, *shlex.split(flags))
        assert done.exit_code == 0, done.output
        assert sentence not in done.output


def test_no_notes_where_all_is_well(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = zip(rng.normal(size=100), rng.choice(["p", "q"], 100), rng.normal(size=100), strict=True)
    convert(text(tmp_path, lines("a,c,t", *rows)), str(tmp_path / "d"), target=["t"])
    assert nd.columns(str(tmp_path / "d")).notes == ()
    assert attrs(tmp_path / "d")["summary"]["notes"] == []


def test_notes_of_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x=rng.normal(size=(100, 3, 8, 8)), y=np.arange(100) % 3)
    convert(str(tmp_path / "a.npz"), str(tmp_path / "d"))
    channels, labels = nd.columns(str(tmp_path / "d")).notes
    assert "rows of shape (3, 8, 8), taken as 3 by 8 pixels of 8 channels" in channels
    assert channels.endswith("if the channels come first, convert with --channels-first")
    assert labels.startswith("the target holds 3 whole numbers, from 0 to 2")
    convert(str(tmp_path / "a.npz"), str(tmp_path / "e"), channels_first=True, classes=True)
    assert nd.columns(str(tmp_path / "e")).notes == ()


# refusals


def test_all_columns_are_refused_at_once_with_flags_that_convert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ntkdist.data.columns.MAX_CATEGORIES", 50)
    monkeypatch.setattr("ntkdist.data.tables.MAX_CATEGORIES", 50)
    rows = [(f"n{i}", "1.2.24" if i == 9 else "2024-01-01", "?" if i == 5 else i / 8, i % 7) for i in ROWS]
    source = text(tmp_path, lines("my id,day,size,b", *rows))
    with pytest.raises(DataError, match=r"3 columns of a\.csv cannot be inputs") as caught:
        convert(source, str(tmp_path / "d"))
    message = str(caught.value)
    for part in (
        "'my id' holds strings with more than 50 distinct values;",
        "'day' holds '1.2.24' in row 9, which cannot be read as a date",
        "'size' holds strings with more than 50 distinct values, as 1 of its 100 values are no numbers: '?' (1, first "
        "in row 5); --missing '?' takes them as missing;",
    ):
        assert part in message
    flags = message.rpartition("convert with ")[2]
    assert flags == "--drop 'my id' --category day --drop size"
    done = in_process("convert", source, str(tmp_path / "d"), *shlex.split(flags))
    assert done.exit_code == 0, done.output
    done = in_process("convert", source, str(tmp_path / "e"), *shlex.split(flags)[:4], "--missing", "?")
    assert done.exit_code == 0, done.output
