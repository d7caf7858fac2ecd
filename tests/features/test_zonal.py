"""ZonalFeatures: its coefficients, what it is exact and unbiased for, and how close it comes to the kernel."""

import math
from typing import Any

import numpy as np
import pytest
from angles import every_kernel, gegenbauer
from maps import estimate, rows, slow
from numpy.typing import NDArray

from ntkdist import NNGP, NTK, GammaExponential, Gaussian, Laplace, NTKRandomFeatures, SpecError, ZonalFeatures
from ntkdist.features import loops
from ntkdist.kernels import ZonalKernel

F8 = NDArray[np.float64]


def truncated(features: ZonalFeatures, x: F8) -> F8:
    """Σ b_l C̄_l ‖x‖‖y‖ over the degrees of the map."""
    r = np.linalg.norm(x, axis=1, keepdims=True)
    u, d = x / np.where(r == 0, 1, r), x.shape[1]
    b = features._coefficients(d)
    return r * sum(v * gegenbauer(k, d, u @ u.T) for k, v in enumerate(b)) * r.T


def error(make: Any, x: F8, seeds: int, target: F8 | None = None) -> float:
    """Relative Frobenius error, mean over seeds."""
    exact = make(0).kernel(x) if target is None else target
    return float(np.mean([np.linalg.norm(estimate(make(s), x) - exact) for s in range(seeds)]) / np.linalg.norm(exact))


@pytest.mark.parametrize("seed", [0, 1])
@every_kernel
def test_one_dimension_is_exact(kernel: ZonalKernel, seed: int) -> None:
    x = np.array([[2.0], [-3.0], [0.5], [0.0]])
    np.testing.assert_allclose(estimate(ZonalFeatures(4, kernel, seed), x), kernel(x), atol=1e-13)


@every_kernel
@pytest.mark.parametrize("m", [4, 63, 64, 1000])
def test_two_dimensions_are_a_cosine_series(kernel: ZonalKernel, m: int) -> None:
    x = rows(30, 2)
    x[3] = 0
    features = ZonalFeatures(m, kernel)
    r, theta = np.linalg.norm(x, axis=1), np.arctan2(x[:, 1], x[:, 0])
    b = features._coefficients(2)
    series = sum(v * np.cos(k * np.subtract.outer(theta, theta)) for k, v in enumerate(b))
    assert len(b) == (m - 1) // 2 + 1
    np.testing.assert_allclose(estimate(features, x), np.outer(r, r) * series, atol=1e-12)
    if m == 1000 and not isinstance(kernel, GammaExponential):
        assert np.abs(estimate(features, x) - kernel(x)).max() < 3e-3 * kernel(x).max()


@every_kernel
@pytest.mark.parametrize(("d", "m"), [(3, 64), (9, 64), (9, 1024), (10, 4096), (90, 300)])
def test_low_degrees_are_exact(kernel: ZonalKernel, d: int, m: int) -> None:
    """Their columns come first, and their inner products are the kernel's series up to that degree."""
    x, features = rows(12, d), ZonalFeatures(m, kernel, seed=5)
    _, e, r = features._columns(d)
    exact, b = features(x)[:, : m - r], features._coefficients(d)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    cosine = (x / length) @ (x / length).T
    series = sum(v * gegenbauer(k, d, cosine) for k, v in enumerate(b[: e + 1]))
    assert e >= (2 if m >= 1024 else 1)
    assert exact.shape[1] == math.comb(d + e, e) <= m / 2
    np.testing.assert_allclose(exact @ exact.T, length * series * length.T, atol=1e-11 * length.max() ** 2)


@pytest.mark.parametrize(
    ("d", "m", "kernel"),
    [(3, 16, NTK(2)), (9, 40, NTK(1)), (9, 40, NTK(5)), (40, 32, NTK(2)), (9, 40, Laplace(1.0, True))],
    ids=str,
)
@pytest.mark.slow
def test_unbiased_for_the_truncated_kernel(d: int, m: int, kernel: ZonalKernel) -> None:
    """Every entry of the mean over 500 maps within 4.5 standard errors; (40, 32) projects the linear part."""
    x = rows(6, d)
    target = truncated(ZonalFeatures(m, kernel), x)
    errors = np.array([estimate(ZonalFeatures(m, kernel, s), x) - target for s in range(500)])
    assert (np.abs(errors.mean(0)) <= 4.5 * errors.std(0) / np.sqrt(500) + 1e-12).all()


@pytest.mark.parametrize("depth", [2, *map(slow, (1, 3, 4, 5))])
@pytest.mark.parametrize("d", [9, 90, slow(3)])
def test_error_falls_like_the_root_of_the_columns_down_to_the_tail(d: int, depth: int) -> None:
    x, widths = rows(60, d), [256, 512, 1024, 2048]
    target, exact = truncated(ZonalFeatures(64, NTK(depth)), x), NTK(depth)(x)
    errors = [error(lambda s, m=m: ZonalFeatures(m, NTK(depth), s), x, 6, target) for m in widths]
    # In low dimension faster, because with the columns grows the degree up to which all is exact.
    assert (-1.0 if d < 90 else -0.6) <= np.polyfit(np.log(widths), np.log(errors), 1)[0] <= -0.4
    tail = np.linalg.norm(target - exact) / np.linalg.norm(exact)
    assert error(lambda s: ZonalFeatures(2048, NTK(depth), s), x, 3) <= errors[-1] * 1.1 + tail
    # The tail is about a multiple of the identity on unit rows.
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    missing = NTK(depth)(unit) - truncated(ZonalFeatures(64, NTK(depth)), unit)
    np.testing.assert_allclose(np.diagonal(missing), ZonalFeatures(64, NTK(depth)).tail_mass(d), rtol=1e-6)


