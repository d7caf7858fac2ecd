"""The choice of features, columns and metric: what decides it, and that a job without features is what it becomes."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted import same
from scipy.sparse import csr_array, save_npz

import ntkdist as nd
from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Layout, Rows
from ntkdist.data.scaling import Round
from ntkdist.planning.job import LEAST_COMPONENTS, MOST_COMPONENTS, components, of_images, rounds_components
from ntkdist.ridge import choose
from ntkdist.sums.sample import TrainingSample, TrainingSampleOf

D, ROWS = 4, 400


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and small trials."""
    monkeypatch.setattr(choose, "TURNS", 1)
    monkeypatch.setattr(choose, "TRIAL_COMPONENTS", 64)
    monkeypatch.setattr(choose, "TRIAL_ROUNDS", 1)
    monkeypatch.setattr(choose, "RECIPES", (choose.RECIPES[2], choose.RECIPES[1]))


def along_columns(rows: int = ROWS) -> tuple[Any, Any]:
    """Draw a target of steps along single columns, as a product kernel learns it best."""
    x = np.random.default_rng(0).uniform(-1, 1, (rows, D))
    return x, np.sign(x[:, 0] + 0.3) + 0.5 * np.sign(x[:, 1] - 0.2)


def along_a_direction(rows: int = ROWS) -> tuple[Any, Any]:
    """Draw a smooth target along one direction, as a full metric finds it."""
    x = np.random.default_rng(0).standard_normal((rows, D))
    return x, np.sin(2 * x @ np.array([1.0, -1.0, 1.0, -0.5]))


def arrays(xy: tuple[Any, Any]) -> Arrays:
    return Arrays(xy[0], xy[1], None, "float64")


def test_the_recipe_that_suits_the_rows_is_chosen() -> None:
    steps = choose.choose(arrays(along_columns()), ROWS, nd.Preprocess())
    smooth = choose.choose(arrays(along_a_direction()), ROWS, nd.Preprocess())
    assert isinstance(steps.features.kernel, nd.ProductLaplace)
    assert isinstance(smooth.features.kernel, nd.NTK)
    assert (smooth.metric.form, smooth.preprocess.front) == ("full", "both")
    assert steps.features.n_components == smooth.features.n_components == ROWS
    for choice in (steps, smooth):
        errors = [trial.rmse for trial in choice.trials]
        assert min(errors) < 0.8 * max(errors)


def test_what_is_given_is_kept() -> None:
    metric = nd.Metric(rounds=1, scales=(1.0,))
    choice = choose.choose(arrays(along_a_direction()), ROWS, nd.Preprocess(), front="quantile", metric=metric)
    assert choice.preprocess.front == "quantile"
    assert (choice.metric.form, choice.metric.scales, choice.metric.rounds) == ("full", (1.0,), 1)
    assert all((one.recipe.front, one.recipe.metric) == ("quantile", metric) for one in choice.trials)


def test_without_rounds_the_length_is_that_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "RECIPES", choose.RECIPES[:1])
    choice = choose.choose(arrays(along_a_direction()), ROWS, nd.Preprocess(), metric=nd.Metric(scales=(3.0,)))
    assert choice.metric == nd.Metric()
    assert isinstance(choice.features.kernel, nd.NTK)
    (trial,) = choice.trials
    assert choice.features.kernel.bias == pytest.approx((2 * D) ** 0.5 / (3 * trial.stretch))  # two forms of a column


@pytest.mark.parametrize("kernel", [nd.NTK(2, 0.7), nd.ProductLaplace(1.3), nd.Gaussian(0.8), nd.Laplace(0.8)])
def test_a_longer_row_is_a_shorter_kernel(kernel: Any) -> None:
    x = np.random.default_rng(0).standard_normal((6, D))
    short, long = choose.of_length(kernel, 2.5)(x), kernel(2.5 * x)
    np.testing.assert_allclose(short / short[0, 0], long / long[0, 0], rtol=1e-10)


def test_rows_of_many_columns_have_a_diagonal_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "WIDEST", D - 1)
    choice = choose.choose(arrays(along_a_direction()), ROWS, nd.Preprocess())
    assert {one.recipe.metric.form for one in choice.trials} == {"diagonal"}


def test_other_rows_are_held_out_in_each_turn() -> None:
    """Whatever the number of folds that the rows are dealt to."""
    x, y = along_columns()
    for folds in (2, 3, 5):
        rows = replace(arrays((x, y)), deal=np.arange(ROWS) % folds)
        errors = [choose._learned(rows, nd.Preprocess(), False, choose.RECIPES[1], t).rounds[0].rmse for t in (0, 1)]
        assert errors[0] != errors[1]


