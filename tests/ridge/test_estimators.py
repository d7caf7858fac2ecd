"""Estimators: scikit-learn's checks, pipelines and searches, and equality with the fits that they call."""

import warnings
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pytest
import zarr
from dask_ml.model_selection import train_test_split
from dask_ml.preprocessing import StandardScaler as DaskScaler
from dask_ml.wrappers import ParallelPostFit
from distributed import Client
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, log_loss, r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from stored import MakeDataset

import ntkdist as nd
from ntkdist.data.arrays import Arrays

F8 = NDArray[np.float64]
SMALL = nd.ZonalFeatures(40, nd.NTK(depth=1, bias=1.0))
SPARSE = nd.NTKSketch(40, degree=3, bias=1.0)
CHECKED = [
    nd.NTKRidgeCV(SMALL, folds=3),
    nd.NTKRidgeClassifier(SMALL, folds=3),
    nd.FeatureTransformer(SMALL),
]
NAMES = ["a", "b", "c", "d", "e"]


@parametrize_with_checks(CHECKED)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([nd.NTKRidge(SPARSE, keep_factor=True), nd.NTKRidgeClassifier(SPARSE, calibrated=False)])
def test_scikit_learns_checks_with_sparse_rows(estimator: Any, check: Any) -> None:
    check(estimator)


def kinds(x: F8, y: F8, tmp_path: Path) -> dict[str, tuple[Any, Any]]:
    """Return the same rows in every kind that is accepted in place of an array."""
    frame, target = pd.DataFrame(x, columns=NAMES), pd.Series(y, name="y")
    z = zarr.create_array(str(tmp_path / "z.zarr"), data=x, chunks=(100, 5))
    return {
        "pandas": (frame, target),
        "polars": (pl.DataFrame(x, schema=NAMES), pl.Series(y)),
        "dask": (da.from_array(x, chunks=(150, 3)), da.from_array(y, chunks=150)),
        "dask frame": (dd.from_pandas(frame, npartitions=3), dd.from_pandas(target, npartitions=3)),
        "zarr": (z, y),
        "list": (x.tolist(), y.tolist()),
    }


def test_ridge_is_ridge_on_the_features_of_scaled_rows(xy: tuple[F8, F8]) -> None:
    x, y = xy
    z = SMALL((x - x.mean(axis=0)) / x.std(axis=0))
    ours, theirs = nd.NTKRidge(SMALL, alpha=0.3).fit(x, y), Ridge(0.3, solver="cholesky").fit(z, y)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(z), rtol=1e-9)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-6, atol=1e-9)
    assert ours.score(x, y) == pytest.approx(r2_score(y, theirs.predict(z)))


def test_every_kind_of_rows_is_the_same(xy: tuple[F8, F8], tmp_path: Path) -> None:
    x, y = xy
    plain = nd.NTKRidgeCV(SMALL, folds=3).fit(x, y)
    for name, (some, targets) in kinds(x, y, tmp_path).items():
        fitted = nd.NTKRidgeCV(SMALL, folds=3).fit(some, targets)
        assert fitted.alpha_ == pytest.approx(plain.alpha_), name
        np.testing.assert_allclose(np.asarray(fitted.predict(some)), plain.predict(x), rtol=1e-7, err_msg=name)
        if "a" in getattr(some, "columns", ()):
            assert fitted.feature_names_in_.tolist() == NAMES
            assert fitted.model_.preprocessing.columns == tuple(NAMES)
            with pytest.raises(ValueError, match=r"feature names|columns"):
                fitted.predict(some[NAMES[::-1]])


def test_a_dataset_by_its_place_is_fitted_as_fit_does(xy: tuple[F8, F8], make_dataset: MakeDataset) -> None:
    x, y = xy
    store = make_dataset(x, y)
    fitted = nd.NTKRidgeCV(SMALL, folds=4).fit(store)
    job = nd.Job(nd.Dataset(store), SMALL, plan=nd.PlanTable(folds=4, dtype="float64"))
    np.testing.assert_array_equal(fitted.coef_, nd.fit(job).model.coef[:, 0])
    np.testing.assert_allclose(fitted.predict(store), fitted.predict(x), rtol=1e-9)
    assert fitted.score(store) == pytest.approx(fitted.score(x, y))
    with pytest.raises(ValueError, match="leave out y"):
        fitted.fit(store, y)


