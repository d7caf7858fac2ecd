"""Nystrom: the dense formula, what it promises of any data, and how landmarks are chosen, stored and reused."""

import subprocess
import sys
from typing import Any

import dask
import msgspec
import numpy as np
import pytest
from maps import rows
from numpy.typing import NDArray

import ntkdist as nd
from ntkdist import NNGP, NTK, GammaExponential, Gaussian, Laplace, Nystrom, ProductLaplace
from ntkdist.features import loops
from ntkdist.features.base import FittedMap
from ntkdist.features.landmarks import polynomials
from ntkdist.features.nystrom import DEPENDENT

F8 = NDArray[np.float64]
KINDS = ["uniform", "leverage", "rpcholesky"]
KERNELS = {
    "ntk": NTK(2),
    "ntk-bias": NTK(3, bias=1.0),
    "nngp": NNGP(1),
    "deep": NTK(30),
    "gaussian": Gaussian(2.0),
    "laplace": Laplace(2.0),
    "gamma": GammaExponential(1.0, 1.5),
    "product": ProductLaplace(3.0),
    "angle": Laplace(0.5, homogeneous=True),
}
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
every_kind = pytest.mark.parametrize("kind", KINDS)
EXACT = nd.PlanTable(folds=4, dtype="float64", threads=1)


def clustered(n: int, seed: int = 0) -> F8:
    """Nine rows in ten about one point, the rest all over."""
    x = rows(n, 5, seed)
    x[: 9 * n // 10] = 0.1 * x[: 9 * n // 10] + 3
    return np.random.default_rng(seed + 1).permutation(x)


def apart(a: F8, b: F8) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@every_kernel
def test_features_are_the_dense_formula(kernel: Any) -> None:
    x, z = rows(40), rows(60, seed=1)
    features = Nystrom(60, kernel).fit(z)
    np.testing.assert_array_equal(np.sort(features.arrays["landmarks"], axis=0), np.sort(z, axis=0))
    dense = kernel(x, z) @ np.linalg.solve(kernel(z), kernel(z, x))
    phi = features(x)
    assert apart(phi @ phi.T, dense) < 1e-10
    np.testing.assert_array_equal(features.kernel(x), kernel(x))


@every_kernel
@every_kind
def test_never_more_than_the_kernel_and_exact_at_the_landmarks(kernel: Any, kind: Any) -> None:
    x = clustered(300)
    features = Nystrom(80, kernel, kind).fit(x)
    phi, k = features(x), kernel(x)
    values = np.linalg.eigvalsh(k - phi @ phi.T)
    assert values[0] > -1e-11 * np.linalg.norm(k, 2)
    z = features.arrays["landmarks"]
    assert 70 <= len(z) <= 80
    np.testing.assert_allclose(features(z) @ features(z).T, kernel(z), atol=1e-8 * k.max())


@every_kind
def test_error_falls_faster_than_that_of_random_features(kind: Any) -> None:
    """From 32 to 256 columns, random features gain a factor of 2.8."""
    x, k = rows(600, 3), NTK(2)
    error = [apart((phi := Nystrom(m, k, kind).fit(x)(x)) @ phi.T, k(x)) for m in (32, 256)]
    assert error[1] < error[0] / 6


def test_chosen_landmarks_beat_uniform_ones_on_clustered_rows() -> None:
    x, k = clustered(700), NTK(2)
    error = {
        kind: np.mean([apart((phi := Nystrom(64, k, kind, seed).fit(x)(x)) @ phi.T, k(x)) for seed in range(4)])
        for kind in KINDS
    }
    assert error["rpcholesky"] < error["uniform"]
    assert error["leverage"] < error["uniform"]


def test_rpcholesky_in_blocks_has_the_law_of_one_row_at_a_time() -> None:
    """The chance of being the second landmark, over many seeds, against the definition."""
    x = np.array([[2.0, 0], [0, 1], [1.9, 0.3], [-1, 0.2], [0.1, 0.9]])
    k, seeds = Gaussian(1.0), 1500
    found = np.zeros((5, 5))
    for seed in range(seeds):
        first, second = Nystrom(2, k, "rpcholesky", seed)._pivots(x)
        found[first, second] += 1 / seeds
    left = 1 - k(x) ** 2  # of k(x, x) = 1, once a landmark is eliminated
    expected = left / left.sum(axis=1, keepdims=True) / 5
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 * 0.2 / seeds)