def test_only_recipes_close_to_the_best_are_tried_on_other_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """However lucky one was before."""
    monkeypatch.setattr(choose, "TURNS", 4)
    errors = {"far": [1.0] * 4, "lucky": [0.5, 1.3, 0.1, 0.1], "good": [0.51] * 4, "near": [0.515] * 4}
    recipes = {name: choose.RECIPES[0]._replace(front=name) for name in errors}
    tried = list[tuple[str, int]]()

    def learned(recipe: choose.Recipe, turn: int) -> Any:
        tried.append((recipe.front, turn))
        return SimpleNamespace(rounds=[Round(1.0, errors[recipe.front][turn], 0.1, kept=True)], mapped_shape=(D,))

    trials = choose._raced(recipes.values(), learned, ROWS)
    turns = {"far": 1, "lucky": 2, "good": 4, "near": 4}
    assert {one.recipe.front: one.turns for one in trials} == turns
    assert sorted(tried) == sorted((name, turn) for name, count in turns.items() for turn in range(count))
    mean = {one.recipe.front: one.rmse for one in trials}
    assert mean["lucky"] == pytest.approx(np.sqrt(np.mean(np.square(errors["lucky"][:2]))))
    once = choose._raced(recipes.values(), learned, choose.FEW_ROWS)
    assert {one.turns for one in once} == {1}


def test_rows_that_are_all_equal_are_refused_as_those_of_one_fold() -> None:
    frame = pd.DataFrame({"a": np.ones(ROWS), "kind": "same"})
    with pytest.raises(nd.DataError, match="All rows are in one of 5 folds, for they are few or equal"):
        nd.NTKRidgeCV().fit(frame, np.arange(ROWS))


def test_features_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "FEWEST_ROWS", 10**6)
    monkeypatch.setattr(choose.memory, "free_memory_bytes", lambda: 2 * choose.GRAMS * 8 * 1500**2)
    choice = choose.choose(arrays(along_columns()), 50_000, nd.Preprocess())
    assert components(50_000) == 4096
    assert choice.features.n_components == 1024


def test_few_rows_are_not_enough_to_choose_by() -> None:
    choice = choose.choose(arrays(along_columns(choose.FEWEST_ROWS - 1)), 149, nd.Preprocess())
    assert choice == choose.Choice(nd.Nystrom(149, nd.NTK(2, 1.0)), nd.Preprocess(), nd.Metric())


@pytest.mark.slow
def test_a_choice_on_a_cluster_is_that_of_one_process(make_dataset: Any, two_workers: Any) -> None:
    open_job = nd.Job(nd.Dataset(make_dataset(*along_columns())), plan=nd.PlanTable(folds=3))
    same(nd.fit(open_job, client=two_workers), nd.fit(open_job))


def test_a_job_without_features_is_the_job_that_it_becomes(make_dataset: Any, tmp_path: Any) -> None:
    x, y = along_columns()
    open_job = nd.Job(nd.Dataset(make_dataset(x, y)), plan=nd.PlanTable(folds=3))
    chosen, trials = choose.complete(open_job, None, None)
    assert isinstance(chosen.map.kernel, nd.ProductLaplace)  # type: ignore[union-attr]
    one, other = nd.fit(open_job, out=str(tmp_path / "run")), nd.fit(chosen)
    same(one, other)
    assert one.report["plan"]["job"] == msgspec.to_builtins(chosen)
    assert [trial["rmse"] for trial in one.report["choice"]] == [trial.rmse for trial in trials]
    assert "features, columns and metric were chosen among 2 kinds" in " ".join(one.report["notes"])
    again = nd.fit(open_job, out=str(tmp_path / "run"))  # a complete run is loaded
    np.testing.assert_array_equal(again.model.coef, one.model.coef)


def test_the_choice_does_not_depend_on_the_partitions(make_dataset: Any) -> None:
    x, y = along_columns()
    group = np.arange(ROWS) // 40
    jobs = [
        nd.Job(nd.Dataset(make_dataset(x, y, name=f"cut{n}", groups=group, rows_per_partition=n), groups="groups"))
        for n in (40, 57)
    ]
    (one, trials), (other, others) = (choose.complete(job, None, None) for job in jobs)
    assert (one.features, one.metric, one.preprocess) == (other.features, other.metric, other.preprocess)
    assert [trial.rmse for trial in trials] == [trial.rmse for trial in others]


