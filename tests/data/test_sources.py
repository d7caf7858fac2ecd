"""Tables as they come: files of every kind, directories, patterns, frames, groups of others."""

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import zarr
from converted import IMAGES, N, X, Y, attrs, convert, everything
from numpy.typing import NDArray
from pyarrow import feather, parquet

from ntkdist.data import sources
from ntkdist.data.dataset import Layout
from ntkdist.errors import DataError


def frame(n: int = N, seed: int = 0) -> pd.DataFrame:
    """Rows with numbers, names, dates, times of a day, and gaps."""
    rng = np.random.default_rng(seed)
    at = datetime.datetime(2024, 2, 29, 7, 30)
    table = pd.DataFrame({"a": rng.normal(size=n).round(3), "city": rng.choice(["Rome", "Oslo", "Bern"], n)})
    table["day"] = pd.Series([at + datetime.timedelta(hours=5 * i) for i in range(n)]).astype("datetime64[us]")
    table["open"] = [datetime.time(i % 24, i % 60, 7) for i in range(n)]
    table["n"] = rng.integers(0, 9, n)
    table["t"] = rng.normal(size=n).round(3)
    table.loc[[3, 70], "a"] = np.nan
    table.loc[5, "city"] = None
    return table


def as_json(table: pd.DataFrame) -> bytes:
    rows = (
        {k: None if pd.isna(v) else str(v) if k in ("day", "open") else v for k, v in row.items()}
        for row in table.to_dict("records")
    )
    return "\n".join(map(json.dumps, rows)).encode() + b"\n"


