"""Importances and directions of metrics: by hand, turned, folded to raw columns, and as scikit-learn takes them."""

from dataclasses import replace
from typing import Any

import cloudpickle
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.feature_selection import RFE, SelectFromModel

import ntkdist as nd
from ntkdist import random
from ntkdist.data.scaling import Preprocessing, Round
from ntkdist.ridge import importances as module
from ntkdist.ridge.importances import directions, importances, sensitivities

F8 = NDArray[np.float64]
SCALE = np.array([2.0, 0.5, 10.0])
METRIC = nd.Metric(rounds=1, scales=(1.0,))
SMALL = nd.ZonalFeatures(40, nd.NTK(1, 1.0))


def with_metric(metric: Any, columns: tuple[str, ...] = ("a", "b", "c")) -> Preprocessing:
    d = len(columns)
    zero, one = np.zeros(1), np.ones(1)
    metric = np.asarray(metric, float)
    return Preprocessing((d,), np.zeros(d), SCALE[:d], zero, one, columns=columns, metric=metric)


def rotation(d: int) -> F8:
    return np.linalg.qr(random.normals((d, d), 0, 0, 0))[0]


def rows(count: int = 400) -> tuple[F8, F8]:
    """Draw rows whose target is a function of the second of four columns."""
    x = random.normals((count, 4), 1, 0, 0)
    return x, np.sin(2 * x[:, 1])