def test_a_plan_of_a_job_without_features_is_as_large_as_that_of_the_choice(make_dataset: Any) -> None:
    x, y = along_a_direction()
    job = nd.Job(nd.Dataset(make_dataset(x, y)))
    chosen, _ = choose.complete(job, None, None)
    assert nd.plan(job).m == nd.plan(chosen).m == ROWS
    assert nd.plan(job).memory() == nd.plan(job.provisional(ROWS)).memory()


def test_a_reused_run_gives_its_map_and_metric(make_dataset: Any, tmp_path: Any) -> None:
    x, y = along_a_direction()
    first = nd.fit(nd.Job(nd.Dataset(make_dataset(x, y))), out=str(tmp_path / "first"))
    more = make_dataset(*along_a_direction(300), name="more")
    second = nd.fit(nd.Job(nd.Dataset(more), preprocess=nd.Preprocess(reuse=str(tmp_path / "first"))))
    assert second.model.features == first.model.features
    assert (first.equations + second.equations).total.weight == ROWS + 300


def test_what_needs_features_says_so(make_dataset: Any, tmp_path: Path) -> None:
    x, y = along_columns()
    job = nd.Job(nd.Dataset(make_dataset(x, y)))
    with pytest.raises(nd.SpecError, match=r"the job has no \[features\], which only fit and plan can do without"):
        nd.featurize(job.dataset, job.map, "out.zarr")
    save_npz(tmp_path / "rows.npz", csr_array(np.eye(60)))
    np.save(tmp_path / "y.npy", np.arange(60.0))
    nd.convert(str(tmp_path / "rows.npz"), str(tmp_path / "sparse.zarr"), target=[str(tmp_path / "y.npy")])
    sparse = nd.Job(nd.Dataset(str(tmp_path / "sparse.zarr")))
    with pytest.raises(nd.SpecError, match=r"no \[features\], and the rows of .* are sparse, .* such as NTKSketch"):
        nd.fit(sparse)


@pytest.mark.parametrize(
    ("shape", "pool", "grid"),
    [
        ((28, 28, 1), (2, 2, 1), 3),
        ((32, 32, 3), (2, 2, 1), 2),
        ((16, 20, 1), (2, 2, 1), 3),
        ((8, 8, 1), (2, 1, 1), 3),
        ((3, 5, 2), (1, 1, 1), 3),
        ((1, 1, 1), (1, 1, 1), 1),
    ],
)
def test_images_have_the_fast_settings_of_the_best_jobs(
    shape: tuple[int, ...], pool: tuple[int, ...], grid: int
) -> None:
    features = of_images(1024, shape)
    features.check_shape(shape)
    assert (features.pool, features.grid, features.tangent, features.whiten > 0) == (pool, grid, False, True)


def test_images_without_features_are_fitted(make_dataset: Any) -> None:
    """On corners that are dark or light, whose class no mean of all pixels shows; the plan is that of the fit."""
    rng = np.random.default_rng(0)
    codes = np.arange(300) % 2
    x = rng.standard_normal((300, 8, 8, 1))
    x[codes == 1, :4] += 1.0
    x[codes == 1, 4:] -= 1.0
    job = nd.Job(nd.Dataset(make_dataset(x, codes, classes=True)))
    result = nd.fit(job)
    assert result.model.features.spec == nd.plan(job).features == of_images(300, (8, 8, 1))
    assert result.cv is not None
    assert result.cv.r2 > 0.5


def test_estimators_show_their_choice_and_keep_it_for_later_rows() -> None:
    x, y = along_columns()
    frame = pd.DataFrame(x, columns=list("abcd")).assign(kind=np.where(np.arange(ROWS) % 3, "u", "v"))
    model = nd.NTKRidgeCV().fit(frame, y)
    assert isinstance(model.choice_.features.kernel, nd.ProductLaplace)
    assert model.model_.features.spec == model.choice_.features
    again = nd.NTKRidgeCV(model.choice_.features, metric=model.choice_.metric, front=model.choice_.preprocess.front)
    np.testing.assert_array_equal(again.fit(frame, y).predict(frame), model.predict(frame))
    weight = model.equations_.total.weight
    model.partial_fit(frame[:50], y[:50])
    assert model.model_.features.spec == model.choice_.features
    assert model.equations_.total.weight == weight + 50


