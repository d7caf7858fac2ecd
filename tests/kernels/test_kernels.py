"""Exact kernels, against a sixty-digit recursion and against finite networks."""

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from reference import EPS, Network, clipped_kernel, exact_kernel, exact_matrix, rows_at_angle

from ntkdist import NNGP, NTK, SpecError
from ntkdist.kernels import Kernel, angle_of, kappa0, one_minus_kappa1, with_bias

KERNELS = [NTK(1), NTK(2), NTK(3), NTK(6), NNGP(1), NNGP(2), NNGP(3)]
KERNEL_IDS = [f"{type(k).__name__}{k.depth}" for k in KERNELS]
ANGLES = [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=KERNEL_IDS)


def tolerance(kernel: Kernel) -> float:
    """A few roundings of k(x, x) on unit rows, per layer."""
    return 8 * EPS * (kernel.depth + 1)


@every_kernel
@pytest.mark.parametrize("d", [1, 2, 3, 20])
def test_matches_the_recursion_in_sixty_digits(kernel: Kernel, d: int) -> None:
    """Also d = 1 and 2, and rows of very different lengths."""
    rng = np.random.default_rng(d)
    x, z = rng.standard_normal((6, d)), rng.standard_normal((5, d))
    x *= np.logspace(-3, 3, 6)[:, None]
    norms = np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(z, axis=1))
    error = np.abs(kernel(x, z) - exact_matrix(type(kernel).__name__, x, z, kernel.depth))
    assert (error <= 4 * tolerance(kernel) * norms).all()


@pytest.mark.parametrize("side", [1, -1], ids=["parallel", "antiparallel"])
@pytest.mark.parametrize("theta", ANGLES)
@every_kernel
def test_small_angles_keep_their_digits(kernel: Kernel, theta: float, side: int) -> None:
    """Rows 1e-3 … 1e-9 from parallel or antiparallel: absolute error of a rounding, so k(x, x) − k(x, z) and, near −1,
    κ₀ are right to about 1e-15/angle of themselves.
    """
    x, z = rows_at_angle(theta, 8, 12)
    name = type(kernel).__name__
    for a, b in zip(x, side * z, strict=True):
        exact = exact_kernel(name, a, b, kernel.depth)
        assert abs(kernel(a[None], b[None])[0, 0] - exact) <= tolerance(kernel)
        same = exact_kernel(name, a, a, kernel.depth)
        gap = kernel(a[None])[0, 0] - kernel(a[None], b[None])[0, 0]
        if side == 1 and name == "NTK":
            assert abs(gap / (same - exact) - 1) <= 1e-13 / theta


@pytest.mark.parametrize("side", [1, -1], ids=["parallel", "antiparallel"])
@pytest.mark.parametrize("theta", ANGLES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_clipped_arc_cosine_would_fail(depth: int, theta: float, side: int) -> None:
    """The proof that the tolerance above can tell: the usual code misses it at each of these angles."""
    x, z = rows_at_angle(theta, 8, 12)
    exact = [float(exact_kernel("NTK", a, b, depth)) for a, b in zip(x, side * z, strict=True)]
    error = np.abs(np.diagonal(clipped_kernel("NTK", x, side * z, depth)) - exact)
    assert error.max() > tolerance(NTK(depth))


@pytest.mark.parametrize("theta", [1e-12, 1e-9, 1e-6, 1e-3, 0.05, 0.0999999, 0.1, 0.5, 1.5, 3.0, np.pi])
def test_arc_cosine_functions_of_the_angle(theta: float) -> None:
    """κ₀, 1 − κ₁ and the next angle, the last two to full *relative* precision, on both sides of the series' end."""
    with mpmath.workdps(60):
        t = mpmath.mpf(theta)
        gap = 1 - (mpmath.sin(t) + (mpmath.pi - t) * mpmath.cos(t)) / mpmath.pi
        assert abs(kappa0(np.array(theta)) - (1 - t / mpmath.pi)) <= 2 * EPS
        assert abs(one_minus_kappa1(np.array(theta)) / gap - 1) <= 8 * EPS
        assert abs(angle_of(np.array(float(gap))) / mpmath.acos(1 - mpmath.mpf(float(gap))) - 1) <= 8 * EPS


@every_kernel
def test_value_on_a_unit_row(kernel: Kernel) -> None:
    """The parametrisation: K^(L)(1) = L + 1 for the NTK, Σ^(L)(1) = 1 for the NNGP."""
    x = np.random.default_rng(0).standard_normal((5, 7))
    expected = kernel.depth + 1 if isinstance(kernel, NTK) else 1
    np.testing.assert_allclose(np.diagonal(kernel(x)), expected * (x**2).sum(1), rtol=4 * EPS)


@every_kernel
def test_identical_rows_have_the_same_kernel(kernel: Kernel) -> None:
    x = np.random.default_rng(0).standard_normal((4, 7))
    k = kernel(np.concatenate([x, x]), np.concatenate([x, x]))
    np.testing.assert_allclose(k[:4, :4], k[4:, :4], atol=4 * EPS * k.max())
    np.testing.assert_array_equal(np.diagonal(k[:4, 4:]), np.diagonal(kernel(x)))


@every_kernel
@pytest.mark.parametrize("d", [1, 5])
def test_zero_rows_give_zero(kernel: Kernel, d: int) -> None:
    x = np.random.default_rng(0).standard_normal((4, d))
    x[[1, 3]] = 0
    k = kernel(x)
    assert np.isfinite(k).all()
    assert (k[[1, 3]] == 0).all()
    assert (k[:, [1, 3]] == 0).all()
    assert (np.diagonal(k)[[0, 2]] > 0).all()


def test_one_dimension_is_a_half_line() -> None:
    """At d = 1 rows are parallel or opposite: K = L + 1 or the recursion from cos θ = −1, where κ₀ = κ₁ = 0."""
    x = np.array([[2.0], [-3.0], [0.5]])
    np.testing.assert_allclose(NTK(1)(x), [[8, 0, 2], [0, 18, 0], [2, 0, 0.5]], atol=1e-15)


@every_kernel
def test_homogeneous_in_each_argument(kernel: Kernel) -> None:
    """Twice the row, twice the kernel, to the bit."""
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((6, 4)), rng.standard_normal((5, 4))
    np.testing.assert_array_equal(kernel(2 * x, z), 2 * kernel(x, z))
    np.testing.assert_array_equal(kernel(x, 2 * z), 2 * kernel(x, z))


@pytest.mark.parametrize("depth", [1, 3])
def test_bias_is_one_more_column(depth: int) -> None:
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((6, 4)), rng.standard_normal((5, 4))
    column = np.full((6, 1), 0.7)
    np.testing.assert_array_equal(NTK(depth, 0.7)(x), NTK(depth)(np.hstack([x, column])))
    np.testing.assert_array_equal(NTK(depth, 0.7)(x, z), NTK(depth)(np.hstack([x, column]), with_bias(z, 0.7)))
    assert not np.allclose(NTK(depth, 0.7)(x), NTK(depth)(x))


@every_kernel
def test_integers_and_float32_are_computed_in_float64(kernel: Kernel) -> None:
    x = np.arange(1, 13).reshape(4, 3)
    for dtype in (np.int64, np.uint8, np.float32):
        k = kernel(x.astype(dtype))
        assert k.dtype == np.float64
        np.testing.assert_array_equal(k, kernel(x.astype(np.float64)))


def test_many_nearly_parallel_rows() -> None:
    """More close pairs than are refined at a time (65,536): the whole equals its parts."""
    x = np.random.default_rng(0).standard_normal((1, 3)) + 1e-6 * np.random.default_rng(1).standard_normal((300, 3))
    whole = NTK(2)(x)
    parts = np.vstack([NTK(2)(x[i : i + 37], x) for i in range(0, 300, 37)])
    np.testing.assert_allclose(whole, parts, rtol=16 * EPS)


@settings(max_examples=60, derandomize=True)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 5)), elements=st.floats(-4, 4, width=16)),
    st.sampled_from(KERNELS),
)
def test_symmetric_and_positive_semidefinite(x: np.ndarray, kernel: Kernel) -> None:
    """Whatever the rows: repeated, opposite, zero."""
    k = kernel(np.vstack([x, -x[:2], x[:1]]))
    scale = max(float(np.trace(k)), 1e-300)
    np.testing.assert_allclose(k, k.T, atol=4 * EPS * scale, rtol=0)
    assert np.linalg.eigvalsh((k + k.T) / 2)[0] >= -1e-14 * scale


