"""Conjugate gradients against dense solves, and whole fits without a Gram against fits with one."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iterative import ALPHAS, EXACT, job_on, with_gram
from scipy.sparse import csr_array, save_npz

import ntkdist as nd
from ntkdist.solvers.cg import LowRank, conjugate_gradients
from ntkdist.solvers.cross_validation import cross_validate
from ntkdist.sums import CrossSums, NormalEquations

ONE = msgspec.structs.replace(EXACT, folds=1, shards=1)


class Dense:
    """An operator with a Gram of its own for every column, which records its products."""

    dtype = np.dtype(np.float64)

    def __init__(self, grams: Any, rhs: Any) -> None:
        self.grams, self.rhs, self.asked = grams, rhs, []

    def matmul(self, v: Any, columns: Any) -> Any:
        self.asked.append(len(columns))
        return np.stack([self.grams[c] @ v[:, i] for i, c in enumerate(columns)], axis=1)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0, 6), st.integers(1, 40), st.integers(1, 6), st.integers(1, 60))
def test_every_column_is_the_dense_solution(seed: int, decades: float, m: int, c: int, s: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((c, 50, m)) * np.geomspace(1, 10**-decades, m)
    grams, alphas = [a.T @ a for a in z], 10.0 ** rng.uniform(-4, 2, c)
    near = LowRank(z[0][rng.permutation(50)[:s]].copy(), whole=s >= 50)
    b = rng.standard_normal((m, c))
    b[:, 0] = 0
    solved = conjugate_gradients(
        Dense(grams, b), alphas, lambda r, k: near.solve(r, alphas[k], np.full(len(k), 50 / near.s)), 1e-10, 2000
    )
    assert (solved.residual <= 1e-10).all()
    for i, alpha in enumerate(alphas):
        np.testing.assert_allclose(grams[i] @ solved.x[:, i] + alpha * solved.x[:, i], b[:, i], atol=1e-6)
    assert solved.iterations[0] == 0
    assert not solved.x[:, 0].any()


def test_a_column_leaves_when_it_has_converged_and_reports_how_far_it_came() -> None:
    gram = np.diag(np.geomspace(1e4, 1e-2, 30))
    alphas = np.array([1e6, 1.0, 1e-3])
    operator = Dense([gram] * 3, np.ones((30, 3)))
    solved = conjugate_gradients(operator, alphas, lambda r, k: r, 1e-8, 20)
    assert operator.asked[0] == 3
    assert operator.asked == sorted(operator.asked, reverse=True)
    assert operator.asked[-1] < 3
    assert solved.iterations[0] < solved.iterations[2] == 20
    assert solved.residual[0] <= 1e-8 < solved.residual[2]
    true = 1 - (gram @ solved.x + alphas * solved.x)
    np.testing.assert_allclose(np.linalg.norm(true, axis=0) / np.sqrt(30), solved.residual, rtol=1e-4, atol=1e-12)


def test_the_preconditioner_is_the_inverse_that_it_says() -> None:
    rng = np.random.default_rng(0)
    sample, r = rng.standard_normal((7, 20)), rng.standard_normal((20, 2))
    near, alpha, scale = LowRank(sample.copy()), np.array([1e3, 1e-3]), np.array([2.0, 5.0])
    median = np.sort(np.linalg.eigvalsh(sample @ sample.T))[3]
    for i, y in enumerate(near.solve(r, alpha, scale).T):
        m = scale[i] * sample.T @ sample + max(alpha[i], scale[i] * median) * np.eye(20)
        np.testing.assert_allclose(y, np.linalg.solve(m, r[:, i]), rtol=1e-8, atol=1e-10)


def test_more_rows_in_the_preconditioner_mean_fewer_iterations(make_dataset: Any, table: Any) -> None:
    store = make_dataset(*table)
    asked = [
        nd.fit(job_on(store, solver=nd.PCG(sample_rows=s), alphas=(1.0,), plan=ONE)).report["run"]["products"]
        for s in (1, 64, 900)
    ]
    few, some, all_ = (a["iterations"] for a in asked)
    assert few > 1.5 * some > 2 * all_
    assert [a["sample_rows"] for a in asked] == [1, 64, 900]


def test_it_solves_saved_sums_too() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((200, 20)) + 3, rng.standard_normal((200, 2))
    folds = [NormalEquations.zeros(20, 2).update(z[k::4], y[k::4]) for k in range(4)]
    solver = nd.PCG(tol=1e-12, max_iterations=500)
    a, b = (cross_validate(folds, s, [0.1, 1.0], extend=False) for s in (solver, nd.Cholesky()))
    np.testing.assert_allclose(a.mse, b.mse, rtol=1e-9)
    with pytest.raises(nd.NotConverged, match=r"alpha 0.1 did not converge in 2 iterations .* raise sample_rows"):
        nd.PCG(max_iterations=2).solve(folds[0], [0.1])


def test_sums_without_a_gram_are_those_with_one() -> None:
    rng = np.random.default_rng(0)
    z, y, w = rng.standard_normal((90, 600)) + 1, rng.standard_normal((90, 2)), rng.uniform(0, 2, 90)
    a, b = CrossSums.zeros(600, 2), NormalEquations.zeros(600, 2)
    for rows in (slice(0, 40), slice(40, 90)):
        a, b = (each.update(z[rows], y[rows], w[rows]) for each in (a, b))
    for name in ("rhs", "z_sum", "y_sum", "yy", "weight", "m", "t"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-12)
    assert a.trace() == pytest.approx(b.trace(), rel=1e-12)
    np.testing.assert_allclose(a.centred_rhs(), b.centred()[1], atol=1e-10)
    np.testing.assert_allclose((a + a - a).rhs, a.rhs)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_a_fit_is_that_with_a_gram(make_dataset: Any, table: Any, dtype: str) -> None:
    job = job_on(make_dataset(*table), plan=msgspec.structs.replace(EXACT, dtype=dtype))
    a, b = nd.fit(job), with_gram(job)
    np.testing.assert_allclose(a.cv.mse[: len(ALPHAS)], b.cv.mse[: len(ALPHAS)], rtol=1e-4)
    np.testing.assert_array_equal(a.cv.alphas, b.cv.alphas)
    np.testing.assert_allclose(a.model.alpha, b.model.alpha)
    fine = nd.fit(msgspec.structs.replace(job, solver=nd.PCG(sample_rows=256, tol=1e-6))).model(table[0])
    error = np.abs(fine - b.model(table[0])).max(axis=0) / table[1].std(axis=0)
    assert error.max() < 1e-3
    assert a.equations is None
    assert any("PCG forms no Gram" in note for note in a.report["notes"])


@pytest.mark.parametrize(("grid", "grown"), [({}, False), ({"alphas_per_row": (0.1, 1.0)}, True)])
def test_the_automatic_grid_is_the_same_and_grows_the_same(
    grid: dict[str, Any], grown: bool, make_dataset: Any, table: Any
) -> None:
    job = job_on(make_dataset(*table), **({"alphas": "auto"} | grid), alpha_per_target=True)
    a, b = nd.fit(job).cv, with_gram(job).cv
    np.testing.assert_allclose(a.alphas, b.alphas, rtol=1e-10)
    np.testing.assert_allclose(a.mse, b.mse, rtol=1e-4)
    np.testing.assert_array_equal(a.best, b.best)
    assert ("grew" in a.note, len(a.alphas) == 13) == (grown, not grown)
    assert a.note == b.note


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_weights_count(make_dataset: Any, table: Any, dtype: str) -> None:
    weights = np.random.default_rng(0).integers(0, 4, 900)
    store = make_dataset(*table, weights=weights, rows_per_partition=45)
    table_of = msgspec.structs.replace(EXACT, dtype=dtype)
    job = job_on("", dataset=nd.Dataset(store, weight="weight"), plan=table_of)
    a, b = nd.fit(job), with_gram(job)
    np.testing.assert_allclose(a.cv.mse, b.cv.mse, rtol=1e-4)
    assert a.report["data"]["fold_weights"] == b.report["data"]["fold_weights"]
    error = np.abs(a.model(table[0]) - b.model(table[0])).max(axis=0) / table[1].std(axis=0)
    assert error.max() < 1e-3


def test_classes_are_targets_like_others(make_dataset: Any) -> None:
    x = np.random.default_rng(0).standard_normal((600, 2))
    names = np.array(["inside", "on the rim", "outside"])[np.digitize((x**2).sum(axis=1), [0.8, 2])]
    job = job_on(make_dataset(x, names))
    a, b = nd.fit(job), with_gram(job)
    np.testing.assert_allclose(a.cv.mse, b.cv.mse, rtol=1e-4)
    np.testing.assert_allclose(a.model(x), b.model(x), atol=1e-3)
    assert a.model.classes == ("inside", "on the rim", "outside")
    assert (a.model.predict(x) == b.model.predict(x)).mean() > 0.995


def test_folds_of_consecutive_rows(make_dataset: Any, table: Any) -> None:
    table_of = msgspec.structs.replace(EXACT, contiguous=True, folds=3)
    job = job_on(make_dataset(*table, rows_per_partition=90), plan=table_of)
    a, b = nd.fit(job), with_gram(job)
    np.testing.assert_allclose(a.cv.mse, b.cv.mse, rtol=1e-4)
    assert a.cv.scored == b.cv.scored == (0, 1, 2)
    assert a.report["data"] == b.report["data"]
    dealt = nd.fit(msgspec.structs.replace(job, plan=msgspec.structs.replace(table_of, contiguous=False)))
    assert (np.abs(dealt.cv.mse / a.cv.mse - 1) > 1e-3).any()


@pytest.mark.parametrize("weighted", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_classes_weigh_the_same_in_the_sums_the_products_and_the_errors(make_dataset: Any, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 2))
    names = np.array(["inside", "on the rim", "outside"])[np.digitize((x**2).sum(axis=1), [0.1, 4])]
    weights = {"weights": rng.integers(0, 4, 600)} if weighted else {}
    dataset = nd.Dataset(make_dataset(x, names, **weights), weight="weight" if weighted else "")
    job = job_on("", dataset=dataset, class_weight="balanced")
    a, b = nd.fit(job), with_gram(job)
    np.testing.assert_allclose(a.cv.mse, b.cv.mse, rtol=1e-4)
    np.testing.assert_allclose(a.report["data"]["fold_weights"], b.report["data"]["fold_weights"], rtol=1e-12)
    assert a.report["data"]["class_weight"] == b.report["data"]["class_weight"]
    np.testing.assert_allclose(a.model(x), b.model(x), atol=2e-3)
    plain = nd.fit(msgspec.structs.replace(job, class_weight=None))
    assert np.abs(plain.model(x) - a.model(x)).max() > 0.05


@pytest.mark.parametrize("name", ["groups", "holdout"])
def test_rows_that_are_dealt_one_by_one_are_refused(make_dataset: Any, table: Any, name: str) -> None:
    store = make_dataset(*table, **{name: np.arange(900) % 2})
    plan = nd.PlanTable(folds=None if name == "holdout" else 4)
    with pytest.raises(nd.SpecError, match=f"solver PCG takes folds of whole .*'{name}' deals rows; leave out {name}"):
        nd.plan(job_on("", dataset=nd.Dataset(store, **{name: name}), plan=plan))


def test_sparse_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 40)) * (rng.random((500, 40)) < 0.1)
    save_npz(tmp_path / "x.npz", csr_array(x))
    np.save(tmp_path / "y.npy", x[:, 0] + 0.1 * rng.standard_normal(500))
    store = str(tmp_path / "x.zarr")
    nd.convert(str(tmp_path / "x.npz"), store, target=[str(tmp_path / "y.npy")], shuffle_seed=None)
    job = job_on(store, features=nd.NTKSketch(64))
    a, b = nd.fit(job), with_gram(job)
    np.testing.assert_allclose(a.cv.mse, b.cv.mse, rtol=1e-4)