@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.reset_index is deprecated")  # as Dask uses it
@pytest.mark.parametrize("place", ["{tmp_path}", "memory://{tmp_path}"])
def test_frames_of_parquet_files(xy: tuple[F8, F8], tmp_path: Path, place: str) -> None:
    """Files have unequal lengths; Dask reads several at once where few of their columns are taken, as for y."""
    x, y = xy
    place = place.format(tmp_path=tmp_path)
    frame = pd.DataFrame(x, columns=NAMES).assign(y=y, w=np.arange(600) % 3)
    for i, start in enumerate(range(0, 600, 130)):
        frame[start : start + 130].to_parquet(f"{place}/{i}.parquet", index=False)
    lazy = dd.read_parquet(place)
    assert len(lazy["y"].optimize().divisions) < len(lazy.divisions)  # so that Dask counts the rows of other partitions
    plain = nd.NTKRidgeCV(SMALL, folds=3).fit(x, y, frame["w"])
    for target, weight in ((lazy["y"], lazy["w"]), (y, frame["w"])):
        fitted = nd.NTKRidgeCV(SMALL, folds=3).fit(lazy[NAMES], target, weight)
        np.testing.assert_allclose(fitted.coef_, plain.coef_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(fitted.predict(lazy[NAMES]).compute(), plain.predict(x), rtol=1e-6)
    labels = nd.NTKRidgeClassifier(SMALL, folds=3, calibrated=False).fit(lazy[NAMES], lazy["w"])
    assert labels.classes_.tolist() == [0, 1, 2]
    transformer = nd.FeatureTransformer(SMALL).fit(lazy[NAMES])
    assert transformer.transform(lazy[NAMES]).compute().shape == (600, 40)


def test_scores_are_weighted(xy: tuple[F8, F8], make_dataset: MakeDataset) -> None:
    """Arrays are weighted by ``sample_weight``, a dataset by its own weights."""
    x, y = xy
    labels = np.where(y > np.median(y), 1, 0)
    weight = np.where(x[:, 0] > 0, 10.0, 0.1)
    ridge, classifier = nd.NTKRidge(SMALL).fit(x[:90], y[:90]), nd.NTKRidgeClassifier(SMALL).fit(x[:90], labels[:90])
    for fitted, target, metric, classes in ((ridge, y, r2_score, False), (classifier, labels, accuracy_score, True)):
        expected = metric(target, fitted.predict(x), sample_weight=weight)
        assert abs(expected - metric(target, fitted.predict(x))) > 0.01
        for some in (weight, pd.Series(weight), da.from_array(weight, chunks=200)):
            assert fitted.score(x, target, some) == pytest.approx(expected)
        assert fitted.score(da.from_array(x, chunks=(150, 5)), target, sample_weight=weight) == pytest.approx(expected)
        store = make_dataset(x, target, type(fitted).__name__, classes=classes, weights=weight)
        assert fitted.score(nd.Dataset(store, weight="weight")) == pytest.approx(expected)
        assert fitted.score(store) == pytest.approx(fitted.score(x, target))
        with pytest.raises(ValueError, match="leave out y and sample_weight"):
            fitted.score(store, sample_weight=weight)


def test_predictions_for_dask_are_lazy_and_in_blocks(xy: tuple[F8, F8]) -> None:
    x, y = xy
    lazy = da.from_array(x, chunks=(150, 3))
    fitted = nd.NTKRidge(SMALL).fit(x, np.stack([y, -y], axis=1))
    predicted = fitted.predict(lazy)
    assert isinstance(predicted, da.Array)
    assert predicted.chunks == ((150,) * 4, (2,))
    assert predicted.name.startswith("ntkdist-")
    np.testing.assert_allclose(predicted.compute(), fitted.predict(x), rtol=1e-9)
    features = nd.FeatureTransformer(SMALL).fit(lazy).transform(lazy.astype(np.float32))
    assert (features.dtype, features.shape) == (np.float32, (600, 40))
    labels = np.where(y > np.median(y), "high", "low")
    classifier = nd.NTKRidgeClassifier(SMALL, folds=3).fit(lazy, labels)
    assert (classifier.predict(lazy).compute() == classifier.predict(x)).all()
    np.testing.assert_allclose(classifier.predict_proba(lazy).compute(), classifier.predict_proba(x), rtol=1e-7)


@pytest.mark.slow
def test_lazy_blocks_share_what_was_fitted_as_the_result_of_one_task(xy: tuple[F8, F8], two_workers: Client) -> None:
    """The graph that is sent holds the arrays once; two schedulers give the same results."""
    x, y = xy
    lazy = da.random.default_rng(0).standard_normal((600, 5), chunks=(50, 5))
    ridge = nd.NTKRidge(nd.ZonalFeatures(256), keep_factor=True).fit(x, y)
    classifier = nd.NTKRidgeClassifier(nd.ZonalFeatures(256)).fit(x, y > np.median(y))
    landmarks = nd.FeatureTransformer(nd.Nystrom(128)).fit(x)
    results = [
        *ridge.predict(lazy, return_std=True),
        classifier.predict(lazy),
        classifier.predict_proba(lazy),
        landmarks.transform(lazy),
    ]
    for result in results:
        (sent,) = dask.optimize(result)
        small, large = np.partition([len(cloudpickle.dumps(task)) for task in sent.dask.values()], -1)[[-2, -1]]
        assert small < 1000 < 4000 < large
        np.testing.assert_array_equal(two_workers.compute(result).result(), result.compute(scheduler="synchronous"))


@pytest.mark.slow
def test_a_large_model_goes_to_the_cluster_once_and_not_with_every_graph(two_workers: Client) -> None:
    """Dask does not warn of large graphs (an error here); the model that two predictions share is held once."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1400, 3))
    lazy = da.from_array(x[:200], chunks=(50, 3))
    with warnings.catch_warnings(), two_workers.as_current():
        warnings.simplefilter("error")
        targets = da.from_array(x[:, 0], chunks=700)
        fitted = nd.NTKRidge(nd.Nystrom(1200), keep_factor=True).fit(da.from_array(x, chunks=(700, 3)), targets)
        mean, std = fitted.predict(lazy, return_std=True)
        assert isinstance(mean, da.Array)
        held = [len(cloudpickle.dumps(dask.optimize(result)[0].dask)) for result in (mean, std)]
        results = dask.compute(mean, std)
        again = fitted.predict(lazy)
        assert again.name == mean.name
    assert max(held) < 30_000 < 8 * 1200**2
    for ours, here in zip(results, fitted.predict(x[:200], return_std=True), strict=True):
        np.testing.assert_allclose(ours, here, rtol=1e-9)


def test_dask_rows_are_summed_where_they_are(xy: tuple[F8, F8], two_workers: Client) -> None:
    x, y = xy
    lazy, targets = da.from_array(x, chunks=(150, 5)), da.from_array(y, chunks=150)
    with two_workers.as_current():
        fitted = nd.NTKRidgeCV(SMALL, folds=3).fit(lazy, targets)
        predicted = fitted.predict(lazy).compute()
    np.testing.assert_allclose(predicted, nd.NTKRidgeCV(SMALL, folds=3).fit(x, y).predict(x), rtol=1e-7)


def test_partial_fits_add_up(xy: tuple[F8, F8]) -> None:
    x, y = (xy[0] - xy[0].mean(axis=0)) / xy[0].std(axis=0), xy[1]
    raw = {"inputs": "none", "clip": "none"}
    whole = nd.NTKRidgeCV(SMALL, [0.1, 1.0], folds=3, **raw).fit(x, y)
    parts = nd.NTKRidgeCV(SMALL, [0.1, 1.0], folds=3, **raw).fit(x[:200], y[:200])
    parts.partial_fit(x[200:500], y[200:500]).partial_fit(x[500:], y[500:])
    assert parts.alpha_ == whole.alpha_
    np.testing.assert_allclose(parts.cv_.rmse, whole.cv_.rmse, rtol=1e-9)
    np.testing.assert_allclose(parts.predict(x), whole.predict(x), rtol=1e-8)
    with pytest.raises(ValueError, match="keep_equations"):
        nd.NTKRidge(SMALL, keep_equations=False).fit(x, y).partial_fit(x, y)
    labels = (y > np.median(y)).astype(int)
    classifier = nd.NTKRidgeClassifier(SMALL, folds=3, **raw).partial_fit(x[:20], labels[:20], classes=[0, 1])
    assert classifier.partial_fit(x[20:], labels[20:]).score(x, labels) > 0.8


def test_copies_of_a_row_are_in_one_fold_dense_or_sparse(xy: tuple[F8, F8]) -> None:
    x = np.where(np.abs(xy[0]) < 0.5, 0.0, xy[0])
    dense, sparse = (Arrays(a, None, None, "float64") for a in (np.vstack([x, -0.0 * x, x]), csr_array(x)))
    folds = dense.folds(dense.layout(), 0, 1800, 5)
    assert (folds[:600] == folds[1200:]).all()
    assert len(set(folds[600:1200])) == 1
    assert (sparse.folds(sparse.layout(), 0, 600, 5) == folds[:600]).all()
    assert np.bincount(folds[:600]).min() > 80


def test_pipelines_searches_and_named_features(xy: tuple[F8, F8]) -> None:
    x, y = xy
    pipeline = make_pipeline(StandardScaler(), nd.NTKRidge(SMALL, inputs="none"))
    grid = {"ntkridge__features": [nd.Linear(5), SMALL], "ntkridge__alpha": [0.1, 10.0]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(x, y)
    assert search.best_params_["ntkridge__features"] == SMALL
    assert clone(search.best_estimator_)[-1].features == SMALL
    transformer = nd.FeatureTransformer(SMALL).set_output(transform="pandas")
    out = transformer.fit_transform(pd.DataFrame(x, columns=NAMES))
    assert list(out.columns) == list(transformer.get_feature_names_out())
    linear = make_pipeline(nd.FeatureTransformer(SMALL), Ridge(0.3, solver="cholesky")).fit(x, y)
    np.testing.assert_allclose(linear.predict(x), nd.NTKRidge(SMALL, 0.3).fit(x, y).predict(x), rtol=1e-9)


def test_probabilities_are_those_of_rows_not_seen() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4000, 3))
    y = (rng.random(4000) < 1 / (1 + np.exp(-3 * x[:, 0] * x[:, 1]))).astype(int)
    train, test = slice(0, 2000), slice(2000, 4000)
    calibrated = nd.NTKRidgeClassifier(SMALL, folds=4).fit(x[train], y[train])
    plain = nd.NTKRidgeClassifier(SMALL, folds=4, calibrated=False).fit(x[train], y[train])
    p = calibrated.predict_proba(x[test])
    assert log_loss(y[test], p) < log_loss(y[test], plain.predict_proba(x[test])) - 0.005
    sure = p.max(axis=1)
    for low, high in ((0.5, 0.7), (0.7, 1.0)):
        some = (sure >= low) & (sure < high)
        right = (p.argmax(axis=1) == y[test])[some]
        assert abs(right.mean() - sure[some].mean()) < 4 * right.std() / np.sqrt(some.sum()) + 0.03


def test_it_works_with_dask_ml(xy: tuple[F8, F8]) -> None:
    x, y = da.from_array(xy[0], chunks=(150, 5)), da.from_array(xy[1], chunks=150)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=0)
    scaler = DaskScaler().fit(x_train)
    fitted = nd.NTKRidgeCV(SMALL, folds=3).fit(scaler.transform(x_train), y_train)
    assert fitted.score(scaler.transform(x_test), y_test) > 0.7
    wrapped = ParallelPostFit(fitted)
    predicted = wrapped.predict(scaler.transform(x_test))
    assert isinstance(predicted, da.Array)
    np.testing.assert_allclose(predicted.compute(), fitted.predict(np.asarray(scaler.transform(x_test))), rtol=1e-9)


def test_images_and_bad_rows(xy: tuple[F8, F8]) -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((40, 6, 6, 1)).astype(np.float32)
    y = images.mean(axis=(1, 2, 3)).astype(float)
    fitted = nd.NTKRidge(nd.CNTKSketch(64, depth=2, degree=1), alpha=1e-3).fit(images, y)
    assert fitted.model_.dtype == "float32"
    assert fitted.predict(images).shape == (40,)
    x, y = xy
    bad = x.copy()
    bad[170, 1] = np.nan
    with pytest.raises(ValueError, match="row 170"):
        nd.NTKRidge(SMALL, nan="error").fit(da.from_array(bad, chunks=(150, 5)), y)
    lazy, there = (nd.NTKRidge(SMALL).fit(each, y) for each in (da.from_array(bad, chunks=(150, 5)), bad))
    np.testing.assert_allclose(lazy.model_.coef, there.model_.coef, rtol=0, atol=1e-9)
    assert lazy.model_.preprocessing.encoding.indicators == (1,)
    with pytest.raises(ValueError, match="expecting 5 features"):
        nd.NTKRidge(SMALL).fit(x, y).predict(da.from_array(bad[:, :3], chunks=(150, 3)))
    with pytest.raises(ValueError, match="expected a feature map"):
        nd.NTKRidge("NTK").fit(x, y)
    with pytest.raises(ValueError, match="one class"):
        nd.NTKRidgeClassifier(SMALL).fit(x, np.ones(600, int))
