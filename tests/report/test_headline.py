"""Exact kernel ridge beside ridge on features: the equations, the choice of the penalty, the counts and the table."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from job_modules import of_jobs
from sklearn.linear_model import Ridge

from ntkdist import CNTK, NTK


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return of_jobs("bench_headline", monkeypatch)


@pytest.fixture
def ridges(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return of_jobs("ridges", monkeypatch)


@pytest.mark.parametrize("n", [20, 60])
def test_kernel_and_features_give_the_ridge_of_scikit_learn(ridges: ModuleType, n: int) -> None:
    """With an intercept, of more and of fewer rows than columns."""
    rng = np.random.default_rng(n)
    z, y = rng.standard_normal((n + 15, 30)) + 3, rng.standard_normal((n, 2))
    train, tests = z[:n], z[n:]
    scale = np.square(train - train.mean(0)).sum() / n
    want = Ridge(alpha=0.1 * scale).fit(train, y).predict(tests)
    np.testing.assert_allclose(ridges.of_features(train, tests, y).predict(0.1), want, rtol=1e-9)
    np.testing.assert_allclose(ridges.of_kernel(train @ train.T, tests @ train.T, y).predict(0.1), want, rtol=1e-9)


def test_the_penalty_is_that_of_least_error_on_the_last_fifth(ridges: ModuleType) -> None:
    rng = np.random.default_rng(0)
    z, tests = rng.standard_normal((50, 8)), rng.standard_normal((5, 8))
    y = z @ rng.standard_normal((8, 1)) + 2 * rng.standard_normal((50, 1))
    forms = lambda train, held: ridges.of_features(z[train], tests if held is None else z[held], y[train])  # noqa: E731
    penalty, predicted = ridges.fitted(forms, y)
    scale = np.square(z[:40] - z[:40].mean(0)).sum() / 40
    errors = {
        p: np.square(Ridge(alpha=p * scale).fit(z[:40], y[:40]).predict(z[40:]).reshape(-1, 1) - y[40:]).mean()
        for p in ridges.PENALTIES
    }
    assert penalty == min(errors, key=errors.__getitem__)
    np.testing.assert_allclose(predicted, ridges.of_features(z, tests, y).predict(penalty))


@pytest.mark.parametrize("kernel", [NTK(2), CNTK(2, 3)])
def test_entries_are_those_of_the_kernel_and_are_kept(bench: ModuleType, tmp_path: Path, kernel: Any) -> None:
    """At growing sizes, in tiles that do not divide them."""
    rng = np.random.default_rng(0)
    x, tests = rng.standard_normal((9, 4, 4, 2)), rng.standard_normal((5, 4, 4, 2))
    setting = bench.Setting(kernel, {}, x, None, tests, None, 2, 2)
    first = list(bench.entries(setting, [3, 9], 1.0, str(tmp_path)))
    for n, k, cross, _ in first:
        np.testing.assert_allclose(k, kernel(x[:n]), rtol=1e-12)
        np.testing.assert_allclose(cross, kernel(tests, x[:n]), rtol=1e-12)
    again = list(bench.entries(setting, [3, 9], 0.0, str(tmp_path)))  # no time: what is kept only
    assert [(n, spent) for n, _, _, spent in again] == [(n, spent) for n, _, _, spent in first]
    np.testing.assert_array_equal(again[1][1], first[1][1])
    assert len(list(bench.entries(setting, [3, 8], 0.0, str(tmp_path)))) == 1


def test_seconds_are_extrapolated_by_their_laws(bench: ModuleType, ridges: ModuleType) -> None:
    """Of pairs, images and operations, which are counted here once more."""
    assert ridges.pairs(4, 3) == len([(i, j) for i in range(4) for j in range(i + 1)]) + 12
    factor = len(ridges.PENALTIES)
    assert ridges.operations(10, 0) == pytest.approx(factor * 8**3 / 3 + 10**3 / 3)
    assert ridges.operations(10, 2) == pytest.approx((factor + 1) * 2**3 / 3 + (8 + 10) * 2 * 2)
    exact = [
        {"n": n, bench.FIRST: 2e-3 * ridges.pairs(n, 30), bench.RIDGE: 1e-9 * ridges.operations(n)} for n in (10, 20)
    ]
    far = bench.FAR
    want = 2e-3 * (far * (far + 1) / 2 + 30 * far) + 1e-9 * ridges.operations(far)
    assert bench.extrapolated(exact, 30) == pytest.approx(want)
    mapped = [{"n": n, "m": 5, bench.FIRST: [0.1 * (n + 30)], bench.RIDGE: [0.0]} for n in (10, 20)]
    assert bench.extrapolated(mapped, 30) == pytest.approx(0.1 * (far + 30))


def test_the_table_names_the_least_columns_that_reach_the_kernel(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = of_jobs("tables", monkeypatch)
    exact = {"accuracy, %": 50.0, "standard error": 1.0, "processor s": 90.0, "wall s": 50.0}
    rows: list[dict[str, Any]] = [{"model": "exact K", "n": 10} | exact]
    for model, accuracies in {"A": (48.0, 49.5, 60.0), "B": (40.0, 41.0, 42.0)}.items():
        for m, accuracy in zip((2, 4, 8), accuracies, strict=True):
            row = {"model": model, "n": 10, "m": m, "accuracy, %": [accuracy], "processor s": [3.0], "wall s": [1.0]}
            rows.append(row | bench.beside(row, exact))
    rows.append({"model": "A, extrapolated", "n": 50_000, "m": 4, "times less processor time": 700.0})
    result = {"title": "K", "command": "python jobs/bench_headline.py images x.npz", "rows": rows}
    assert tables.headline([result]).splitlines()[2:] == [
        "| K | 10 | 50.0 ± 1.0 | 90 | A | 4 | 49.5 | 3 | 30 | 700 |",
        "| K | 10 | 50.0 ± 1.0 | 90 | B | more than 8 |  |  |  |  |",
    ]