@pytest.mark.parametrize("depth", [1, 2])
def test_gradients_of_the_reference_network(depth: int) -> None:
    """The oracle's oracle: hand-written gradients against central differences."""
    net, x = Network(3, 6, depth, seed=1), np.random.default_rng(0).standard_normal((1, 3))
    found = net.gradients(x)[1:][::-1]
    for w, (delta, a) in zip(net.weights, found, strict=True):
        gradient = np.outer(delta[0], a[0])
        for index in np.ndindex(w.shape):
            values = []
            for h in (1e-6, -1e-6):
                w[index] += h
                values.append(net.output(x)[0])
                w[index] -= h
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(gradient[index], abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_kernels_of_a_wide_network(depth: int) -> None:
    """A network of width 4096: its tangent kernel is the NTK, the covariance of its outputs the NNGP.

    Every entry is a mean over 4096 neurons per layer of terms whose spread is about twice their mean, so that over
    4 seeds the relative error is about 2·depth·(4 · 4096)^-½ = 0.016·depth; five times that is not chance.  A wrong
    factor (2, ½, a missing layer) would be 30 % or more.
    """
    width, seeds, d = 4096, 4, 5
    x = np.random.default_rng(3).standard_normal((8, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    nets = [Network(d, width, depth, seed) for seed in range(seeds)]
    tangent = np.mean([net.tangent_kernel(x) for net in nets], axis=0)
    error = np.abs(tangent - NTK(depth)(x))
    assert error.max() <= 5 * 0.016 * depth * (depth + 1) / 2
    # Given its hidden layers the outputs are Gaussian in the readout weights: 2000 readouts for each network.
    rng, readouts = np.random.default_rng(4), 2000
    outputs = np.hstack([net.hidden(x)[-1] @ rng.standard_normal((width, readouts)) for net in nets])
    covariance = outputs @ outputs.T / outputs.shape[1]
    spread = np.sqrt(2 / outputs.shape[1]) + 0.016 * depth
    assert np.abs(covariance - NNGP(depth)(x)).max() <= 5 * spread / 2


def test_depth_below_one_is_refused() -> None:
    with pytest.raises(SpecError, match=r"NTK\.depth is 0"):
        NTK(0)


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_ntk_is_that_of_scikit_ntk(depth: int) -> None:
    """Theirs is 1 on the diagonal of unit rows; a bias is something else there, and is left out."""
    skntk = pytest.importorskip("skntk")
    x, z = np.random.default_rng(0).standard_normal((30, 9)), np.random.default_rng(1).standard_normal((20, 9))
    theirs = skntk.NeuralTangentKernel(depth=depth, bias=0.0)
    np.testing.assert_allclose(NTK(depth)(x, z), (depth + 1) * theirs(x, z), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(NTK(depth)(x), (depth + 1) * theirs(x), rtol=1e-6)  # theirs takes the arccos of 1
