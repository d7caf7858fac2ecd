"""Estimators on datasets whose rows are dealt to folds, and arguments that they refuse instead of ignoring."""

from typing import Any

import numpy as np
import pytest
from folds import scaled
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from stored import MakeDataset

import ntkdist as nd
from ntkdist import memory
from ntkdist.cluster import connect
from ntkdist.ridge.residuals import temperature

F8 = NDArray[np.float64]
PHI = nd.ZonalFeatures(40, nd.NTK(depth=1, bias=1.0))
HELD = np.arange(600) % 4 == 1
GROUPS = np.random.default_rng(2).integers(0, 50, 600)


def refit(x: F8, y: F8, out: NDArray[np.bool_], alpha: float) -> F8:
    """Predict the rows ``out`` by the ridge of the others."""
    z = PHI(scaled(x))
    return Ridge(alpha, solver="cholesky").fit(z[~out], y[~out]).predict(z[out])


@pytest.mark.parametrize("cls", [nd.NTKRidgeCV, nd.NTKRidge])
def test_a_holdout_is_scored_once_and_residuals_are_its_rows(cls: Any, xy: Any, make_dataset: MakeDataset) -> None:
    x, y = xy
    dataset = nd.Dataset(make_dataset(x, y, holdout=HELD), holdout="holdout")
    fitted = cls(PHI, keep_factor=True).fit(dataset)
    alphas = "auto" if cls is nd.NTKRidgeCV else [1.0]
    result = nd.fit(nd.Job(dataset, PHI, alphas, plan=nd.PlanTable(dtype="float64")))
    np.testing.assert_array_equal(fitted.coef_, result.model.coef[:, 0])
    assert (fitted.cv_.scored, fitted.cv_.mse.shape[1]) == ((1,), 1)
    alpha = fitted.cv_.alphas[fitted.cv_.best[0]]
    alpha *= (~HELD).sum() if fitted.cv_.per_row else 1
    residuals = y[HELD] - refit(x, y, HELD, alpha)
    np.testing.assert_allclose(fitted.residuals_[:, 0], residuals, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fitted.cv_.chosen, (residuals**2).mean(), rtol=1e-6)
    low, high = fitted.predict_interval(x)
    np.testing.assert_allclose((high - low) / 2, nd.conformal_radius(residuals, 0.9)[0], rtol=1e-6)
    mean, std = fitted.predict(dataset, return_std=True, noise=True)
    np.testing.assert_allclose(mean, fitted.predict(x), rtol=1e-9)
    assert (std**2 > (residuals**2).mean()).all()
    with pytest.raises(ValueError, match="'holdout' of the dataset that was fitted to deals its rows to folds"):
        fitted.partial_fit(x, y)
    assert fitted.fit(x, y).partial_fit(x, y).residuals_.shape == (600, 1)


def test_residuals_by_group_are_those_of_refitting(xy: Any, make_dataset: MakeDataset) -> None:
    x, y = xy
    dataset = nd.Dataset(make_dataset(x, y, groups=GROUPS), groups="groups")
    fitted = nd.NTKRidgeCV(PHI, [0.3], folds=3, keep_factor=True).fit(dataset)
    fold = dataset.folds(dataset.layout(), 0, 600, 3)
    assert set(fold) == {0, 1, 2}
    for k in range(3):
        residuals = y[fold == k] - refit(x, y, fold == k, 0.3)
        np.testing.assert_allclose(fitted.residuals_[fold == k, 0], residuals, rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="'groups' of the dataset that was fitted to deals its rows to folds"):
        fitted.partial_fit(x, y)
    single = nd.NTKRidge(PHI).fit(dataset)
    np.testing.assert_allclose(single.partial_fit(x, y).model_.alpha, 1.0)


@pytest.mark.parametrize("dealt", [{"holdout": HELD}, {"groups": GROUPS}])
def test_probabilities_are_calibrated_out_of_fold(dealt: Any, xy: Any, make_dataset: MakeDataset) -> None:
    x, labels = xy[0], (xy[1] > np.median(xy[1])).astype(int)
    (name,) = dealt
    dataset = nd.Dataset(make_dataset(x, labels, classes=True, **dealt), **{name: name})
    fitted = nd.NTKRidgeClassifier(PHI, [0.3], folds=3).fit(dataset)
    fold = HELD.astype(int) if name == "holdout" else dataset.folds(dataset.layout(), 0, 600, 3)
    codes = np.eye(2)[labels]
    outs = [fold == k for k in fitted.cv_.scored]
    scores = np.concatenate([refit(x, codes, out, 0.3) for out in outs])
    beta = temperature(scores, np.concatenate([labels[out] for out in outs]))
    assert fitted.temperature_ == pytest.approx(beta, rel=1e-4)
    with pytest.raises(ValueError, match=f"'{name}' of the dataset that was fitted to deals its rows"):
        fitted.partial_fit(x, labels)


def test_equations_beyond_the_memory_are_refused(
    xy: Any, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Estimators keep equations; `ntkdist.fit` takes another solver there, which keeps none."""
    monkeypatch.setattr(connect, "MEMORY_LIMIT", memory.resident_bytes() + 400 * 2**20)
    with pytest.raises(nd.PlanTooLarge, match=r"what fits here is solver InPlaceCholesky or solver PCG"):
        nd.NTKRidgeCV(nd.ZonalFeatures(4096)).fit(make_dataset(*xy))
    with pytest.raises(ValueError, match="n_components is 40000, of which sums are too large for an estimator to keep"):
        nd.NTKRidge(nd.ZonalFeatures(40_000)).fit(make_dataset(*xy, "other"))


def test_arguments_are_refused_instead_of_ignored(xy: Any, make_dataset: MakeDataset) -> None:
    x, y = xy
    labels = np.where(y > np.median(y), "high", "low")
    place = make_dataset(x, (y > np.median(y)).astype(int), classes=True)
    ridge, classifier = nd.NTKRidgeCV(PHI, folds=3).fit(x, y), nd.NTKRidgeClassifier(PHI, folds=3).fit(x, labels)
    for says, call in {
        "noise is part of the standard deviation, which is not": lambda: ridge.predict(x, noise=True),
        "targets are class labels; use NTKRidgeClassifier": lambda: nd.NTKRidge(PHI).fit(place),
        "X is the place of a dataset, but partial_fit adds rows": lambda: ridge.partial_fit(place),
        "folds is 4, but the rows learnt before are in 3": lambda: ridge.set_params(folds=4).partial_fit(x, y),
        "features is not the map of the rows": lambda: ridge.set_params(features=nd.Linear(5)).partial_fit(x, y),
        r"folds is 0: expected `int` >= 1": lambda: nd.NTKRidgeCV(PHI, folds=0).fit(x, y),
        r"classes are \['high'\], but \['high' 'low'\]": lambda: classifier.partial_fit(x, labels, ["high"]),
        "class_weight names 'hihg', which is no class, but not 'high'": lambda: classifier.set_params(
            class_weight={"hihg": 2.0}
        ).fit(x, labels),
        "calibrated is True, but folds is 1": lambda: nd.NTKRidgeClassifier(PHI, [1.0], folds=1).fit(x, labels),
    }.items():
        with pytest.raises(ValueError, match=says):
            call()
    same = nd.NTKRidgeClassifier(PHI, folds=3, class_weight={"high": 2.0}).partial_fit(x, labels, ["low", "high"])
    assert same.partial_fit(x, labels, classes=["high", "low"]).equations_.total.weight == 1200 + 600
