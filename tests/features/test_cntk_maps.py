"""CNTKRandomFeatures: what the interface promises of every map, its limit, and what is learnt from a sample."""

from typing import Any

import numpy as np
import pytest
from maps import both_dtypes
from numpy.typing import NDArray

from ntkdist import CNTKRandomFeatures, DataError, SpecError
from ntkdist.features import FittedMap
from ntkdist.features.cntk_layers import whitened, whitening_filter, windows
from ntkdist.kernels import CNTK

F8 = NDArray[np.float64]
SHAPE = (8, 7, 3)
DRAWN: dict[str, CNTKRandomFeatures] = {
    "default": CNTKRandomFeatures(50, 2),
    "deep": CNTKRandomFeatures(64, width=12, seed=3),
    "one-layer": CNTKRandomFeatures(64, 1, ends=True),
    "ends": CNTKRandomFeatures(67, 2, 2, ends=True),
    "valid": CNTKRandomFeatures(64, 2, padding="valid", pool=(1, 2)),
    "cells": CNTKRandomFeatures(101, 2, pool=(2, 1), grid=2),
    "covariance": CNTKRandomFeatures(64, 2, tangent=False, grid=2),
    "flips": CNTKRandomFeatures(64, 2, 2, flips=True, grid=2),
}
LEARNT: dict[str, CNTKRandomFeatures] = {
    "whiten": CNTKRandomFeatures(64, 2, whiten=0.1),
    "compress": CNTKRandomFeatures(64, 3, ends=True, compress=6, width=16),
    "oversample": CNTKRandomFeatures(30, 2, oversample=4, flips=True, seed=2),
    "all": CNTKRandomFeatures(
        64, 2, tangent=False, grid=2, pool=(2, 1), flips=True, whiten=0.1, compress=6, width=20, seed=1, oversample=2
    ),
}


