"""Fits with one Gram in place against dense fits; memory, resuming, and plans that choose it."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from interrupted import Cut, CutAfter
from iterative import same_bits

import ntkdist as nd
from ntkdist.cluster.connect import Resources, resources
from ntkdist.cluster.shards import add_shard
from ntkdist.data.dataset import Shard
from ntkdist.planning import estimate, resolve
from ntkdist.planning.in_place_cost import InPlaceCost
from ntkdist.planning.plan import source_of
from ntkdist.ridge import single
from ntkdist.solvers import grid as grids
from ntkdist.sums import NormalEquations

pytestmark = pytest.mark.usefixtures("alone")

FEATURES = nd.NTKRandomFeatures(n_components=96, depth=2, bias=0.5)
EXACT = nd.PlanTable(folds=4, dtype="float64", threads=1)
ALPHAS = (0.1, 1.0, 10.0)
HELD = np.arange(900) % 7 == 3


def job_on(store: str, **changes: Any) -> nd.Job:
    job = nd.Job(nd.Dataset(store), FEATURES, alphas=ALPHAS, plan=EXACT, solver=nd.InPlaceCholesky())
    return msgspec.structs.replace(job, **changes)


def held_out(make_dataset: Any, *table: Any, **changes: Any) -> nd.Job:
    """A job whose penalty is chosen by some of the rows."""
    store = make_dataset(*table, holdout=HELD, rows_per_partition=45)
    plan = msgspec.structs.replace(EXACT, folds=None)
    return job_on(store, **{"dataset": nd.Dataset(store, holdout="holdout"), "plan": plan} | changes)


def whole(job: nd.Job) -> nd.FitResult:
    return nd.fit(msgspec.structs.replace(job, solver=nd.Cholesky()))


def assert_same(a: Any, b: Any) -> None:
    """Models and scores, to 1e-8 of the scale of each."""
    pairs = ((each.model, each.cv) if isinstance(each, nd.FitResult) else each for each in (a, b))
    (model, cv), (other, expected) = pairs
    size = np.abs(other.coef).max(axis=0)
    np.testing.assert_allclose(model.coef / size, other.coef / size, atol=1e-8)
    np.testing.assert_allclose(model.intercept, other.intercept, rtol=1e-8)
    np.testing.assert_allclose(model.alpha, other.alpha, rtol=1e-10)
    np.testing.assert_allclose(cv.alphas, expected.alphas, rtol=1e-10)
    np.testing.assert_allclose(cv.mse, expected.mse, rtol=1e-8)
    np.testing.assert_allclose(cv.spread, expected.spread, rtol=1e-8)
    assert (cv.scored, cv.best.tolist()) == (expected.scored, expected.best.tolist())


@pytest.mark.parametrize("grid", [{}, {"alphas": "auto"}, {"alphas": "auto", "alphas_per_row": (1e-3, 1e-2)}])
def test_a_fit_with_a_holdout_is_that_of_a_gram_for_every_fold(make_dataset: Any, table: Any, grid: Any) -> None:
    job = held_out(make_dataset, *table, **grid)
    for per_target in (False, True):
        job = msgspec.structs.replace(job, alpha_per_target=per_target)
        a, b = nd.fit(job), whole(job)
        assert_same(a, b)
        assert a.report["data"] == b.report["data"]
        assert a.equations is None
        assert any("InPlaceCholesky keeps no Gram" in note for note in a.report["notes"])


def test_without_a_holdout_the_last_fold_is_scored_and_this_is_said(make_dataset: Any, table: Any) -> None:
    job = job_on(make_dataset(*table))
    a = nd.fit(job)
    assert_same(a, nd.solve(replace(whole(job).equations, scored=(3,)), solver=nd.Cholesky(), alphas=ALPHAS))
    assert "alpha was chosen by the error on the last of 4 folds alone, then all rows were used" in a.report["notes"]
    assert "one fold of 4 was scored" in a.cv.note


def test_groups_one_fold_and_a_model_that_is_saved(make_dataset: Any, table: Any, tmp_path: Path) -> None:
    store = make_dataset(*table, groups=np.arange(900) % 50)
    job = job_on(store, dataset=nd.Dataset(store, groups="groups"))
    a, equations = nd.fit(job, out=str(tmp_path / "run")), whole(job).equations
    assert_same(a, nd.solve(replace(equations, scored=(3,)), solver=nd.Cholesky(), alphas=ALPHAS))
    np.testing.assert_array_equal(nd.load(str(tmp_path / "run" / "model.zarr"))(table[0]), a.model(table[0]))
    with pytest.raises(nd.DataError, match="no equations: its solver kept no Gram; fit again"):
        nd.calibrate(str(tmp_path / "run"), keep_factor=True)
    one = msgspec.structs.replace(job_on(store), alphas=(1.0,), plan=msgspec.structs.replace(EXACT, folds=1))
    a, b = nd.fit(one), whole(one)
    assert a.cv is b.cv is None
    np.testing.assert_allclose(a.model.coef, b.model.coef, rtol=1e-8, atol=1e-10)


def test_weights_classes_and_dropped_rows(make_dataset: Any, table: Any) -> None:
    x, y = table[0].copy(), np.array(["in", "out"])[(table[1][:, 1] > 0).astype(int)]
    x[[3, 500], [0, 4]] = np.nan
    weights = np.random.default_rng(0).integers(0, 4, 900)
    store = make_dataset(x, y, weights=weights, holdout=HELD, rows_per_partition=45)
    dataset = nd.Dataset(store, weight="weight", nan="drop", holdout="holdout")
    plan = msgspec.structs.replace(EXACT, folds=None)
    job = job_on(store, dataset=dataset, plan=plan, class_weight="balanced")
    a, b = nd.fit(job), whole(job)
    assert_same(a, b)
    weights, expected = (each.report["data"].pop("fold_weights") for each in (a, b))
    np.testing.assert_allclose(weights, expected)
    assert a.report["data"] == b.report["data"]


def float32_job(store: str, **table: Any) -> nd.Job:
    """Several tiles and blocks, where another order of sums would show."""
    plan = msgspec.structs.replace(EXACT, **{"dtype": "float32", "block_rows": 64} | table)
    return job_on(store, features=nd.NTKRandomFeatures(1100), plan=plan, alphas=(1.0, 10.0))


def test_the_bits_depend_on_no_number_of_threads_nor_on_what_is_kept_in_memory(
    make_dataset: Any, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_dataset(*table)
    one = nd.fit(float32_job(store))
    assert one.report["run"]["projected_memory_bytes"]["remembered rows"] > 0
    same_bits(one, nd.fit(float32_job(store, threads=3)))
    monkeypatch.setattr(single, "cache_bytes", lambda *_: 0)
    again = nd.fit(float32_job(store))
    same_bits(one, again)
    assert again.report["run"]["bytes_read"] > one.report["run"]["bytes_read"]
    assert again.report["data"] == one.report["data"]


@pytest.mark.parametrize(("after", "phase"), [(9, "equations"), (12, "equations"), (14, "equations")])
def test_a_run_that_was_cut_off_continues_to_the_same_bits(
    make_dataset: Any, table: Any, tmp_path: Path, after: int, phase: str
) -> None:
    """Of 16 shards, 12 are summed, and every fifth or so of their sums is kept; the others are held out."""
    job, out = job_on(make_dataset(*table, rows_per_partition=45), alphas=ALPHAS), str(tmp_path / "run")
    job = msgspec.structs.replace(job, plan=msgspec.structs.replace(EXACT, dtype="float32", shards=16))
    straight = nd.fit(job)
    with pytest.raises(Cut):
        nd.fit(job, out=out, watch=CutAfter(after, phase))
    continued = nd.fit(job, out=out, resume=True)
    same_bits(straight, continued)
    assert straight.report["data"] == continued.report["data"]
    assert any("shards were finished before and taken from the" in note for note in continued.report["notes"])


def test_a_sum_with_an_unknown_part_of_a_shard_is_not_tried_again(make_dataset: Any, table: Any) -> None:
    p = nd.plan(job_on(make_dataset(*table)))
    calls: list[int] = []

    class Failing:
        def zero(self) -> int:
            return 0

        def update(self, total: int, rows: Any) -> int:
            calls.append(total)
            raise OSError("gone")

    with pytest.raises(nd.ClusterError, match=r"^Adding rows 0–89 failed with OSError: gone; see to the cause,"):
        add_shard(source_of(p), Failing(), Shard(0, ((0, 90),)), 5)
    assert calls == [5]


def test_an_alpha_too_small_to_factor_loses_and_does_not_fail(make_dataset: Any, table: Any) -> None:
    store = make_dataset(np.repeat(table[0], 2, axis=1), table[1])
    job = job_on(store, features=nd.Linear(10), alphas=(0.0, 1.0))
    result = nd.fit(job)
    assert np.isinf(result.cv.mse[0]).all()
    assert result.model.alpha.tolist() == [1.0, 1.0]
    with pytest.raises(nd.NotPositiveDefinite, match=r"alpha=0 \(pivot \d+ of 10\); use a larger alpha, or float64$"):
        nd.fit(msgspec.structs.replace(job, alphas=(0.0,)))


def test_a_fit_holds_one_gram(make_dataset: Any) -> None:
    """Beside it are the coefficients, tiles of the factorisation, and, in the end, a measurement of products."""
    x = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    m = 2000
    job = job_on(make_dataset(x, x[:, 0]), features=nd.NTKRandomFeatures(m), alphas=(1.0, 10.0))
    p = resolve.resolve(msgspec.structs.replace(job, plan=nd.PlanTable()), resources(None))
    tracemalloc.start()
    nd.fit(p)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 8 * m**2 < peak < 1.5 * 8 * m**2
    parts = p.memory()
    assert parts["Gram"] < 1.01 * 8 * m**2
    assert peak <= sum(parts.values()) - parts["process"] + 300 * 8 * m  # with the rows held out


@pytest.mark.slow
def test_the_peak_is_at_most_what_was_projected(make_dataset: Any) -> None:
    """In this process: the sum, the rows held out, and a batch, of weighted rows too."""
    x = np.random.default_rng(0).standard_normal((12_000, 8)).astype(np.float32)
    store = make_dataset(x, x[:, 0], weights=np.abs(x[:, 1]), rows_per_partition=None)
    for weight in ("", "weight"):
        dataset = nd.Dataset(store, weight=weight)
        job = job_on(store, dataset=dataset, features=nd.NTKRandomFeatures(4096), plan=nd.PlanTable())
        run = nd.fit(job).report["run"]
        peak, projected = max(run["peak_memory_bytes"].values()), sum(run["projected_memory_bytes"].values())
        assert 0.8 * projected <= peak <= projected


def test_a_thinned_grid_finds_the_choice_of_the_whole(
    make_dataset: Any, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = held_out(make_dataset, *table, alphas="auto")
    every = nd.fit(job)
    monkeypatch.setattr(grids, "THIN", 1)
    few = nd.fit(job)
    np.testing.assert_allclose(few.model.alpha, every.model.alpha)
    assert len(few.cv.alphas) <= len(every.cv.alphas) - 5


def test_a_machine_without_room_for_all_folds_takes_it_and_says_what_it_costs(make_dataset: Any) -> None:
    x = np.ones((500, 3))
    job = nd.Job(nd.Dataset(make_dataset(x, np.arange(500.0))), nd.NTKRandomFeatures(8192))
    here = Resources(1, 1, 1, 10**9, 10**9, 10**8, 10**8, here=True)
    p = resolve.planned(job, here)
    assert p.solver == nd.InPlaceCholesky()
    assert (p.scored, p.sets) == ((4,), 2)
    resolve.check(p, here)
    rates = dict.fromkeys(estimate.Rates._fields, 1e-6)
    cost = InPlaceCost(p, here, estimate.Rates(**rates))
    assert cost.counts == {"factorisations": 9}
    said = cost.described(p, {"gram_flops": 1e9, "passes": 2, "seconds_of": cost.seconds()} | cost.counts)
    assert said[1] == "1.00e+09 in the Gram, 9 factorisations of 1.83e+11"
    assert said[2].endswith("which chooses alpha by the last of 5 folds alone")
    roomy = here._replace(memory_bytes=10**10, driver_memory_bytes=10**10)
    assert resolve.planned(job, roomy).solver == nd.Cholesky()
    with pytest.raises(nd.PlanTooLarge, match=r"Gram 0\.5, coefficients"):
        resolve.check(p, here._replace(memory_bytes=5 * 10**8))


def test_a_cluster_is_refused(make_dataset: Any, table: Any) -> None:
    job, cluster = job_on(make_dataset(*table)), Resources(2, 1, 1, 10**10, 10**10, 10**8, 10**8)
    with pytest.raises(nd.NtkdistError, match=r"but this run has a cluster of 2 worker\(s\); run without a"):
        resolve.resolve(job, cluster)
    assert resolve.planned(msgspec.structs.replace(job, solver=None), cluster).solver == nd.Cholesky()


def test_the_gram_stays_in_its_lower_triangle() -> None:
    z = np.random.default_rng(0).standard_normal((1300, 1100)) + 1
    e = NormalEquations.zeros(1100, 2).update(z, z[:, :2])
    before, gram = e.gram.copy(), e.lower
    (a,), (b,) = (solver.solve(e, [5.0]) for solver in (nd.InPlaceCholesky(), nd.Cholesky()))
    np.testing.assert_array_equal(e.gram, before)
    assert e.gram is gram
    np.testing.assert_allclose(a.coef, b.coef, rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(a.intercept, b.intercept, rtol=1e-8)
