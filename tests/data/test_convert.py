"""Converting: every source gives its rows back, the same bytes from the same seed, or one sentence and nothing else."""

import gzip
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import CITIES, DIGITS, IMAGES, N, W, X, Y, attrs, convert, everything, idx, table

from ntkdist.data import sources

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


# every source


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_keeps_rows_and_types(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", x=X, y=Y)
    layout = convert(str(tmp_path / "a.npz"), str(tmp_path / "d"), rows_per_partition=None)
    found = everything(tmp_path / "d")
    assert (found["x"] == X).all()
    assert (found["y"] == Y).all()
    assert (layout.x_dtype, str(found["y"].dtype), layout.rows, layout.targets) == ("float32", "float64", N, 0)
    assert 20 <= layout.partitions <= N


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (X.astype(">f8"), X.astype(np.float64)),
        (np.asfortranarray(X), X),
        (np.asfortranarray(IMAGES), IMAGES[..., None]),
        (IMAGES[..., None].repeat(3, 3), IMAGES[..., None].repeat(3, 3)),
        (X[:, 0], X[:, :1]),
        (X > 0, (X > 0).astype(np.uint8)),
        (DIGITS.astype(np.int16)[:, None], DIGITS.astype(np.int16)[:, None]),
    ],
    ids=["big-endian", "columns-first", "columns-first-images", "colour", "one-dimensional", "bool", "int16"],
)
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_array_layouts(tmp_path: Path, x: np.ndarray, expected: np.ndarray, suffix: str) -> None:
    source = tmp_path / f"a.{suffix}"
    np.savez(source, x=x) if suffix == "npz" else np.save(source, x)
    layout = convert(str(source), str(tmp_path / "d"))
    found = everything(tmp_path / "d")["x"]
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert (found == expected).all()
    assert not layout.labelled


@pytest.mark.parametrize(
    ("y", "expected", "targets"),
    [
        (DIGITS, DIGITS.astype(np.float64), 0),
        (X[:, 0], X[:, 0], 0),
        (X[:, :2], X[:, :2], 2),
        (DIGITS[:, None], DIGITS[:, None].astype(np.float64), 1),
    ],
    ids=["integers", "float32", "two", "one-column"],
)
def test_regression_targets(tmp_path: Path, y: np.ndarray, expected: np.ndarray, targets: int) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=y)
    layout = convert(str(tmp_path / "a.npz"), str(tmp_path / "d"))
    found = everything(tmp_path / "d")["y"]
    assert (found.dtype, layout.targets, layout.classes) == (expected.dtype, targets, ())
    assert (found == expected).all()


def test_npz_names_and_weights(npz: Path, tmp_path: Path) -> None:
    layout = convert(str(npz), str(tmp_path / "d"), x="images", target=["digits"], classes=True, weight="w")
    found = everything(tmp_path / "d")
    assert (found["x"] == IMAGES[..., None]).all()
    assert (found["weight"] == W).all()
    assert layout.input_shape == (5, 4, 1)
    assert layout.classes == tuple("0123456789")
    assert found["y"].dtype == np.uint8
    assert (found["y"] == DIGITS).all()


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_by_its_first_bytes(tmp_path: Path, zipped: bool) -> None:
    x, y = idx(tmp_path / "images-ubyte", IMAGES), idx(tmp_path / "labels-ubyte", DIGITS)
    if zipped:
        for path in (x, y):
            path.write_bytes(gzip.compress(path.read_bytes()))
    convert(str(x), str(tmp_path / "d"), target=[str(y)], classes=True)
    found = everything(tmp_path / "d")
    assert (found["x"] == IMAGES[..., None]).all()
    assert (found["y"] == DIGITS).all()
    hashes = attrs(tmp_path / "d")["source"]
    assert hashes["target"] == {"name": y.name, "sha256": hashlib.sha256(y.read_bytes()).hexdigest()}


def test_idx_of_floats(tmp_path: Path) -> None:
    convert(str(idx(tmp_path / "a.idx", X.astype(">f4"))), str(tmp_path / "d"))
    found = everything(tmp_path / "d")["x"]
    assert found.dtype == np.float32
    assert (found == X).all()


