"""Habits of scikit-learn: searches over fields of specs, folds of the caller, choices among maps, several labels."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client
from folds import scaled
from numpy.typing import NDArray
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    PredefinedSplit,
    RepeatedKFold,
    StratifiedKFold,
    TimeSeriesSplit,
)
from sklearn.pipeline import make_pipeline
from stored import MakeDataset

import ntkdist as nd

F8 = NDArray[np.float64]
PHI = nd.ZonalFeatures(40, nd.NTK(depth=1, bias=1.0))
WAVY = nd.Nystrom(60, nd.Gaussian(2.0))
GROUPS = np.random.default_rng(2).integers(0, 20, 600)


@pytest.fixture
def classes(xy: tuple[F8, F8]) -> tuple[F8, NDArray[np.int64]]:
    return xy[0], np.digitize(xy[1], np.quantile(xy[1], [0.3, 0.7]))


@pytest.fixture
def labels(xy: tuple[F8, F8]) -> tuple[F8, NDArray[np.int64]]:
    """Return rows with three labels, of which some have none and some have all."""
    x, y = xy
    return x, np.stack([y > np.median(y), *(x[:, :2] > np.quantile(x[:, :2], 0.6, axis=0)).T], axis=1).astype(np.int64)


# parameters


def test_fields_of_specs_are_parameters_of_a_search(xy: tuple[F8, F8]) -> None:
    ridge = nd.NTKRidge(nd.Nystrom(20, nd.NTK(2)))
    grid = {"ntkridge__features__kernel__depth": [1, 3], "ntkridge__features__n_components": [5, 60]}
    search = GridSearchCV(make_pipeline(ridge), grid, cv=3).fit(*xy)
    best = search.best_estimator_[-1].features
    assert search.best_params_["ntkridge__features__n_components"] == best.n_components == 60
    assert best.kernel.depth == search.best_params_["ntkridge__features__kernel__depth"]
    assert ridge.features == nd.Nystrom(20, nd.NTK(2))  # a value, which nobody else's search changes


def test_a_spec_is_replaced_before_its_fields() -> None:
    model = nd.NTKRidgeCV(nd.Nystrom(20, nd.NTK(2)), metric=nd.Metric(rounds=1))
    model.set_params(features__kernel__lengthscale=3, features__kernel=nd.Gaussian(1.0), metric__rounds=2, folds=4)
    assert (model.features, model.folds) == (nd.Nystrom(20, nd.Gaussian(3.0)), 4)
    assert model.get_params()["metric__rounds"] == 2
    assert "metric__rounds" not in model.get_params(deep=False)
    for says, wrong in {
        "features__kernel is a Gaussian, which has no 'lenghtscale'; did you mean 'lengthscale'": {
            "features__kernel__lenghtscale": 1.0
        },
        "NTKRidgeCV has no parameter 'featuers'; did you mean 'features'": {"featuers__seed": 1},
        "alphas is 'auto', which has no 'x'": {"alphas__x": 1},
        "Nystrom.n_components is 0": {"features__n_components": 0},
        "features is None, which has no 'seed'": {"features": None, "features__seed": 1},
    }.items():
        with pytest.raises(ValueError, match=says):
            model.set_params(**wrong)


def test_a_seed_of_the_estimator_is_that_of_its_map(xy: tuple[F8, F8]) -> None:
    seeded = nd.NTKRidge(PHI, random_state=np.int64(3)).fit(*xy)
    same = nd.NTKRidge(nd.ZonalFeatures(40, PHI.kernel, seed=3)).fit(*xy)
    np.testing.assert_array_equal(seeded.coef_, same.coef_)
    assert seeded.partial_fit(*xy).model_.features.seed == 3
    assert nd.FeatureTransformer(WAVY, random_state=5).fit(xy[0]).features_.spec.seed == 5
    chosen = nd.NTKRidgeCV(random_state=7).fit(xy[0][:100], xy[1][:100])
    assert chosen.choice_.features.seed == chosen.model_.features.spec.seed == 7
    assert nd.NTKRidge(nd.Linear(5), random_state=3).fit(*xy).model_.features == nd.Linear(5)  # draws nothing
    with pytest.raises(ValueError, match="random_state is 'x'; expected an integer"):
        nd.NTKRidge(PHI, random_state="x").fit(*xy)


def test_threads_change_no_bits_and_are_as_many_as_asked_for(
    xy: tuple[F8, F8], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("ntkdist.cluster.connect.CPU_COUNT", 8)
    monkeypatch.setattr("ntkdist.backend.core_numbers", lambda: frozenset(range(8)))
    use = nd.ridge.in_memory.resources

    def resources(client: Any) -> Any:
        asked.append(use(client).threads)
        return use(client)

    monkeypatch.setattr("ntkdist.ridge.in_memory.resources", resources)

    x, y = (np.concatenate([each, each]) for each in xy)  # more than one block
    coefs = [nd.NTKRidgeCV(PHI, n_jobs=n).fit(x, y).coef_ for n in (None, 1, 3, -2)]
    assert asked == [8, 1, 3, 7]
    for coef in coefs[1:]:
        np.testing.assert_array_equal(coef, coefs[0])
    with pytest.raises(ValueError, match="n_jobs is 0"):
        nd.NTKRidgeCV(PHI, n_jobs=0).fit(x, y)


def test_a_verbose_fit_shows_its_phases(xy: tuple[F8, F8], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    silent = nd.cluster.progress.silent

    def watch(name: str, rows: int) -> Any:
        shown.append(name)
        return silent(name, rows)

    monkeypatch.setattr("ntkdist.cluster.progress.default_watch", lambda workers=1: watch)
    nd.NTKRidgeCV(PHI).fit(*xy)
    assert not shown
    nd.NTKRidgeClassifier(PHI, verbose=True).fit(xy[0], xy[1] > np.median(xy[1]))
    assert shown == ["moments", "equations", "out of fold"]


# folds


@pytest.mark.parametrize(
    ("cv", "expected"),
    [
        (3, KFold(3)),
        (KFold(4, shuffle=True, random_state=0), KFold(4, shuffle=True, random_state=0)),
        (GroupKFold(3), GroupKFold(3)),
        (list(KFold(3).split(np.zeros(600))), KFold(3)),
        (None, GroupKFold(5)),
    ],
)
def test_folds_are_those_of_scikit_learn(cv: Any, expected: Any, xy: tuple[F8, F8]) -> None:
    x, y = xy
    groups = GROUPS if isinstance(expected, GroupKFold) else None
    fitted = nd.NTKRidgeCV(PHI, [0.3], cv=cv, keep_factor=True).fit(x, y, groups=groups)
    z, residuals = PHI(scaled(x)), np.empty(600)
    for train, test in expected.split(x, y, groups):
        residuals[test] = y[test] - Ridge(0.3, solver="cholesky").fit(z[train], y[train]).predict(z[test])
    np.testing.assert_allclose(fitted.residuals_[:, 0], residuals, rtol=1e-6, atol=1e-8)
    assert fitted.cv_.rmse == pytest.approx(np.sqrt((residuals**2).mean()))


def test_rows_that_no_split_tests_are_trained_on(xy: tuple[F8, F8]) -> None:
    x, y = xy
    held = np.where(np.arange(600) % 4 == 1, 0, -1)
    fitted = nd.NTKRidgeCV(PHI, [0.3], cv=PredefinedSplit(held), keep_factor=True).fit(x, y)
    z = PHI(scaled(x))
    ridge = Ridge(0.3, solver="cholesky").fit(z[held < 0], y[held < 0])
    np.testing.assert_allclose(fitted.residuals_[:, 0], (y - ridge.predict(z))[held == 0], rtol=1e-6, atol=1e-8)


def test_rows_of_dask_have_the_same_folds(xy: tuple[F8, F8]) -> None:
    x, y = xy
    here = nd.NTKRidgeCV(PHI, folds=3).fit(x, y, groups=GROUPS)
    lazy, targets = da.from_array(x, chunks=(150, 5)), da.from_array(y, chunks=150)
    there = nd.NTKRidgeCV(PHI, folds=3).fit(lazy, targets, groups=da.from_array(GROUPS, chunks=150))
    np.testing.assert_allclose(there.cv_.mse, here.cv_.mse, rtol=1e-7)
    assert not np.allclose(here.cv_.mse, nd.NTKRidgeCV(PHI, folds=3).fit(x, y).cv_.mse)


def test_classes_are_stratified(classes: Any) -> None:
    x, y = classes
    fitted = nd.NTKRidgeClassifier(PHI, cv=3).fit(x, y)
    sizes = [len(test) for _, test in StratifiedKFold(3).split(x, y)]
    np.testing.assert_array_equal(fitted.cv_.weights, sizes)


def test_splits_that_are_no_folds_are_refused(xy: tuple[F8, F8], make_dataset: MakeDataset) -> None:
    x, y = xy
    fitted = nd.NTKRidgeCV(PHI).fit(x, y, groups=GROUPS)
    place = make_dataset(x, y)
    for says, call in {
        "cv tests row .* in its splits . and 5": lambda: nd.NTKRidgeCV(PHI, cv=RepeatedKFold()).fit(x, y),
        "split 0 of cv trains on 150 rows": lambda: nd.NTKRidgeCV(PHI, cv=TimeSeriesSplit(3)).fit(x, y),
        r"cv is LeaveOneOut\(\), which gives more than 100 splits": lambda: nd.NTKRidgeCV(PHI, cv=LeaveOneOut()).fit(
            x, y
        ),
        "Expected `cv` as an integer": lambda: nd.NTKRidgeCV(PHI, cv="five").fit(x, y),
        "groups has 3 entries but X has 600": lambda: nd.NTKRidgeCV(PHI).fit(x, y, groups=[1, 2, 3]),
        "groups deal rows to folds, of which NTKRidge has none": lambda: nd.NTKRidge(PHI).fit(x, y, groups=GROUPS),
        "groups deals its rows to folds, and says nothing of": lambda: fitted.partial_fit(x, y),
        "cv deals the rows of one call": lambda: nd.NTKRidgeCV(PHI, cv=3).partial_fit(x, y),
        "a dataset, which has folds of its own": lambda: nd.NTKRidgeCV(PHI, cv=3).fit(place),
    }.items():
        with pytest.raises(ValueError, match=says):
            call()


# choices


def test_the_map_of_least_error_is_kept_with_the_errors_of_all(xy: tuple[F8, F8], make_dataset: MakeDataset) -> None:
    x, y = xy
    alone = {spec: nd.NTKRidgeCV(spec, folds=3).fit(x, y) for spec in (nd.Linear(5), WAVY, PHI)}
    best = min(alone, key=lambda spec: alone[spec].cv_.rmse)
    both = nd.NTKRidgeCV(list(alone), folds=3).fit(x, y)
    np.testing.assert_array_equal(both.coef_, alone[best].coef_)
    results = both.cv_results_
    for spec, one in alone.items():
        mine = [p["features"] == spec for p in results["params"]]
        np.testing.assert_allclose(-results["mean_test_score"][mine], one.cv_.path[:, 0])
        np.testing.assert_allclose(-results["split2_test_score"][mine], one.cv_.mse[:, 2, 0])
    assert results["params"][int(np.argmin(results["rank_test_score"]))]["features"] == best
    assert both.partial_fit(x, y).model_.features == both.model_.features
    stored = nd.NTKRidgeCV([nd.Linear(5), PHI], folds=3).fit(make_dataset(x, y))
    assert stored.model_.features == PHI
    for says, call in {
        "folds is 1, which leaves nothing to choose among 2": lambda: nd.NTKRidgeCV([PHI, WAVY], [1.0], 1).fit(x, y),
        r"features is \[.*expected a feature map, such as": lambda: nd.NTKRidge([PHI, WAVY]).fit(x, y),
        "features is 'NTK'; .* or a kernel, such as nd.Gaussian.*, or a list of them": lambda: nd.NTKRidgeCV(
            [PHI, "NTK"]
        ).fit(x, y),
    }.items():
        with pytest.raises(ValueError, match=says):
            call()


def test_kernels_stand_for_their_maps_at_landmarks(xy: tuple[F8, F8]) -> None:
    x, y = xy
    kernels = [nd.Gaussian(2.0), nd.NTK(1)]
    found = nd.NTKRidgeCV([*kernels, nd.Linear(5)], folds=3).fit(x, y)
    assert found.feature_maps == (*(nd.Nystrom(1024, kernel) for kernel in kernels), nd.Linear(5))
    same = nd.NTKRidgeCV([nd.Nystrom(1024, kernel) for kernel in kernels], folds=3).fit(x, y)
    np.testing.assert_array_equal(found.coef_, same.coef_)
    alone = nd.NTKRidge(nd.NTK(1)).fit(x, y)
    assert alone.model_.features.spec == nd.Nystrom(1024, nd.NTK(1))
    assert "features__depth" in nd.NTKRidge(nd.NTK(1)).get_params()


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss"])
def test_a_penalty_is_chosen_by_scikit_learns_scores(scoring: str, calibrated: bool, classes: Any) -> None:
    """Scores of each fold are those of a classifier that is fitted to the others, with equal scaling."""
    x, y = classes
    grid = [1e-2, 1.0, 30.0, 1000.0]
    fitted = nd.NTKRidgeClassifier(PHI, grid, cv=3, scoring=scoring, calibrated=calibrated).fit(x, y)
    z, codes, scores = PHI(scaled(x)), np.eye(3)[y], fitted.cv_results_["mean_test_score"]
    alphas = fitted.cv_results_["param_alpha"]
    out = np.empty((len(alphas), 600, 3))
    for i, alpha in enumerate(alphas):
        for train, test in StratifiedKFold(3).split(x, y):
            out[i, test] = Ridge(alpha, solver="cholesky").fit(z[train], codes[train]).predict(z[test])
    if scoring == "accuracy":
        expected = [accuracy_score(y, each.argmax(axis=1)) for each in out]
    elif calibrated:
        beta = [nd.ridge.residuals.temperature(each, y) for each in out]
        expected = [-log_loss(y, softmaxed(b * each)) for b, each in zip(beta, out, strict=True)]
    else:
        clipped = np.clip(out, 1e-6, 1)
        expected = [-log_loss(y, each / each.sum(axis=1, keepdims=True)) for each in clipped]
    np.testing.assert_allclose(scores, expected, rtol=0.01 if calibrated else 1e-9)
    assert fitted.alpha_ == alphas[np.flatnonzero(scores == scores.max())[-1]]
    z = (z - z.mean(axis=0)) @ fitted.coef_.T
    np.testing.assert_allclose(fitted.decision_function(x) - codes.mean(axis=0), z, rtol=1e-6, atol=1e-8)


def softmaxed(scores: F8) -> F8:
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@pytest.mark.slow
def test_datasets_and_rows_of_dask_are_scored_by_their_folds(
    classes: Any, make_dataset: MakeDataset, two_workers: Client
) -> None:
    x, y = classes
    place = make_dataset(x, y, classes=True, holdout=np.arange(600) % 4 == 1)
    grid = [1e-2, 1.0, 30.0]
    stored = nd.NTKRidgeClassifier(PHI, grid, scoring="accuracy").fit(nd.Dataset(place, holdout="holdout"))
    held = PredefinedSplit(np.where(np.arange(600) % 4 == 1, 0, -1))
    here = nd.NTKRidgeClassifier(PHI, grid, cv=held, scoring="accuracy").fit(x, y)
    scores = here.cv_results_["split0_test_score"]
    assert len(scores) >= 3
    np.testing.assert_array_equal(stored.cv_results_["split0_test_score"], scores)
    assert stored.alpha_ == here.alpha_
    with two_workers.as_current():
        lazy = nd.NTKRidgeClassifier(PHI, grid, cv=held, scoring="accuracy").fit(da.from_array(x, chunks=(150, 5)), y)
    np.testing.assert_array_equal(lazy.cv_results_["split0_test_score"], scores)


def test_classifiers_have_coefficients_of_their_decisions(classes: Any) -> None:
    x, y = classes
    features = nd.FeatureTransformer(PHI).fit(x)
    for targets, shape in ((y, (3, 40)), (y > 0, (1, 40))):
        fitted = nd.NTKRidgeClassifier(PHI).fit(x, targets)
        assert fitted.coef_.shape == shape
        decisions = features.transform(x) @ fitted.coef_.T + fitted.intercept_
        np.testing.assert_allclose(np.squeeze(decisions), fitted.decision_function(x), rtol=1e-8, atol=1e-10)
        assert fitted.alpha_ == fitted.model_.alpha[0]
    fitted.set_params(metric=nd.Metric(rounds=1)).fit(x, y)
    assert hasattr(fitted, "feature_importances_") != hasattr(fitted, "coef_")


def test_misspelt_names_are_refused_with_the_nearest(classes: Any) -> None:
    x, names = classes[0], np.array(["low", "mid", "high"])[classes[1]]
    for says, params in {
        "class_weight is 'balnced'; .* did you mean 'balanced'": {"class_weight": "balnced"},
        "'hihg', which is no class, but not 'high', .* did you mean 'high'": {"class_weight": {"hihg": 2.0}},
        "scoring is 'acuracy'; did you mean 'accuracy'": {"scoring": "acuracy"},
        "keep_equations is 'no'": {"keep_equations": "no"},
    }.items():
        with pytest.raises(ValueError, match=says):
            nd.NTKRidgeClassifier(PHI, **params).fit(x, names)
    with pytest.raises(ValueError, match="scoring is 'accuracy', which needs all rows once more"):
        nd.NTKRidgeClassifier(PHI, scoring="accuracy").partial_fit(x, names)


# several labels


def test_several_labels_are_ridges_on_each(labels: Any) -> None:
    x, y = labels
    fitted = nd.NTKRidgeClassifier(PHI, [0.3]).fit(x, y)
    z = PHI(scaled(x))
    theirs = RidgeClassifier(0.3, solver="cholesky").fit(z, y)
    np.testing.assert_allclose(fitted.decision_function(x), theirs.decision_function(z), rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(fitted.predict(x), theirs.predict(z))
    np.testing.assert_allclose(fitted.coef_, theirs.coef_, rtol=1e-5, atol=1e-8)
    assert fitted.score(x, y) == theirs.score(z, y)
    lazy = fitted.predict_proba(da.from_array(x, chunks=(200, 5)))
    np.testing.assert_allclose(lazy.compute(), fitted.predict_proba(x), rtol=1e-7)


def test_probabilities_of_labels_are_those_of_two_classes(labels: Any) -> None:
    x, y = labels
    for calibrated in (True, False):
        several = nd.NTKRidgeClassifier(PHI, [0.3], calibrated=calibrated).fit(x, y)
        for j in range(3):
            one = nd.NTKRidgeClassifier(PHI, [0.3], calibrated=calibrated).fit(x, y[:, j])
            np.testing.assert_allclose(several.predict_proba(x)[:, j], one.predict_proba(x)[:, 1], rtol=1e-4)


def test_labels_are_scored_added_and_refused(labels: Any) -> None:
    x, y = labels
    scores = {}
    for scoring in ("accuracy", "neg_log_loss"):
        fitted = nd.NTKRidgeClassifier(PHI, [1e-3, 1.0, 1e3], cv=3, scoring=scoring).fit(x, y)
        scores[scoring] = fitted.cv_results_["mean_test_score"]
    right, z = np.empty(600), PHI(scaled(x))
    for train, test in KFold(3).split(x):
        ridge = RidgeClassifier(1.0, solver="cholesky").fit(z[train], y[train])
        right[test] = (ridge.predict(z[test]) == y[test]).all(axis=1)
    np.testing.assert_allclose(scores["accuracy"][1], right.mean(), rtol=1e-12)
    assert scores["neg_log_loss"][1] > scores["neg_log_loss"][2] > -np.log(2) * 1.01
    parts = nd.NTKRidgeClassifier(PHI, clip="none").partial_fit(x[:300], y[:300]).partial_fit(x[300:], y[300:])
    assert parts.score(x, y) > 0.5
    for says, call in {
        "y has 2 labels, but 3 in the rows before": lambda: parts.partial_fit(x, y[:, :2]),
        "y is of one kind, but one class a row": lambda: parts.partial_fit(x, y[:, 0]),
        "class_weight is for one class a row": lambda: nd.NTKRidgeClassifier(PHI, class_weight="balanced").fit(x, y),
    }.items():
        with pytest.raises(ValueError, match=says):
            call()


# what a fit leaves


def test_a_fit_leaves_nothing_of_the_one_before(xy: tuple[F8, F8]) -> None:
    x, y = xy
    model = nd.NTKRidgeCV(keep_factor=True).fit(x[:100], y[:100])
    assert {"choice_", "equations_", "residuals_"} <= vars(model).keys()
    model.set_params(features=PHI, keep_factor=False, keep_equations=False).fit(x, y)
    assert not {"choice_", "equations_", "residuals_"} & vars(model).keys()
    before = model.predict(x)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(x, y[:10])
    np.testing.assert_array_equal(model.predict(x), before)


def test_pickles_are_small_unless_sums_are_asked_for(xy: tuple[F8, F8]) -> None:
    x, y = xy
    sizes = {}
    for keep in ("here", False, True):
        model = nd.NTKRidgeCV(PHI, keep_equations=keep).fit(x, y)
        sizes[keep] = len(pickle.dumps(model))
        again = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(again.predict(x), model.predict(x))
        if keep is not True:
            with pytest.raises(ValueError, match="not in the pickle or copy that this is"):
                again.partial_fit(x, y)
    assert sizes["here"] < sizes[False] + 100 < 20_000 < 5 * 8 * 40**2 < sizes[True]
    assert model.partial_fit(x, y).equations_.total.weight == 1200
    added = pickle.loads(pickle.dumps(nd.NTKRidgeCV(PHI).fit(x, y).partial_fit(x, y)))  # as dask-ml sends them
    assert added.partial_fit(x, y).equations_.total.weight == 1800


ESTIMATORS: dict[str, Callable[[], Any]] = {
    "ridge": lambda: nd.NTKRidge(WAVY, 0.3, random_state=1),
    "cv": lambda: nd.NTKRidgeCV([WAVY, PHI], [0.1, 1.0], metric=nd.Metric(rounds=1), keep_factor=True),
    "classes": lambda: nd.NTKRidgeClassifier(PHI, class_weight={"low": 2.0}, cv=3),
    "labels": lambda: nd.NTKRidgeClassifier(PHI),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_saved_estimator_is_the_same_estimator(name: str, xy: Any, classes: Any, labels: Any, tmp_path: Path) -> None:
    x, place = xy[0], str(tmp_path / "saved.zarr")
    y = {"classes": np.array(["low", "mid", "high"])[classes[1]], "labels": labels[1]}.get(name, xy[1])
    fitted = ESTIMATORS[name]().fit(x, y)
    nd.save(fitted, place)
    loaded = nd.load(place)
    assert type(loaded) is type(fitted)
    assert loaded.get_params() == fitted.get_params()
    missing = vars(fitted).keys() - vars(loaded).keys()
    assert missing <= {"equations_", "cv_results_", "choice_"}
    for method in ("predict", "predict_proba", "decision_function", "predict_interval"):
        if method == "predict_interval" and name != "cv":
            continue
        if hasattr(fitted, method):
            np.testing.assert_array_equal(getattr(loaded, method)(x), getattr(fitted, method)(x))
    for attribute in ("coef_", "intercept_", "alpha_"):
        np.testing.assert_array_equal(getattr(loaded, attribute), getattr(fitted, attribute))
    if fitted.cv_ is not None:
        np.testing.assert_array_equal(loaded.cv_.mse, fitted.cv_.mse)
    assert isinstance(nd.ridge.store.load(place), nd.RidgeModel)  # what commands take
    np.testing.assert_array_equal(loaded.fit(x, y).predict(x), fitted.predict(x))


def test_an_estimator_of_a_newer_version_is_refused(xy: tuple[F8, F8], tmp_path: Path) -> None:
    place = str(tmp_path / "saved.zarr")
    nd.save(nd.NTKRidge(PHI).fit(*xy), place)
    group = zarr.open_group(place)
    group.attrs["estimator"] = group.attrs["estimator"] | {"params": {"invented_later": 1}}
    with pytest.raises(nd.StoreError, match="a newer ntkdist saved this NTKRidge; update ntkdist"):
        nd.load(place)


def test_what_cannot_be_saved_is_refused(xy: tuple[F8, F8], tmp_path: Path) -> None:
    place = tmp_path / "saved.zarr"
    for says, value in {
        "a FeatureTransformer cannot be saved; expected a model, equations": nd.FeatureTransformer(PHI).fit(xy[0]),
        "NTKRidge is not fitted": nd.NTKRidge(PHI),
        r"cv is KFold\(.*, a Python object": nd.NTKRidgeCV(PHI, cv=KFold(3)).fit(*xy),
    }.items():
        with pytest.raises(nd.SpecError, match=says):
            nd.save(value, str(place))
        assert not place.exists()
