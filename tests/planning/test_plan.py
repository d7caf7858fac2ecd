"""Plans: every partition in one task, nothing from the number of workers, memory as promised."""

import re
import shutil

import dask.array as da
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import plan_of
from stored import MakeDataset

import ntkdist as nd
from ntkdist.cluster.connect import Resources
from ntkdist.cluster.tree import tree
from ntkdist.planning import estimate, resolve
from ntkdist.planning.rates import Rates
from ntkdist.sums import NormalEquations


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


@pytest.mark.parametrize(
    "features",
    [
        nd.CNTKSketch(64, depth=2),
        nd.CNTKRandomFeatures(64, depth=2),
        nd.Nystrom(16, nd.CNTK(2, 3)),
        nd.Nystrom(16, nd.CNTK(2, 3), landmarks="leverage"),
    ],
)
def test_features_of_images_refuse_a_table_before_it_is_read(features, make_dataset) -> None:
    x, y = np.ones((60, 5)), np.arange(60.0)
    store = make_dataset(x, y)
    shutil.rmtree(f"{store}/x/c")
    says = r"CNTK takes images \(rows, height, width, channels\), but {} has rows of shape \(5,\); give images, or use"
    for call in (
        lambda: nd.plan(nd.Job(nd.Dataset(store), features)),
        lambda: nd.fit(nd.Job(nd.Dataset(store), features)),
        lambda: nd.featurize(store, features, "out.zarr"),
        lambda: nd.NTKRidge(features).fit(store),
        lambda: nd.FeatureTransformer(features).fit(store),
    ):
        with pytest.raises((nd.DataError, ValueError), match=says.format(re.escape(store))):
            call()
    for rows in (x, da.from_array(x, chunks=(20, 5))):
        for estimator in (nd.NTKRidgeCV(features), nd.FeatureTransformer(features)):
            with pytest.raises(ValueError, match=says.format("X")):
                estimator.fit(rows, y)


def test_images_too_small_for_a_network_are_refused_as_a_plan(make_dataset) -> None:
    dataset = nd.Dataset(make_dataset(np.ones((20, 4, 4, 1)), np.arange(20.0)))
    kernel = nd.CNTK(2, 3, "valid", pool=(2, 1))
    for features in (nd.CNTKRandomFeatures(64, 2, 3, "valid", pool=(2, 1)), nd.Nystrom(16, kernel)):
        with pytest.raises(nd.DataError, match="images of 4 x 4 pixels are too small for CNTK"):
            nd.plan(nd.Job(dataset, features))


def test_plans_that_cannot_be_are_refused(make_dataset) -> None:
    dataset = nd.Dataset(make_dataset(np.ones((5, 3)), np.arange(5.0)))
    with pytest.raises(nd.SpecError, match=r"folds is 6 but .* has 5 partitions; lower folds"):
        nd.plan(nd.Job(dataset, nd.NTKRandomFeatures(128), plan=nd.PlanTable(folds=6)))
    with pytest.raises(nd.SpecError, match="block_rows is 10; expected at least n_components/2 = 64"):
        nd.plan(nd.Job(dataset, nd.NTKRandomFeatures(128), plan=nd.PlanTable(block_rows=10)))
    with pytest.raises(nd.SpecError, match="folds = 1 leaves nothing to choose alpha by"):
        nd.Job(dataset, nd.NTKRandomFeatures(128), plan=nd.PlanTable(folds=1))
    with pytest.raises(nd.SpecError, match="folds = 1 leaves no rows to choose features by"):
        nd.Job(dataset, alphas=(1.0,), plan=nd.PlanTable(folds=1))


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
    tiled = msgspec.structs.replace(plan_of(m=2048, folds=2), solver=nd.TiledCholesky(), tile=256, panels=20)
    assert tiled.projected_memory_bytes(4) < tiled.projected_memory_bytes(1)
    alone, shared = (plan_of(m=2048).projected_memory_bytes(workers) for workers in (1, 4))
    assert plan_of(m=2048).sum_bytes <= alone - shared  # additions, and so totals, are dealt to the workers
    assert small.memory(tasks_at_once=2)["batch"] == 2 * small.memory()["batch"]


def test_a_plan_that_does_not_fit_names_the_nearest_that_do(make_dataset) -> None:
    job = nd.Job(nd.Dataset(make_dataset(np.ones((500, 3)), np.arange(500.0))), nd.NTKRandomFeatures(8192))
    job = msgspec.structs.replace(job, alphas=(1.0, 2.0), solver=nd.Cholesky())
    found = Resources(2, 1, 1, 3 * 10**9, 2 * 10**9, 10**8, 10**8)
    with pytest.raises(nd.PlanTooLarge) as refused:
        resolve.check(resolve.planned(job, found), found)
    said = re.search(
        r"fits here is solver TiledCholesky with tile (\d+) or solver PCG or n_components (\d+) with",
        str(refused.value),
    )
    assert said is not None
    tile, most = map(int, said.groups())
    resolve.check(resolve.planned(msgspec.structs.replace(job, solver=nd.TiledCholesky(tile)), found), found)
    resolve.check(resolve.planned(msgspec.structs.replace(job, solver=nd.PCG()), found), found)

    def of(m: int) -> nd.Job:
        return msgspec.structs.replace(job, features=nd.NTKRandomFeatures(m))

    resolve.check(resolve.planned(of(most), found), found)
    with pytest.raises(nd.PlanTooLarge):
        resolve.check(resolve.planned(of(most + 64), found), found)
    with pytest.raises(nd.PlanTooLarge, match="no other solver or n_components fits here"):
        resolve.check(resolve.planned(job, found), found._replace(memory_bytes=10**8))


