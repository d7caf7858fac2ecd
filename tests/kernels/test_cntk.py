"""`CNTK` against its recursion entry by entry, in many digits, and against the gradients of finite networks."""

import itertools
import tracemalloc
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from reference import ConvNetwork, exact_cntk

from ntkdist import CNTK, NTK, DataError, SpecError, ZonalFeatures, backend
from ntkdist.kernels import AnyKernel, cntk_loops
from ntkdist.spec import decode, encode

F8 = NDArray[np.float64]
KERNELS = [
    CNTK(2, 3),
    CNTK(3, 2),
    CNTK(4, 1),
    CNTK(2, 2, "valid"),
    CNTK(3, 2, "valid"),
    CNTK(2, 3, ends=True),
    CNTK(1, 3, ends=True),
    CNTK(2, 3, pool=(2, 1)),
    CNTK(3, 3, pool=(1, 2, 1), grid=2),
    CNTK(2, 2, "valid", ends=True, pool=(1, 2)),
    CNTK(2, 3, grid=3),
    CNTK(2, 5, tangent=False),
    CNTK(3, 3, pool=(2, 1, 2), tangent=False),
]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def images(n: int, height: int = 5, width: int = 4, channels: int = 2, seed: int = 0) -> F8:
    return np.random.default_rng(seed).standard_normal((n, height, width, channels))


def naive(kernel: CNTK, x: F8, y: F8) -> F8:
    return np.array([[float(exact_cntk(kernel, a, b)) for b in y] for a in x])


@every_kernel
def test_matches_the_recursion_entry_by_entry(kernel: CNTK) -> None:
    """With a patch of zeros in one image."""
    x, y = images(2, 4, 4), images(1, 4, 4, seed=1)
    x[1, :3, :3] = 0
    exact = naive(kernel, x, y)
    np.testing.assert_allclose(kernel(x, y), exact, rtol=1e-13, atol=1e-14 * np.abs(exact).max())


@pytest.mark.parametrize("kernel", KERNELS[4:8], ids=str)
@pytest.mark.parametrize("distance", [0, 1e-8, 1e-4])
def test_nearly_equal_images_keep_their_digits(kernel: CNTK, distance: float) -> None:
    """Where the usual arccos(clip(cos)) is off by 1e-9; pooling takes covariances, whose angles below 1e-7 are lost."""
    x = images(1, 4, 4, 1)
    y = 0.7 * x + distance * images(1, 4, 4, 1, seed=1)
    y = -y if distance == 1e-8 else y
    pooled = any(factor > 1 for factor in kernel.pool[:-1])
    np.testing.assert_allclose(
        kernel(x, y), naive(kernel, x, y), rtol=1e-8 if pooled else 2e-14, atol=1e-15 * kernel(x).max()
    )


@every_kernel
def test_symmetric_and_one_matrix(kernel: CNTK) -> None:
    x = images(5)
    k = kernel(x)
    np.testing.assert_array_equal(k, k.T)
    np.testing.assert_allclose(k, kernel(x, x), rtol=1e-13)
    np.testing.assert_allclose(k[1:3, 2:], kernel(x[1:3], x[2:]), rtol=1e-13)
    assert np.linalg.eigvalsh(k).min() > 0


@every_kernel
def test_homogeneous_and_zero_images(kernel: CNTK) -> None:
    x = images(3)
    np.testing.assert_allclose(kernel(x, 4 * x), 4 * kernel(x), rtol=1e-14)
    x[1] = 0
    k = kernel(x)
    assert (k[1] == 0).all()
    assert (k[:, 1] == 0).all()
    assert k[0, 0] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [CNTK(2, 3), CNTK(3, 2, "valid"), CNTK(2, 3, ends=True), CNTK(3, 3, pool=(1, 2, 1)), CNTK(2, 3, grid=2, ends=True)],
    ids=str,
)
def test_wide_networks_have_these_gradients(kernel: CNTK) -> None:
    x = images(2)
    found = np.mean([ConvNetwork(kernel, 2, 256, seed).tangent_kernel(x) for seed in range(24)], axis=0)
    assert np.abs(found - kernel(x)).max() < 0.05 * kernel(x).max()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (9, 7)])
