"""`NTKRandomFeatures` and `Linear`: against their recursions and formulas, and the memory that they take."""

from typing import Any

import numpy as np
import pytest
from maps import F8, D, rows
from reference import default_gram, paper_features

from ntkdist import NTK, DataError, Linear, NTKRandomFeatures, SpecError, random
from ntkdist.features.ntk_random_features import RELU, mean_abs

LEVERAGE: dict[str, Any] = {"variant": "paper", "leverage_scores": True}


def test_a_vector_is_refused() -> None:
    with pytest.raises(DataError, match=r"maps rows: expected an array \(n, d\), got shape \(6,\)"):
        NTKRandomFeatures(64)(np.ones(6))


def test_linear_is_the_input() -> None:
    x, y = rows(5), rows(4, seed=1)
    np.testing.assert_array_equal(Linear(D)(x), x)
    np.testing.assert_allclose(Linear(D).kernel(x, y), x @ y.T, rtol=1e-14)
    with pytest.raises(SpecError, match=r"Linear\.n_components is 7 but a row has 6 values; set it to 6"):
        Linear(7)(x)


@pytest.mark.parametrize("bias", [0.0, 0.5])
@pytest.mark.parametrize("depth", [1, 3])
def test_kernel_is_the_exact_one(depth: int, bias: float) -> None:
    x, y = rows(5), rows(4, seed=1)
    features = NTKRandomFeatures(256, depth=depth, bias=bias)
    np.testing.assert_array_equal(features.kernel(x, y), NTK(depth, bias)(x, y))


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("leverage", [False, True])
def test_paper_variant_is_algorithm_2(depth: int, leverage: bool) -> None:
    """Against the published recursion with tensor products and convolutions written out."""
    features = NTKRandomFeatures(30, depth, leverage, "paper", seed=5)
    np.testing.assert_allclose(features(rows(8)), paper_features(features, rows(8)), atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_default_variant_is_its_recursion_on_gram_matrices(depth: int) -> None:
    """Merging blocks of columns and letting directions carry the factors changes no inner product."""
    features, x = NTKRandomFeatures(150, depth, seed=5), rows(8)
    z = features(x)
    np.testing.assert_allclose(z @ z.T, default_gram(features, x), atol=1e-11)


@pytest.mark.parametrize("d", [1, 2, 3, 10, 1000])
def test_mean_abs(d: int) -> None:
    """c_d = E|t| by quadrature, and its limit."""
    if d == 1:
        assert mean_abs(1) == pytest.approx(1, rel=1e-14)
    else:
        t = np.cos((np.arange(200_000) + 0.5) * np.pi / 200_000)  # t = cos a, with density sinᵈ⁻² a
        weight = (1 - t**2) ** ((d - 2) / 2)
        assert mean_abs(d) == pytest.approx(np.sqrt(d) * (np.abs(t) * weight).sum() / weight.sum(), rel=1e-6)
    assert mean_abs(1000 * d) == pytest.approx(np.sqrt(2 / np.pi) * (1 + 1 / (4000 * d)), rel=1e-6)


def test_leverage_scores_depend_on_directions_only() -> None:
    """The exact sampler, density ∝ ‖w‖²N(w; 0, I): radius χ with d + 2 degrees, any direction.  Its reweighted feature
    √(2d/m) relu(w·x)/‖w‖ is that of w/‖w‖, and these are the map's columns.
    """
    m, d, x = 64, 9, rows(20, 9)
    features = NTKRandomFeatures(m, **LEVERAGE)
    m1 = m - int(0.6 * m)
    g = random.normals((d, m1), features.seed, 0, RELU)
    direction = g / np.linalg.norm(g, axis=0)
    radius = np.sqrt(np.random.default_rng(0).chisquare(d + 2, m1))

    def published(w: F8) -> F8:
        return np.sqrt(2 * d / m1) * np.maximum(x @ w, 0) / np.linalg.norm(w, axis=0)

    np.testing.assert_allclose(published(radius * direction), published(direction), atol=1e-12)
    np.testing.assert_allclose(features(x)[:, :m1], published(direction), atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2])
def test_leverage_scores_are_refused_by_the_default(depth: int) -> None:
    sentence = r'leverage_scores = true needs variant = "paper": the default variant already uses the unit directions'
    with pytest.raises(SpecError, match=sentence):
        NTKRandomFeatures(256, depth, leverage_scores=True)


@pytest.mark.parametrize(("depth", "smallest"), [(1, 16), (2, 32), (3, 64), (5, 256)])
def test_too_few_components_are_refused(depth: int, smallest: int) -> None:
    with pytest.raises(SpecError, match=f"n_components is {smallest - 1}; expected at least {smallest} at depth"):
        NTKRandomFeatures(smallest - 1, depth)
    with pytest.raises(SpecError, match="n_components is 3; expected at least 4"):
        NTKRandomFeatures(3, depth, variant="paper")


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("variant", ["default", "paper"])
@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_the_smallest_map_works_for_any_width(depth: int, variant: Any, bias: float) -> None:
    """No block of columns is empty, whatever the row's length."""
    smallest = 4 if variant == "paper" else 2 ** (depth + 3)
    for d in [1, 2, smallest // 2 - 2, smallest // 2 - 1, smallest // 2, 3 * smallest]:
        z = NTKRandomFeatures(smallest, depth, variant=variant, bias=bias)(rows(3, d))
        assert z.shape == (3, smallest)
        assert np.isfinite(z).all()