def test_a_plan_tells_the_seconds_of_other_solvers_that_fit(make_dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """At one rate for all, so that what is counted decides."""
    x, found = np.ones((5000, 3)), Resources(2, 1, 1, 10**10, 10**10, 10**8, 10**8)
    rates = Rates(syrk=1e15, **dict.fromkeys(Rates._fields[1:], 1e-6))
    monkeypatch.setattr(estimate, "measured", lambda *_: rates)
    monkeypatch.setattr(estimate, "of_solver", lambda rates, _: rates)
    job = nd.Job(nd.Dataset(make_dataset(x, np.arange(5000.0))), nd.NTKRandomFeatures(2048))

    def seconds_with(solver: nd.PCG | nd.Cholesky | None, **changes: object) -> dict[str, float]:
        p = resolve.planned(msgspec.structs.replace(job, solver=solver, **changes), found)
        cost = estimate.cost(p, found)
        said = estimate.table(p, found, cost)
        assert all(f"{name} {seconds:.0f} s" in said for name, seconds in cost["seconds_with"].items())
        return cost["seconds_with"] | {type(p.solver).__name__: cost["seconds"]}

    dense, iterative = seconds_with(None), seconds_with(nd.PCG())
    assert dense == iterative
    assert dense.keys() == {"Cholesky", "TiledCholesky", "PCG"}
    small = found._replace(driver_memory_bytes=2 * 10**8)
    assert (
        "Cholesky"
        not in estimate.cost(resolve.planned(msgspec.structs.replace(job, solver=nd.PCG()), found), small)[
            "seconds_with"
        ]
    )
    fewer = seconds_with(nd.PCG(max_iterations=10))
    assert fewer["PCG"] < iterative["PCG"] / 5
    assert fewer["Cholesky"] == iterative["Cholesky"]
    one = seconds_with(nd.PCG(), alphas=(1.0,))
    assert one["PCG"] < iterative["PCG"]


@pytest.mark.slow
def test_the_bytes_of_the_tree_are_those_that_additions_take(make_dataset) -> None:
    """Each addition finds one of its sums where it is; the last sum of every fold goes to the driver."""
    job = nd.Job(nd.Dataset(make_dataset(np.ones((500, 3)), np.arange(500.0), rows_per_partition=5)), nd.Linear(3))
    p = nd.plan(msgspec.structs.replace(job, features=nd.NTKRandomFeatures(32), plan=nd.PlanTable(shards=73, fan_in=3)))
    moved: list[int] = []
    for fold in range(p.folds):
        tree(range(p.tasks_of(fold)), p.fan_in, lambda parts: moved.append(len(parts) - 1) or 0)
    found = Resources(2, 1, 1, 10**9, 10**9, 10**8, 10**8)
    costs = [estimate.cost(p, found._replace(workers=w), price=2.0) for w in (1, 2)]
    one = NormalEquations.zeros(32, 1)
    nbytes = one.gram.nbytes + one.rhs.nbytes + one.z_sum.nbytes
    assert [c["network_bytes"] for c in costs] == [p.folds * nbytes, (sum(moved) + p.folds) * nbytes]
    for workers, c in enumerate(costs, 1):
        assert c["seconds"] == pytest.approx(sum(c["seconds_of"].values()))
        assert c["price"] == pytest.approx(2.0 * workers * c["seconds"] / 3600)


def test_a_metric_that_does_not_fit_is_refused_for_a_diagonal(make_dataset: MakeDataset) -> None:
    """The outer products of 1,500 columns take 18 MB each, many times the Gram of 64 features."""
    store = make_dataset(np.random.default_rng(0).standard_normal((300, 1500)), np.arange(300.0))
    full = nd.Job(nd.Dataset(store), nd.Nystrom(64), metric=nd.Metric(rounds=1))
    diagonal = msgspec.structs.replace(full, metric=nd.Metric(rounds=1, form="diagonal"))
    plain = nd.plan(msgspec.structs.replace(full, metric=nd.Metric()))
    limit = nd.plan(diagonal).projected_memory_bytes()
    assert nd.plan(full).memory()["metric"] >= 2 * 2 * 8 * 1500**2
    with pytest.raises(nd.PlanTooLarge, match=r'metric 0\.\d.*; use metric\.form = "diagonal", or lower n_components'):
        nd.plan(full).check(limit)
    nd.plan(diagonal).check(limit)
    assert plain.memory().keys() == nd.plan(msgspec.structs.replace(full, metric=nd.Metric(rounds=0))).memory().keys()
    assert "metric" not in plain.memory()
