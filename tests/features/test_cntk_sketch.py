"""`CNTKSketch`: what every map promises, on images, and how it approximates `CNTK`."""

import numpy as np
import pytest
from maps import both_dtypes, same_rows
from numpy.typing import NDArray

from ntkdist import CNTK, CNTKSketch, DataError, SpecError
from ntkdist.features.cntk_sketch import moved, polynomial, window_sum

F8 = NDArray[np.float64]
MAPS = {
    "default": CNTKSketch(200),
    "odd": CNTKSketch(49, seed=3),
    "valid": CNTKSketch(150, 2, 2, padding="valid"),
    "deep": CNTKSketch(301, 4, 2),
    "linear": CNTKSketch(150, degree=1),
    "degree-5": CNTKSketch(150, degree=5),
}
every_map = pytest.mark.parametrize("features", MAPS.values(), ids=MAPS)


def images(n: int, side: int = 6, channels: int = 3, seed: int = 0) -> F8:
    return np.random.default_rng(seed).standard_normal((n, side, side + 1, channels))


def error(z: F8, k: F8) -> float:
    return float(np.linalg.norm(z @ z.T - k) / np.linalg.norm(k))


@every_map
@both_dtypes
def test_zero_images_and_patches(features: CNTKSketch, dtype: type) -> None:
    """Zero images give zero; one with zero patches is homogeneous like any other, and has no NaN."""
    x = images(4).astype(dtype)
    x[1] = 0
    x[2, :5, :5] = 0
    z = features(x)
    assert (z[1] == 0).all()
    assert np.isfinite(z).all()
    assert (np.abs(z[[0, 2, 3]]).sum(1) > 0).all()
    same_rows(features(2 * x[[0, 2]]), 2 * z[[0, 2]])


def polynomial_kernel(f: CNTKSketch, x: F8) -> F8:
    """The recursion of `CNTK` with the polynomials for κ₀ and κ₁, on matrices over all pixels of all images."""
    n, q = len(x), f.filter_size

    def window(t: F8) -> F8:
        before = (q - 1) // 2
        h, w = t.shape[1:3]
        wide = np.zeros((n, h + q, w + q, n, h + q, w + q))
        inner = (slice(None), slice(before, before + h), slice(before, before + w))
        wide[inner + inner] = t
        return sum(wide[:, a : a + h, b : b + w, :, a : a + h, b : b + w] for a in range(q) for b in range(q))

    s = window(np.einsum("nijc,mklc->nijmkl", x, x))
    tangent: F8 | float = 0.0
    size = np.einsum("nijnij->nij", s)
    for h in range(f.depth):
        n2 = np.sqrt(np.multiply.outer(size, size))
        own = np.sqrt(np.einsum("nijnij->nij", s))  # features are made unit by their own length
        cosine = s / np.multiply.outer(own, own)
        one = np.polynomial.polynomial.polyval(cosine, polynomial(1, f.degree, 0.0 if h else -1.0))
        zero = np.polynomial.polynomial.polyval(cosine, polynomial(0, f.degree, 0.0))
        c1 = polynomial(1, f.degree, 0.0 if h else -1.0)[1]
        gamma = n2 * (one - c1 * cosine) + c1 * s  # but the linear part is passed on as it is
        tangent = tangent * zero / q**2
        if h < f.depth - 1:
            tangent, s = window(tangent + gamma / q**2), window(gamma / q**2)
            size = np.einsum("nijnij->nij", window(np.multiply.outer(size, size) ** 0.5)) / q**2
    return tangent.mean((1, 2, 4, 5))


