"""`NTKSketch`: its polynomial, its exact parts, its allocation of columns, and what it approximates."""

from itertools import product

import numpy as np
import pytest
from numpy.polynomial.polynomial import polyval
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ntkdist import NTK, Linear, NTKRandomFeatures, NTKSketch, SpecError
from ntkdist.features import monomials

F8 = NDArray[np.float64]


def unit_rows(n: int, d: int, seed: int = 0) -> F8:
    x = np.random.default_rng(seed).standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def truncated(features: NTKSketch, x: F8) -> F8:
    """‖x‖‖y‖ K_p of all pairs of rows."""
    if features.bias:
        x = np.column_stack([x, np.full(len(x), features.bias)])
    r = np.linalg.norm(x, axis=1)
    u = x / np.where(r == 0, 1, r)[:, None]
    return np.outer(r, r) * polyval(u @ u.T, features.coefficients())


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
@pytest.mark.parametrize("degree", [1, 2, 4, 8, 16, 32])
def test_polynomial_is_non_negative_and_as_near_as_it_says(depth: int, degree: int) -> None:
    features = NTKSketch(64, depth, degree)
    c = features.coefficients()
    assert c.shape == (degree + 1,)
    assert (c >= 0).all()
    assert (c * 2**20 == np.rint(c * 2**20)).all()
    t = np.random.default_rng(0).uniform(-1, 1, 4000)
    error = np.abs(polyval(t, c) - NTK(depth).zonal(np.arccos(t)))
    ends = np.abs(polyval(np.array([-1.0, 1.0]), c) - NTK(depth).zonal(np.array([np.pi, 0])))
    assert max(error.max(), ends.max()) <= features.uniform_error() * (1 + 1e-6)
    assert max(error.max(), ends.max()) >= features.uniform_error() * 0.9


@pytest.mark.parametrize(
    ("depth", "degree", "bound"), [(1, 8, 0.020), (2, 2, 0.38), (2, 4, 0.12), (2, 8, 0.06), (3, 8, 0.12)]
)
def test_uniform_error_is_below_the_published_one(depth: int, degree: int, bound: float) -> None:
    """Published at depth 2: 0.42, 0.17 and 0.094 at degree 2, 4 and 8."""
    assert NTKSketch(64, depth, degree).uniform_error() < bound


def test_polynomial_is_exact_about_orthogonal_rows() -> None:
    for depth, t in product((1, 2, 3), (-0.1, -0.03, 0.0, 0.05, 0.1)):
        exact = float(NTK(depth).zonal(np.array([np.arccos(t)]))[0])
        assert polyval(t, NTKSketch(64, depth).coefficients()) == pytest.approx(exact, abs=0.0015 * (depth + 1))


@pytest.mark.parametrize(("d", "j"), [(1, 1), (1, 4), (2, 3), (4, 2), (5, 4), (3, 6)])
def test_monomials_make_powers_of_inner_products(d: int, j: int) -> None:
    x = unit_rows(5, d)
    z = x
    for k in range(2, j + 1):
        z = monomials.next_degree(x, z, k)
    assert z.shape == (5, monomials.count(d, j))
    z = z * monomials.root_multinomials(d, j)
    np.testing.assert_allclose(z @ z.T, (x @ x.T) ** j, atol=1e-13)


@pytest.mark.parametrize(
    ("d", "depth", "degree", "bias"), [(1, 2, 8, 0.0), (2, 1, 8, 0.0), (3, 3, 8, 0.5), (6, 2, 4, 0.0)]
)
def test_exact_where_all_monomials_fit(d: int, depth: int, degree: int, bias: float) -> None:
    features, x = NTKSketch(600, depth, degree, bias), 3 * unit_rows(9, d)
    z = features(x)
    np.testing.assert_allclose(z @ z.T, truncated(features, x), atol=1e-12 * 9 * depth)
    assert (z[:, -1] == 0).all()


@pytest.mark.parametrize(("d", "m"), [(9, 100), (9, 2048), (90, 2048), (90, 8192), (784, 2048), (3000, 64)])
@pytest.mark.parametrize("depth", [1, 3, 8])
def test_columns_are_all_spent_and_exact_degrees_are_worth_it(d: int, m: int, depth: int) -> None:
    """Degree 1 is exact if half of the columns hold it; else no choice of exact degrees has less Σ c_j²/m_j."""
    features = NTKSketch(m, depth)
    c, columns = features.coefficients(), features._columns(d)
    exact = [j for j in range(1, columns.exact + 1) if c[j] > 0]
    assert 1 + sum(monomials.count(d, j) for j in exact) + sum(columns.sketched.values()) == m
    assert set(columns.sketched) == {j for j in range(columns.exact + 1, 9) if c[j] > 0}

    def variance(e: int) -> float:
        left = m - 1 - sum(monomials.count(d, j) for j in range(1, e + 1) if c[j] > 0)
        return float(c[e + 1 :].sum()) ** 2 / left if left > 0 else np.inf

    assert (columns.exact > 0) == (held := 2 * (1 + d) <= m)
    assert variance(columns.exact) <= min(variance(e) for e in range(int(held), 9)) * 1.0001