def test_npy_with_files_of_targets_and_weights(tmp_path: Path) -> None:
    named: dict[str, np.ndarray] = {"x": X, "y": Y, "w": W}
    for name, array in named.items():
        np.save(tmp_path / f"{name}.npy", array)
    convert(
        str(tmp_path / "x.npy"), str(tmp_path / "d"), target=[str(tmp_path / "y.npy")], weight=str(tmp_path / "w.npy")
    )
    found = everything(tmp_path / "d")
    assert all((found[k] == v).all() for k, v in {"x": X, "y": Y, "weight": W}.items())


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    columns = {"a": X[:, 0].tolist(), "city": CITIES.tolist(), "n": DIGITS.tolist(), "t": Y.tolist(), "u": Y.tolist()}
    columns |= {"w": W.tolist(), "flag": (Y > 0).tolist(), "id": [f"id{i}" for i in range(N)]}
    source = table(tmp_path / f"a.{suffix}", columns)
    layout = convert(str(source), str(tmp_path / "d"), target=["t", "u"], weight="w", drop=["id"])
    found = everything(tmp_path / "d")
    codes = np.unique(CITIES, return_inverse=True)[1]
    assert layout.columns == ("a", "city", "n", "flag")
    assert layout.categories == (("city", ("Bern", "Oslo", "Rome")),)
    assert layout.kinds == ("number", "category", "number", "number")
    assert layout.target_names == ("t", "u")
    assert layout.x_dtype == "float64"
    np.testing.assert_array_equal(found["x"], np.stack([X[:, 0], codes, DIGITS, Y > 0], axis=1))
    np.testing.assert_array_equal(found["y"], np.stack([Y, Y], axis=1))
    np.testing.assert_array_equal(found["weight"], W)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_missing_values_of_tables(tmp_path: Path, suffix: str) -> None:
    columns = {"a": [1.5, None, 3.0], "c": ["p", None, "q"], "t": [1.0, 2.0, None]}
    layout = convert(str(table(tmp_path / f"a.{suffix}", columns)), str(tmp_path / "d"), target=["t"])
    found = everything(tmp_path / "d")
    assert (layout.columns, layout.missing) == (("a", "c"), ("a",))
    assert layout.categories == (("c", ("", "p", "q")),)
    np.testing.assert_array_equal(found["x"], [[1.5, 1], [np.nan, 0], [3, 2]])
    np.testing.assert_array_equal(found["y"], [1, 2, np.nan])


def test_dictionary_columns_are_categories(tmp_path: Path) -> None:
    columns = {"a": Y, "c": pa.array(CITIES.tolist()).dictionary_encode()}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    layout = convert(str(tmp_path / "a.parquet"), str(tmp_path / "d"))
    assert layout.categories == (("c", ("Bern", "Oslo", "Rome")),)
    assert (everything(tmp_path / "d")["x"][:, 1] == np.unique(CITIES, return_inverse=True)[1]).all()


