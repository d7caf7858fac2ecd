"""Maps that are projected to the span of their own features at some rows of the data."""

import msgspec
import numpy as np
import pytest
from maps import IMAGES, NUMPY_BUFFERS, peak_bytes, rows
from numpy.typing import NDArray

from ntkdist import CNTKRandomFeatures, backend
from ntkdist.features import FittedMap
from ntkdist.features.base import _cast
from ntkdist.features.cntk_random_features import RIDGE, ROWS, span

F8 = NDArray[np.float64]
SPEC = CNTKRandomFeatures(32, 2, oversample=4, tangent=False, whiten=0.1, compress=6, grid=2, flips=True)


def drawn(features: FittedMap, x: F8) -> F8:
    """What is projected."""
    spec = msgspec.structs.replace(features.spec, n_components=128, oversample=1)
    wide = FittedMap(spec, {name: array for name, array in features.arrays.items() if name != "span"})
    return np.asarray(wide(x))


def test_the_kernel_is_that_of_nystrom() -> None:
    """ψΨᵀ(ΨΨᵀ + δI)⁻¹Ψψᵀ, by a dense solve; at the landmarks themselves it is ψψᵀ."""
    sample, x = rows(40, IMAGES), rows(30, IMAGES, seed=1)
    features = SPEC.fit(sample)
    psi, near = drawn(features, x), drawn(features, sample[:32])
    gram = near @ near.T
    gram += RIDGE * np.trace(gram) / 32 * np.eye(32)
    expected = psi @ near.T @ np.linalg.solve(gram, near @ psi.T)
    z, at = features(x), features(sample[:32])
    np.testing.assert_allclose(z @ z.T, expected, atol=1e-4 * np.trace(expected) / 30)
    np.testing.assert_allclose(at @ at.T, near @ near.T, atol=1e-4 * np.trace(gram) / 32)
    lost = np.linalg.eigvalsh(psi @ psi.T - z @ z.T)
    assert lost.min() > -1e-5 * lost.max()


def test_a_projection_of_few_rows_is_exact_when_the_features_are_as_few() -> None:
    """Of rank r, features are in the span of r of their rows."""
    rng = np.random.default_rng(0)
    psi = rng.standard_normal((50, 5)) @ rng.standard_normal((5, 300))
    z = psi @ span(psi[:20], 20)
    np.testing.assert_allclose(z @ z.T, psi @ psi.T, atol=1e-4 * np.abs(psi @ psi.T).max())


@pytest.mark.parametrize("k", [0, 1, 7])
def test_fewer_rows_than_columns(k: int) -> None:
    """The columns that there are no rows for are zero; rows of zeros are no harm."""
    psi = np.random.default_rng(0).standard_normal((k, 30))
    psi[1:3] = 0
    projection = span(psi, 9)
    assert projection.shape == (30, 9)
    assert np.isfinite(projection).all()
    assert (projection[:, k:] == 0).all()
    assert (projection[:, :k].any(0) == psi.any(1)).all()


def test_the_same_bits_on_any_number_of_threads() -> None:
    sample = rows(40, IMAGES)
    found = []
    for threads in (1, 2, 3):
        with backend.own_threads():
            backend.use_threads(threads)
            found.append(SPEC.fit(sample))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_memory_is_projected(dtype: type) -> None:
    """Of as many images as are projected at a time, and of what is learnt."""
    spec, x = msgspec.structs.replace(SPEC, n_components=1024), rows(ROWS, (16, 16, 3)).astype(dtype)
    features = spec.fit(rows(300, (16, 16, 3), seed=1))
    params = {name: _cast(array, np.dtype(dtype)) for name, array in features.draw(x.shape[1:]).items()}
    kept = {id(a): a.nbytes for a in (params["span"], features.arrays["span"])}
    assert sum(kept.values()) == spec.learnt_bytes(x.shape[1:], dtype)
    peak = peak_bytes(lambda: features.spec.apply(params, x))
    bound = ROWS * features.spec.row_bytes(x.shape[1:], dtype) + NUMPY_BUFFERS
    assert peak <= bound <= 3 * peak