def test_a_metric_by_hand() -> None:
    """Rows of P are where a step along a column leads: their squared lengths are the shares."""
    pre = with_metric([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    np.testing.assert_allclose(importances(pre), np.array([9, 1, 5]) / 15)
    np.testing.assert_allclose(sensitivities(pre), [3 / 2, 1 / 0.5, np.sqrt(5) / 10])
    moved = [
        np.linalg.norm(pre.inputs(np.eye(3)[[i]], "float64") - pre.inputs(np.zeros((1, 3)), "float64"))
        for i in range(3)
    ]
    np.testing.assert_allclose(sensitivities(pre), moved)


def test_a_diagonal_is_the_matrix_that_it_stands_for() -> None:
    diagonal, full = with_metric([1.0, -3.0, 2.0]), with_metric(np.diag([1.0, -3.0, 2.0]))
    np.testing.assert_allclose(importances(diagonal), np.array([1, 9, 4]) / 14)
    np.testing.assert_allclose(importances(diagonal), importances(full))
    np.testing.assert_allclose(sensitivities(diagonal), sensitivities(full))
    one, two = directions(diagonal, 2), directions(full, 2)
    assert [each.columns for each in one] == [each.columns for each in two] == [{"b": 1.0}, {"c": 1.0}]
    np.testing.assert_allclose([each.share for each in one], np.array([9, 4]) / 14)
    np.testing.assert_allclose([each.share for each in one], [each.share for each in two])


def test_what_follows_the_metric_does_not_matter() -> None:
    """Turning u = xP changes no distance, and so nothing that is reported."""
    p, turned = rotation(3) * [3.0, 1.0, 0.1], rotation(3)[::-1]
    one, two = with_metric(p), with_metric(p @ turned)
    np.testing.assert_allclose(importances(one), importances(two))
    for a, b in zip(directions(one, 3), directions(two, 3), strict=True):
        assert a.share == pytest.approx(b.share)
        assert a.columns == pytest.approx(b.columns)


def test_turned_inputs_turn_the_directions() -> None:
    """The metric Rᵀ diag(p) has the rows of R as its directions, with shares p²."""
    turned, p = rotation(3), np.array([0.5, 4.0, 1.0])
    found = directions(with_metric(turned.T * p), 3)
    np.testing.assert_allclose([each.share for each in found], np.sort(p**2)[::-1] / (p**2).sum())
    for each, vector in zip(found, turned[[1, 2, 0]], strict=True):
        weights = np.array([each.columns[name] for name in "abc"])
        np.testing.assert_allclose(weights, vector * np.sign(vector[np.abs(vector).argmax()]), atol=1e-12)
        assert list(each.columns) == [("a", "b", "c")[i] for i in np.argsort(-np.abs(vector))]
        assert next(iter(each.columns.values())) > 0


def test_the_largest_columns_of_a_direction_are_named() -> None:
    names = tuple("abcdefg")
    vector = np.array([1.0, -7.0, 3.0, 2.0, -5.0, 4.0, 0.5])
    pre = with_metric(np.ones((7, 7)), names)
    (found,) = directions(replace(pre, metric=np.outer(vector, vector)), 1)
    assert list(found.columns) == ["b", "e", "f", "c", "d"]
    np.testing.assert_allclose(list(found.columns.values()), np.array([7, 5, -4, -3, -2]) / np.linalg.norm(vector))
    assert found.share == pytest.approx(1)


def test_columns_that_became_several_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "mapped_columns", lambda pre: (np.array([0, 2, 0]), ("a = x", "c", "a = y")))
    pre = with_metric(np.diag([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(importances(pre), np.array([10, 0, 4]) / 14)
    np.testing.assert_allclose(sensitivities(pre), [np.sqrt(10) / 2, 0, 2 / 10])
    assert [each.columns for each in directions(pre, 2)] == [{"a = y": 1.0}, {"c": 1.0}]


def test_no_metric_has_no_importances() -> None:
    with pytest.raises(nd.SpecError, match="the model has no metric"):
        importances(with_metric(np.zeros(0)))


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_attributes_of_the_estimators(form: Any) -> None:
    x, y = rows()
    metric = nd.Metric(rounds=2, form=form)
    for model, target in (
        (nd.NTKRidgeCV(SMALL, metric=metric), y),
        (nd.NTKRidgeClassifier(SMALL, metric=metric), y > 0),
    ):
        model.fit(x, target)
        shares = model.feature_importances_
        assert shares.shape == (4,)
        assert shares.sum() == pytest.approx(1)
        assert shares.argmax() == 1
        assert shares[1] > 0.8
        assert model.metric_.shape == ((4, 4) if form == "full" else (4,))
        assert model.metric_ is model.model_.preprocessing.metric
        assert isinstance(model.metric_rounds_[0], Round)
        assert sum(one.kept for one in model.metric_rounds_) == 1
        again = cloudpickle.loads(cloudpickle.dumps(model))
        np.testing.assert_array_equal(again.feature_importances_, shares)


def test_attributes_are_absent_without_a_metric() -> None:
    x, y = rows(120)
    for model, target in ((nd.NTKRidgeCV(SMALL), y), (nd.NTKRidgeClassifier(SMALL), y > 0)):
        for name in ("feature_importances_", "metric_", "metric_rounds_"):
            assert not hasattr(model, name)
        model.fit(x, target)
        for name in ("feature_importances_", "metric_", "metric_rounds_"):
            assert not hasattr(model, name)
            with pytest.raises(AttributeError, match=r"has learned no metric.*metric=nd\.Metric\(rounds=3\)"):
                getattr(model, name)
        model.set_params(metric=METRIC).fit(x, target)
        assert model.feature_importances_.shape == (4,)
    assert not hasattr(nd.NTKRidge(SMALL).fit(x, y), "feature_importances_")


def test_scikit_learn_selects_by_them() -> None:
    x, y = rows()
    selected = SelectFromModel(nd.NTKRidgeClassifier(SMALL, metric=METRIC), max_features=1).fit(x, y > 0)
    assert selected.get_support().tolist() == [False, True, False, False]
    by = "feature_importances_"
    regressor = nd.NTKRidgeCV(SMALL, metric=METRIC)
    selected = SelectFromModel(regressor, max_features=1, importance_getter=by).fit(x, y)
    assert selected.get_support().tolist() == [False, True, False, False]
    left = RFE(regressor, n_features_to_select=1, importance_getter=by).fit(x, y)
    assert left.ranking_[1] == 1
