"""Datasets: the laws of partitions, and reading, which gives the rows that were written or an error that names them."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntkdist.data import partitions, zarr_groups
from ntkdist.data.dataset import FORMAT, Dataset, Layout
from ntkdist.errors import DataError, SpecError, StoreError

ROWS, SIZE = 50, 20
X = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
Y = X.sum(1).astype(np.float64)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read is read again without a pause."""
    monkeypatch.setattr(zarr_groups, "PAUSES", (0.0, 0.0))


def write(url: Path, attributes: dict[str, Any] | None = None, **arrays: np.ndarray) -> Dataset:
    with zarr_groups.new_group(str(url), FORMAT, attributes or {}) as partial:
        for name, values in arrays.items():
            zarr_groups.create_array(partial, name, values.shape, values.dtype, SIZE)
            for start in range(0, len(values), SIZE):
                zarr_groups.write_rows(partial, name, start, values[start : start + SIZE])
    return Dataset(str(url))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path / "d", x=X, y=Y, w=np.arange(float(ROWS)))
    return tmp_path / "d"


def edit(path: Path, **attributes: Any) -> None:
    """Set attributes of a group, or with None remove them."""
    meta = json.loads(path.read_text())
    meta["attributes"] |= attributes
    meta["attributes"] = {k: v for k, v in meta["attributes"].items() if v is not None}
    path.write_text(json.dumps(meta))


# partitions

shapes = st.lists(st.integers(1, 5000), max_size=3).map(tuple)
dtypes = st.sampled_from(["u1", "f4", "f8"])


