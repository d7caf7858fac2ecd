"""Gradients of functions of rows: against differences of the map and of its exact kernel, and what they cost."""

from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from maps import NUMPY_BUFFERS, both_dtypes, peak_bytes, rows, same_rows
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ntkdist import (
    CNTK,
    NNGP,
    NTK,
    CNTKRandomFeatures,
    CNTKSketch,
    GammaExponential,
    Gaussian,
    ImageLandmarks,
    Imported,
    Laplace,
    Linear,
    NTKRandomFeatures,
    NTKSketch,
    Nystrom,
    PatchLandmarks,
    ProductLaplace,
    RandomFourier,
    ZonalFeatures,
    backend,
)
from ntkdist.errors import DataError, SpecError
from ntkdist.features import AnyFeatureMap, FeatureMap, loops
from ntkdist.features.base import _cached_draw
from ntkdist.features.landmarks import ROWS, polynomials
from ntkdist.kernels import RadialKernel, ZonalKernel
from ntkdist.spec import encode

F8 = NDArray[np.float64]
STEEPEST = {np.float32: 2e3, np.float64: 1e8}
RADIAL = [
    *(make(1.5, homogeneous=whether) for make in (Gaussian, Laplace) for whether in (False, True)),
    *(GammaExponential(1.5, gamma, whether) for gamma in (0.6, 1.5, 2.0) for whether in (False, True)),
]
NETWORKS = [NTK(1), NTK(2), NTK(3, bias=0.7), NTK(12), NTK(12, bias=0.7), NNGP(1), NNGP(3), NNGP(12)]
KERNELS: list[Any] = [*NETWORKS, *RADIAL]
ANGULAR = [kernel for kernel in KERNELS if getattr(kernel, "homogeneous", True)]
MAPS = [
    *(Nystrom(30, kernel) for kernel in KERNELS),
    *(ZonalFeatures(m, kernel) for m in (12, 150) for kernel in ANGULAR),
    *(RandomFourier(m, kernel) for m in (64, 33) for kernel in RADIAL),
    *(NTKSketch(m, 2, 8, bias) for m in (20, 300) for bias in (0.0, 0.7)),
]
every_map = pytest.mark.parametrize("spec", MAPS, ids=encode)
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=encode)
every_dimension = pytest.mark.parametrize("d", [1, 2, 3, 7])
NONE: list[FeatureMap] = [
    NTKRandomFeatures(64),
    CNTKRandomFeatures(64),
    CNTKSketch(64),
    PatchLandmarks(64),
    ImageLandmarks(64, PatchLandmarks(64)),
    Imported(9, "own_map:phi"),
]


def fitted(spec: Any, d: int) -> Any:
    return spec.fit(rows(200, d, seed=3)) if spec.sample_rows else spec


def weights(m: int, t: int = 3) -> F8:
    return np.random.default_rng(5).standard_normal((m, t))


def differences(f: Any, x: F8, step: float = 1e-3) -> F8:
    """Return the central differences of fourth order of functions of rows, (n, t, d)."""
    sides = {k: np.stack([f(x + k * step * e) for e in np.eye(x.shape[1])], axis=2) for k in (-2, -1, 1, 2)}
    return (8 * (sides[1] - sides[-1]) - (sides[2] - sides[-2])) / (12 * step)


def clear(features: Any, x: F8, gap: float = 0.02) -> F8:
    """Select rows without a landmark near by, where the functions of some kernels have kinks."""
    if "landmarks" not in features.arrays:
        return x
    kernel, z = features.spec.kernel, features.arrays["landmarks"]
    if isinstance(kernel, RadialKernel) and not kernel.homogeneous:
        near = np.linalg.norm(x[:, None] - z, axis=2).min(axis=1)
    else:
        u, v = (kernel.rows(a) / np.linalg.norm(kernel.rows(a), axis=1, keepdims=True) for a in (x, z))
        apart = np.linalg.norm(np.stack([u[:, None] - v, u[:, None] + v]), axis=3)
        near = np.where(apart < 1e-9, 1, apart).min(axis=(0, 2))  # on a line all rows are parallel, and stay so
    return x[near > gap]