def test_leverage_scores_are_the_dense_ones() -> None:
    """Musco, Musco (2017): with S all rows, l(x) = (K(K + μI)⁻¹)ₓₓ, and μ l(x) is what rows are drawn by."""
    x, k = clustered(400), NTK(2)
    weights = Nystrom(400, k, "leverage").row_weights(x)
    assert weights is not None
    values = np.linalg.eigvalsh(k(x))
    mu = values[:200].sum() / 200
    scores = np.diag(k(x) @ np.linalg.inv(k(x) + mu * np.eye(400)))
    np.testing.assert_allclose(weights(x), mu * scores, rtol=1e-6)
    assert Nystrom(400, k).row_weights(x) is None


@every_kernel
@every_kind
def test_copies_are_ordinary(kernel: Any, kind: Any) -> None:
    """Three copies of every row: as many landmarks as there are distinct rows, the last columns zero."""
    x = np.repeat(rows(20), 3, axis=0)
    features = Nystrom(50, kernel, kind).fit(x)
    distinct = len(np.unique(features.arrays["landmarks"], axis=0))
    assert distinct == len(features.arrays["landmarks"]) <= 20
    phi = features(x)
    assert phi.shape == (60, 50)
    assert (phi[:, distinct:] == 0).all()
    assert np.isfinite(phi).all()
    if kind == "rpcholesky":
        assert apart(phi @ phi.T, kernel(x)) < 1e-6


@pytest.mark.parametrize("kernel", [NTK(2), NNGP(2), Laplace(0.5, homogeneous=True)], ids=str)
def test_multiples_of_a_row_are_copies_for_a_homogeneous_kernel(kernel: Any) -> None:
    x = rows(10)
    features = Nystrom(30, kernel).fit(np.concatenate([x, 3 * x, 1e-7 * x]))
    assert len(features.arrays["landmarks"]) == 10
    np.testing.assert_allclose(features(5 * x) @ features(x).T, 5 * kernel(x), atol=1e-9)


@every_kind
@pytest.mark.parametrize("kernel", [NTK(2), NTK(2, bias=1.0), Gaussian(1.0)], ids=str)
def test_constant_rows_and_no_rows_at_all(kernel: Any, kind: Any) -> None:
    for sample in (np.zeros((30, 4)), np.ones((30, 4)), np.empty((0, 4))):
        features = Nystrom(20, kernel, kind).fit(sample)
        phi = features(np.ones((3, 4)))
        assert phi.shape == (3, 20)
        assert np.isfinite(phi).all()
        assert len(features.arrays["landmarks"]) <= 1
        if len(sample) and sample[0, 0] == 1:
            np.testing.assert_allclose(phi @ phi.T, kernel(np.ones((3, 4))), rtol=1e-9)


@pytest.mark.parametrize("kernel", [NTK(2), Gaussian(30.0), Gaussian(3.0), Laplace(3.0)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-9)])
def test_a_row_is_its_own_also_where_the_landmarks_nearly_depend(kernel: Any, dtype: Any, tolerance: float) -> None:
    """d = 9 and a long lengthscale, near copies: single rows, and rows in odd numbers, against all at once."""
    x = rows(900, 9).astype(dtype)
    x[300:330] = x[:30] * (1 + 1e-4)
    features = Nystrom(400, kernel).fit(x)
    whole = features(x)
    norms = np.linalg.norm(whole, axis=1)
    for some in ([slice(i, i + 1) for i in range(30)], [slice(i, i + 7) for i in range(0, 900, 7)]):
        for part in some:
            assert (np.linalg.norm(features(x[part]) - whole[part], axis=1) <= tolerance * norms[part]).all()


@pytest.mark.parametrize("kernel", [NTK(2), NTK(3, bias=1.0), Gaussian(2.0), Gaussian(30.0)], ids=str)
@pytest.mark.parametrize("m", [200, 700])
def test_float32_is_near_float64(kernel: Any, m: int) -> None:
    x = clustered(1500)
    x[:50] = x[50:100]
    features = Nystrom(m, kernel).fit(x)
    single, double = features(x.astype(np.float32)), features(x.astype(np.float32).astype(np.float64))
    off = np.linalg.norm(single - double, axis=1) / np.linalg.norm(double, axis=1)
    assert off.max() < 3e-5


