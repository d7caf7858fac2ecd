"""Sources of rows, and what was converted of them."""

import csv
import gzip
import hashlib
import importlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ntkdist.data.dataset import Dataset, Layout
from ntkdist.data.npy import IDX_TYPES

convert_module: Any = importlib.import_module("ntkdist.data.convert")
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
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.table({k: pa.array(list(v)) for k, v in columns.items()}), path, row_group_size=50)
        return path
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        csv.writer(file).writerow(columns)
        csv.writer(file).writerows(zip(*columns.values(), strict=True))
    return path
