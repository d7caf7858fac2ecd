"""The order that rows are written in, and what is written with them."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import (
    CITIES,
    N,
    X,
    attrs,
    convert,
    convert_module,
    fingerprint,
    table,
)

from ntkdist.data import sources
from ntkdist.data.dataset import Dataset


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


@pytest.mark.slow
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
