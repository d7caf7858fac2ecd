"""Plans: every partition in one task, nothing from the number of workers, memory as promised."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ntkdist as nd
from ntkdist.data import Layout


def plan_of(partitions: int = 30, m: int = 64, **table: object) -> nd.Plan:
    """A plan of a dataset that is not there."""
    layout = Layout(
        rows=partitions * 100, rows_per_partition=100, input_shape=(8,), x_dtype="float32", fingerprint="none"
    )
    known = {"folds": 5, "shards": 10, "fan_in": 4, "block_rows": 512, "threads": 1, "dtype": "float32"}
    job = nd.Job(nd.Dataset("nowhere.zarr"), nd.NTKRandomFeatures(m))
    return nd.Plan(job=job, layout=layout, solver=nd.Cholesky(), **(known | table))


@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 300))
def test_tasks_cover_every_partition_once_in_its_fold(partitions: int, folds: int, shards: int) -> None:
    folds = min(folds, partitions)
    p = plan_of(partitions, folds=folds, shards=max(folds, min(shards, partitions)))
    tasks = p.tasks()
    assert sorted(i for t in tasks for i in t.partitions) == list(range(partitions))
    assert all(i % folds == t.fold for t in tasks for i in t.partitions)
    assert len(tasks) <= max(shards, folds)
    assert [t.fold for t in tasks] == sorted(t.fold for t in tasks)
    assert {t.fold for t in tasks} == set(range(folds))
    assert all(list(t.partitions) == sorted(t.partitions) for t in tasks)


def test_defaults_depend_on_data_and_m_only(make_dataset) -> None:
    job = nd.Job(nd.Dataset(make_dataset(np.ones((500, 3)), np.arange(500.0))), nd.NTKRandomFeatures(128))
    p = nd.plan(job)
    assert (p.folds, p.shards, p.fan_in, p.block_rows, p.threads, p.dtype) == (5, 10, 4, 500, 1, "float32")
    assert nd.plan(job, threads=3).threads == 3
    elsewhere = nd.plan(msgspec.structs.replace(job, cluster=nd.Local(workers=7)))
    assert msgspec.structs.replace(elsewhere, job=job) == p


def test_plans_that_cannot_be_are_refused(make_dataset) -> None:
    dataset = nd.Dataset(make_dataset(np.ones((5, 3)), np.arange(5.0)))
    with pytest.raises(nd.SpecError, match=r"folds is 6 but .* has 5 partitions; lower folds"):
        nd.plan(nd.Job(dataset, nd.NTKRandomFeatures(128), plan=nd.PlanTable(folds=6)))
    with pytest.raises(nd.SpecError, match="block_rows is 10; expected at least n_components/2 = 64"):
        nd.plan(nd.Job(dataset, nd.NTKRandomFeatures(128), plan=nd.PlanTable(block_rows=10)))
    with pytest.raises(nd.SpecError, match="folds = 1 leaves nothing to choose alpha by"):
        nd.Job(dataset, nd.NTKRandomFeatures(128), plan=nd.PlanTable(folds=1))


def test_memory_is_refused_with_its_parts() -> None:
    p = plan_of(m=8192)
    p.check(p.projected_memory_bytes())
    with pytest.raises(
        nd.PlanTooLarge, match=r"needs 4\.\d GB per worker \(process .* waiting sums .*\) but the limit is 2"
    ):
        p.check(2 * 10**9)
    with pytest.raises(nd.PlanTooLarge, match=r"Solving needs .* in this process \(5 folds of 0\.5 GB"):
        p.check_driver(10**9)


def test_memory_grows_as_it_should() -> None:
    small, wide = plan_of(), plan_of(m=256)
    assert wide.memory()["accumulator"] == pytest.approx(16 * small.memory()["accumulator"], rel=0.1)
    assert plan_of(dtype="float64").memory()["batch"] > small.memory()["batch"]
    assert plan_of(m=2048).projected_memory_bytes(4) < plan_of(m=2048).projected_memory_bytes(1)
    assert small.memory(tasks_at_once=2)["batch"] == 2 * small.memory()["batch"]