@pytest.mark.slow
@pytest.mark.parametrize(("d", "depth", "bias"), [(5, 1, 0.0), (5, 3, 0.7), (40, 1, 0.7), (40, 3, 0.0)])
def test_unbiased_for_the_polynomial_that_it_names(d: int, depth: int, bias: float) -> None:
    x = unit_rows(4, d) * [[1], [2], [0.5], [1]]
    x[3] = 0.9 * x[0] + 0.1 * x[3]
    found = np.array([z @ z.T for z in (NTKSketch(80, depth, 8, bias, seed)(x) for seed in range(300))])
    exact = truncated(NTKSketch(80, depth, 8, bias), x)
    spread = found.std(0) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - exact) <= 4 * spread + 1e-12).all()


def test_unbiased_for_long_rows() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 1500)) * (rng.random((3, 1500)) < 0.01)
    x[1] = x[0] + 0.5 * x[1]
    found = np.array([z @ z.T for z in (NTKSketch(64, 2, seed=seed)(x) for seed in range(200))])
    exact = truncated(NTKSketch(64, 2), x)
    assert (np.abs(found.mean(0) - exact) <= 4 * found.std(0) / 200**0.5).all()


@pytest.mark.parametrize(("d", "least"), [(20, 0.1), (1100, 0.2)])
def test_error_falls_like_a_root(d: int, least: float) -> None:
    """To a quarter at 16 times the columns; to less where these make more degrees exact, as of short rows."""
    x = unit_rows(60, d)
    exact = truncated(NTKSketch(64, 2), x)

    def error(m: int) -> float:
        return float(np.mean([np.linalg.norm(z @ z.T - exact) for z in (NTKSketch(m, 2, seed=s)(x) for s in range(4))]))

    ratio = error(128 * 16) / error(128)
    assert least < ratio < 1.5 * least


@pytest.mark.parametrize("d", [9, 90])
@pytest.mark.parametrize("depth", [1, 2])
def test_nearer_to_the_kernel_than_the_paper_variant(d: int, depth: int) -> None:
    x = np.random.default_rng(0).standard_normal((200, d))
    exact = NTK(depth)(x)

    def error(z: F8) -> float:
        return float(np.linalg.norm(z @ z.T - exact) / np.linalg.norm(exact))

    assert error(NTKSketch(1024, depth)(x)) < 0.6 * error(NTKRandomFeatures(1024, depth, variant="paper")(x))


@pytest.mark.parametrize("d", [12, 1500])
@pytest.mark.parametrize("bias", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_rows_have_the_features_of_dense_ones(d: int, bias: float, dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((400, d)) * (rng.random((400, d)) < 0.05)).astype(dtype)
    x[7] = 0
    features = NTKSketch(200, 2, bias=bias)
    z = features(csr_array(x))
    assert z.dtype == dtype
    np.testing.assert_allclose(z, features(x), atol=(1e-5 if dtype == np.float32 else 1e-12) * np.abs(z).max())
    np.testing.assert_array_equal(features.kernel(csr_array(x[:5])), features.kernel(x[:5]))
    assert (z[7] == 0).all() == (bias == 0)
    twice = csr_array((np.tile(x[0] / 2, 2), np.tile(np.arange(d), 2), [0, 2 * d]), (1, d))
    np.testing.assert_allclose(features(twice), features(x[:1]), atol=(1e-5 if dtype == np.float32 else 1e-12) * 9)


def test_sparse_rows_of_linear_and_of_others() -> None:
    np.testing.assert_array_equal(Linear(6)(csr_array(np.eye(6))), np.eye(6))
    with pytest.raises(
        Exception, match="NTKRandomFeatures does not take sparse rows; use NTKSketch or Linear, or make"
    ):
        NTKRandomFeatures(64)(csr_array(np.eye(6)))


def test_too_few_components_are_refused() -> None:
    with pytest.raises(SpecError, match=r"NTKSketch\.n_components is 8; expected at least degree \+ 1 = 9"):
        NTKSketch(8)
    for d in (1, 2, 7, 8, 9, 50, 1200):
        assert NTKSketch(9, 3)(unit_rows(3, d)).shape == (3, 9)
