"""Converting: every source gives its rows back, the same bytes from the same seed, or one sentence and nothing else."""

import csv
import datetime
import gzip
import hashlib
import importlib
import json
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ntkdist import groups, sources
from ntkdist.data import Dataset, Layout
from ntkdist.errors import DataError, NtkdistError, SpecError, StoreError
from ntkdist.sources.npy import IDX_TYPES

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

convert_module: Any = importlib.import_module("ntkdist.convert")  # the package's own `convert` is the function
N = 137
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N, 3)).astype(np.float32)
Y = RNG.normal(size=N)
W = RNG.uniform(size=N)
IMAGES = RNG.integers(0, 256, (N, 5, 4), dtype=np.uint8)
DIGITS = RNG.integers(0, 10, N, dtype=np.uint8)
CITIES = np.array(["Rome", "Oslo", "Bern"])[RNG.integers(0, 3, N)]


def convert(source: str, dest: str, **options: Any) -> Layout:
    """With few partitions, unless asked otherwise: files are what takes the time here."""
    layout: Layout = convert_module.convert(source, dest, **{"rows_per_partition": 50, **options})
    return layout


def everything(dest: Path) -> dict[str, np.ndarray]:
    """All arrays of a dataset, in the order of the source."""
    dataset = Dataset(str(dest))
    layout = dataset.layout(labelled=False)
    names = [p.parent.name for p in dest.glob("*/zarr.json")]
    arrays = {n: dataset.column(layout, n, 0, layout.rows) for n in names}
    order = np.argsort(arrays["row"])
    assert arrays["row"][order].tolist() == list(range(layout.rows))
    return {n: a[order] for n, a in arrays.items()}


def attrs(dest: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((dest / "zarr.json").read_text())["attributes"]
    return found


def fingerprint(dest: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(p for p in dest.rglob("*") if p.is_file()):
        found.update(str(path.relative_to(dest)).encode() + path.read_bytes())
    return found.hexdigest()


def idx(path: Path, array: np.ndarray) -> Path:
    code = next(k for k, v in IDX_TYPES.items() if np.dtype(v) == array.dtype)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes())
    return path


def table(path: Path, columns: dict[str, Any]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pa.table({k: pa.array(list(v)) for k, v in columns.items()}), path, row_group_size=50)
        return path
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        csv.writer(file).writerow(columns)
        csv.writer(file).writerows(zip(*columns.values(), strict=True))
    return path


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "a.npz", x=X, y=Y, w=W, images=IMAGES, digits=DIGITS, cities=CITIES, flags=Y > 0)
    return tmp_path / "a.npz"


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
    names = ("a", "city=Bern", "city=Oslo", "city=Rome", "n", "flag")
    one_hot = (CITIES[:, None] == ["Bern", "Oslo", "Rome"]).T
    assert layout.columns == names
    assert layout.target_names == ("t", "u")
    assert layout.x_dtype == "float64"
    np.testing.assert_array_equal(found["x"], np.stack([X[:, 0], *one_hot, DIGITS, Y > 0], axis=1))
    np.testing.assert_array_equal(found["y"], np.stack([Y, Y], axis=1))
    np.testing.assert_array_equal(found["weight"], W)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_missing_values_of_tables(tmp_path: Path, suffix: str) -> None:
    columns = {"a": [1.5, None, 3.0], "c": ["p", None, "q"], "t": [1.0, 2.0, None]}
    layout = convert(str(table(tmp_path / f"a.{suffix}", columns)), str(tmp_path / "d"), target=["t"])
    found = everything(tmp_path / "d")
    assert layout.columns == ("a", "c=", "c=p", "c=q")
    np.testing.assert_array_equal(found["x"], [[1.5, 0, 1, 0], [np.nan, 1, 0, 0], [3, 0, 0, 1]])
    np.testing.assert_array_equal(found["y"], [1, 2, np.nan])


def test_dictionary_columns_are_categories(tmp_path: Path) -> None:
    columns = {"a": Y, "c": pa.array(CITIES.tolist()).dictionary_encode()}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    layout = convert(str(tmp_path / "a.parquet"), str(tmp_path / "d"))
    assert layout.columns == ("a", "c=Bern", "c=Oslo", "c=Rome")
    assert (everything(tmp_path / "d")["x"][:, 1:].argmax(1) == np.unique(CITIES, return_inverse=True)[1]).all()