@given(rows=st.integers(1, 10**9), shape=shapes, dtype=dtypes)
def test_at_least_20_partitions_of_at_most_128_mib(rows: int, shape: tuple[int, ...], dtype: str) -> None:
    """At most as many rows as both bounds allow, and less than a sixteenth fewer; but at least one."""
    row_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    most = max(1, min(rows // 20, 128 * 2**20 // row_bytes))
    assert most * 15 / 16 < partitions.partition_rows(rows, shape, dtype) <= most


@given(rows=st.integers(1, 10**9), shape=shapes, dtype=dtypes, other=st.integers(1, 10**5))
def test_chunks_of_at_most_8_mib_whatever_the_width_of_an_array(
    rows: int, shape: tuple[int, ...], dtype: str, other: int
) -> None:
    """Equal chunks of at most as many rows as fit into 8 MiB, and where 32 rows do, of more than half as many."""
    n = partitions.partition_rows(rows, shape, dtype)
    for widths, kind in ((shape, dtype), ((), "f8"), ((other,), "f4")):
        size, rest = divmod(n, partitions.chunks_per_partition(n, widths, kind))
        fit = 8 * 2**20 // (math.prod(widths) * np.dtype(kind).itemsize)
        most, least = max(1, min(n, fit)), min(n, fit) / 2 if fit >= 32 else 0
        assert rest == 0
        assert least < size <= most


@given(wanted=st.integers(1, 10**6), width=st.integers(1, 10**5))
def test_wanted_partitions(wanted: int, width: int) -> None:
    """They are as wanted if a chunk holds one, and else less than a sixteenth smaller."""
    held = partitions.MAX_CHUNK_BYTES // (width * 4)
    assert partitions.partition_rows(10**6, (width,), "f4", min(wanted, held)) == min(wanted, held)
    assert 15 / 16 * wanted < partitions.partition_rows(10**6, (width,), "f4", wanted) <= wanted


def test_wanted_partitions_are_kept_where_one_chunk_suffices() -> None:
    assert [partitions.partition_rows(10**6, (10,), "f4", n) for n in (1, 997, 10_007)] == [1, 997, 10_007]


@pytest.mark.parametrize("rows", [1, 2, 19, 20, 21, 39, 40, 1000])
def test_layout_spans_cover_the_rows_once(tmp_path: Path, rows: int) -> None:
    layout = Layout(rows, partitions.partition_rows(rows, (3,), "f4"), (3,), "float32", "")
    spans = [layout.span(i) for i in range(layout.partitions)]
    assert [a for start, stop in spans for a in range(start, stop)] == list(range(rows))
    assert all(start < stop for start, stop in spans)


# reading what was written


def test_rows_come_back(store: Path) -> None:
    dataset = Dataset(str(store), weight="w")
    layout = dataset.layout()
    assert (layout.rows, layout.rows_per_partition, layout.partitions) == (ROWS, SIZE, 3)
    assert (layout.input_shape, layout.x_dtype, layout.row_bytes, layout.targets) == ((3,), "float32", 12, 0)
    for start, stop in [(0, ROWS), (20, 40), (7, 43), (49, 50)]:
        rows = dataset.read(layout, start, stop)
        assert rows.y is not None
        assert rows.weight is not None
        assert (rows.x == X[start:stop]).all()
        assert (rows.y == Y[start:stop]).all()
        assert (rows.weight == np.arange(start, stop)).all()
        assert (rows.start, rows.dropped, rows.nbytes) == (start, 0, (stop - start) * 28)


def test_dataset_without_targets(tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", x=X)
    assert not dataset.layout(labelled=False).labelled
    assert dataset.read(dataset.layout(labelled=False), 0, 5, labelled=False).y is None
    with pytest.raises(DataError, match="no array 'y'; known: x"):
        dataset.layout()


def test_arrays_by_name(store: Path) -> None:
    assert Dataset(str(store), y="w").layout().labelled
    with pytest.raises(DataError, match="no array 'xx'; did you mean 'x'"):
        Dataset(str(store), x="xx").layout()
    with pytest.raises(SpecError, match=r"Dataset\.nan is 'ignore'"):
        Dataset(str(store), nan="ignore")  # type: ignore[arg-type]


def test_zeros_are_stored_with_all_their_chunks(tmp_path: Path) -> None:
    """A partition of three chunks: its shard ends in an index of three places, none of them empty, and a checksum."""
    x = np.zeros((2 * 12, 500_000), np.float32)
    with zarr_groups.new_group(str(tmp_path / "d"), FORMAT, {}) as partial:
        zarr_groups.create_array(partial, "x", x.shape, x.dtype, 12)
        zarr_groups.write_rows(partial, "x", 0, x)
    for i in range(2):
        index = (tmp_path / "d" / "x" / "c" / str(i) / "0").read_bytes()[-16 * 3 - 4 : -4]
        assert (np.frombuffer(index, np.uint64) < 2**32).all()
    assert not Dataset(str(tmp_path / "d")).layout(labelled=False).labelled


def test_only_whole_shards_are_written(tmp_path: Path) -> None:
    with zarr_groups.new_group(str(tmp_path / "d"), FORMAT, {}) as partial:
        zarr_groups.create_array(partial, "x", X.shape, X.dtype, SIZE)
        for start, stop in [(0, 10), (10, 30), (20, 45)]:
            with pytest.raises(ValueError, match="not whole shards of 20 rows"):
                zarr_groups.write_rows(partial, "x", start, X[start:stop])
        zarr_groups.write_rows(partial, "x", 0, X)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (1,), (1000,), (30, 100_000)])
def test_write_whole(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with zarr_groups.new_group(str(tmp_path / "d"), "model", {}) as partial:
        zarr_groups.write_whole(partial, "a", values)
    array: Any = zarr_groups.open_group(str(tmp_path / "d"), "model")["a"]
    np.testing.assert_array_equal(array[...], values)


# damage


def test_missing_chunk(store: Path) -> None:
    layout = Dataset(str(store)).layout()
    (store / "x" / "c" / "1" / "0").unlink()
    assert len(Dataset(str(store)).read(layout, 0, 20).x) == 20
    with pytest.raises(DataError, match=re.escape("chunk x/c/1/0 is missing (rows 20–39); restore it")):
        Dataset(str(store)).read(layout, 10, 30)
    with pytest.raises(DataError, match="rows 20–39"):
        Dataset(str(store)).read(layout, 0, ROWS)


def test_missing_last_chunk_names_the_rows_there_are(store: Path) -> None:
    layout = Dataset(str(store)).layout()
    (store / "y" / "c" / "2").unlink()
    with pytest.raises(DataError, match=re.escape("chunk y/c/2 is missing (rows 40–49)")):
        Dataset(str(store)).read(layout, 40, 50)


@pytest.mark.parametrize("keep", [0, 1, 10, 19, 20, 21, 100, -21, -20, -1])
def test_truncated_chunk(store: Path, keep: int) -> None:
    layout = Dataset(str(store)).layout()
    path = store / "x" / "c" / "1" / "0"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"x.*rows 20–39.*restore") as caught:
        Dataset(str(store)).read(layout, 20, 40)
    assert "\n" not in str(caught.value)


def test_every_flipped_bit_is_seen(store: Path) -> None:
    layout = Dataset(str(store)).layout()
    path = store / "y" / "c" / "0"
    content = path.read_bytes()
    for i in range(len(content)):
        damaged = bytearray(content)
        damaged[i] ^= 1 << i % 8
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"'y', rows 0–19, cannot be read"):
            Dataset(str(store)).read(layout, 0, 20)


@pytest.mark.filterwarnings("ignore:Object at")
def test_flipped_bits_of_an_arrays_metadata_are_errors_or_harmless(store: Path) -> None:
    path = store / "x" / "zarr.json"
    content = path.read_bytes()
    for i in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[i] ^= 1 << i // 5 % 7
        path.write_bytes(damaged)
        dataset = Dataset(str(store))
        zarr_groups._opened.cache_clear()
        try:
            assert (dataset.read(dataset.layout(), 0, ROWS).x == X).all()
        except DataError:
            continue


def test_unfinished_group(store: Path) -> None:
    edit(store / "zarr.json", complete=None)
    with pytest.raises(DataError, match="never finished"):
        Dataset(str(store)).layout()


def test_group_of_another_kind(store: Path) -> None:
    edit(store / "zarr.json", kind="ntkdist.model")
    with pytest.raises(DataError, match=r"expected a group of kind '?ntkdist\.dataset'?, got '?ntkdist\.model"):
        Dataset(str(store)).layout()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"zarr_format": 3}'])
