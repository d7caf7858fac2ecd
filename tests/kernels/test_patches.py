"""PatchKernel: against a loop over pixels, and what its definition promises."""

import numpy as np
import pytest
from maps import rows

from ntkdist import CNTK, DataError, PatchKernel, SpecError
from ntkdist.kernels.windows import gaussian_pooling


def naive(kernel: PatchKernel, x: np.ndarray, y: np.ndarray) -> float:
    """The kernel of two images, one pair of pixels after the other, each norm by the image's own recursion."""

    def layers(a: np.ndarray, b: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Γ and Π before each layer, and at the end, and S of each layer."""
        found, gamma = [], np.einsum("hwc,ijc->hwij", a, b)
        pi, q = gamma, kernel.filter_size
        for h, pooling in enumerate(kernel.poolings(*a.shape[:2])):
            shape = gamma.shape
            s, windows = np.zeros(shape), np.zeros(shape)
            for at in np.ndindex(*shape):
                for dy in range(-((q - 1) // 2), q // 2 + 1):
                    for dx in range(-((q - 1) // 2), q // 2 + 1):
                        there = (at[0] + dy, at[1] + dx, at[2] + dy, at[3] + dx)
                        if all(0 <= i < size for i, size in zip(there, shape, strict=True)):
                            s[at] += gamma[there]
                            windows[at] += pi[there]
            n = s if a is b else None
            norms = [own[h] for own in (norm_of[id(a)], norm_of[id(b)])] if n is None else []
            if n is not None:
                diagonal = np.einsum("ijij->ij", s).copy()
                norm_of.setdefault(id(a), [])
                if len(norm_of[id(a)]) == h:
                    norm_of[id(a)].append(diagonal)
                norms = [diagonal, diagonal]
            n = np.sqrt(norms[0][:, :, None, None] * norms[1])
            cosine = np.clip(s / n, -1, 1)
            theta = np.arccos(cosine)
            if kernel.activation == "exponential":
                k = n * np.exp((cosine - 1) / kernel.lengthscale**2)
            else:
                k = n * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / np.pi
            new = k + (1 - theta / np.pi) * windows
            gamma, pi = (np.einsum("ah,bw,hwij,ci,dj->abcd", *pooling, t, *pooling) for t in (k, new))
            found.append((gamma, pi, s))
        return found

    norm_of: dict[int, list[np.ndarray]] = {}
    layers(x, x)
    layers(y, y)
    gamma, pi, _ = layers(x, y)[-1]
    return float(np.einsum("ijij->", pi if kernel.activation == "ntk" else gamma)) / kernel.grid**2


@pytest.mark.parametrize(
    "kernel",
    [
        PatchKernel((), 3, 1),
        PatchKernel((2,), 3, 2, lengthscale=1.0),
        PatchKernel((1, 2), 2, 2, "nngp"),
        PatchKernel((2,), 3, 3, "ntk"),
        PatchKernel((2, 1), 3, 1, "ntk"),
    ],
    ids=str,
)
def test_against_a_loop(kernel: PatchKernel) -> None:
    x, y = rows(2, (7, 6, 2)), rows(3, (7, 6, 2), seed=1)
    loop = [[naive(kernel, a, b) for b in y] for a in x]
    np.testing.assert_allclose(kernel(x, y), loop, rtol=1e-9)
    np.testing.assert_allclose(kernel(x), [[naive(kernel, a, b.copy()) for b in x] for a in x], rtol=1e-6)


def test_without_pooling_it_is_the_covariance_of_a_convolutional_network() -> None:
    x = rows(4, (6, 6, 2))
    exact = CNTK(2, 3, grid=6, tangent=False)  # a cell for every pixel
    np.testing.assert_allclose(PatchKernel((1,), 3, 6, "nngp")(x), 3**4 * exact(x), rtol=1e-9)
    tangent = CNTK(2, 3, grid=6, ends=True)
    np.testing.assert_allclose(PatchKernel((1,), 3, 6, "ntk")(x), 3**4 * tangent(x), rtol=1e-6)


@pytest.mark.parametrize("activation", ["exponential", "nngp", "ntk"])
def test_homogeneous_positive_and_zero_of_black_images(activation: str) -> None:
    kernel, x = PatchKernel((2,), 3, 2, activation), rows(6, (8, 8, 1))  # type: ignore[arg-type]
    k = kernel(x)
    np.testing.assert_allclose(kernel(3 * x, x), 3 * k, rtol=1e-7)
    assert np.linalg.eigvalsh(k)[0] > 0
    np.testing.assert_array_equal(kernel(np.zeros((1, 8, 8, 1)), x), 0)


def test_pooling_averages() -> None:
    for size, count in ((8, 4), (16, 3), (5, 5), (7, 1)):
        weights = gaussian_pooling(size, count)
        np.testing.assert_allclose(weights.sum(1), 1)
        np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-15)
    np.testing.assert_array_equal(gaussian_pooling(5, 5), np.eye(5))


def test_refusals() -> None:
    with pytest.raises(DataError, match="PatchKernel takes images"):
        PatchKernel()(np.ones((2, 6)))
    with pytest.raises(DataError, match=r"too small .* 2 x 2 are left for 3 x 3 cells; use smaller strides"):
        PatchKernel((3,))(np.ones((2, 6, 6, 1)))
    with pytest.raises(DataError, match="images of one shape"):
        PatchKernel()(np.ones((2, 8, 8, 1)), np.ones((2, 9, 9, 1)))
    with pytest.raises(SpecError, match="at most 3"):
        PatchKernel((1, 1, 1, 1))