@pytest.mark.parametrize("filter_size", [1, 4, 5])
def test_any_size(height: int, width: int, filter_size: int) -> None:
    """Also filters wider than the image, of which zeros are seen only."""
    x, kernel = images(2, height, width, 1), CNTK(2, filter_size)
    k = kernel(x)
    assert np.isfinite(k).all()
    assert kernel.sizes(height, width)[-1] == (height, width)
    if height * width < 10:
        np.testing.assert_allclose(k, naive(kernel, x, x), rtol=1e-12)


def test_threads_and_blocks_do_not_show() -> None:
    x, kernel = images(20, 8, 8), CNTK(2, 3)  # 210 pairs, 32 at a time
    whole = kernel(x)
    with backend.own_threads():
        backend.use_threads(2)
        np.testing.assert_array_equal(kernel(x), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "side"), [(30, 8), (12, 16), (2, 32)])
@pytest.mark.parametrize("pool", [(), (2, 1)])
def test_memory_is_bounded(n: int, side: int, pool: tuple[int, ...]) -> None:
    """On one thread, whatever tests before have left: each thread has blocks of its own."""
    x = images(n, side, side, 3)
    CNTK(2, 3, pool=pool)(x[:1])  # compiles
    with backend.own_threads():
        backend.use_threads(1)
        tracemalloc.start()
        CNTK(2, 3, pool=pool)(x)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    pooled = 6 * 8 * (side // 2) ** 3 * (side // 2 + 2) if pool else 0  # all pairs of pixels that are left, and margins
    assert peak < 8 * 8 * side**2 * (side + 2) + pooled + 30 * x.nbytes + 2**14


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(SpecError, match=r"CNTK\.depth is 1, at which the kernel is zero.*use depth >= 2"):
        CNTK(1, 3)
    with pytest.raises(SpecError, match=r"CNTK\.pool has 2 numbers for 3 layers; give one per layer"):
        CNTK(3, 3, pool=(2, 2))
    with pytest.raises(SpecError, match=r"CNTK\.padding"):
        CNTK(2, 3, "full")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"CNTK takes images .*, but X has rows of shape \(4,\)"):
        CNTK(2, 3)(np.ones((3, 4)))
    with pytest.raises(DataError, match=r"5 x 5 pixels are too small for CNTK.*use fewer layers or less pooling"):
        CNTK(3, 3, "valid")(np.ones((1, 5, 5, 1)))
    with pytest.raises(DataError, match="too small"):
        CNTK(2, 3, grid=6)(np.ones((1, 5, 5, 1)))
    with pytest.raises(DataError, match="images of one shape"):
        CNTK(2, 3)(np.ones((1, 5, 5, 1)), np.ones((1, 5, 4, 1)))


def test_a_kernel_is_a_value_that_only_image_maps_take() -> None:
    for kernel in KERNELS:
        again: Any = decode(msgspec.json.decode(encode(kernel)), AnyKernel)
        assert again == kernel
        assert hash(again) == hash(kernel)
    with pytest.raises(SpecError, match=r"ZonalFeatures\.kernel"):
        ZonalFeatures(64, CNTK(2, 3))  # type: ignore[arg-type]


def test_one_pixel_is_a_fully_connected_network() -> None:
    """With ends, that is the NTK."""
    x = images(4, 1, 1, 3)
    for depth in (1, 2, 3):
        np.testing.assert_allclose(CNTK(depth, 1, ends=True)(x), NTK(depth)(x), rtol=1e-14)


def test_the_cost_counts_each_pair_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    run = cntk_loops.run
    monkeypatch.setattr(
        cntk_loops, "run", lambda i, j, *rest: seen.extend(zip(i.tolist(), j.tolist(), strict=True)) or run(i, j, *rest)
    )
    CNTK(2, 3)(images(7))
    assert sorted(seen) == list(itertools.combinations_with_replacement(range(7), 2))