def test_estimators_choose_for_datasets_as_fit_does(make_dataset: Any) -> None:
    x, y = along_columns()
    store = make_dataset(x, y)
    model = nd.NTKRidgeCV().fit(store)
    chosen, _ = choose.complete(nd.Job(nd.Dataset(store), plan=nd.PlanTable(folds=5, dtype="float64")), None, None)
    assert (model.choice_.features, model.choice_.metric) == (chosen.features, chosen.metric)


def test_classes_are_chosen_for_by_their_codes() -> None:
    x, y = along_columns()
    model = nd.NTKRidgeClassifier().fit(x, np.where(y > 0, "up", "down"))
    assert isinstance(model.choice_.features.kernel, nd.ProductLaplace)
    assert (model.predict(x) == np.where(y > 0, "up", "down")).mean() > 0.95


def test_recipes_near_the_best_are_averaged_by_their_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "NEAR", np.inf)
    x, y = along_columns()
    frame = pd.DataFrame(x, columns=list("abcd")).assign(kind=np.where(np.arange(ROWS) % 3, "u", "v"))
    model = nd.NTKRidgeCV(one_hot=4).fit(frame, y)
    voting = model.ensemble().fit(frame, y)
    predictions = [member.predict(frame) for member in voting.estimators_]
    best, other = sorted(trial.rmse for trial in model.choice_.trials)
    assert best < other
    np.testing.assert_array_equal(predictions[0], model.predict(frame))  # with the estimator's other parameters
    expected = np.average(predictions, axis=0, weights=[1, (other / best) ** -choose.WEIGHING])
    np.testing.assert_allclose(voting.predict(frame), expected, rtol=1e-12)


def test_recipes_far_from_the_best_are_not_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = along_columns()
    model = nd.NTKRidgeClassifier().fit(x, y > 0)
    assert len(model.choice_.trials) == 2
    monkeypatch.setattr(choose, "NEAR", 1.0)
    alone = model.ensemble().fit(x, y > 0)
    np.testing.assert_array_equal(alone.predict_proba(x), model.predict_proba(x))
    few = nd.NTKRidgeCV().fit(x[:100], y[:100])  # too few rows to try recipes on
    np.testing.assert_array_equal(few.ensemble().fit(x[:100], y[:100]).predict(x), few.predict(x))
    with pytest.raises(ValueError, match="no choice of features to average; fit without features first"):
        nd.NTKRidgeCV(nd.Linear(D)).fit(x, y).ensemble()


def test_the_number_of_features_grows_with_the_root_of_the_rows() -> None:
    sizes = [components(n) for n in (1, 500, 1024, 5_000, 20_000, 60_000, 300_000, 10**9)]
    assert sizes == [8, 500, 1024, 2048, 4096, MOST_COMPONENTS, 2048, LEAST_COMPONENTS]
    assert [rounds_components(m) for m in (100, 600, 1024, 4096)] == [100, LEAST_COMPONENTS // 2, 512, 2048]


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, 50), max_size=4), size=st.integers(1, 60))
def test_the_sample_is_that_of_all_rows_whatever_the_cut(cuts: list[int], size: int) -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.standard_normal((50, 2)), rng.integers(0, 3, 50), rng.integers(0, 3, 50).astype(float)
    layout = Layout(50, 10, (2,), "float64", "", labelled=True, classes=("a", "b", "c"))
    summand = TrainingSampleOf(size, layout)

    def part(a: int, b: int) -> TrainingSample:
        rows = Rows(x[a:b], y[a:b], w[a:b], np.arange(a, b), fold=2)
        return summand.update(summand.zero(), rows)

    ends = [0, *sorted(cuts), 50]
    total = summand.zero()
    for a, b in itertools.pairwise(ends):
        total = total + part(a, b)
    whole = part(0, 50)
    assert len(whole.keys) == min(size, np.count_nonzero(w))
    for mine, theirs in zip(total.columns, whole.columns, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (whole.columns[2] > 0).all()
    assert set(whole.columns[3]) <= {2}


def test_a_sample_of_arrays_is_of_rows_in_their_order() -> None:
    x, y = along_columns()
    rows = replace(arrays((x, y)), weight=np.arange(ROWS), deal=np.arange(ROWS) % 7)
    few = rows.sample(50)
    at = few.weight
    assert (np.diff(at) > 0).all()
    np.testing.assert_array_equal(few.x, x[at])
    np.testing.assert_array_equal(few.y, y[at])
    np.testing.assert_array_equal(few.deal, at % 7)
    assert rows.sample(ROWS) is rows
