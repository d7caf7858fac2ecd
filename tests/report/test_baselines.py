"""Yardsticks against scikit-learn."""

from typing import Any

import numpy as np
import pytest
from comparisons import NTK, ZONAL, by_name, job
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.preprocessing import KernelCenterer

import ntkdist as nd
from ntkdist.report import baselines
from ntkdist.report.baselines import dual_ridge

pytestmark = pytest.mark.usefixtures("few_rounds_on_one_thread")


def test_dual_ridge_is_ridge_on_features_with_weights_and_intercept() -> None:
    rng = np.random.default_rng(0)
    z, w = rng.standard_normal((40, 60)) + 1, rng.uniform(0.2, 3, 40)
    y = rng.standard_normal((40, 2)) + 7
    a, b = dual_ridge(z @ z.T, y, w, 0.7)
    ridge = Ridge(alpha=0.7).fit(z, y, w)
    new = rng.standard_normal((9, 60))
    np.testing.assert_allclose(new @ z.T @ a + b, ridge.predict(new), rtol=1e-9)


@pytest.mark.slow
def test_yardsticks_of_a_regression_are_those_of_scikit_learn(make_dataset: Any, table: Any) -> None:
    x, y, x_test, y_test = table[0][:600], table[1][:600, 0], table[0][600:], table[1][600:, 0]
    store, test = make_dataset(x, y), make_dataset(x_test, y_test, name="test")
    found = nd.compare(store, [job(ZONAL)], names=["zonal"], test=test, seeds=2, sample=200)
    fold = np.arange(600) // nd.Dataset(store).layout().rows_per_partition % 4
    x_test = np.clip(x_test, x.min(axis=0), x.max(axis=0))  # as every yardstick sees them
    rows = by_name(found)
    assert list(rows) == ["zonal", "linear", "gaussian rff", "exact kernel", "boosted trees"]

    def rmse(make: Any) -> tuple[float, float]:
        mse = [np.mean((make(x[fold != k], y[fold != k])(x[fold == k]) - y[fold == k]) ** 2) for k in range(4)]
        share = [np.mean(fold == k) for k in range(4)]
        return np.sqrt(np.average(mse, weights=share)), np.sqrt(np.mean((make(x, y)(x_test) - y_test) ** 2))

    def check(name: str, make: Any, rtol: float) -> None:
        cv, on_test = rmse(make)
        assert rows[name].cv_rmse == pytest.approx(cv, rel=rtol)
        assert rows[name].test["rmse"] == pytest.approx(on_test, rel=rtol)

    check("boosted trees", lambda a, b: HistGradientBoostingRegressor(**baselines.TREES).fit(a, b).predict, 1e-12)

    mean, std, per_row = x.mean(axis=0), x.std(axis=0), rows["exact kernel"].alpha_per_row

    def exact(a: Any, b: Any) -> Any:
        a = (a - mean) / std
        centre, k = KernelCenterer(), ZONAL.kernel(a)
        ridge = KernelRidge(alpha=per_row * len(a), kernel="precomputed").fit(centre.fit_transform(k), b - b.mean())
        return lambda c: ridge.predict(centre.transform(ZONAL.kernel((c - mean) / std, a))) + b.mean()

    check("exact kernel", exact, 1e-6)

    def linear(a: Any, b: Any) -> Any:
        ridge = Ridge(rows["linear"].alpha_per_row * len(a)).fit((a - mean) / std, b)
        return lambda c: ridge.predict((c - mean) / std)

    check("linear", linear, 1e-6)
    result = nd.fit(job(ZONAL, store))
    assert rows["zonal"].test["rmse"] == pytest.approx(nd.evaluate(result.model, test)["rmse"], rel=1e-12)
    for name in ("zonal", "exact kernel", "gaussian rff", "boosted trees"):
        assert rows[name].test["rmse"] < 0.8 * rows["linear"].test["rmse"]


@pytest.mark.slow
def test_what_is_too_many_rows_for_the_exact_kernel_is_left_out_and_said(make_dataset: Any, table: Any) -> None:
    store = make_dataset(table[0][:200], table[1][:200])  # two targets
    found = nd.compare(store, [job(NTK)], seeds=1, sample=50, exact_rows=199)
    assert list(by_name(found)) == ["NTKRandomFeatures", "linear", "gaussian rff", "boosted trees"]
    assert any("left out: 200 rows are more than 199" in note for note in found.notes)


def test_weights_are_repeated_rows_for_the_exact_kernel(make_dataset: Any, table: Any) -> None:
    x, y = table[0][:400], table[1][:400, 0]
    counts = np.random.default_rng(0).integers(0, 3, 400)
    weighted = nd.Dataset(make_dataset(x, y, weights=counts), weight="weight")
    layout = weighted.layout()
    pre = nd.fit(job(NTK, dataset=weighted)).model.preprocessing
    fold = np.arange(400) // layout.rows_per_partition % 4
    some, repeat = counts > 0, np.repeat(np.arange(400), counts)
    a = baselines.Table(x[some], y[some], counts[some].astype(float), fold[some])
    b = baselines.Table(x[repeat], y[repeat], np.ones(len(repeat)), fold[repeat])
    one, other = (baselines.ExactRidge(NTK.kernel, t, pre) for t in (a, b))
    other.alpha_per_row = one.alpha_per_row  # they choose on other subsets
    assert one.out_of_fold().rmse == pytest.approx(other.out_of_fold().rmse, rel=1e-7)


@pytest.mark.slow
def test_digits_by_classifiers(make_dataset: Any) -> None:
    x, y = load_digits(return_X_y=True)
    test = np.arange(len(x)) % 4 == 0
    x, y, x_test, y_test = x[~test][:300], y[~test][:300], x[test][:200], y[test][:200]
    store, other = make_dataset(x, y, classes=True), make_dataset(x_test, y_test, name="test", classes=True)
    found = nd.compare(store, [job(nd.ZonalFeatures(200))], test=other, seeds=1, sample=100)
    rows = by_name(found)
    trees = HistGradientBoostingClassifier(**baselines.TREES).fit(x, y)
    assert rows["boosted trees"].test["accuracy"] == pytest.approx(trees.score(x_test, y_test))
    fold = np.arange(300) // nd.Dataset(store).layout().rows_per_partition % 4
    p = np.empty((300, 10))
    for k in range(4):
        held = fold == k
        p[held] = HistGradientBoostingClassifier(**baselines.TREES).fit(x[~held], y[~held]).predict_proba(x[held])
    assert rows["boosted trees"].cv_rmse == pytest.approx(np.sqrt(((p - np.eye(10)[y]) ** 2).mean(axis=0)).mean())
    assert rows["exact kernel"].test["accuracy"] > rows["boosted trees"].test["accuracy"] > 0.6
    assert rows["exact kernel"].error() == 1 - rows["exact kernel"].test["accuracy"]
    assert "accuracy" in found.to_text()
    with pytest.raises(nd.DataError, match=r"targets are numbers, 1 a row, those of .* are class labels"):
        nd.compare(store, [job(NTK)], test=make_dataset(x_test, y_test * 0.5, name="numbers"))
