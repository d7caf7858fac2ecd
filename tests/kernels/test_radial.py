"""Kernels of the distance against loops, scikit-learn and sixty digits; and all kernels as functions of the angle."""

import math
from pathlib import Path
from typing import Any

import mpmath
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from reference import rows_at_angle
from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel

import ntkdist as nd
from ntkdist import NNGP, NTK, GammaExponential, Gaussian, Laplace, ProductLaplace, SpecError
from ntkdist.kernels import AnyKernel, RadialKernel, ZonalKernel
from ntkdist.spec import decode, encode

F8 = NDArray[np.float64]
RADIAL = [
    Gaussian(0.7),
    Laplace(1.3),
    GammaExponential(1.3, 0.5),
    GammaExponential(0.8, 1.0),
    GammaExponential(2.0, 1.5),
    GammaExponential(1.1, 2.0),
]
HOMOGENEOUS = [msgspec.structs.replace(k, homogeneous=True) for k in RADIAL]
ZONAL = [NTK(1), NTK(3), NTK(2, bias=0.5), NNGP(2), *HOMOGENEOUS]
radial = pytest.mark.parametrize("kernel", RADIAL, ids=encode)
homogeneous = pytest.mark.parametrize("kernel", HOMOGENEOUS, ids=encode)
every_kernel = pytest.mark.parametrize("kernel", RADIAL + ZONAL, ids=encode)


def rows(n: int, d: int, seed: int = 0) -> F8:
    return np.random.default_rng(seed).standard_normal((n, d))


def naive(kernel: RadialKernel, x: F8, y: F8) -> F8:
    """Entry by entry, from the differences of two rows."""
    out = np.zeros((len(x), len(y)))
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            norms = 1.0
            if kernel.homogeneous:
                norms = math.dist(a, 0 * a) * math.dist(b, 0 * b)
            if norms > 0:
                r = math.dist(*((a / math.dist(a, 0 * a), b / math.dist(b, 0 * b)) if kernel.homogeneous else (a, b)))
                gamma = {Gaussian: 2.0, Laplace: 1.0}.get(type(kernel)) or kernel.gamma
                scale = kernel.lengthscale * (math.sqrt(2) if isinstance(kernel, Gaussian) else 1)
                out[i, j] = norms * math.exp(-((r / scale) ** gamma))
    return out


@pytest.mark.parametrize("kernel", RADIAL + HOMOGENEOUS, ids=encode)
@pytest.mark.parametrize("d", [1, 2, 9])
def test_matches_the_loop(kernel: RadialKernel, d: int) -> None:
    x, y = rows(7, d), rows(5, d, seed=1)
    x[3] = 0
    np.testing.assert_allclose(kernel(x, y), naive(kernel, x, y), rtol=1e-12, atol=1e-14)
    # A distance of a rounding, where there should be none, is its gamma-th power off.
    np.testing.assert_allclose(kernel(x), naive(kernel, x, x), rtol=1e-12, atol=1e-14)


def test_the_same_as_scikit_learn() -> None:
    x, y = rows(9, 4), rows(6, 4, seed=1)
    np.testing.assert_allclose(Gaussian(0.7)(x, y), rbf_kernel(x, y, gamma=1 / (2 * 0.7**2)), rtol=1e-12)
    line, other = x[:, :1], y[:, :1]  # its Laplace kernel sums |x − y|, which is the distance on a line only
    np.testing.assert_allclose(Laplace(0.7)(line, other), laplacian_kernel(line, other, gamma=1 / 0.7), rtol=1e-12)


def test_gamma_exponential_contains_the_others() -> None:
    x, y = rows(9, 4), rows(6, 4, seed=1)
    np.testing.assert_allclose(GammaExponential(1.3, 1)(x, y), Laplace(1.3)(x, y), rtol=1e-14)
    np.testing.assert_allclose(GammaExponential(1.3 * 2**0.5, 2)(x, y), Gaussian(1.3)(x, y), rtol=1e-13)


@pytest.mark.parametrize("apart", [1e-1, 1e-4, 1e-8, 1e-12])
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("among", ["alone", "others"])
def test_close_rows_keep_their_distance(apart: float, offset: float, among: str) -> None:
    """1 − exp(−r) ≈ r of rows that nearly agree, against sixty digits, wherever they are and whatever is beside."""
    x = rows(6, 8) + offset
    y = x + apart * rows(6, 8, seed=1)
    beside = np.concatenate([y, rows(20, 8, seed=2)]) if among == "others" else y
    gap = np.diagonal(-np.log(Laplace(1.0)(x, beside)[:, :6]))
    with mpmath.workdps(60):
        for a, b, g in zip(x, y, gap, strict=True):
            r = mpmath.sqrt(sum((mpmath.mpf(float(p)) - mpmath.mpf(float(q))) ** 2 for p, q in zip(a, b, strict=True)))
            assert abs(g - r) <= 1e-13 * r + 4 * 2.0**-53


def test_identical_rows_are_at_no_distance() -> None:
    x = rows(40, 7) * np.logspace(-6, 6, 40)[:, None]
    for kernel in RADIAL:
        np.testing.assert_array_equal(np.diagonal(kernel(x, x.copy())), np.ones(40))


@homogeneous
@pytest.mark.parametrize("theta", [1e-3, 1e-6, 1e-9])
def test_homogeneous_kernels_of_nearly_parallel_rows(kernel: RadialKernel, theta: float) -> None:
    x, y = rows_at_angle(theta, 8, 5)
    k = kernel(3 * x, 2 * y)
    expected = 6 * kernel.of_distance(2 * np.sin(np.full(5, theta) / 2))
    np.testing.assert_allclose(np.diagonal(k), expected, rtol=1e-7 * min(1, theta**0.25))