@pytest.mark.parametrize(("d", "m"), [(9, 1024), slow(3, 1024), slow(90, 1024), slow(700, 2048)])
@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_closer_than_layer_by_layer_random_features(d: int, m: int, depth: int) -> None:
    """At equal columns, 300 normal rows: never worse at depth 1, at most 0.8 of the error at depth 2, 0.6 at 5.

    Few rows of many columns are nearly orthogonal, so that the diagonal decides, where only the tail is missing: 80
    rows at d = 700 are about level with the other map at depth 1, and 0.9 of its error at depth 2.
    """
    x, seeds = rows(300, d), 2 if d < 700 else 1
    ours = error(lambda s: ZonalFeatures(m, NTK(depth), s), x, seeds)
    other = error(lambda s: NTKRandomFeatures(m, depth=depth, seed=s), x, seeds)
    assert ours <= {1: 1.02, 2: 0.8, 3: 0.75, 5: 0.6}[depth] * other


@every_kernel
@pytest.mark.parametrize("d", [1, 2, 9, 700])
def test_float32_is_float64_rounded(kernel: ZonalKernel, d: int) -> None:
    """Row by row; and zero rows have zero features."""
    x = rows(40, d).astype(np.float32)
    x[[0, 7]] = 0
    features = ZonalFeatures(512, kernel)
    z, exact = features(x), features(x.astype(np.float64))
    assert z.dtype == np.float32
    assert (z[[0, 7]] == 0).all()
    assert (np.linalg.norm(z - exact, axis=1) <= 1e-5 * np.linalg.norm(exact, axis=1)).all()


def test_bias_is_one_more_column() -> None:
    x = rows(12, 5)
    wide = np.hstack([x, np.full((12, 1), 0.7)])
    np.testing.assert_allclose(ZonalFeatures(64, NTK(2, bias=0.7))(x), ZonalFeatures(64, NTK(2))(wide), atol=1e-13)
    np.testing.assert_array_equal(ZonalFeatures(64, NTK(2, bias=0.7)).kernel(x), NTK(2, bias=0.7)(x))


def test_what_it_cannot_map_is_refused() -> None:
    with pytest.raises(SpecError, match="Laplace is one of the distance; set homogeneous = true in it, or use Random"):
        ZonalFeatures(64, Laplace(1.0))
    with pytest.raises(SpecError, match="n_components is 3; expected at least 4"):
        ZonalFeatures(3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [9, 90, 700])
def test_a_row_along_a_direction_has_no_large_feature(d: int, dtype: type) -> None:
    """At d = 90 the activation there would be some 10⁵ times as long as the others are together."""
    features = ZonalFeatures(1024, NTK(2))
    u = features.draw((d,))["directions"][:, :50].T.astype(dtype) / math.sqrt(d)
    for row in (u, -u):
        squares = np.square(features(row)).sum(axis=1) / features.kernel(u[:1])[0, 0]
        assert ((squares > 0.8) & (squares < 1.4)).all()


@pytest.mark.parametrize("loop", [loops.even_odd, loops._even_odd_by_arrays])
def test_the_activation_stays_what_it_is_at_the_end_of_its_reach(loop: Any) -> None:
    even, odd, scale = np.array([1.0, -2.0, 0.5]), np.array([0.3, 4.0]), np.array([2.0])
    z = np.array([[-50.0, -3.1, -3.0, 0.5, 3.0, 3.1, 50.0]])
    if loop is loops.even_odd:
        loop(z, 0, even, odd, 1.0, 3.0, scale)
    else:
        z = loop(z, even, odd, 1.0, 3.0, scale)
    left, middle, right = (
        2 * (np.polyval(even[::-1], t**2 - 1) + t * np.polyval(odd[::-1], t**2 - 1)) for t in (-3, 0.5, 3)
    )
    np.testing.assert_allclose(z[0], [left, left, left, middle, right, right, right], rtol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "d", "most"),
    [
        (NTK(1), 1600, 0.001),
        (NTK(3), 900, 0.0025),
        (NTK(10), 930, 0.004),
        (NNGP(7), 1640, 0.001),
        (Laplace(0.35, homogeneous=True), 930, 0.007),
        (GammaExponential(0.45, 1.9, homogeneous=True), 930, 0.03),
        (Gaussian(0.32, homogeneous=True), 930, 0.037),
    ],
    ids=str,
)
def test_what_holding_the_activation_takes_off(kernel: Any, d: int, most: float) -> None:
    """Its mean square beyond the reach, less what it is held at, by quadrature; where each kind has the most of it."""
    features = ZonalFeatures(16, kernel)
    params, r = features.draw((d,)), features._columns(d)[2]
    top = np.arccos(params["reach"] / math.sqrt(d))
    x, w = np.polynomial.legendre.leggauss(1000)
    theta = top * (1 + x) / 2
    log = math.lgamma(d / 2) - math.lgamma((d - 1) / 2) - math.log(math.pi) / 2 + (d - 2) * np.log(np.sin(theta))
    share = w * top / 2 * np.exp(log)
    assert share.sum() == pytest.approx(5e-7, rel=1e-6)  # on either side
    t, end = math.sqrt(d) * np.cos(theta), params["reach"]
    even, odd = (np.polynomial.Polynomial(params[name]) for name in ("even", "odd"))
    squares = [
        sum(np.square(even(a**2 - params["shift"]) + s * a * odd(a**2 - params["shift"])) for s in (-1, 1))
        for a in (t, end)
    ]
    lost = r * share @ (squares[0] - squares[1]) / float(kernel.zonal(np.zeros(1))[0])
    assert most / 2 < lost < most
