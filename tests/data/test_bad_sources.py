"""What cannot be converted is one sentence and leaves nothing; memory does not grow with the rows."""

import datetime
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from converted import (
    CITIES,
    DIGITS,
    IMAGES,
    N,
    X,
    Y,
    convert,
    convert_module,
    idx,
    table,
)
from pyarrow import feather

from ntkdist.data import zarr_groups
from ntkdist.data.dataset import Dataset
from ntkdist.errors import DataError, NtkdistError, SpecError, StoreError

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


MANY = [f"s{i}" for i in range(2**16 + 1)]
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
    "wrong encoding": (
        lambda f: (f / "a.csv").write_bytes("a\nß\n".encode("latin-1")) and f / "a.csv",
        {},
        DataError,
        "invalid UTF8 data); give its encoding, as in --encoding latin-1",
    ),
    "unknown encoding": (text("a\n1\n"), {"encoding": "latin-77"}, SpecError, "encoding is 'latin-77'"),
    "other separator": (text("a;b\n1;2\n"), {}, DataError, "give what is between its columns: --sep ';'"),
    "tabs": (text("a\tb\n1\t2\n"), {}, DataError, "give what is between its columns: --sep 'tab'"),
    "commas in numbers": (text("a;b\n1,5;2,5\n"), {}, DataError, "between its columns, as in --sep ';'"),
    "long separator": (text("a\n1\n"), {"sep": "::"}, SpecError, "sep is '::'; expected one character"),
    "decimal mark": (text("a\n1\n"), {"decimal": "'"}, SpecError, 'decimal is "\'"; expected'),
    "one mark for two": (text("a\n1\n"), {"decimal": ",", "sep": ","}, SpecError, "sep and decimal are both ','"),
    "points beside commas": (
        text("a;b\n1,5;p\n1.500;q\n"),
        {"decimal": ","},
        DataError,
        "column 'a' of a.csv holds '1.500' in row 1, a number with a point",
    ),
    "damaged json": (text('{"a": 1}\n{"a": ', "a.jsonl"), {}, DataError, "a.jsonl cannot be read (JSON parse error"),
    "no json": (text("\n\n", "a.jsonl"), {}, DataError, "a.jsonl holds no JSON lines"),
    "mixed json": (text('{"a": 1}\n{"a": "p"}', "a.jsonl"), {}, DataError, "a.jsonl cannot be read (JSON parse error"),
    "bad feather": (text("hello there", "a.feather"), {}, DataError, "a.feather cannot be read"),
    "truncated feather": (
        truncated(lambda f: feather.write_feather(pa.table({"a": Y}), f / "a.feather") or f / "a.feather"),
        {},
        DataError,
        "a.feather cannot be read",
    ),
    "no match": (lambda f: f / "n*.csv", {}, DataError, "no tables there; expected files that end in .csv"),
    "same names": (text("a,a\n1,2\n"), {}, DataError, "several columns named 'a'"),
    "bad csv.gz": (text("a\n1\n", "a.csv.gz"), {}, DataError, "a.csv.gz cannot be read"),
    "bad parquet": (text("hello there", "a.parquet"), {}, DataError, "a.parquet cannot be read"),
    "truncated parquet": (truncated(columns(a=Y)), {}, DataError, "a.parquet cannot be read"),
    "no column": (text("size,b\n1,2\n"), {"target": ["sise"]}, DataError, "no column 'sise'; did you mean 'size'?"),
    "no column to drop": (text("a,b\n1,2\n"), {"drop": ["c"]}, DataError, "no column 'c'; known: a, b"),
    "named twice": (text("a,b\n1,2\n"), {"target": ["b"], "drop": ["b"]}, SpecError, "column 'b' is named twice"),
    "nothing left": (text("a,b\n1,2\n"), {"drop": ["a", "b"]}, DataError, "no columns left"),
    "x of csv": (text("a,b\n1,2\n"), {"x": "z"}, SpecError, "--x is for npz"),
    "many strings": (columns(a=MANY), {}, DataError, "column 'a' of a.parquet holds strings with more than 65,536"),
    "many strings, csv": (text("name\n" + "\n".join(MANY)), {}, DataError, "leave it out with --drop name"),
    "no date": (
        text("day\n" + "2020-01-01\n" * 20 + "1.2.2020\n"),
        {},
        DataError,
        "column 'day' of a.csv holds '1.2.2020' in row 20, which cannot be read as a date",
    ),
    "no month": (text("day,b\n2020-01-01,2\n2020-13-01,3\n"), {}, DataError, "holds '2020-13-01' in row 1, which"),
    "no time": (
        text("at\n12:30\n12:61\n"),
        {},
        DataError,
        "'at' of a.csv holds '12:61' in row 1, which is no time of a",
    ),
    "time target": (text("at,b\n12:30,2\n"), {"target": "at"}, DataError, "holds times, which cannot be a target"),
    "parquet time target": (columns(a=[datetime.time(12)], b=[1]), {"target": "a"}, DataError, "holds times, which"),
    "no category": (text("a,b\n1,2\n"), {"category": ["c"]}, DataError, "no input column 'c' (named by --category)"),
    "target category": (text("a,b\n1,2\n"), {"category": "b", "target": "b"}, DataError, "no input column 'b'"),
    "fraction category": (columns(a=[0.5, 1.0]), {"category": ["a"]}, DataError, "column 'a' (named by --category)"),
    "category of an array": (arrays(), {"category": ["c"]}, SpecError, "--category is for csv and parquet"),
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


def test_at_most_65536_categories_are_fine(tmp_path: Path) -> None:
    source = text("c\n" + "\n".join(MANY[1:]))(tmp_path)
    ((_, names),) = convert(str(source), str(tmp_path / "d"), rows_per_partition=4096).categories
    assert len(names) == 2**16


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
    real, calls = zarr_groups.write_rows, []

    def failing(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 4:
            raise OSError("disk on fire")
        real(*args)

    monkeypatch.setattr(zarr_groups, "write_rows", failing)
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
from ntkdist.data.convert import convert
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