@every_kernel
@pytest.mark.parametrize("d", [1, 2, 3, 20])
def test_positive_semi_definite(kernel: Any, d: int) -> None:
    """Random rows, near copies, opposite rows and, for those it is not zero on, zero rows."""
    x = rows(25, d)
    x = np.concatenate([x, x[:8] * (1 + 1e-7), -x[:8], x[:4], 0 * x[:1]])
    k = kernel(x)
    np.testing.assert_allclose(k, k.T, atol=1e-13 * k.max())
    assert np.linalg.eigvalsh(k).min() >= -1e-13 * np.trace(k)


@pytest.mark.parametrize("kernel", ZONAL, ids=encode)
def test_zonal_is_the_kernel_of_unit_rows(kernel: ZonalKernel) -> None:
    theta = np.array([0, 0.3, 1.5, 3.0])
    circle = np.stack([np.cos(theta), np.sin(theta)], axis=1)
    bare = msgspec.structs.replace(kernel, bias=0.0) if isinstance(kernel, NTK) else kernel
    np.testing.assert_allclose(kernel.zonal(theta), bare(circle[:1], circle)[0], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(kernel.zonal(theta.reshape(2, 2)), kernel.zonal(theta).reshape(2, 2), rtol=0)


@pytest.mark.parametrize("kernel", [k for k in ZONAL if not getattr(k, "bias", 0)], ids=encode)
def test_zonal_kernels_are_homogeneous(kernel: ZonalKernel) -> None:
    x, y = rows(6, 4), rows(5, 4, seed=1)
    x[2] = 0
    np.testing.assert_array_equal(kernel(2 * x, y), 2 * kernel(x, y))
    assert (kernel(x)[2] == 0).all()


@every_kernel
def test_images_and_other_numbers(kernel: Any) -> None:
    """Rows are flattened, and computed in float64; no rows are no rows."""
    x = np.arange(1, 25).reshape(4, 3, 2)
    k = kernel(x.astype(np.float64).reshape(4, 6))
    for dtype in (np.int64, np.uint8, np.float32):
        np.testing.assert_array_equal(kernel(x.astype(dtype)), k)
        assert kernel(x.astype(dtype)).dtype == np.float64
    assert kernel(x[:0]).shape == (0, 0)
    assert kernel(x, x[:0]).shape == (4, 0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Gaussian(0.0), r"Gaussian\.lengthscale is 0\.0: expected `float` > 0"),
        (lambda: Laplace(-1), r"Laplace\.lengthscale is -1"),
        (lambda: GammaExponential(1.0, 2.5), r"GammaExponential\.gamma is 2\.5: expected `float` <= 2"),
        (lambda: GammaExponential(1.0, 0), r"GammaExponential\.gamma is 0"),
        (lambda: Gaussian(math.inf), r"Gaussian\.lengthscale is inf.*finite"),
    ],
)
def test_what_is_no_kernel_is_refused(make: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        make()


@every_kernel
def test_a_kernel_is_a_value(kernel: Any) -> None:
    again: Any = decode(msgspec.json.decode(encode(kernel)), AnyKernel)
    assert again == kernel
    assert hash(again) == hash(kernel)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (
            'type = "ZonalFeatures"\nn_components = 64\nkernel = { type = "NTK", depth = 3 }',
            nd.ZonalFeatures(64, NTK(3)),
        ),
        ('type = "ZonalFeatures"\nn_components = 64\nseed = 3', nd.ZonalFeatures(64, NTK(2, bias=1.0), 3)),
        (
            'type = "ZonalFeatures"\nn_components = 64\nkernel = { type = "Laplace", lengthscale = 2, '
            "homogeneous = true }",
            nd.ZonalFeatures(64, Laplace(2.0, homogeneous=True)),
        ),
        (
            'type = "RandomFourier"\nn_components = 64\n[features.kernel]\ntype = "GammaExponential"\nlengthscale = 2\n'
            "gamma = 1",
            nd.RandomFourier(64, GammaExponential(2.0, 1.0)),
        ),
    ],
)
def test_a_job_names_kernels_within_maps(features: str, expected: Any, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(f'[dataset]\nstore = "a.zarr"\n[features]\n{features}\n')
    job = nd.Job.read(str(path))
    assert job == nd.Job(nd.Dataset("a.zarr"), expected)
    assert decode(msgspec.json.decode(encode(job)), nd.Job) == job


def test_a_misspelt_kernel_is_named() -> None:
    features = {"type": "ZonalFeatures", "n_components": 64, "kernel": {"type": "Gausian", "lengthscale": 1}}
    with pytest.raises(SpecError, match=r"unknown type 'Gausian' in \[features\.kernel\]; did you mean 'Gaussian'"):
        decode({"dataset": {"store": "a.zarr"}, "features": features}, nd.Job)


def test_the_product_of_laplace_kernels_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 5)), rng.standard_normal((30, 5)).astype(np.float32)
    np.testing.assert_allclose(
        ProductLaplace(2.5)(x, y), laplacian_kernel(x, y.astype(np.float64), 1 / 2.5), rtol=1e-12
    )
    columns = [Laplace(2.5)(x[:, [j]], y[:, [j]]) for j in range(5)]
    np.testing.assert_allclose(ProductLaplace(2.5)(x, y), np.prod(columns, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(ProductLaplace(2.5)(x), ProductLaplace(2.5)(x, x))