def test_damaged_group(store: Path, content: str) -> None:
    (store / "zarr.json").write_text(content)
    with pytest.raises(DataError, match=r"no Zarr v3 group|expected a group of kind ntkdist\.dataset, got None"):
        Dataset(str(store)).layout()


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Zarr v3 group found there"):
        Dataset(str(tmp_path / "none")).layout()
    with pytest.raises(StoreError, match=r"expected a path, file://, or s3, gs, az, .* as in s3://bucket/name"):
        Dataset("ftp://host/x.zarr").layout()


@pytest.mark.parametrize("recorded", [None, {}, {"x": "float32 [50, 3] in shards of 10 rows"}])
def test_arrays_must_be_as_recorded(store: Path, recorded: Any) -> None:
    edit(store / "zarr.json", arrays=recorded)
    with pytest.raises(DataError, match=r"array 'x' is float32 \[50, 3\] in shards of 20 rows but .* was recorded"):
        Dataset(str(store)).layout()


def test_array_of_another_length(tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", x=X, y=Y[:-1])
    with pytest.raises(DataError, match="array 'y' has 49 rows but 'x' has 50; convert again"):
        dataset.layout()


def test_no_rows_and_no_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rows"):
        write(tmp_path / "d", x=X[:0], y=Y[:0]).layout()
    with pytest.raises(DataError, match=r"has shape \(50,\)"):
        write(tmp_path / "e", x=Y, y=Y).layout()


# what is no number


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x", "y", "w"])
def test_nan_is_an_error_or_dropped_and_counted(tmp_path: Path, name: str, bad: float) -> None:
    arrays = {"x": X.copy(), "y": Y.copy(), "w": np.ones(ROWS)}
    arrays[name][[21, 24]] = bad
    write(tmp_path / "d", **arrays)
    refusing, dropping = (Dataset(str(tmp_path / "d"), weight="w", nan=nan) for nan in ("error", "drop"))
    layout = refusing.layout()
    assert len(refusing.read(layout, 0, 20).x) == 20
    with pytest.raises(DataError, match=f"array '{name}' has NaN or Inf in 2 of the rows 20–39, first in row 21"):
        refusing.read(layout, 20, 40)
    rows = dropping.read(layout, 20, 40)
    assert rows.y is not None
    assert (rows.dropped, len(rows.x), len(rows.y)) == (2, 18, 18)
    assert (rows.x == np.delete(X[20:40], [1, 4], axis=0)).all()
    assert dropping.read(layout, 0, 20).dropped == 0


def test_rows_dropped_for_several_arrays_are_counted_once(tmp_path: Path) -> None:
    x, y = X.copy(), Y.copy()
    x[3, 1] = x[5, 2] = y[5] = y[6] = np.nan
    write(tmp_path / "d", x=x, y=y)
    dataset = Dataset(str(tmp_path / "d"), nan="drop")
    assert dataset.read(dataset.layout(), 0, 20).dropped == 3
    assert dataset.read(dataset.layout(), 0, 20, labelled=False).dropped == 2


def test_negative_weights(tmp_path: Path) -> None:
    write(tmp_path / "d", x=X, y=Y, w=-np.ones(ROWS))
    dataset = Dataset(str(tmp_path / "d"), weight="w")
    with pytest.raises(DataError, match="array 'w' has negative weights in rows 0–19"):
        dataset.read(dataset.layout(), 0, 20)


# whole or not at all


def test_replaced_dataset_is_opened_anew(tmp_path: Path) -> None:
    dataset = write(tmp_path / "d", {"source": "a"}, x=X, y=Y)
    before = dataset.layout()
    assert (dataset.read(before, 0, ROWS).x == X).all()
    shutil.rmtree(tmp_path / "d")
    write(tmp_path / "d", {"source": "b"}, x=X[:30].astype(np.float64) + 1, y=Y[:30])
    after = dataset.layout()
    assert after.fingerprint != before.fingerprint
    assert (after.rows, after.x_dtype) == (30, "float64")
    assert (dataset.read(after, 0, 30).x == X[:30].astype(np.float64) + 1).all()


def test_fingerprint_is_of_the_data_not_of_the_place(tmp_path: Path) -> None:
    a, b = (write(tmp_path / n, {"source": "s"}, x=X, y=Y) for n in "ab")
    assert a.layout().fingerprint == b.layout().fingerprint
    assert write(tmp_path / "c", {"source": "t"}, x=X, y=Y).layout().fingerprint != a.layout().fingerprint


def test_new_group_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(TypeError), zarr_groups.new_group(str(tmp_path / "d"), FORMAT, {}) as partial:
        zarr_groups.create_array(partial, "x", X.shape, "no such type", SIZE)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "d", x=X)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_existing_destination_is_refused(store: Path) -> None:
    with (
        pytest.raises(StoreError, match="exists already; choose another destination"),
        zarr_groups.new_group(str(store), FORMAT, {}),
    ):
        pass
    assert Dataset(str(store)).layout().rows == ROWS
