"""How well `NTKRandomFeatures` approximates its kernel: error against columns, bias, and what is exact."""

from typing import Any

import numpy as np
import pytest
from maps import F8, PAPER, estimate, rows

from ntkdist import NTK, NTKRandomFeatures

LEVERAGE: dict[str, Any] = {"variant": "paper", "leverage_scores": True}


def error(x: F8, m: int, seeds: int, **options: Any) -> float:
    """Relative Frobenius error of the kernel matrix, mean over seeds."""
    exact = NTKRandomFeatures(m, **options).kernel(x)
    errors = [np.linalg.norm(estimate(NTKRandomFeatures(m, seed=s, **options), x) - exact) for s in range(seeds)]
    return float(np.mean(errors) / np.linalg.norm(exact))


def slope(x: F8, widths: list[int], seeds: int, **options: Any) -> float:
    """Of log error against log m."""
    errors = [error(x, m, seeds if m < 4096 else 1, **options) for m in widths]
    return float(np.polyfit(np.log(widths), np.log(errors), 1)[0])


def over_seeds(x: F8, m: int, seeds: int, **options: Any) -> tuple[F8, F8]:
    """Mean error of each kernel entry over many maps, and its standard error."""
    exact = NTKRandomFeatures(m, **options).kernel(x)
    errors = np.array([estimate(NTKRandomFeatures(m, seed=s, **options), x) - exact for s in range(seeds)])
    return errors.mean(0), errors.std(0) / np.sqrt(seeds)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, PAPER, LEVERAGE], ids=["default", "paper", "leverage"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("d", [9, 90])
def test_error_falls_like_the_root_of_the_columns_up_to_8192(d: int, depth: int, options: dict[str, Any]) -> None:
    widths = [256, 512, 1024, 2048, 4096, 8192]
    assert -0.6 <= slope(rows(100, d), widths, 6, depth=depth, **options) <= -0.4


@pytest.mark.parametrize("d", [9, pytest.param(90, marks=pytest.mark.slow)])
@pytest.mark.parametrize("depth", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_default_has_at_most_half_of_the_error_of_the_paper(depth: int, d: int) -> None:
    """With the same number of columns, 1024; at any depth and width."""
    x = rows(60, d)
    assert 2 * error(x, 1024, 8, depth=depth) <= error(x, 1024, 8, depth=depth, **PAPER)


@pytest.mark.parametrize(
    ("d", "m", "options"),
    [
        (2, 16, {}),
        (5, 24, {}),
        (40, 32, {"bias": 0.7}),
        (1, 16, PAPER),
        (5, 24, LEVERAGE),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((40, 32, {}), (5, 24, {"bias": 0.7}), (5, 24, PAPER))
        ),
    ],
    ids=str,
)
def test_unbiased_at_depth_1(d: int, m: int, options: dict[str, Any]) -> None:
    """Every entry of the mean over 800 maps within 4 standard errors; (40, 32) projects the linear part."""
    mean, standard_error = over_seeds(rows(7, d), m, 800, **options)
    assert (np.abs(mean) <= 4 * standard_error + 1e-12).all()


@pytest.mark.slow
def test_deep_bias_shrinks_with_the_columns_in_the_paper_variant() -> None:
    """Depth 3, opposite rows: a bias that is plain at 16 columns is under a third of it at 64 (it is O(1/m))."""
    angles = np.array([0, 2.0, 2.5, np.pi])
    x = np.stack([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles, 0 * angles], axis=1)
    (few, few_se), (more, more_se) = (over_seeds(x, m, 1500, depth=3, **PAPER) for m in (16, 64))
    assert (few[0, 1:] < -4 * few_se[0, 1:]).all()
    assert (np.abs(more[0, 1:]) < np.abs(few[0, 1:]) / 3 + 2 * more_se[0, 1:]).all()


def test_deep_bias_of_the_default_is_below_two_percent() -> None:
    """At the fewest columns that depth 3 allows, of k(x, x) = 4."""
    angles = np.array([0, 0.5, 1, 1.5, 2, 2.5, np.pi])
    x = np.stack([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles, 0 * angles], axis=1)
    mean, _ = over_seeds(x, 64, 600, depth=3)
    assert np.abs(mean[0]).max() < 0.02 * 4


@pytest.mark.slow
def test_deep_bias_of_the_default_shrinks_with_the_columns() -> None:
    """Depth 3, rows half a radian to one and a half apart: what 12,000 maps show at m = 64 is halved at 256."""
    angles = np.array([0, 0.5, 1, 1.5])
    x = np.stack([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles, 0 * angles], axis=1)
    (few, few_se), (more, more_se) = (mean_bias(x, m, seeds) for m, seeds in ((64, 12000), (256, 4000)))
    assert few > 5 * few_se
    assert abs(more) + more_se < few / 2


def mean_bias(x: F8, m: int, seeds: int) -> tuple[float, float]:
    """Mean error of the first row's kernel with the others at depth 3 over many maps, and its standard error."""
    exact = NTKRandomFeatures(m, depth=3).kernel(x)
    errors = [(estimate(NTKRandomFeatures(m, depth=3, seed=s), x) - exact)[0, 1:].mean() for s in range(seeds)]
    return float(np.mean(errors)), float(np.std(errors) / np.sqrt(seeds))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_bias_column_matches_the_kernel_with_bias(depth: int) -> None:
    """A bias of 2 changes the kernel far more than the error of 2048 columns."""
    x = rows(40, 5)
    with_bias, without = NTK(depth, 2.0)(x), NTK(depth)(x)
    z = estimate(NTKRandomFeatures(2048, depth, bias=2.0), x)
    assert np.linalg.norm(z - with_bias) < 0.06 * np.linalg.norm(with_bias)
    assert np.linalg.norm(without - with_bias) > 0.5 * np.linalg.norm(with_bias)
    zero = NTKRandomFeatures(64, depth, bias=2.0)(np.zeros((1, 5)))
    assert (zero**2).sum() == pytest.approx(4 * (depth + 1), rel=0.5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_dimension_is_exact_at_depth_1(seed: int) -> None:
    """On a line |t| is constant and sgn(t)·t is ±: the features span {relu(x), relu(−x)}."""
    x = np.array([[2.0], [-3.0], [0.5], [0.0]])
    np.testing.assert_allclose(estimate(NTKRandomFeatures(16, seed=seed), x), NTK(1)(x), atol=1e-13)


@pytest.mark.parametrize("depth", [1, 2])
def test_two_dimensions(depth: int) -> None:
    assert error(rows(60, 2), 4096, 2, depth=depth) < 0.03


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_constant_and_linear_parts_are_exact(depth: int) -> None:
    """The first 1 + d columns are the row and its length, times factors that do not depend on the seed."""
    x = rows(30, 5)
    z, other = (NTKRandomFeatures(128, depth, seed=s)(x)[:, :6] for s in (0, 1))
    np.testing.assert_allclose(z, other, rtol=1e-13)
    np.testing.assert_allclose(z[:, :5], np.sqrt((depth + 1) / 2**depth) * x, rtol=1e-13)
    np.testing.assert_allclose(z[:, 5] / np.linalg.norm(x, axis=1), z[0, 5] / np.linalg.norm(x[0]), rtol=1e-13)


@pytest.mark.parametrize("d", [31, 32, 33, 200])
def test_wide_rows_are_projected(d: int) -> None:
    """1 + d above half of 64 columns: the linear part is d/p times an orthonormal projection to p = 16, unbiased."""
    x = rows(20, d)
    features = NTKRandomFeatures(64)
    drawn = features.draw((d,))
    assert ("project" in drawn) == (d > 31)
    if d > 31:
        p = drawn["project"]
        assert p.shape == (d, 16)
        np.testing.assert_allclose(p.T @ p, d / 16 * np.eye(16), atol=1e-12)
    assert error(x, 64, 4) < 0.6
    assert error(x, 1024, 4) < 0.2