def assert_near(got: F8, expected: F8, share: float) -> None:
    assert got.shape == expected.shape
    assert np.abs(expected).max() > 0
    assert np.abs(got - expected).max() <= share * np.abs(expected).max()


@every_map
@every_dimension
def test_gradients_are_the_limits_of_differences(spec: Any, d: int) -> None:
    features, coef = fitted(spec, d), weights(spec.n_components)
    x = clear(features, rows(60, d))
    assert len(x) >= 30
    assert_near(features.gradients(x, coef), differences(lambda each: features(each) @ coef, x, 2e-4), 1e-6)


@every_kernel
@every_dimension
def test_nystrom_has_the_gradients_of_the_exact_kernel(kernel: Any, d: int) -> None:
    """With coef = φ(Z)ᵀ a the function is Σ a_j k(x, z_j), as the map is exact at its landmarks."""
    features = fitted(Nystrom(12, kernel), d)
    z = features.arrays["landmarks"]
    a, x = weights(len(z)), clear(features, rows(60, d))
    expected = differences(lambda each: kernel(each, z) @ a, x, 2e-4)
    assert_near(features.gradients(x, features(z).T @ a), expected, 1e-6)


@every_map
@every_dimension
def test_float32_rows_have_the_gradients_of_float64(spec: Any, d: int) -> None:
    features, coef = fitted(spec, d), weights(spec.n_components)
    x = clear(features, rows(60, d)).astype(np.float32)
    single = features.gradients(x, coef)
    assert single.dtype == np.float32
    assert_near(single, features.gradients(x.astype(np.float64), coef), 1e-4)


@every_map
def test_a_row_of_zeros_has_the_gradient_0_where_the_map_is_homogeneous(spec: Any) -> None:
    features, coef, x = fitted(spec, 5), weights(spec.n_components), rows(4, 5)
    g = features.gradients(np.concatenate([x, np.zeros((1, 5))]), coef)
    bias = getattr(spec, "bias", 0) or getattr(spec.kernel, "bias", 0)
    homogeneous = getattr(spec.kernel, "homogeneous", True) and not bias
    assert np.isfinite(g).all()
    assert (np.abs(g[-1]).max() == 0) == homogeneous
    same_rows(g[:-1].reshape(4, -1), features.gradients(x, coef).reshape(4, -1))


@every_kernel
@both_dtypes
def test_the_gradient_at_a_landmark_is_the_mean_of_those_around(kernel: Any, dtype: type) -> None:
    """The kernel of a landmark and a row may have a kink where they agree, but a symmetric one."""
    features = fitted(Nystrom(30, kernel), 5)
    z, coef = features.arrays["landmarks"].astype(dtype), weights(30)
    across = rows(30, 5, seed=11)
    across -= z * (np.einsum("ij,ij->i", across, z) / np.einsum("ij,ij->i", z, z))[:, None]
    across *= 1e-3
    around = (features.gradients(z + across, coef) + features.gradients(z - across, coef)) / 2
    assert_near(features.gradients(z, coef), around, 1e-2)


@pytest.mark.parametrize("kernel", RADIAL[:1] + RADIAL[2:3] + RADIAL[4:5], ids=encode)
@both_dtypes
def test_a_kernel_of_the_distance_is_flat_at_its_landmark(kernel: Any, dtype: type) -> None:
    features = fitted(Nystrom(30, kernel), 5)
    z = features.arrays["landmarks"].astype(dtype)
    g = features.gradients(z, features(features.arrays["landmarks"]).T)  # (30, 30, 5), of k(x, z_j) at z_i
    own = np.abs(g[np.arange(30), np.arange(30)]).max()
    assert own <= (1e-6 if dtype == np.float64 else 1e-2) * np.abs(g).max()


@pytest.mark.parametrize("sign", [1, -1])
def test_activations_are_flat_where_they_are_clipped(sign: int) -> None:
    """A row along a direction of the map is where the largest |t| are clipped; differences see it, too."""
    features, coef = ZonalFeatures(400, NTK(2)), weights(400)
    x = sign * features.draw((20,))["directions"].T[:5]
    t = np.abs(x @ features.draw((20,))["directions"]) / np.linalg.norm(x, axis=1, keepdims=True)
    assert (t > features.draw((20,))["reach"]).any(axis=1).all()
    assert_near(features.gradients(x, coef), differences(lambda each: features(each) @ coef, x, 1e-3), 1e-6)