@pytest.mark.parametrize("block", [64, 400, 16 * 2**20])
def test_type_of_a_text_column_is_decided_by_all_its_rows(tmp_path: Path, block: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    columns = {"i": range(N), "f": [*range(N - 1), 0.5], "s": [*[1, 2] * 68, "x"], "late": [None] * (N - 1) + [3]}
    layout = convert(str(table(tmp_path / "a.csv", columns)), str(tmp_path / "d"))
    assert layout.columns == ("i", "f", "s", "late")
    assert layout.categories == (("s", ("1", "2", "x")),)
    assert everything(tmp_path / "d")["x"][-1].tolist() == [N - 1, 0.5, 2, 3]


# categories and dates

DAYS = [datetime(2024, 2, 29, tzinfo=UTC) + timedelta(hours=7 * i, microseconds=i) for i in range(N)]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_dates_are_seconds_since_1970(tmp_path: Path, suffix: str) -> None:
    days: list[Any] = [None, *(d.date() for d in DAYS[1:])]
    written = [d.isoformat() if suffix == "csv" else d for d in DAYS]
    naive = [d.replace(tzinfo=None) for d in DAYS]
    plain = [str(d) for d in naive] if suffix == "csv" else naive
    source = table(tmp_path / f"a.{suffix}", {"day": days, "zoned": written, "at": plain, "t": Y.tolist()})
    layout = convert(str(source), str(tmp_path / "d"), target=["t"])
    x = everything(tmp_path / "d")["x"]
    seconds = np.array([d.timestamp() for d in DAYS])
    assert (layout.columns, layout.dates, layout.missing) == (("day", "zoned", "at"), ("day", "zoned", "at"), ("day",))
    np.testing.assert_array_equal(x[:, 0], [np.nan, *(86400 * (seconds[1:] // 86400))])
    np.testing.assert_allclose(x[:, 1:], np.stack([seconds, seconds], axis=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("block", [64, 16 * 2**20])
def test_offsets_of_dates_may_differ_by_row(tmp_path: Path, block: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    days = ["2024-01-01T00:00", "2024-01-01T02:00:00+02:00", "2023-12-31 23:00-01:00", "2024-01-01"]
    convert(str(table(tmp_path / "a.csv", {"day": days})), str(tmp_path / "d"))
    assert everything(tmp_path / "d")["x"][:, 0].tolist() == [1704067200.0] * 4


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_integers_are_categories_if_named(tmp_path: Path, suffix: str) -> None:
    columns = {"shop": [12, None, 3, 12], "a": [1, 2, 3, 4]}
    layout = convert(str(table(tmp_path / f"a.{suffix}", columns)), str(tmp_path / "d"), category="shop")
    assert layout.categories == (("shop", ("", "12", "3")),)
    np.testing.assert_array_equal(everything(tmp_path / "d")["x"], [[1, 1], [0, 2], [2, 3], [1, 4]])


def test_tables_of_numbers_are_written_as_before(tmp_path: Path) -> None:
    """Nothing of categories or dates is in their attributes, so that fingerprints stay."""
    convert(str(table(tmp_path / "a.csv", {"a": Y.tolist(), "t": Y.tolist()})), str(tmp_path / "d"), target=["t"])
    assert not attrs(tmp_path / "d").keys() & {"categories", "dates", "missing"}


def test_categories_and_dates_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    found = set()
    for i, city in enumerate((["p", "q"], ["p", "r"], ["2024-01-01", "1970-01-01"])):
        source = table(tmp_path / f"{i}.csv", {"c": city})
        found.add(convert(str(source), str(tmp_path / f"{i}"), shuffle_seed=None).fingerprint)
    assert len(found) == 3


# classes


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        (CITIES, False, ("Bern", "Oslo", "Rome")),
        (CITIES.astype("S"), False, ("Bern", "Oslo", "Rome")),
        (DIGITS.astype(np.int64) - 5, True, tuple(str(i) for i in range(-5, 5))),
        (DIGITS.astype(np.float32) * 5, True, tuple(str(5 * i) for i in range(10))),
        (Y > 0, False, ("False", "True")),
        (CITIES[:, None], False, ("Bern", "Oslo", "Rome")),
    ],
    ids=["strings", "bytes", "integers", "whole-floats", "bools", "column"],
)
def test_class_codes_of_arrays(tmp_path: Path, labels: np.ndarray, classes: bool, names: tuple[str, ...]) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=labels)
    layout = convert(str(tmp_path / "a.npz"), str(tmp_path / "d"), classes=classes)
    codes = everything(tmp_path / "d")["y"]
    assert layout.classes == names
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(codes, np.unique(labels.ravel(), return_inverse=True)[1])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        (CITIES.tolist(), False, ("Bern", "Oslo", "Rome")),
        ((DIGITS.astype(int) * 5).tolist(), True, tuple(str(5 * i) for i in range(10))),
        ((DIGITS * 5.0).tolist(), True, tuple(str(5 * i) for i in range(10))),
        ((Y > 0).tolist(), False, ("False", "True")),
    ],
    ids=["strings", "integers", "whole-floats", "bools"],
)
def test_class_codes_of_tables(tmp_path: Path, suffix: str, labels: Any, classes: bool, names: Any) -> None:
    source = table(tmp_path / f"a.{suffix}", {"a": Y.tolist(), "label": labels})
    layout = convert(str(source), str(tmp_path / "d"), target=["label"], classes=classes)
    assert layout.classes == names
    np.testing.assert_array_equal(everything(tmp_path / "d")["y"], np.unique(labels, return_inverse=True)[1])


def test_many_classes_get_wider_codes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((300, 1)), y=np.arange(300))
    assert len(convert(str(tmp_path / "a.npz"), str(tmp_path / "d"), classes=True).classes) == 300
    assert everything(tmp_path / "d")["y"].dtype == np.uint16