@pytest.mark.parametrize("block", [64, 400, 16 * 2**20])
def test_type_of_a_text_column_is_decided_by_all_its_rows(tmp_path: Path, block: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
    columns = {"i": range(N), "f": [*range(N - 1), 0.5], "s": [*[1, 2] * 68, "x"], "late": [None] * (N - 1) + [3]}
    layout = convert(str(table(tmp_path / "a.csv", columns)), str(tmp_path / "d"))
    assert layout.columns == ("i", "f", "s=1", "s=2", "s=x", "late")
    assert everything(tmp_path / "d")["x"][-1].tolist() == [N - 1, 0.5, 0, 0, 1, 3]


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


# the shuffle


def rows_of(dest: Path) -> list[int]:
    rows: list[int] = Dataset(str(dest)).column(Dataset(str(dest)).layout(), "row", 0, N).tolist()
    return rows


@pytest.fixture
def many_buckets(monkeypatch: Any) -> None:
    monkeypatch.setattr(convert_module, "BUCKET_BYTES", 500)
    monkeypatch.setattr(convert_module, "DRAW_ROWS", 16)


@pytest.mark.usefixtures("many_buckets")
def test_same_seed_same_bytes_another_seed_another_order(npz: Path, tmp_path: Path) -> None:
    for name, seed in {"a": 3, "b": 3, "c": 4, "d": None}.items():
        convert(str(npz), str(tmp_path / name), shuffle_seed=seed)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert rows_of(tmp_path / "a") != rows_of(tmp_path / "c") != sorted(rows_of(tmp_path / "c"))
    assert rows_of(tmp_path / "d") == list(range(N))
    assert [attrs(tmp_path / n)["shuffle_seed"] for n in "abcd"] == [3, 3, 4, None]


@pytest.mark.usefixtures("many_buckets")
@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("suffix", ["npz", "columns-first.npz", "csv", "parquet"])
def test_blocks_of_the_source_do_not_matter(tmp_path: Path, suffix: str, seed: int | None, monkeypatch: Any) -> None:
    source = tmp_path / f"a.{suffix}"
    if suffix.endswith("npz"):
        np.savez(source, x=np.asfortranarray(X) if "first" in suffix else X, y=CITIES)
    else:
        table(source, {"a": X[:, 0].tolist(), "c": CITIES.tolist(), "y": CITIES.tolist()})
    found = set()
    for i, block in enumerate((1, 100, 777, 16 * 2**20)):
        monkeypatch.setattr(sources, "BLOCK_BYTES", max(block, 100) if suffix == "csv" else block)
        convert(str(source), str(tmp_path / f"d{i}"), target=["y"], shuffle_seed=seed)
        found.add(fingerprint(tmp_path / f"d{i}"))
    assert len(found) == 1


def test_bucket_of_a_row_depends_on_its_number_only() -> None:
    whole = convert_module._bucket_of(0, 200_000, 7, 200_000, 1)
    parts = [convert_module._bucket_of(a, min(a + 30_011, 200_000), 7, 200_000, 1) for a in range(0, 200_000, 30_011)]
    assert (np.concatenate(parts) == whole).all()
    assert np.abs(np.bincount(whole) * 7 / 200_000 - 1).max() < 0.03


def test_shuffle_is_uniform(tmp_path: Path, monkeypatch: Any) -> None:
    """Over seeds, a row is as likely in one quarter of the dataset as in another."""
    monkeypatch.setattr(convert_module, "BUCKET_BYTES", 200)
    np.save(tmp_path / "a.npy", np.arange(16.0))
    counts = np.zeros((16, 4))
    for seed in range(40):
        dest = tmp_path / f"d{seed}"
        convert(str(tmp_path / "a.npy"), str(dest), shuffle_seed=seed, rows_per_partition=16)
        dataset = Dataset(str(dest))
        row = dataset.column(dataset.layout(labelled=False), "row", 0, 16)
        counts[row, np.arange(16) // 4] += 1
    assert ((counts - 10) ** 2 / 10).sum() < 90  # chi-squared with 45 degrees of freedom: 90 has probability 1e-4


# what is written


def test_attributes(npz: Path, tmp_path: Path) -> None:
    convert(str(npz), str(tmp_path / "d"))
    found = attrs(tmp_path / "d")
    digest = hashlib.sha256(npz.read_bytes()).hexdigest()
    assert found["source"] == {"name": "a.npz", "rows": N, "sha256": digest}
    assert found["complete"] is True
    assert found["classes"] == found["columns"] == found["target_names"] == []
    assert isinstance(found["ntkdist"], str)


def test_rows_per_partition(npz: Path, tmp_path: Path) -> None:
    layout = convert(str(npz), str(tmp_path / "d"))
    assert (layout.rows_per_partition, layout.partitions) == (50, 3)
    assert sorted(p.name for p in (tmp_path / "d" / "y" / "c").iterdir()) == ["0", "1", "2"]


def test_zeros_are_written(tmp_path: Path) -> None:
    """Three partitions of two chunks each: every shard file is there and its index has both chunks."""
    np.savez(tmp_path / "a.npz", x=np.zeros((48, 700_000), np.uint8), y=np.zeros(48))
    layout = convert(str(tmp_path / "a.npz"), str(tmp_path / "d"), rows_per_partition=16)
    assert layout.rows_per_partition == 16
    for name, chunks in {"x": 2, "y": 1, "row": 1}.items():
        files = sorted(p for p in (tmp_path / "d" / name / "c").rglob("*") if p.is_file())
        assert len(files) == 3
        for path in files:
            index = np.frombuffer(path.read_bytes()[-16 * chunks - 4 : -4], np.uint64)
            assert (index < 2**32).all()  # a chunk that is absent has 2**64 - 1


def test_accepts_urls_and_makes_parents(npz: Path, tmp_path: Path) -> None:
    assert convert(npz.as_uri(), str(tmp_path / "new" / "deep" / "d")).rows == N


# what goes wrong

Make = Any


def text(content: str, name: str = "a.csv") -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return make


def arrays(**named: Any) -> Make:
    def make(folder: Path) -> Path:
        np.savez(folder / "a.npz", allow_pickle=True, **{"x": X, **named})
        return folder / "a.npz"

    return make


def columns(**named: Any) -> Make:
    return lambda folder: table(folder / "a.parquet", named)


def truncated(make: Make, keep: float = 0.7) -> Make:
    def cut(folder: Path) -> Path:
        path: Path = make(folder)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
        return path

    return cut


def npy(array: np.ndarray, extra: bytes = b"") -> Make:
    def make(folder: Path) -> Path:
        np.save(folder / "a.npy", array)
        with (folder / "a.npy").open("ab") as file:
            file.write(extra)
        return folder / "a.npy"

    return make


def flipped(folder: Path) -> Path:
    path: Path = arrays()(folder)
    content = bytearray(path.read_bytes())
    content[300] ^= 4
    path.write_bytes(content)
    return path


MANY = [f"s{i}" for i in range(257)]
BAD = {
    "no file": (lambda folder: folder / "none.npz", {}, DataError, "none.npz: no such file"),
    "unknown suffix": (text("hello", "a.xlsx"), {}, DataError, "a.xlsx: not a format that can be converted"),
    "empty file": (text("", "a.idx"), {}, DataError, "not a format"),
    "not a zip": (text("hello", "a.npz"), {}, DataError, "a.npz cannot be read (File is not a zip file)"),
    "no x": (arrays(), {"x": "xx"}, DataError, "no array 'xx' (named by --x); did you mean 'x'?"),
    "no target array": (
        arrays(label=Y),
        {"target": ["labels"]},
        DataError,
        "'labels' (named by --target); did you mean",
    ),
    "no weight array": (arrays(), {"weight": "w"}, DataError, "no array 'w' (named by --weight); known: x"),
    "short target": (arrays(y=Y[:-1]), {}, DataError, "array 'y' of a.npz has 136 rows but array 'x' of a.npz has 137"),
    "scalar target": (arrays(y=np.float64(1)), {}, DataError, "has 0 rows but"),
    "no rows": (arrays(x=X[:0]), {}, DataError, "a.npz has no rows"),
    "no columns": (arrays(x=X[:, :0]), {}, DataError, "has shape (137, 0)"),
    "five axes": (arrays(x=np.zeros((3, 1, 1, 1, 1))), {}, DataError, "has shape (3, 1, 1, 1, 1)"),
    "objects": (arrays(x=np.array([{}, []], object)), {}, DataError, "holds Python objects, which are never unpickled"),
    "object labels": (arrays(y=np.array(["a"] * N, object)), {}, DataError, "array 'y' of a.npz holds Python objects"),
    "complex": (arrays(x=X + 1j), {}, DataError, "has type complex64; expected real numbers"),
    "dates": (arrays(x=np.zeros(5, "M8[s]")), {}, DataError, "has type datetime64[s]"),
    "strings for x": (arrays(x=CITIES), {}, DataError, "has type <U4; expected real numbers"),
    "damaged npz": (flipped, {}, DataError, "Bad CRC-32"),
    "truncated npz": (truncated(arrays()), {}, DataError, "a.npz cannot be read"),
    "truncated npy": (truncated(npy(X)), {}, DataError, "a.npy ends early: got"),
    "truncated npy, columns first": (truncated(npy(np.asfortranarray(X))), {}, DataError, "a.npy ends early: got"),
    "long npy": (npy(X, b"more"), {}, DataError, "a.npy goes on after its 137 rows"),
    "truncated idx": (truncated(lambda f: idx(f / "a", IMAGES)), {}, DataError, "a ends early: got"),
    "idx header": (lambda f: text("\0\0\x08\x03ab", "a")(f), {}, DataError, "a cannot be read"),
    "gzip": (lambda f: text("", "a.gz")(f), {}, DataError, "not a format"),
    "no label file": (npy(X), {"target": ["none.npy"]}, DataError, "none.npy: no such file (the target)"),
    "two target files": (npy(X), {"target": ["a", "b"]}, SpecError, "got 2 targets"),
    "x of npy": (npy(X), {"x": "z"}, SpecError, "--x is for npz"),
    "drop of npz": (arrays(), {"drop": ["a"]}, SpecError, "--drop is for csv and parquet"),
    "wide target": (arrays(y=np.zeros((N, 2, 2))), {}, DataError, "expected targets of shape"),
    "two label columns": (
        arrays(y=np.zeros((N, 2), int)),
        {"classes": True},
        DataError,
        "expected class labels, one a row",
    ),
    "wide weights": (arrays(w=X), {"weight": "w"}, DataError, "expected weights, one a row"),
    "fractional labels": (
        arrays(y=np.r_[np.ones(5), Y[5:]]),
        {"classes": True},
        DataError,
        "in row 5 is no class label",
    ),
    "NaN label": (arrays(y=np.r_[np.ones(N - 1), np.nan]), {"classes": True}, DataError, "nan in row 136 is no class"),
    "classes, no target": (arrays(), {"classes": True}, SpecError, "classes were asked for without a target"),
    "bad seed": (arrays(), {"shuffle_seed": -1}, SpecError, "shuffle_seed is -1"),
    "bad partitions": (arrays(), {"rows_per_partition": 0}, SpecError, "rows_per_partition is 0"),
    "ragged": (
        text("a,b\n1,2\n3\n"),
        {},
        DataError,
        "a.csv cannot be read (CSV parse error: Row #3: Expected 2 columns",
    ),
    "empty csv": (text(""), {}, DataError, "Empty CSV file"),
    "csv of a header": (text("a,b\n"), {}, DataError, "a.csv has no rows"),
    "csv without header": (
        text("1.5,2\n3,4\n"),
        {},
        DataError,
        "first row is all numbers (1.5, …); expected the names",
    ),
    "not utf-8": (
        lambda f: (f / "a.csv").write_bytes(b"a\n\xff\n") and f / "a.csv",
        {},
        DataError,
        "a.csv cannot be read",
    ),
    "same names": (text("a,a\n1,2\n"), {}, DataError, "several columns named 'a'"),
    "bad csv.gz": (text("a\n1\n", "a.csv.gz"), {}, DataError, "a.csv.gz cannot be read"),
    "bad parquet": (text("hello there", "a.parquet"), {}, DataError, "a.parquet cannot be read"),
    "truncated parquet": (truncated(columns(a=Y)), {}, DataError, "a.parquet cannot be read"),
    "no column": (text("size,b\n1,2\n"), {"target": ["sise"]}, DataError, "no column 'sise'; did you mean 'size'?"),
    "no column to drop": (text("a,b\n1,2\n"), {"drop": ["c"]}, DataError, "no column 'c'; known: a, b"),
    "named twice": (text("a,b\n1,2\n"), {"target": ["b"], "drop": ["b"]}, SpecError, "column 'b' is named twice"),
    "nothing left": (text("a,b\n1,2\n"), {"drop": ["a", "b"]}, DataError, "no columns left"),
    "x of csv": (text("a,b\n1,2\n"), {"x": "z"}, SpecError, "--x is for npz"),
    "many strings": (columns(a=MANY), {}, DataError, "column 'a' of a.parquet holds strings with more than 256"),
    "many strings, csv": (text("name\n" + "\n".join(MANY)), {}, DataError, "leave it out with --drop name"),
    "csv dates": (text("day,b\n2020-01-01,2\n"), {}, DataError, "'day' of a.csv holds dates or times"),
    "parquet dates": (columns(a=[datetime.date(2020, 1, 1)]), {}, DataError, "leave it out with --drop a"),
    "nested": (columns(a=[[1, 2]]), {}, DataError, "holds lists, structures or bytes, which cannot be inputs"),
    "date target": (text("day,b\n2020-01-01,2\n"), {"target": ["day"]}, DataError, "which cannot be a target"),
    "string targets": (text("a,b,c\n1,2,x\n"), {"target": ["b", "c"]}, DataError, "cannot be one of several targets"),
    "string weights": (text("a,w\n1,x\n"), {"weight": "w"}, DataError, "holds strings, which cannot be weights"),
    "null label": (text("a,b\n1,x\n2,\n"), {"target": ["b"]}, DataError, "has no class label in row 1"),
    "NaN label of a table": (
        columns(a=[1, 2], b=[1.0, np.nan]),
        {"target": ["b"], "classes": True},
        DataError,
        "row 1",
    ),
    "fractional labels, csv": (text("a,b\n1,0.5\n"), {"target": ["b"], "classes": True}, DataError, "0.5, which is no"),
    "two class targets": (
        text("a,b,c\n1,2,3\n"),
        {"target": ["b", "c"], "classes": True},
        SpecError,
        "one target, got 2",
    ),
}


@pytest.mark.parametrize(("make", "options", "error", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, make: Make, options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    source = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=re.escape(sentence)) as caught:
        convert(str(source), str(tmp_path / "d"), **options)
    assert isinstance(caught.value, NtkdistError)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_at_most_256_categories_are_fine(tmp_path: Path) -> None:
    assert len(convert(str(text("c\n" + "\n".join(MANY[1:]))(tmp_path)), str(tmp_path / "d")).columns) == 256


def test_destination_is_never_overwritten(npz: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(StoreError, match="exists already"):
        convert(str(npz), str(tmp_path / "d"))
    assert list((tmp_path / "d").iterdir()) == []


def test_no_space(npz: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(StoreError, match="scratch space"):
        convert(str(npz), str(tmp_path / "d"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz"]


def test_failure_while_writing_leaves_nothing(npz: Path, tmp_path: Path, monkeypatch: Any) -> None:
    real, calls = groups.write_rows, []

    def failing(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 4:
            raise OSError("disk on fire")
        real(*args)

    monkeypatch.setattr(groups, "write_rows", failing)
    with pytest.raises(OSError, match="disk on fire"):
        convert(str(npz), str(tmp_path / "d"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz"]


def test_a_target_with_other_rows_in_its_file_is_found_before_anything_is_written(tmp_path: Path) -> None:
    x, y = idx(tmp_path / "x", IMAGES), idx(tmp_path / "y", DIGITS[:-7])
    with pytest.raises(DataError, match="y has 130 rows but x has 137"):
        convert(str(x), str(tmp_path / "d"), target=[str(y)])


# memory

MEMORY = """
import sys
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
from ntkdist.convert import convert
before = peak()
convert(sys.argv[1], sys.argv[2])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """400 MB of rows, 20 MB a partition: four blocks, two buckets and three partitions are 252 MB."""
    rows, block = 500_000, np.random.default_rng(0).normal(size=(5000, 200)).astype(np.float32)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file, file.open("x.npy", "w", force_zip64=True) as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, 200)}
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(rows // len(block)):
            member.write(block.tobytes())
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "a.npz"), str(tmp_path / "d")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    mib = 2**20
    assert grown < 4 * 16 * mib + 2 * 64 * mib + 3 * 20 * mib
    assert Dataset(str(tmp_path / "d")).layout(labelled=False).rows == rows