@pytest.mark.parametrize("kernel", [kernel for kernel in NETWORKS if polynomials(kernel)], ids=encode)
@pytest.mark.parametrize(("dtype", "share"), [(np.float64, 1e-8), (np.float32, 1e-4)])
def test_the_compiled_derivative_is_the_exact_one(kernel: ZonalKernel, dtype: Any, share: float) -> None:
    """Times the sine of the angle, as in a gradient; also between rows that nearly agree, and opposite ones."""
    u = rows(40, 6).astype(dtype)
    for i, apart in enumerate([0.0, 1e-9, 1e-7, 1e-5, 1e-3, 1e-2, 0.1]):
        u[i + 10] = u[0] + apart * u[1]
        u[i + 20] = -u[0] + apart * u[1]
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    near_far = polynomials(kernel)
    assert near_far
    t = u @ u.T
    slopes = loops.zonal_slopes(t, u, u, *near_far, STEEPEST[dtype])
    k, expected = kernel.with_slope(u, u, STEEPEST[dtype])
    gap = np.linalg.norm(u[:, None] - u, axis=2)
    sine = gap * np.linalg.norm(u[:, None] + u, axis=2) / 2
    assert np.abs(t - k).max() <= 10 * np.finfo(dtype).eps * k.max() + 1e-11
    assert np.abs((slopes - expected) * sine)[sine > 0].max() <= share * np.abs(expected * sine).max()


@every_kernel
def test_the_derivative_of_a_kernel_is_the_limit_of_differences(kernel: Any) -> None:
    """By the inner product of rows of fixed lengths: both are turned in their plane."""
    angle, step = np.linspace(0.05, np.pi - 0.05, 25), 2e-4
    plane = np.array([[1.0, 0.0]])

    def turned(theta: F8) -> F8:
        return np.stack([np.cos(theta), np.sin(theta)], axis=1)

    values = {k: kernel.with_slope(turned(angle + k * step), plane, 1e8)[0][:, 0] for k in (-2, -1, 1, 2)}
    by_angle = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)
    k, slope = kernel.with_slope(turned(angle), plane, 1e8)
    np.testing.assert_allclose(-np.sin(angle) * slope[:, 0], by_angle, rtol=1e-7, atol=1e-9)
    if not getattr(kernel, "bias", 0):
        np.testing.assert_allclose(k, kernel(turned(angle), plane), rtol=1e-11)