def write(table: pd.DataFrame, path: Path) -> Path:
    """Write a table by the ending of a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    match path.name.partition(".")[2]:
        case "csv":
            table.to_csv(path, index=False)
        case "tsv":
            table.to_csv(path, index=False, sep="\t")
        case "jsonl":
            path.write_bytes(as_json(table))
        case "ndjson.gz":
            path.write_bytes(gzip.compress(as_json(table)))
        case "feather":
            feather.write_feather(arrow, path, chunksize=50)
        case "arrow":
            with pa.ipc.new_stream(path, arrow.schema) as file:
                file.write_table(arrow, max_chunksize=40)
        case "parquet":
            parquet.write_table(arrow, path, row_group_size=50)
    return path


def result(source: Any, dest: Path, **options: Any) -> tuple[Layout, dict[str, NDArray[Any]]]:
    layout = convert(source, str(dest), target=["t"], **options)
    return layout, everything(dest)


def assert_same(found: Any, expected: Any) -> None:
    """Compare layouts and all arrays."""
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    for name, values in expected[1].items():
        np.testing.assert_array_equal(found[1][name], values)


@pytest.fixture
def expected(tmp_path: Path) -> Any:
    """Return the layout and the arrays of the frame as csv."""
    return result(str(write(frame(), tmp_path / "expected.csv")), tmp_path / "expected")


# files


@pytest.mark.parametrize("block", [400, 16 * 2**20])
@pytest.mark.parametrize("suffix", ["tsv", "jsonl", "ndjson.gz", "feather", "arrow", "parquet"])
def test_every_kind_of_file_gives_the_dataset_of_its_csv(
    expected: Any, tmp_path: Path, suffix: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    assert_same(result(str(write(frame(), tmp_path / f"a.{suffix}")), tmp_path / "d"), expected)


def test_what_columns_become(expected: Any) -> None:
    table, (layout, arrays) = frame(), expected
    assert layout.columns == ("a", "city", "day", "open", "n")
    assert layout.kinds == ("number", "category", "date", "number", "number")
    assert layout.missing == ("a",)
    seconds = [3600 * t.hour + 60 * t.minute + t.second for t in table["open"]]
    np.testing.assert_array_equal(arrays["x"][:, 3], seconds)
    np.testing.assert_array_equal(arrays["x"][:, 0], table["a"])


@pytest.mark.parametrize(
    ("type", "values"),
    [
        (pa.time32("s"), [datetime.time(13, 45), None]),
        (pa.time64("ns"), [datetime.time(13, 45), None]),
        (pa.duration("ms"), [datetime.timedelta(hours=13, minutes=45), None]),
        (pa.string(), ["13:45", None]),
    ],
)
def test_times_and_durations_are_seconds(tmp_path: Path, type: Any, values: list[Any]) -> None:
    name = "a.csv" if type == pa.string() else "a.parquet"
    if name == "a.csv":
        (tmp_path / name).write_text("at,b\n13:45,1\n,2\n")
    else:
        parquet.write_table(pa.table({"at": pa.array(values, type), "b": [1, 2]}), tmp_path / name)
    convert(str(tmp_path / name), str(tmp_path / "d"))
    np.testing.assert_array_equal(everything(tmp_path / "d")["x"][:, 0], [49500, np.nan])


def test_the_way_that_csv_is_written(expected: Any, tmp_path: Path) -> None:
    """Semicolons, decimal commas, another encoding, texts for missing values, and no names: the same rows."""
    table = frame().replace({"Rome": "Zürich"})
    there = str(write(table, tmp_path / "there.csv"))
    expected = result(there, tmp_path / "there")
    written = table.to_csv(index=False, sep=";", decimal=",", na_rep="?").replace(";?;", "; ? ;")
    (tmp_path / "a.txt").write_bytes(written.encode("latin-1"))
    way = {"sep": ";", "decimal": ",", "encoding": "latin-1", "missing": "?"}
    assert_same(result(str(tmp_path / "a.txt"), tmp_path / "d", **way), expected)
    (tmp_path / "b.csv").write_bytes(written.partition("\n")[2].encode("latin-1"))
    way |= {"header": False, "sep": ""}
    layout = convert(str(tmp_path / "b.csv"), str(tmp_path / "e"), target=["column_6"], **way)
    assert layout.columns == tuple(f"column_{i}" for i in range(1, 6))
    found = everything(tmp_path / "e")
    assert all(np.array_equal(found[k], v, equal_nan=True) for k, v in expected[1].items())


def test_texts_of_missing_values_also_of_typed_tables(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"c": ["p", "?", "q"], "b": [1, 2, 3]}), tmp_path / "a.parquet")
    layout = convert(str(tmp_path / "a.parquet"), str(tmp_path / "d"), missing=["?"])
    assert layout.categories == (("c", ("", "p", "q")),)


def test_strings_of_json_stay_strings_unless_they_are_dates(tmp_path: Path) -> None:
    """And fields may be absent, and numbers become fractions later."""
    rows = [{"zip": "012", "d": "2024-01-01", "i": 1, "e": None}, {"zip": "12", "d": "2024-01-02T01:00Z", "i": 2.5}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    layout = convert(str(tmp_path / "a.jsonl"), str(tmp_path / "d"))
    assert (layout.columns, layout.kinds) == (("zip", "d", "i", "e"), ("category", "date", "number", "number"))
    np.testing.assert_array_equal(
        everything(tmp_path / "d")["x"], [[0, 1704067200, 1, np.nan], [1, 1704157200, 2.5, np.nan]]
    )


# directories and patterns


def test_a_directory_is_its_tables_in_the_order_of_their_names(expected: Any, tmp_path: Path) -> None:
    table = frame()
    for i, name in enumerate(("a", "b", "c/d")):
        write(table.iloc[50 * i : 50 * (i + 1)], tmp_path / f"many/{name}.parquet")
    for name in ("many/_SUCCESS", "many/.hidden.parquet", "many/notes.txt"):
        (tmp_path / name).write_text("no table")
    options: Any
    for i, (source, options) in enumerate(
        [
            (str(tmp_path / "many"), {}),
            (str(tmp_path / "many" / "**" / "*.parquet"), {}),
            ((tmp_path / "many").as_uri(), {}),
            (tmp_path / "m*", {}),
        ]
    ):
        assert_same(result(source, tmp_path / f"d{i}", **options), expected)
    recorded = attrs(tmp_path / "d0")["source"]
    assert (recorded["name"], recorded["files"], recorded["rows"]) == ("many", 3, N)
    layout, _ = result(str(tmp_path / "many" / "*.parquet"), tmp_path / "two")
    assert layout.rows == 100


def test_csvs_may_have_their_columns_in_any_order(expected: Any, tmp_path: Path) -> None:
    """Also types are decided over all files."""
    table = frame()
    write(table.iloc[:60], tmp_path / "many/0.csv")
    write(table.iloc[60:, ::-1], tmp_path / "many/1.csv")
    assert_same(result(str(tmp_path / "many"), tmp_path / "d"), expected)


def test_files_may_differ_in_what_their_gaps_made_of_types(tmp_path: Path) -> None:
    """Integers beside floats and nothing, names beside dictionaries and nothing."""
    for i, (number, name) in enumerate(
        [
            (pa.array([1, 2]), pa.array(["p", "q"]).dictionary_encode()),
            (pa.array([0.5, None]), pa.array(["p", None])),
            (pa.array([None, None]), pa.array([None, None])),
        ]
    ):
        (tmp_path / "m").mkdir(exist_ok=True)
        parquet.write_table(pa.table({"n": number, "c": name}), tmp_path / f"m/{i}.parquet")
    layout = convert(str(tmp_path / "m"), str(tmp_path / "d"))
    assert layout.categories == (("c", ("", "p", "q")),)
    found = everything(tmp_path / "d")["x"]
    np.testing.assert_array_equal(found.T, [[1, 2, 0.5, np.nan, np.nan, np.nan], [1, 2, 1, 0, 0, 0]])


def test_hive_partitions_are_columns(tmp_path: Path) -> None:
    table = frame().assign(year=np.arange(N) % 3 + 2020, shop=np.where(np.arange(N) % 2, "a b", None))
    for (year, shop), rows in table.groupby(["year", "shop"], dropna=False):
        folder = f"year={year}/shop={'a%20b' if shop == 'a b' else '__HIVE_DEFAULT_PARTITION__'}"
        write(rows.drop(columns=["year", "shop"]), tmp_path / "hive" / folder / "0.parquet")
    layout, arrays = result(str(tmp_path / "hive"), tmp_path / "d")
    assert layout.columns == ("a", "city", "day", "open", "n", "year", "shop")
    assert layout.categories[1] == ("shop", ("", "a b"))
    order = np.lexsort((np.arange(N), table["shop"].notna(), table["year"]))  # _ stands before a
    np.testing.assert_array_equal(arrays["x"][:, 5], table["year"].to_numpy()[order])
    np.testing.assert_array_equal(arrays["x"][:, 6], table["shop"].notna().to_numpy()[order])
    np.testing.assert_array_equal(arrays["y"], table["t"].to_numpy()[order])


def test_partitions_above_a_pattern_count_and_folders_above_them_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for year in (2020, 2021):
        write(frame(80), tmp_path / f"run=3/t/year={year}/a.csv")
    monkeypatch.chdir(tmp_path / "run=3/t")
    sources_and_rows = [(str(tmp_path / "run=3/t"), 160), ("year=*/*", 160), (".", 160), ("year=2021/*.csv", 80)]
    for i, (source, rows) in enumerate(sources_and_rows):
        layout = convert(source, str(tmp_path / f"d{i}"))
        assert (layout.rows, layout.columns[-2:]) == (rows, ("t", "year"))


def test_many_texts_of_other_names(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("a|b\n1|2\n")
    assert convert(str(tmp_path / "*.txt"), str(tmp_path / "d"), sep="|").rows == 2


DIFFERENT = {
    "columns": ({"0.csv": "a,b\n1,2\n", "1.csv": "a,c\n1,2\n"}, "1.csv has no column 'b', which 0.csv has"),
    "more columns": ({"0.csv": "a\n1\n", "1.csv": "a,c\n1,2\n"}, "0.csv has no column 'c', which 1.csv has"),
    "kinds": ({"0.csv": "a\n1\n", "1.tsv": "a\n1\n"}, "m holds .csv and .tsv files; convert those of one kind"),
    "types": ({"0.jsonl": '{"a": 1}', "1.jsonl": '{"a": "p"}'}, "column 'a' of 1.jsonl is string, but int64 in files"),
    "none": ({"a.txt": "a\n1\n"}, "m: no tables there; expected files that end in .csv"),
}


@pytest.mark.parametrize(("files", "sentence"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_files_that_are_not_of_one_table(tmp_path: Path, files: dict[str, str], sentence: str) -> None:
    (tmp_path / "m").mkdir()
    for name, content in files.items():
        (tmp_path / "m" / name).write_text(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=sentence):
        convert(str(tmp_path / "m"), str(tmp_path / "d"))
    assert sorted(tmp_path.rglob("*")) == before


# frames


@pytest.mark.parametrize("kind", ["dask", "pandas", "polars", "arrow"])
def test_frames(expected: Any, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings, categories, dates and times too; the index is left out.  Dask by default makes strings of times."""
    monkeypatch.setitem(dask.config.config["dataframe"], "convert-string", False)
    table = frame().astype({"city": "category"})
    made = {
        "dask": lambda: dd.from_pandas(table, npartitions=7),
        "pandas": lambda: table.set_index(np.arange(N) * 3),
        "polars": lambda: pl.from_pandas(table),
        "arrow": lambda: pa.Table.from_pandas(table, preserve_index=False),
    }
    assert_same(result(made[kind](), tmp_path / "d"), expected)


