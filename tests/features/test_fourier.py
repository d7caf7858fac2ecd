"""RandomFourier: its spectral laws, what it is unbiased for, and how its error falls."""

from itertools import cycle, product
from typing import Any

import msgspec
import numpy as np
import pytest
from maps import estimate, rows, slow
from numpy.typing import NDArray

from ntkdist import GammaExponential, Gaussian, Laplace, RandomFourier, SpecError, random
from ntkdist.features.fourier import DIRECTION, spread
from ntkdist.spec import encode

F8 = NDArray[np.float64]
KERNELS = [Gaussian(1.5), Laplace(2.0), *(GammaExponential(2.0, gamma) for gamma in (0.5, 1.0, 1.5, 2.0))]
HOMOGENEOUS = [msgspec.structs.replace(k, homogeneous=True) for k in KERNELS]
every_kernel = pytest.mark.parametrize("kernel", KERNELS + HOMOGENEOUS, ids=encode)


@pytest.mark.parametrize(
    ("d", "m", "kernel"),
    [
        *((*shape, kernel) for shape, kernel in zip(cycle([(1, 7), (5, 12)]), KERNELS + HOMOGENEOUS[1:])),
        *(slow(*shape, kernel) for shape, kernel in product([(2, 8), (5, 1), (30, 9)], KERNELS + HOMOGENEOUS)),
    ],
    ids=str,
)
def test_unbiased(d: int, m: int, kernel: Any) -> None:
    """Every entry of the mean over 600 maps within 4.5 standard errors, also with an odd column."""
    x = rows(6, d) / np.sqrt(d)
    errors = np.array([estimate(RandomFourier(m, kernel, s), x) for s in range(600)]) - kernel(x)
    assert (np.abs(errors.mean(0)) <= 4.5 * errors.std(0) / np.sqrt(600) + 1e-12).all()


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_scale_is_stable(alpha: float) -> None:
    """E exp(−s·S) = exp(−s^α), by 200,000 draws, and Lévy's for the Laplace kernel."""
    kernels: list[Any] = [GammaExponential(1.0, 2 * alpha)] + ([Laplace(1.0)] if alpha == 0.5 else [])
    for kernel in kernels:
        scale = np.square(spread(kernel, 200_000, 0)) / 2
        for s in (0.01, 0.1, 1.0, 10.0):
            sample = np.exp(-s * scale)
            assert abs(sample.mean() - np.exp(-(s**alpha))) <= 4.5 * sample.std() / np.sqrt(200_000)


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 3, 50])
def test_frequencies_of_the_gaussian_are_normal(d: int) -> None:
    """Mean of squares d, of fourth powers d(d + 2), and orthogonal within a block."""
    w = RandomFourier(40_000 if d < 50 else 4000, Gaussian(1.0)).draw((d,))["turns"].view(np.float64) * 2 * np.pi
    r2 = (w**2).sum(0)
    assert r2.mean() == pytest.approx(d, abs=4.5 * np.sqrt(2 * d / len(r2)))
    assert (r2**2).mean() == pytest.approx(d * (d + 2), rel=0.1)
    first = w[:, :d] / np.sqrt(r2[:d])
    np.testing.assert_allclose(first.T @ first, np.eye(d), atol=1e-12)
    np.testing.assert_allclose(first, random.directions(d, d, 0, 0, DIRECTION), atol=1e-12)


@pytest.mark.parametrize(
    ("d", "kernel"),
    [
        (3, KERNELS[0]),
        (20, KERNELS[2]),
        (3, HOMOGENEOUS[1]),
        *(slow(*each) for each in product((3, 20), KERNELS + HOMOGENEOUS)),
    ],
    ids=str,
)
def test_error_falls_like_the_root_of_the_columns(d: int, kernel: Any) -> None:
    x, widths = rows(60, d) / np.sqrt(d), [256, 513, 1024, 2048, 4096]
    exact = kernel(x)
    errors = [
        np.mean([np.linalg.norm(estimate(RandomFourier(m, kernel, s), x) - exact) for s in range(5)]) for m in widths
    ]
    assert -0.6 <= np.polyfit(np.log(widths), np.log(errors), 1)[0] <= -0.4
    assert errors[-1] <= 0.07 * np.linalg.norm(exact)


@every_kernel
@pytest.mark.parametrize("m", [1, 2, 63, 64])
def test_features_are_cosines_and_sines(kernel: Any, m: int) -> None:
    """By the definition, in float64; the diagonal is exact if m is even."""
    x = rows(20, 4)
    x[3] = 0
    features = RandomFourier(m, kernel, seed=3)
    drawn = features.draw((4,))
    w, half = 2 * np.pi * drawn["turns"].view(np.float64), m // 2
    r = np.linalg.norm(x, axis=1, keepdims=True) if kernel.homogeneous else np.ones((20, 1))
    u = x / np.where(r == 0, 1, r)
    wave = np.hstack([np.cos(u @ w[:, :half]), np.sin(u @ w[:, :half])])
    if m % 2:
        wave = np.hstack([wave, np.sqrt(2) * np.cos(u @ w[:, half:] + 2 * np.pi * drawn["phase"])])
    np.testing.assert_allclose(features(x), r * wave / np.sqrt(w.shape[1]), atol=1e-15 * np.abs(u @ w).max() + 1e-13)
    if m % 2 == 0:
        np.testing.assert_allclose((features(x) ** 2).sum(1), np.diagonal(kernel(x)), rtol=1e-13)
    assert (features(x)[3] == 0).all() == kernel.homogeneous
    np.testing.assert_array_equal(features.kernel(x), kernel(x))


@every_kernel
def test_float32_rows_have_float64_phases(kernel: Any) -> None:
    """The largest frequencies turn hundreds of times and more between two neighbours of float32."""
    x = rows(50, 9).astype(np.float32)
    features = RandomFourier(2048, kernel)
    z, exact = features(x), features(x.astype(np.float64))
    assert z.dtype == np.float32
    assert (np.linalg.norm(z - exact, axis=1) <= 1e-5 * np.linalg.norm(exact, axis=1)).all()


@every_kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_depends_on_its_own_input_only(kernel: Any, dtype: type) -> None:
    """To 1e-12 (1e-5 in float32) of its norm; to 1e-9 where gamma < 1, whose frequencies have no end."""
    x = rows(300, 9).astype(dtype)
    features = RandomFourier(512, kernel)
    whole = features(x)
    parts = np.concatenate([features(part) for part in np.array_split(x, 37)])
    allowed = 1e-5 if dtype == np.float32 else 1e-9 if getattr(kernel, "gamma", 1) < 1 else 1e-12
    assert (np.linalg.norm(parts - whole, axis=1) <= allowed * np.linalg.norm(whole, axis=1)).all()


def test_frequencies_too_large_are_refused() -> None:
    with pytest.raises(SpecError, match=r"frequencies of gamma = 0\.4; use a gamma of at least 0\.5"):
        RandomFourier(64, GammaExponential(1.0, 0.4))
