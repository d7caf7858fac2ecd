"""Reads, tasks and disks that fail: tried again, named, or skipped if asked; never a wrong number."""

import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zarr
from distributed import Client
from zarr.storage import LocalStore, WrapperStore

import ntkdist as nd
from ntkdist.cluster import shards
from ntkdist.cluster.reduce import reduce_all
from ntkdist.cluster.shards import Source
from ntkdist.data import storage, zarr_groups

pytestmark = pytest.mark.usefixtures("alone")  # stores and disks are made to fail in this process


class Mishap:
    """Counts rows, and fails with an error on the first calls for every span, of which it leaves notes in files."""

    def __init__(self, notes: Path, error: Exception, times: int) -> None:
        self.notes, self.error, self.times = notes, error, times

    def zero(self) -> int:
        return 0

    def update(self, total: int, rows: Any) -> int:
        with (self.notes / f"{rows.start}").open("a+") as file:
            file.write(".")
            if file.tell() <= self.times:
                raise self.error
        return total + rows.n


def count_rows(dataset: nd.Dataset, summand: Any, client: Client | None) -> int:
    total: int = reduce_all(Source(dataset, dataset.layout(), 0, 1), summand, 20, client, "moments", None).total
    return total


@pytest.mark.parametrize("error", [OSError("stale file handle"), MemoryError("just now"), RuntimeError("who knows")])
def test_a_task_that_fails_is_tried_again_and_at_last_named(
    make_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(shards, "PAUSES", (0.0, 0.0))
    dataset, notes = nd.Dataset(make_dataset(np.ones((60, 2)), np.ones(60))), tmp_path / "notes"
    notes.mkdir()
    assert count_rows(dataset, Mishap(notes, error, 2), None) == 60
    assert [p.read_text() for p in notes.iterdir()] == ["..."] * 3
    said = rf"rows \d+–\d+ failed 3 times, last with {type(error).__name__}: {error} \(.+:\d+\); see to the cause"
    with pytest.raises(nd.ClusterError, match=said):
        count_rows(dataset, Mishap(notes, error, 99), None)


def test_what_another_try_would_not_change_is_not_tried_again(make_dataset: Any, tmp_path: Path) -> None:
    dataset, notes = nd.Dataset(make_dataset(np.ones((60, 2)), np.ones(60))), tmp_path / "notes"
    notes.mkdir()
    with pytest.raises(nd.DataError, match="no such luck"):
        count_rows(dataset, Mishap(notes, nd.DataError("no such luck"), 99), None)
    assert [p.read_text() for p in notes.iterdir()] == ["."]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_task_that_fails_on_a_cluster(make_dataset: Any, two_workers: Any, tmp_path: Path) -> None:
    dataset, notes = nd.Dataset(make_dataset(np.ones((60, 2)), np.ones(60))), tmp_path / "notes"
    notes.mkdir()
    assert count_rows(dataset, Mishap(notes, OSError("stale"), 1), two_workers) == 60
    with pytest.raises(nd.ClusterError, match="failed 3 times, last with OSError: stale"):
        count_rows(dataset, Mishap(notes, OSError("stale"), 99), two_workers)


SKIPPED = [3, 7]


def damage(store: str) -> None:
    """A missing and a truncated chunk, of different arrays."""
    chunks = [Path(store) / array / "c" / str(i) / "0" for array, i in zip("yx", SKIPPED, strict=True)]
    chunks[0].unlink()
    chunks[1].write_bytes(chunks[1].read_bytes()[:-20])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "dealt"), [(nd.Cholesky(), ""), (nd.Cholesky(), "groups"), (nd.PCG(sample_rows=64, tol=1e-12), "")]
)
def test_damaged_partitions_are_skipped_as_if_their_rows_had_no_weight(
    make_dataset: Any, table: Any, solver: Any, dealt: str
) -> None:
    weights = 1.0 * ~np.isin(np.arange(900) // 45, SKIPPED)
    more = {"groups": np.arange(900) // 7} if dealt else {}
    stores = [make_dataset(*table, name=n, weights=weights, rows_per_partition=45, **more) for n in ("a", "b")]
    plan = nd.PlanTable(folds=3, dtype="float64", threads=1)
    features = nd.NTKRandomFeatures(48, bias=0.5)
    damage(stores[0])
    jobs = [
        nd.Job(nd.Dataset(store, groups=dealt, **options), features, alphas=(0.1, 1.0), plan=plan, solver=solver)
        for store, options in zip(stores, ({"damaged": "skip"}, {"weight": "weight"}), strict=True)
    ]
    skipped, weighed = map(nd.fit, jobs)
    np.testing.assert_allclose(skipped.cv.mse, weighed.cv.mse, rtol=1e-6)
    np.testing.assert_allclose(skipped.model(table[0]), weighed.model(table[0]), rtol=1e-5, atol=1e-5)
    data = skipped.report["data"]
    assert (data["rows"], data["skipped_rows"], data["skipped_partitions"]) == (810, 90, SKIPPED)
    assert "90 rows of the damaged partitions 3, 7 were skipped, as asked" in skipped.report["notes"]
    strict = msgspec.structs.replace(jobs[0], dataset=nd.Dataset(stores[0], groups=dealt))
    with pytest.raises(nd.DataError, match=r"chunk y/c/3/0 is missing \(rows 135–179\)|'x', rows 315–359, cannot be"):
        nd.fit(strict)


@pytest.mark.slow
def test_what_is_skipped_is_found_once(make_dataset: Any, table: Any, tmp_path: Path) -> None:
    """A run that goes on skips what it skipped, also where it could be read again."""
    store = make_dataset(*table, rows_per_partition=45)
    shutil.copytree(store, tmp_path / "sound")
    damage(store)
    plan = nd.PlanTable(folds=2, shards=6, checkpoint=str(tmp_path / "kept"))
    job = nd.Job(nd.Dataset(store, damaged="skip"), nd.NTKRandomFeatures(48), alphas=(1.0,), plan=plan)
    first = nd.fit(job)
    for kept in sorted((tmp_path / "kept").glob("shard-*.zarr"))[:3]:
        shutil.rmtree(kept)
    shutil.rmtree(store)
    (tmp_path / "sound").rename(store)
    again = nd.fit(job)
    np.testing.assert_array_equal(again.model.coef, first.model.coef)
    assert again.report["data"]["skipped_partitions"] == SKIPPED
    shutil.rmtree(tmp_path / "kept")
    assert nd.fit(job).report["data"]["skipped_partitions"] == []


def test_where_nothing_is_left_or_a_value_is_bad_nothing_is_skipped(make_dataset: Any, table: Any) -> None:
    store = make_dataset(*table, rows_per_partition=45)
    job = nd.Job(nd.Dataset(store, damaged="skip"), nd.NTKRandomFeatures(48), alphas=(1.0,))
    shutil.rmtree(Path(store) / "x" / "c")
    with pytest.raises(nd.DataError, match="all partitions are damaged"):
        nd.fit(job)
    x = table[0].copy()
    x[50, 1] = np.nan
    job = msgspec.structs.replace(job, dataset=nd.Dataset(make_dataset(x, table[1], name="nan"), damaged="skip"))
    with pytest.raises(nd.DataError, match="first in row 50"):
        nd.fit(job)


class Faulty(WrapperStore[LocalStore]):
    """A store that fails to read, or reads too little, now and then."""

    def __init__(self, store: LocalStore, chance: random.Random, errors: float, cuts: float) -> None:
        super().__init__(store)
        self.chance, self.errors, self.cuts, self.faults = chance, errors, cuts, 0

    def _with_store(self, store: LocalStore) -> "Faulty":
        return Faulty(store, self.chance, self.errors, self.cuts)

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        draw, found = self.chance.random(), await self._store.get(key, *args, **options)
        if found is None or draw > self.errors + self.cuts:
            return found
        FAULTS[key] += 1
        if draw < self.errors:
            raise ConnectionResetError("connection reset by peer")
        return found[: self.chance.randrange(len(found))]


FAULTS: Counter[str] = Counter()


def make_faulty(monkeypatch: pytest.MonkeyPatch, seed: int, errors: float, cuts: float) -> None:
    chance = random.Random(seed)

    def opened(url: str) -> zarr.Group:
        store = storage.Strict(Faulty(LocalStore(storage.local_path(url), read_only=True), chance, errors, cuts))
        return zarr_groups._patiently(lambda: zarr.open_group(store, mode="r", zarr_format=3))

    monkeypatch.setattr(zarr_groups, "_open", opened)
    monkeypatch.setattr(zarr_groups, "PAUSES", (0.0, 0.0))
    FAULTS.clear()


@pytest.mark.parametrize("rate", [0.02, 0.25])
def test_a_store_that_fails_now_and_then_never_gives_a_wrong_number(
    make_dataset: Any, table: Any, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    job = nd.Job(
        nd.Dataset(make_dataset(*table, rows_per_partition=45)),
        *(nd.NTKRandomFeatures(32), (1.0,)),
        plan=nd.PlanTable(folds=2, threads=1),
    )
    calm, outcomes = nd.normal_equations(nd.plan(job)), Counter[str]()
    for seed in range(4):
        zarr_groups._opened.cache_clear()
        make_faulty(monkeypatch, seed, rate, rate)
        try:
            shaken = nd.normal_equations(nd.plan(job))
        except (nd.DataError, nd.StoreError):
            outcomes["named"] += 1
        else:
            for a, b in zip(calm, shaken, strict=True):
                np.testing.assert_array_equal(a.gram, b.gram)
                np.testing.assert_array_equal(a.rhs, b.rhs)
            outcomes["right"] += 1
        outcomes["faults"] += sum(FAULTS.values())
    assert outcomes["faults"] > 4
    assert outcomes["right" if rate < 0.1 else "named"] >= 3


@pytest.mark.parametrize(
    ("errors", "cuts", "kind", "said"),
    [
        (1.0, 0.0, nd.StoreError, r"cannot be read \(connection reset by peer\); see what is wrong with the disk"),
        (0.0, 1.0, nd.DataError, r"rows 0–44, cannot be read \(.+\); restore the file or convert again"),
    ],
)
def test_a_store_that_always_fails_is_named(
    make_dataset: Any, table: Any, monkeypatch: pytest.MonkeyPatch, errors: float, cuts: float, kind: Any, said: str
) -> None:
    dataset = nd.Dataset(make_dataset(*table, rows_per_partition=45), damaged="skip")
    layout = dataset.layout()
    make_faulty(monkeypatch, 0, 0.0, 0.0)
    array = zarr_groups._opened(dataset.store, "x", layout.fingerprint)  # its metadata was read while all was well
    array.store._store.errors, array.store._store.cuts = errors, cuts
    with pytest.raises(kind, match=said):
        dataset.read(layout, 0, 45, labelled=False)
    assert FAULTS["x/c/0/0"] >= 3


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A file system of its own, of 2 MB."""
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place]).returncode:
        pytest.skip("a file system can be mounted by root only")
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk(make_dataset: Any, table: Any, tmp_path: Path) -> None:
    plan = nd.PlanTable(folds=2, shards=10, threads=1, checkpoint=str(tmp_path / "disk" / "kept"))
    job = nd.Job(nd.Dataset(make_dataset(*table)), nd.NTKRandomFeatures(320), alphas=(1.0,), plan=plan)
    straight = nd.fit(msgspec.structs.replace(job, plan=msgspec.structs.replace(plan, checkpoint="")))
    with small_disk(tmp_path / "disk"):
        with pytest.raises(nd.StoreError, match=r"disk/kept: a finished sum of 0 MB cannot be kept .*No space left on"):
            nd.fit(job)
        kept = os.listdir(tmp_path / "disk" / "kept")
        assert 0 < sum(name.startswith("shard-") and name.endswith(".kept") for name in kept) < 10
        assert not [name for name in kept if "partial" in name]
        (tmp_path / "disk" / "filler").write_bytes(bytes(os.statvfs(tmp_path / "disk").f_bavail * 4096))
        with pytest.raises(nd.StoreError, match=r"run.*cannot be written \(No space left on device\); make room there"):
            nd.fit(msgspec.structs.replace(job, alphas=(2.0,)), out=str(tmp_path / "disk" / "run"))
        assert "run" not in os.listdir(tmp_path / "disk")
        (tmp_path / "disk" / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=50m", tmp_path / "disk"], check=True)
        result = nd.fit(job)
    np.testing.assert_array_equal(result.model.coef, straight.model.coef)