def test_a_dask_frame_is_computed_once_a_partition_and_never_asked_for_its_length(tmp_path: Path) -> None:
    """Also of partitions without rows, or whose column holds nothing."""
    table, loads = frame(), []

    def load(i: int) -> pd.DataFrame:
        loads.append(i)
        rows = table.iloc[40 * i : 40 * (i + 1)]
        return rows.assign(city=None).astype({"city": object}) if i == 2 else rows

    lazy = dd.from_map(load, range(5), meta=table.iloc[:0])
    layout, arrays = result(lazy, tmp_path / "d")
    assert loads == [0, 1, 2, 3, 4]
    assert layout.rows == N
    np.testing.assert_array_equal(arrays["y"], table["t"])


def test_what_is_no_frame(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the source is of type ndarray; expected a path, a URL, or a frame"):
        convert(X, str(tmp_path / "d"))  # type: ignore[arg-type]
    mixed = pd.DataFrame({"a": [1, "p"]})
    with pytest.raises(DataError, match=r"the frame cannot be written as a table .* give each column one type"):
        convert(mixed, str(tmp_path / "d"))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# groups of others


@pytest.mark.parametrize("chunk", [1, 30, 50, N])
@pytest.mark.parametrize("version", [2, 3])
def test_zarr_groups_of_others(tmp_path: Path, version: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 50 * (X[0].nbytes + Y[0].nbytes))
    group = zarr.open_group(tmp_path / "z", mode="w", zarr_format=version)
    for name, values in {"x": X, "y": Y, "pixels": IMAGES}.items():
        group.create_array(name, data=values, chunks=(chunk, *values.shape[1:]))
    convert(str(tmp_path / "z"), str(tmp_path / "d"))
    found = everything(tmp_path / "d")
    assert found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"], X)
    np.testing.assert_array_equal(found["y"], Y)
    layout = convert(str(tmp_path / "z"), str(tmp_path / "e"), x="pixels", target="y")
    assert layout.input_shape == (5, 4, 1)


def test_labels_of_zarr_may_be_strings_and_chunks_never_written(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "z", mode="w")
    group.create_array("x", shape=(4, 2), chunks=(2, 2), dtype="f8", fill_value=7)[:2] = 1
    group.create_array("y", shape=(4,), dtype="string")[:] = np.array(["p", "qq", "p", "qq"])
    layout = convert(str(tmp_path / "z"), str(tmp_path / "d"))
    found = everything(tmp_path / "d")
    assert layout.classes == ("p", "qq")
    assert found["x"].tolist() == [[1, 1], [1, 1], [7, 7], [7, 7]]
    assert found["y"].tolist() == [0, 1, 0, 1]


def test_groups_that_cannot_be_converted(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "z", mode="w")
    group["images"] = X
    with pytest.raises(DataError, match=r"z has no array 'x' \(named by --x\)"):
        convert(str(tmp_path / "z"), str(tmp_path / "d"))
    convert(str(tmp_path / "z"), str(tmp_path / "d"), x="images")
    with pytest.raises(DataError, match=r"d is a group of kind ntkdist.dataset already; use it as it is"):
        convert(str(tmp_path / "d"), str(tmp_path / "e"))
    zarr.save_array(tmp_path / "a", X)
    with pytest.raises(DataError, match="a: no Zarr group can be opened there"):
        convert(str(tmp_path / "a"), str(tmp_path / "e"))


# images


def test_channels_first(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 9), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    layout = convert(str(tmp_path / "a.npy"), str(tmp_path / "d"), channels_first=True)
    assert layout.input_shape == (8, 9, 3)
    np.testing.assert_array_equal(everything(tmp_path / "d")["x"], images.transpose(0, 2, 3, 1))
    np.save(tmp_path / "b.npy", X)
    with pytest.raises(ValueError, match="--channels-first is for"):
        convert(str(tmp_path / "b.npy"), str(tmp_path / "e"), channels_first=True)