@pytest.mark.parametrize("kernel", [NTK(1), NTK(3), NTK(8), NNGP(1), NNGP(5)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-12)])
def test_fused_kernel_is_the_exact_one(kernel: Any, dtype: Any, tolerance: float) -> None:
    """At all angles, among them those that a cosine cannot tell from 0 and π."""
    u = rows(300, 5)
    u[100:200] = u[:100] + np.logspace(-12, -1, 100)[:, None] * rows(100, 5, 1)
    u[200:] = -u[:100] + np.logspace(-12, -1, 100)[:, None] * rows(100, 5, 1)
    u[7] = -u[5]
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    u = u.astype(dtype)
    near_far = polynomials(kernel)
    assert near_far is not None
    t = u @ u.T
    loops.zonal(t, u, u, *near_far)
    exact = kernel(u.astype(np.float64)) / np.outer(*2 * [np.linalg.norm(u.astype(np.float64), axis=1)])
    assert np.abs(t - exact).max() < tolerance * exact.max() / (1 + (kernel != NTK(8)))


def test_what_polynomials_do_not_reach_is_exact() -> None:
    assert polynomials(NTK(30)) is None
    assert polynomials(Gaussian(0.05, homogeneous=True)) is None


def test_fitting_a_sample_of_any_size_and_calling_unfitted() -> None:
    x = rows(500)
    np.testing.assert_array_equal(Nystrom(30).fit(x).arrays["landmarks"], Nystrom(30).fit(x).arrays["landmarks"])
    assert Nystrom(30).fit(x) == Nystrom(30).fit(x)
    assert Nystrom(30).fit(x) != Nystrom(30, seed=1).fit(x)
    assert Nystrom(100).fit(x[:30])(x).shape == (500, 100)
    with pytest.raises(nd.SpecError, match=r"Nystrom has to look at 100 rows first; use its fit\(sample\)"):
        Nystrom(100)(x)
    with pytest.raises(nd.SpecError, match="has to look at rows first"):
        Nystrom(100).draw((6,))
    with pytest.raises(nd.SpecError, match=r"Nystrom\.landmarks is 'best'"):
        Nystrom(100, landmarks="best")  # type: ignore[arg-type]


# From end to end.


def job_on(store: str, features: Nystrom, **changes: Any) -> nd.Job:
    return msgspec.structs.replace(nd.Job(nd.Dataset(store), features, plan=EXACT), **changes)


@every_kind
def test_a_fit_is_the_dense_ridge(make_dataset: Any, table: Any, kind: Any) -> None:
    x, y = table
    result = nd.fit(job_on(make_dataset(x, y), Nystrom(64, NTK(2, bias=1.0), kind), alphas=(0.5,)))
    u, t = (x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0)
    z, k = result.model.features.arrays["landmarks"], NTK(2, bias=1.0)
    assert {tuple(row) for row in np.round(z, 9)} <= {tuple(row) for row in np.round(u, 9)}
    phi = k(u, z) @ np.linalg.inv(np.linalg.cholesky(k(z))).T
    centred = phi - phi.mean(0)
    w = np.linalg.solve(centred.T @ centred + 0.5 * np.eye(64), centred.T @ t)
    np.testing.assert_allclose(result.model(x), (centred @ w) * y.std(0) + y.mean(0), rtol=1e-6)


@pytest.mark.slow
@every_kind
def test_landmarks_are_a_function_of_the_data_and_the_seed(
    make_dataset: Any, table: Any, two_workers: Any, kind: Any
) -> None:
    """Two workers give the same bits as this process; other partitions the same landmarks."""
    x, y = table
    features = Nystrom(48, NTK(2), kind, seed=3)
    plan = nd.plan(job_on(make_dataset(x, y), features, plan=msgspec.structs.replace(EXACT, dtype="float32")))
    with dask.config.set(scheduler="synchronous"):
        here = nd.fit(plan)
    there = nd.fit(plan, client=two_workers)
    np.testing.assert_array_equal(here.model.coef, there.model.coef)
    np.testing.assert_array_equal(here.model.features.arrays["landmarks"], there.model.features.arrays["landmarks"])
    for mine, theirs in zip(here.equations.folds, there.equations.folds, strict=True):
        np.testing.assert_array_equal(mine.gram, theirs.gram)
    other = nd.fit(job_on(make_dataset(x, y, name="other", rows_per_partition=100), features))
    np.testing.assert_allclose(
        other.model.features.arrays["landmarks"], here.model.features.arrays["landmarks"], rtol=1e-9, atol=1e-12
    )


