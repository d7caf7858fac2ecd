"""PatchLandmarks: its kernel as landmarks grow, what is fitted, and one image by a loop."""

import numpy as np
import pytest
from maps import rows

from ntkdist import PatchLandmarks, SpecError, backend
from ntkdist.features.patch_layers import RIDGE, self_whitened, spherical_means
from ntkdist.kernels.windows import gaussian_pooling

SHAPE = (10, 9, 2)
OPTIONS = [
    {"whiten": "none", "lengthscale": 1.5},
    {"whiten": "image", "flips": True, "grid": 2, "lengthscale": 1.0},
    {"whiten": "zca", "activation": "nngp"},
    {"activation": "ntk", "whiten": "none"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_error_falls_with_the_landmarks(options: dict) -> None:
    sample, x = rows(60, SHAPE, seed=1), rows(12, SHAPE)
    errors = []
    for m in (4, 32, 256):
        cells = options.get("grid", 3) ** 2
        features = PatchLandmarks(m * cells, (m,), 0, **options).fit(sample)
        z, k = features(x), features.kernel(x)
        errors.append(np.linalg.norm(z @ z.T - k) / np.linalg.norm(k))
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2]
    assert errors[2] < 0.1


def test_one_image_by_a_loop() -> None:
    spec = PatchLandmarks(4 * 7, (5,), 3, "none", grid=2)
    features, image = spec.fit(rows(30, SHAPE, seed=1)), rows(1, SHAPE)[0]
    maps = image
    for h, (rows_to, columns_to) in enumerate([(5, 4), (2, 2)]):
        z = features.arrays[f"landmarks{h}"].astype(float)
        height, width, channels = maps.shape
        padded, out = np.pad(maps, ((1, 1), (1, 1), (0, 0))), np.zeros((height, width, len(z)))
        for i in range(height):
            for j in range(width):
                patch = padded[i : i + 3, j : j + 3].reshape(9 * channels)
                r = np.linalg.norm(patch)
                out[i, j] = r * np.exp((z @ patch / r - 1) / 0.36)
        out = np.einsum("ai,bj,ijk->abk", gaussian_pooling(height, rows_to), gaussian_pooling(width, columns_to), out)
        k = np.exp((np.clip(z @ z.T, -1, 1) - 1) / 0.36)
        np.fill_diagonal(k, 1)
        maps = out @ np.linalg.inv(np.linalg.cholesky(k + RIDGE * np.eye(len(z)))).T
        if h == 0:
            maps = maps @ features.arrays["keptF0"]
    np.testing.assert_allclose(features(image[None])[0], maps.reshape(-1) / 2, atol=1e-5 * np.linalg.norm(maps))


def test_flips_average_both_versions() -> None:
    x = rows(5, SHAPE)
    features = PatchLandmarks(64, (8,), 0, grid=2, flips=True).fit(rows(40, SHAPE, seed=1))
    np.testing.assert_allclose(features(x), features(x[:, :, ::-1]), atol=1e-10)


def test_landmarks_without_patches_leave_columns_zero() -> None:
    features = PatchLandmarks(100, (), 0, "none", pool=(), grid=1).fit(np.ones((1, 3, 3, 1)))
    assert len(features.arrays["landmarks0"]) == 9
    assert not features(np.ones((2, 3, 3, 1)))[:, 9:].any()


def test_fitting_has_the_same_bits_on_any_number_of_threads() -> None:
    spec, sample = PatchLandmarks(90, (12,), 6), rows(50, (12, 12, 3))
    digests = set()
    for threads in (1, 3):
        with backend.own_threads():
            backend.use_threads(threads)
            digests.add(spec.fit(sample).digest())
    assert len(digests) == 1


def test_black_images_and_one_colour() -> None:
    sample = rows(40, (8, 8, 1))
    sample[:20] = 0
    features = PatchLandmarks(32, (8,), 0, grid=2).fit(sample)
    assert np.isfinite(features(sample)).all()
    assert not features(np.zeros((1, 8, 8, 1))).any()
    assert np.isfinite(PatchLandmarks(32, (8,), grid=2).fit(np.zeros((5, 8, 8, 1)))(sample)).all()


def test_whitening_is_homogeneous_and_makes_patches_whiter() -> None:
    x = rows(4, (16, 16, 3)) + 5
    white = self_whitened(x)
    np.testing.assert_allclose(self_whitened(7 * x), 7 * white, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(self_whitened(x[1:2]), white[1:2], rtol=1e-9, atol=1e-12)
    spread = [np.linalg.cond(np.cov(a[0].reshape(-1, 3).T)) for a in (x, white)]
    assert spread[1] < spread[0]


def test_means_of_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.standard_normal((8, 8)))[0][:3]
    u = np.repeat(centres, 50, axis=0) + 0.05 * rng.standard_normal((150, 8))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    means, nearest = spherical_means(u, 3, 0, 0)
    assert len({*nearest[:50]}) == len({*nearest[50:100]}) == len({*nearest[100:]}) == 1
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 1)
    assert (means @ centres.T).max(0).min() > 0.99


def test_refusals() -> None:
    with pytest.raises(SpecError, match=r"pool has 1 strides for 2 layers before the last; give one"):
        PatchLandmarks(90, (8, 8))
    with pytest.raises(SpecError, match=r"expected at least 9, a landmark for each of the 9 cells"):
        PatchLandmarks(8)
    with pytest.raises(SpecError, match="has to look at 1024 rows first"):
        PatchLandmarks(90)(rows(2, SHAPE))
