"""CNTKSketch as it is usually written, for comparison only: complex FFTs and whole windows of every pixel.

Legend: n images, m columns of the result, N the squared norm of a pixel's patch, q the filter's side; φ, φ̇, ψ complex
vectors of each pixel whose inner products are those of the recursion.

Internal widths: m/8 of φ before a window is taken, m/4 of φ ⊕ ψ⊗φ̇ before the next, m/2 of all else; complex, so
that the mean of the last over pixels has m real numbers.
Polynomials as in `nd.CNTKSketch`.
"""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import fft

from ntkdist import backend
from ntkdist.features.cntk_polynomials import polynomial

Array = np.ndarray[Any, Any]


class PlainCNTK:
    def __init__(self, n_components: int, depth: int = 3, filter_size: int = 3, degree: int = 2, seed: int = 0) -> None:
        self.m, self.depth, self.q, self.degree, self.seed = n_components, depth, filter_size, degree, seed

    def __call__(self, x: Array) -> Array:
        out = np.empty((len(x), self.m), np.float32)

        def one(i: int) -> None:
            out[i] = self._image(x[i], np.random.default_rng(self.seed))

        backend.parallel_for(one, range(len(x)))
        return out

    def _image(self, y: Array, rng: np.random.Generator) -> Array:
        m, q, depth = self.m, self.q, self.depth
        height, width = y.shape[:2]
        norm = q * q * np.square(y).sum(2)
        phi, psi = y.reshape(height * width, -1).astype(np.complex64), None
        for h in range(depth):
            norm = windows(norm[:, :, None], q).reshape(height, width, -1).sum(2) / q**2
            root = np.sqrt(norm).reshape(-1, 1).astype(np.float32)
            if h:
                phi = srht(phi, m // 8, rng)
            mu = windows(phi.reshape(height, width, -1), q) / np.where(root == 0, 1, root)
            powers = [np.ones((len(mu), 1), np.complex64), srht(mu, m // 2, rng)]
            while len(powers) <= self.degree:
                powers.append(tensor_srht(powers[-1], mu, m // 2, rng))
            b, c = polynomial(0, self.degree, 0.0), polynomial(1, self.degree, -1.0 if h == 0 else 0.0)
            step = srht(weighted(powers, b), m // 2, rng)
            product = None if psi is None else tensor_srht(psi, step, m // 2, rng) / q
            if h == depth - 1:
                break
            phi = srht(weighted(powers, c), m // 2, rng) * (root / q)
            both = phi if product is None else np.concatenate([phi, product], 1)
            psi = srht(windows(srht(both, m // 4, rng).reshape(height, width, -1), q), m // 2, rng)
        mean = product.mean(0)
        return np.concatenate([mean.real, mean.imag])


def weighted(powers: list[Array], c: Array) -> Array:
    return np.concatenate([p * np.float32(np.sqrt(v)) for p, v in zip(powers, c, strict=True)], 1)


def windows(x: Array, q: int) -> Array:
    """Windows of one image (h, w, c), zero-padded, as rows (h·w, c·q²)."""
    h, w, c = x.shape
    x = np.pad(x, (((q - 1) // 2, q // 2), ((q - 1) // 2, q // 2), (0, 0)))
    return sliding_window_view(x, (q, q), (0, 1)).reshape(h * w, c * q * q)


def mixed(x: Array, m: int, rng: np.random.Generator) -> Array:
    """m entries of the Fourier transform of the rows with random signs."""
    d = fft.next_fast_len(x.shape[1])
    signs = rng.choice(np.array([-1, 1], np.float32), x.shape[1])
    return fft.fft(x * signs, d, axis=1)[:, rng.integers(d, size=m)]


def srht(x: Array, m: int, rng: np.random.Generator) -> Array:
    return mixed(x, m, rng) / np.float32(np.sqrt(m))


def tensor_srht(x: Array, y: Array, m: int, rng: np.random.Generator) -> Array:
    """A sketch of x ⊗ y."""
    return mixed(x, m, rng) * mixed(y, m, rng) / np.float32(np.sqrt(m))