@pytest.mark.slow
def test_a_saved_model_predicts_the_same_bits_in_another_process(make_dataset: Any, table: Any, tmp_path: Any) -> None:
    x, y = table
    plan = msgspec.structs.replace(EXACT, dtype="float32")
    model = nd.fit(job_on(make_dataset(x, y), Nystrom(300, NTK(2), "rpcholesky"), plan=plan)).model
    nd.save(model, str(tmp_path / "model.zarr"))
    np.save(tmp_path / "x.npy", x)
    code = (
        "import numpy as np, ntkdist as nd; "
        f"np.save(r'{tmp_path}/out.npy', nd.load(r'{tmp_path}/model.zarr')(np.load(r'{tmp_path}/x.npy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), model(x))
    assert nd.load(str(tmp_path / "model.zarr")).features == model.features


@pytest.mark.slow
def test_sums_add_with_the_landmarks_of_an_earlier_run_and_not_without(
    make_dataset: Any, table: Any, tmp_path: Any
) -> None:
    x, y = table
    features = Nystrom(48, NTK(2), "leverage")
    first = nd.fit(job_on(make_dataset(x[:540], y[:540]), features), out=str(tmp_path / "first"))
    reuse = nd.Preprocess(reuse=str(tmp_path / "first"))
    second = make_dataset(x[540:], y[540:], name="second", rows_per_partition=45)
    more = nd.fit(job_on(second, features, preprocess=reuse))
    assert more.model.features == first.model.features
    assert (first.equations + more.equations).total.weight == 900
    with pytest.raises(nd.DataError, match="holds another feature map, so what it learnt cannot be reused"):
        nd.fit(job_on(second, Nystrom(48, NTK(2)), preprocess=reuse))
    own = nd.fit(job_on(second, features))
    scaled = msgspec.structs.replace(features, seed=1)
    with pytest.raises(nd.DataError, match="Equations of different features do not add"):
        first.equations + own.equations
    with pytest.raises(nd.DataError, match="Equations of different features do not add"):
        first.equations + nd.fit(job_on(second, scaled)).equations


def test_constant_data_fit_save_and_load(make_dataset: Any, tmp_path: Any) -> None:
    store = make_dataset(np.ones((60, 3)), np.arange(60.0))
    result = nd.fit(job_on(store, Nystrom(8), alphas=(1.0,)), out=str(tmp_path / "run"))
    np.testing.assert_allclose(result.model(np.ones((2, 3))), 29.5)
    np.testing.assert_allclose(nd.load(str(tmp_path / "run" / "model.zarr"))(np.ones((2, 3))), 29.5)


@pytest.mark.parametrize("kind", ["leverage"])
def test_featurize_evaluate_predict_and_plan(make_dataset: Any, table: Any, tmp_path: Any, kind: Any) -> None:
    from ntkdist.cluster.connect import resources
    from ntkdist.planning import estimate

    x, y = table
    store, features = make_dataset(x, y), Nystrom(48, NTK(2), kind)
    result = nd.fit(job_on(store, features))
    assert nd.evaluate(result.model, store)["r2"] > 0.5
    nd.predict(result.model, store, str(tmp_path / "predictions.zarr"))
    nd.featurize(store, features, str(tmp_path / "features.zarr"), dtype="float64")
    made = nd.Dataset(str(tmp_path / "features.zarr"))
    u = (x - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(
        made.read(made.layout(), 0, 900).x, result.model.features(u), atol=1e-8 * np.abs(result.model.features(u)).max()
    )
    plan = nd.plan(job_on(store, features))
    assert 0 < estimate.cost(plan, resources(None))["seconds"] < 60


@pytest.mark.slow
def test_what_a_worker_holds_of_a_leverage_pass_is_small() -> None:
    import pickle

    weights = Nystrom(4096, NTK(2), "leverage").row_weights(rows(4096, 9))
    assert isinstance(weights.features, FittedMap)  # type: ignore[union-attr]
    assert len(pickle.dumps(weights)) < 8 * 2048 * 10 + 10_000
    assert 0 < DEPENDENT < 1e-8