@pytest.mark.parametrize(("depth", "degree"), [(2, 2), (3, 2), (2, 4)])
def test_the_mean_over_seeds_is_the_kernel_of_the_polynomials(depth: int, degree: int) -> None:
    x = images(3, 4)
    kernel = polynomial_kernel(CNTKSketch(300, depth, 3, degree), x)
    grams = [z @ z.T for z in (CNTKSketch(300, depth, 3, degree, seed=s)(x) for s in range(60))]
    spread = np.std(grams, axis=0) / np.sqrt(len(grams))
    assert np.abs(np.mean(grams, axis=0) - kernel).max() < max(4 * spread.max(), 0.01 * kernel.max())


def test_error_falls_like_the_root_of_the_columns() -> None:
    """Four times the columns, half the distance to the kernel of the polynomials (root mean square over seeds)."""
    x = images(6, 5)
    limit = polynomial_kernel(CNTKSketch(100), x)
    found = [np.mean([error(CNTKSketch(m, seed=s)(x), limit) ** 2 for s in range(20)]) ** 0.5 for m in (96, 384)]
    assert 0.35 < found[1] / found[0] < 0.65
    assert np.linalg.norm(limit - CNTKSketch(96).kernel(x)) < 0.05 * np.linalg.norm(limit)  # that of the polynomials


@pytest.mark.parametrize("degree", [1, 2, 3, 8])
def test_polynomials(degree: int) -> None:
    """Non-negative, and as near as is said."""
    errors = CNTKSketch(64, degree=degree).polynomial_error()
    for order, lowest, power in ((0, 0.0, 0), (1, -1.0, 1), (1, 0.0, 1)):
        c = polynomial(order, degree, lowest)
        assert len(c) == degree + 1
        assert (c >= 0).all()
        t = np.linspace(lowest, 1, 999)
        theta = np.arccos(t)
        exact = 1 - theta / np.pi if order == 0 else (np.sin(theta) + (np.pi - theta) * t) / np.pi
        assert np.abs(sum(v * t**j for j, v in enumerate(c)) - exact).max() <= errors[power] + 1e-12
    if degree > 1:
        assert errors < CNTKSketch(64, degree=degree - 1).polynomial_error()


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("q", [1, 2, 3, 4, 7])
def test_windows(padding: str, q: int) -> None:
    """Moved planes are the pixels of a window, and their sum is the window's, also when the image is smaller."""
    planes = images(2, 5, 7 if padding == "valid" else 3)
    if padding == "valid" and q > 5:
        return
    every = [moved(planes, np.full(planes.shape[1], place), q, padding) for place in range(q**2)]
    np.testing.assert_allclose(sum(every), window_sum(planes, q, padding), atol=1e-13)
    middle = every[(q - 1) // 2 * (q + 1)]
    inner = planes if padding == "same" else planes[:, :, (q - 1) // 2 :, (q - 1) // 2 :]
    np.testing.assert_array_equal(middle, inner[:, :, : middle.shape[2], : middle.shape[3]])


@pytest.mark.parametrize(("channels", "m"), [(1, 48), (3, 48), (20, 64), (20, 300), (100, 100)])
def test_any_number_of_channels(channels: int, m: int) -> None:
    """Whole windows of the input, their means, or a projection of it: whatever fits."""
    x = images(6, 5, channels)
    k = CNTK(3, 3)(x)
    mean = np.mean([z @ z.T for z in (CNTKSketch(m, seed=s)(x) for s in range(30))], axis=0)
    assert np.linalg.norm(mean - k) < 0.25 * np.linalg.norm(k)  # of 1/columns: a bias


def test_what_it_cannot_map_is_refused() -> None:
    with pytest.raises(SpecError, match=r"n_components is 47; expected at least 48 at depth 3"):
        CNTKSketch(47)
    with pytest.raises(SpecError, match=r"CNTKSketch\.depth"):
        CNTKSketch(64, depth=1)
    with pytest.raises(DataError, match=r"CNTK takes images .*, but X has rows of shape \(4,\)"):
        CNTKSketch(64)(np.ones((3, 4)))
    with pytest.raises(DataError, match="too small"):
        CNTKSketch(64, padding="valid")(np.ones((3, 5, 5, 1)))
