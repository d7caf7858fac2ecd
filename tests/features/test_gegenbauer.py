"""The Gegenbauer coefficients of kernels of the angle, and the activation that `ZonalFeatures` makes of them."""

import numpy as np
import pytest
from angles import every_kernel, gegenbauer
from numpy.typing import NDArray

from ntkdist import NTK, Gaussian, ZonalFeatures
from ntkdist.features.zonal import activation, coefficients, cosine_coefficients, reach, signs
from ntkdist.kernels import ZonalKernel

F8 = NDArray[np.float64]
every_dimension = pytest.mark.parametrize("d", [3, 9, 90, 700])


class Power(ZonalKernel, frozen=True):
    """(cos θ)^power, whose coefficients are known."""

    power: int

    def zonal(self, theta: F8) -> F8:
        return np.cos(theta) ** self.power

    def with_slope(self, x: F8, y: F8, steepest: float) -> tuple[F8, F8]:
        raise NotImplementedError


@pytest.mark.parametrize(("power", "expected"), [(0, [1]), (1, [0, 1]), (2, [1 / 3, 0, 2 / 3])])
def test_known_coefficients_of_powers(power: int, expected: list[float]) -> None:
    """t², t⁴ in Legendre polynomials (d = 3); in any d, t² = 1/d + (1 − 1/d) C̄₂."""
    b = coefficients(Power(power), 3)
    np.testing.assert_allclose(b, expected + [0] * (13 - len(expected)), atol=1e-13)
    np.testing.assert_allclose(coefficients(Power(4), 3, 5), [1 / 5, 0, 4 / 7, 0, 8 / 35, 0], atol=1e-13)
    for d in (5, 90, 700, 100_000):
        np.testing.assert_allclose(coefficients(Power(2), d, 2), [1 / d, 0, 1 - 1 / d], atol=2e-11)


@every_kernel
@pytest.mark.parametrize("d", [3, 90])
def test_coefficients_against_a_dense_sum(kernel: ZonalKernel, d: int) -> None:
    """b_l = E[k C̄_l] / E[C̄_l²] by 100,000 midpoints of the angle."""
    theta = (np.arange(100_000) + 0.5) * np.pi / 100_000
    weight = np.sin(theta) ** (d - 2)
    k, b = kernel.zonal(theta), coefficients(kernel, d)
    for l in range(0, 13, 3):  # noqa: E741
        c = gegenbauer(l, d, np.cos(theta))
        assert b[l] == pytest.approx((weight * k * c).sum() / (weight * c * c).sum(), abs=1e-7)


@every_kernel
@every_dimension
def test_coefficients_sum_to_the_diagonal(kernel: ZonalKernel, d: int) -> None:
    """All are ≥ 0, and what the features lack of k(1) is `tail_mass`; more degrees lack less."""
    features, top = ZonalFeatures(64, kernel), float(kernel.zonal(np.zeros(1))[0])
    b = features._coefficients(d)
    assert (b >= 0).all()
    assert features.tail_mass(d) + b.sum() == pytest.approx(top, rel=1e-12)
    assert 0 <= features.tail_mass(d) < 0.45 * top
    if d < 90:
        left = [top - coefficients(kernel, d, degree).sum() for degree in (12, 24, 48)]
        assert left[0] >= left[1] - 1e-6 >= left[2] - 2e-6 >= -3e-6
    if isinstance(kernel, Gaussian):
        assert features.tail_mass(d) < 1e-5


def test_tail_mass_is_small_when_many_degrees_are_taken() -> None:
    assert 3 - coefficients(NTK(2), 3, 300).sum() == pytest.approx(0, abs=0.005)
    assert 3 - cosine_coefficients(NTK(2), 300).sum() == pytest.approx(0, abs=0.005)
    assert ZonalFeatures(64, NTK(2)).tail_mass(1) == 0
    assert ZonalFeatures(64, NTK(2, bias=1.0)).tail_mass(8) == ZonalFeatures(64, NTK(2)).tail_mass(9)


@every_dimension
def test_degrees_stop_where_rounding_would_show(d: int) -> None:
    """The last coefficient of a polynomial kernel is right to 1e-5, or is left out."""
    b = coefficients(Power(12), d)
    assert len(b) == (13 if d <= 90 else 10)
    assert np.abs(b[1::2]).max() < 2e-5


@every_dimension
@pytest.mark.parametrize("depth", [1, 5])
def test_activation_is_its_series(d: int, depth: int) -> None:
    """The two polynomials in t² against Gegenbauer's, at values that occur; and E[A²] = Σ b_l."""
    b = coefficients(NTK(depth), d)
    c = np.sqrt(b) * signs(len(b))
    t = np.linspace(-1, 1, 401) * min(1, 6 / np.sqrt(d))
    theta = (np.arange(20_000) + 0.5) * np.pi / 20_000
    w = np.sin(theta) ** (d - 2)
    total = np.zeros(401)
    for l, v in enumerate(c):  # noqa: E741
        g = gegenbauer(l, d, np.cos(theta))
        total += v * gegenbauer(l, d, t) / np.sqrt((w * g * g).sum() / w.sum())
    even, odd = (np.polynomial.Polynomial(part) for part in activation(c, d, 2.5))
    s = t * np.sqrt(d)
    np.testing.assert_allclose(even(s**2 - 2.5) + s * odd(s**2 - 2.5), total, rtol=1e-6, atol=1e-6)


@every_kernel
@pytest.mark.parametrize("d", [9, 40, 700])
def test_what_is_out_of_reach(kernel: ZonalKernel, d: int) -> None:
    """Holding A at the largest |t|, one in a million, takes less than 0.5 % of k(1) off E[A²], and bounds A."""
    b = coefficients(kernel, d)
    root = np.sqrt(b) * signs(len(b))
    root[:2] = 0
    even, odd = (np.polynomial.Polynomial(part) for part in activation(root, d, 2.5))
    theta = (np.arange(100_000) + 0.5) * np.pi / 100_000
    t = np.cos(theta) * np.sqrt(d)
    w = np.sin(theta) ** (d - 2)
    w /= w.sum()
    assert w[np.abs(t) > reach(d)].sum() == pytest.approx(1e-6, rel=0.01)
    whole, held = (even(s**2 - 2.5) + s * odd(s**2 - 2.5) for s in (t, np.clip(t, -reach(d), reach(d))))
    top = kernel.zonal(np.zeros(1))[0]
    assert abs((w * (whole**2 - held**2)).sum()) <= 0.005 * top
    assert np.abs(held).max() < 60 * np.sqrt(top)