def images(n: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> F8:
    """Smooth random images: sums of neighbours."""
    x = np.random.default_rng(seed).standard_normal((n, shape[0] + 2, shape[1] + 2, shape[2]))
    x = x[:, 1:] + x[:, :-1]
    x = x[:, :, 1:] + x[:, :, :-1]
    return x[:, 1:, 1:]


def fitted(spec: CNTKRandomFeatures, shape: tuple[int, ...] = SHAPE) -> Any:
    return spec.fit(images(40, shape, seed=7)) if spec.sample_rows else spec


MAPS: dict[str, Any] = DRAWN | {name: fitted(spec) for name, spec in LEARNT.items()}
every_map = pytest.mark.parametrize("features", MAPS.values(), ids=MAPS)


@every_map
@both_dtypes
def test_zero_images_and_zero_windows(features: Any, dtype: type) -> None:
    """A zero image has zero features, and a window of zeros among others no NaN: κ is 0 · κ(0/0) there."""
    x = images(3).astype(dtype)
    x[1] = 0
    x[2, :, :5] = 0
    z = features(x)
    assert (z[1] == 0).all()
    assert np.isfinite(z).all()
    assert np.abs(z[2]).sum() > 0


LIMITS: list[dict[str, Any]] = [
    {"depth": 2},
    {"depth": 3},
    {"depth": 1, "ends": True, "filter_size": 2},
    {"depth": 2, "ends": True, "padding": "valid"},
    {"depth": 2, "ends": True, "pool": (2, 1), "grid": 2},
    {"depth": 2, "filter_size": 2, "padding": "valid", "pool": (1, 2)},
    {"depth": 2, "tangent": False, "grid": 3},
    {"depth": 2, "filter_size": 2, "flips": True, "grid": 2},
]


def mean_gram(m: int, seeds: range, x: F8, **options: Any) -> tuple[F8, float]:
    """Of the maps of some seeds: the mean of φφᵀ, and the mean error of one, relative to the kernel's norm."""
    maps = [CNTKRandomFeatures(m * options.get("grid", 1) ** 2, width=m // 4, seed=s, **options) for s in seeds]
    exact, grams = maps[0].kernel(x), [z @ z.T for z in (each(x) for each in maps)]
    return np.mean(grams, 0), float(np.mean([np.linalg.norm(g - exact) for g in grams]) / np.linalg.norm(exact))


@pytest.mark.parametrize("options", LIMITS, ids=str)
def test_the_limit_is_the_exact_kernel(options: dict[str, Any]) -> None:
    """The mean over seeds approaches the kernel, and the error of one map falls, like m^-½: at 5 times to 0.45."""
    x = images(4, (5, 6, 1))
    exact = CNTKRandomFeatures(640, **options).kernel(x)
    (_, few), (mean, many) = mean_gram(32, range(8), x, **options), mean_gram(160, range(8), x, **options)
    assert np.linalg.norm(mean - exact) < 0.09 * np.linalg.norm(exact)
    assert many < 0.7 * few


def test_the_kernel_is_the_exact_one() -> None:
    x, y = images(4), images(3, seed=1)
    options: dict[str, Any] = {
        "depth": 2,
        "filter_size": 2,
        "padding": "valid",
        "ends": True,
        "pool": (1, 2),
        "grid": 2,
    }
    np.testing.assert_array_equal(CNTKRandomFeatures(64, **options).kernel(x, y), CNTK(**options)(x, y))
    flipped = CNTKRandomFeatures(64, flips=True, **options).kernel(x, y)
    exact, mirror = CNTK(**options), [z[:, :, ::-1] for z in (x, y)]
    pairs = [exact(a, b) for a in (x, mirror[0]) for b in (y, mirror[1])]
    np.testing.assert_allclose(flipped, np.mean(pairs, 0), rtol=1e-12)


def test_the_covariance_of_one_layer_is_its_definition() -> None:
    """√(N N') κ₁/q², mean over pixels, by loops."""
    x = images(2, (4, 4, 2))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = [[p[i : i + 3, j : j + 3].ravel() for i in range(4) for j in range(4)] for p in padded]

    def kappa1(u: F8, v: F8) -> float:
        n = np.linalg.norm(u) * np.linalg.norm(v)
        a = np.clip(u @ v / n, -1, 1)
        return n * (np.sqrt(1 - a * a) + a * (np.pi - np.arccos(a))) / np.pi

    want = [[np.mean([kappa1(u, v) for u in a for v in b]) / 9 for b in rows] for a in rows]
    np.testing.assert_allclose(CNTK(1, 3, tangent=False)(x), want, rtol=1e-9)
    z = CNTKRandomFeatures(4000, 1, tangent=False)(x)
    np.testing.assert_allclose(z @ z.T, want, rtol=0.01)


def test_flips_are_invariant() -> None:
    x = images(5)
    for name in ("flips", "all"):
        z = MAPS[name](x)
        np.testing.assert_allclose(MAPS[name](x[:, :, ::-1]), z, rtol=0, atol=1e-12 * np.abs(z).max())
    assert np.abs(MAPS["cells"](x[:, :, ::-1]) - MAPS["cells"](x)).max() > 0.01
    plain = CNTKRandomFeatures(64, 2, 2, grid=2)
    np.testing.assert_allclose(MAPS["flips"](x), (plain(x) + plain(x[:, :, ::-1])) / 2, atol=1e-14)


def test_windows_are_windows() -> None:
    x = images(2)
    for q, padding in ((1, "same"), (2, "same"), (3, "same"), (3, "valid")):
        around = ((q - 1) // 2, q // 2) if padding == "same" else (0, 0)
        padded = np.pad(x, ((0, 0), around, around, (0, 0)))
        got = windows(x, q, padding)
        for i, j in ((0, 0), (got.shape[1] - 1, got.shape[2] - 1), (2, 1)):
            np.testing.assert_array_equal(got[:, i, j], padded[:, i : i + q, j : j + q].reshape(2, -1))


def test_whitening_whitens() -> None:
    """Neighbouring pixels and channels of whitened images are hardly correlated; of the images, they are."""
    x = images(300, (16, 16, 2))
    x[..., 1] += x[..., 0]

    def off_diagonal(z: F8) -> float:
        u = windows(z, 3, "valid").reshape(-1, 18)
        c = u.T @ u
        return float(np.abs(c - np.diag(np.diag(c))).max() / np.diag(c).mean())

    assert off_diagonal(x) > 0.5
    assert off_diagonal(whitened(x, whitening_filter(x, 1e-3))[:, 3:-3, 3:-3]) < 0.1
    features = CNTKRandomFeatures(512, 2, whiten=0.01, width=48).fit(x)
    few = x[:4, :8, :8]
    z, exact = features(few), features.kernel(few)
    np.testing.assert_allclose(exact, CNTK(2, 3)(whitened(few, features.arrays["whiten"])), rtol=1e-12)
    assert np.linalg.norm(z @ z.T - exact) < 0.2 * np.linalg.norm(exact)


@pytest.mark.parametrize("name", LEARNT)
def test_what_is_learnt(name: str) -> None:
    """A map that learns must be fitted; a fit repeats bit by bit, and compression without loss changes no product."""
    spec, x = LEARNT[name], images(5)
    with pytest.raises(SpecError, match=r"CNTKRandomFeatures has to look at \d+ rows first; use its fit"):
        spec(x)
    assert fitted(spec) == MAPS[name]
    assert isinstance(MAPS[name], FittedMap)


def test_compression_keeps_what_matters() -> None:
    """The Gram of a compressed map is near that of the whole one, and the same where nothing is left out."""
    x, sample = images(6), images(60, seed=7)
    options: dict[str, Any] = {"depth": 2, "width": 32, "tangent": False, "seed": 2}
    exact = CNTKRandomFeatures(512, **options).kernel(x)
    whole = CNTKRandomFeatures(512, **options, whiten=0.1).fit(sample)
    assert set(whole.arrays) == {"whiten"}
    for compress, close in ((31, 0.1), (12, 0.2)):
        z = CNTKRandomFeatures(512, **options, compress=compress).fit(sample)(x)
        assert np.linalg.norm(z @ z.T - exact) < close * np.linalg.norm(exact)


def test_the_last_linear_parts_are_compressed_too() -> None:
    """Their columns are the principal axes of the cells' mean windows: uncorrelated over the sample, in order."""
    sample = images(60, seed=7)
    for options, columns, kept in (
        ({"tangent": False}, slice(1, 7), {"F0", "linear1"}),
        ({"tangent": True}, slice(0, 6), {"F0", "tangent1"}),
        ({"tangent": True, "ends": True, "compress": 30}, slice(256, 286), {"linear1", "tangent1"}),
    ):
        spec = CNTKRandomFeatures(512, 2, width=24, **({"compress": 6} | options))
        features = spec.fit(sample)
        assert set(features.arrays) == kept
        linear = features(sample)[:, columns]
        moments = linear.T @ linear
        energies = np.diag(moments)
        np.testing.assert_allclose(moments, np.diag(energies), atol=1e-10 * energies[0])
        assert (np.diff(energies) < 0).all()


def test_refusals() -> None:
    with pytest.raises(SpecError, match=r"CNTK\.depth is 1, at which the kernel is zero"):
        CNTKRandomFeatures(64, 1)
    with pytest.raises(SpecError, match=r"n_components is 31; expected at least 32, 8 for each of the 4 cells"):
        CNTKRandomFeatures(31, 2, grid=2)
    with pytest.raises(SpecError, match=r"width is 3; expected at least 8"):
        CNTKRandomFeatures(64, 2, width=3)
    with pytest.raises(DataError, match=r"CNTK takes images .*, but X has rows of shape \(6,\)"):
        CNTKRandomFeatures(64)(np.ones((2, 6)))
    with pytest.raises(DataError, match="too small"):
        CNTKRandomFeatures(64, 3, 4, "valid")(images(2))
    with pytest.raises(SpecError, match="learns nothing"):
        CNTKRandomFeatures(64).fit(images(2))