@pytest.mark.parametrize(
    "spec", [Nystrom(100, NTK(2, bias=1.0)), Nystrom(100, Laplace(3.0)), ZonalFeatures(200), RandomFourier(90)]
)
@both_dtypes
def test_pieces_and_threads_change_nothing(spec: Any, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ntkdist.features.base.PIECE_BYTES", 2**18)
    features, coef, x = fitted(spec, 6), weights(spec.n_components, 40), rows(1100, 6).astype(dtype)
    assert len(x) > 4 * max(spec.piece_rows, 2**18 // spec.gradient_bytes((6,), dtype, 40))
    whole = []
    for threads in (1, 3):
        with backend.own_threads():
            backend.use_threads(threads)
            whole.append(features.gradients(x, coef))
    np.testing.assert_array_equal(*whole)
    flat = (-1, 40 * 6)
    for part in (np.s_[:1], np.s_[3:8], np.s_[700:]):
        same_rows(features.gradients(x[part], coef).reshape(flat), whole[0][part].reshape(flat))
    for i in (0, 17, 39):
        same_rows(features.gradients(x, coef[:, [i]])[:, 0], whole[0][:, i])


def test_gradients_are_those_of_flat_rows_whatever_their_shape() -> None:
    x, coef = rows(20, 8), weights(40)
    for spec in (ZonalFeatures(40), RandomFourier(40), Nystrom(40), Nystrom(40, Gaussian(3.0))):
        features = spec.fit(x) if spec.sample_rows else spec
        shaped = spec.fit(x.reshape(20, 4, 2)) if spec.sample_rows else spec
        np.testing.assert_array_equal(shaped.gradients(x.reshape(20, 4, 2), coef), features.gradients(x, coef))


def test_sparse_rows_have_gradients_where_the_map_takes_them() -> None:
    x, coef = rows(5, 7), weights(7)
    np.testing.assert_array_equal(Linear(7).gradients(csr_array(x), coef), np.tile(coef.T, (5, 1, 1)))
    with pytest.raises(DataError, match="does not take sparse rows"):
        ZonalFeatures(20).gradients(csr_array(x), weights(20))


@pytest.mark.parametrize("d", [40, 1100])
def test_a_sketch_has_gradients_however_long_the_rows(d: int) -> None:
    """With factors that are mixed from all columns, and with those of long rows, which are hashed."""
    features, coef, x = NTKSketch(400, 2), weights(400), rows(5, d)
    directions = rows(3, d, seed=9) / np.sqrt(d)

    def along(steps: F8) -> F8:
        return features(x + steps @ directions) @ coef

    got = features.gradients(x, coef)
    assert_near(got @ directions.T, differences(along, np.zeros((1, 3))), 1e-6)
    assert_near(features.gradients(csr_array(x), coef), got, 1e-9)


def test_few_landmarks_have_gradients() -> None:
    """None at all, where all rows are zero; and fewer than columns."""
    x, coef = rows(9, 4), weights(40)
    none = Nystrom(40, Laplace(1.0, homogeneous=True)).fit(np.zeros((0, 4)))
    assert (none.gradients(x, coef) == np.zeros((9, 3, 4))).all()
    few = Nystrom(40).fit(x)
    assert_near(few.gradients(x + 0.3, coef), differences(lambda each: few(each) @ coef, x + 0.3, 2e-4), 1e-6)


@pytest.mark.parametrize("spec", NONE, ids=lambda spec: type(spec).__name__)
def test_a_map_without_gradients_refuses_in_a_sentence(spec: FeatureMap) -> None:
    shape = (8, 8, 3) if isinstance(spec, CNTKRandomFeatures | CNTKSketch | ImageLandmarks | PatchLandmarks) else (6,)
    x, coef = rows(3, shape), weights(64)
    said = {
        NTKRandomFeatures: "its functions are sums of steps; learn the metric with ZonalFeatures or Nystrom of the "
        "same kernel, and take it over with `[preprocess] reuse`",
        Imported: "it is not one of ntkdist's; leave the metric out",
    }.get(type(spec), "its rows are images, and a metric is for vectors; leave the metric out")
    assert not spec.has_gradient
    for call in (
        lambda: spec.gradients(x, coef),
        lambda: spec.gradient({}, x, coef),
        lambda: spec.gradient_of({}, x, coef),
        lambda: spec.gradient_bytes(shape, np.float32, 1),
        lambda: spec.gradient_weights_bytes(shape, np.float32, 1),
    ):
        with pytest.raises(SpecError) as refused:
            call()
        assert str(refused.value) == f"{type(spec).__name__} has no gradient, as {said}"


def test_nystrom_of_images_has_no_gradient() -> None:
    spec = Nystrom(4, CNTK(2, 3))
    assert not spec.has_gradient
    with pytest.raises(SpecError, match="Nystrom has no gradient, as its rows are images"):
        spec.gradients(rows(3, (8, 8, 3)), weights(4))


def test_every_map_has_gradients_or_refuses() -> None:
    have = {type(spec) for spec in [*MAPS, Linear(3)] if spec.has_gradient}
    assert have | {type(spec) for spec in NONE} == set(get_args(AnyFeatureMap))
    assert not have & {type(spec) for spec in NONE}


def test_arguments_are_checked() -> None:
    with pytest.raises(SpecError, match="has to look at 30 rows first"):
        Nystrom(30).gradients(rows(3, 4), weights(30))
    for coef in (weights(31), weights(30)[:, 0]):
        with pytest.raises(DataError, match=r"expected coef of shape \(30, t\), got \(3"):
            ZonalFeatures(30).gradients(rows(3, 4), coef)


class Case(NamedTuple):
    """A map of rows of some width, how many are taken at once, and how many functions."""

    spec: Any
    d: int
    n: int
    t: int


MEASURED = [
    Case(Linear(784), 784, 64, 3),
    Case(ZonalFeatures(64, NTK(2)), 1, 300, 2),
    Case(ZonalFeatures(2048, NTK(2)), 2, 64, 1),
    *(Case(ZonalFeatures(1024, NTK(2)), 9, 200, t) for t in (1, 10, 100)),
    Case(ZonalFeatures(2048, NTK(2)), 90, 64, 10),
    Case(ZonalFeatures(512, NTK(2)), 784, 300, 10),
    *(Case(RandomFourier(1024, GammaExponential(2.0, 0.5)), 9, 200, t) for t in (1, 100)),
    Case(RandomFourier(2048, Laplace(2.0, homogeneous=True)), 90, 64, 10),
    Case(RandomFourier(512, Gaussian(1.5)), 784, 300, 10),
    *(Case(Nystrom(1024, NTK(2, bias=1.0)), 9, ROWS, t) for t in (1, 10, 100)),
    *(Case(Nystrom(1024, Laplace(3.0)), 9, ROWS, t) for t in (1, 10, 100)),
    Case(Nystrom(1024, NTK(12, bias=1.0)), 9, ROWS, 1),
    Case(Nystrom(512, NTK(2, bias=1.0)), 784, ROWS, 10),
    Case(Nystrom(512, GammaExponential(3.0, 0.7, True)), 784, ROWS, 10),
    Case(Nystrom(512, ProductLaplace(3.0)), 20, ROWS, 3),
    *(Case(NTKSketch(2048, 2), d, 200, t) for d in (9, 90) for t in (1, 10)),
    Case(NTKSketch(1024, 2), 2000, 64, 3),
]


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: f"{type(case.spec).__name__}-{case.d}-{case.t}")
@both_dtypes
def test_memory_is_projected(case: Case, dtype: Any) -> None:
    spec, d, n, t = case
    features = spec.fit(rows(spec.sample_rows, d, seed=7)) if spec.sample_rows else spec
    x, coef = rows(n, d).astype(dtype), weights(spec.n_components, t)
    params = _cached_draw(features, (d,), x.dtype)
    made = spec.gradient_weights(params, coef, x.dtype)
    spec.gradient_of(params, x[:2], made)  # loops are compiled once a process
    weighing = peak_bytes(lambda: spec.gradient_weights(params, coef, x.dtype))
    projected = spec.gradient_weights_bytes((d,), dtype, t)
    assert weighing <= projected + NUMPY_BUFFERS
    assert projected <= 4 * weighing + 3 * NUMPY_BUFFERS
    peak = peak_bytes(lambda: spec.gradient_of(params, x, made))
    assert peak <= n * spec.gradient_bytes((d,), dtype, t) + NUMPY_BUFFERS
    assert n * spec.gradient_bytes((d,), dtype, t) <= 4 * peak + 3 * NUMPY_BUFFERS


@pytest.mark.parametrize("d", [1, 2, 7])
def test_gradients_of_products_are_differences_where_no_coordinate_meets_a_landmark(d: int) -> None:
    features = fitted(Nystrom(30, ProductLaplace(1.5)), d)
    x, a = rows(60, d, seed=8), weights(30)
    x = x[(np.abs(x[:, None] - features.arrays["landmarks"]) > 1e-3).all(axis=(1, 2))]
    assert len(x) > 20
    expected = differences(lambda r: features(r) @ a, x, 1e-4)
    np.testing.assert_allclose(features.gradients(x, a), expected, atol=1e-7 * np.abs(expected).max())
    single = features.gradients(x.astype(np.float32), a)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=1e-4 * np.abs(expected).max())


def test_the_derivative_of_a_product_at_a_landmark_is_the_mean_of_both_sides() -> None:
    features = fitted(Nystrom(30, ProductLaplace(1.5)), 2)
    a, z = weights(30), features.arrays["landmarks"][:5]
    sides = [features.gradients(z + sign * 1e-7, a) for sign in (1, -1)]
    np.testing.assert_allclose(features.gradients(z, a), np.mean(sides, axis=0), atol=1e-5 * np.abs(sides).max())
