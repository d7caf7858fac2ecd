"""Plain forms of the published feature maps, for comparison only.

`PlainSketch` and `PlainRandomFeatures` are those of Zandieh et al., NeurIPS 2021, in NumPy alone, all rows at once:
complex TensorSRHTs, whose orthogonal matrix is the Fourier transform and whose coordinates are sampled with
replacement, as in the authors' programs.  `PlainCNTK` is their CNTKSketch, image by image, with whole windows of every
pixel.
"""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import fft
from scipy.optimize import nnls

from ntkdist import backend
from ntkdist.features.cntk_sketch import polynomial

C = NDArray[np.complexfloating]
F = NDArray[np.floating]
Array = np.ndarray[Any, Any]


def unit(x: F) -> tuple[F, F]:
    """Split rows into unit rows and norms."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm == 0, 1, norm), norm


class SRHT:
    """A map R^d → C^m: random signs, Fourier transform, coordinates with replacement."""

    def __init__(self, rng: np.random.Generator, d: int, m: int) -> None:
        self.signs, self.picked = rng.choice([-1.0, 1.0], d), rng.integers(d, size=m)

    def __call__(self, x: C | F) -> C:
        return np.fft.fft(x * self.signs.astype(x.real.dtype), axis=1)[:, self.picked] / np.float32(
            np.sqrt(len(self.picked))
        )


class TensorSRHT:
    """A sketch of x ⊗ y in C^m."""

    def __init__(self, rng: np.random.Generator, p: int, q: int, m: int) -> None:
        self.left, self.right, self.root = SRHT(rng, p, m), SRHT(rng, q, m), np.float32(np.sqrt(m))

    def __call__(self, x: C | F, y: C | F) -> C:
        return self.left(x) * self.right(y) * self.root


def real(z: C) -> F:
    """Put Re and Im side by side, so that the inner product is the real part of ⟨z, z'⟩."""
    return np.concatenate([z.real, z.imag], axis=1)


def ntk(t: F, depth: int) -> F:
    """Compute the kernel of unit rows as a function of the cosine."""
    total, sigma = t, t
    for _ in range(depth):
        sigma = np.clip(sigma, -1, 1)
        k0 = (np.pi - np.arccos(sigma)) / np.pi
        sigma = (np.sqrt(1 - sigma**2) + sigma * (np.pi - np.arccos(sigma))) / np.pi
        total = total * k0 + sigma
    return total


def fitted(depth: int, degree: int) -> F:
    """Fit non-negative coefficients by least squares: equispaced and Chebyshev nodes, weights that grow with t."""
    t = np.sort(np.concatenate([np.linspace(-1, 1, 201), np.cos(np.linspace(0, np.pi, 15 * depth + 5 * degree))]))
    weight = np.sqrt(np.linspace(0, 1, len(t)) + 2 / depth)[:, None]
    return nnls(np.polynomial.polynomial.polyvander(t, degree) * weight, ntk(t, depth) * weight[:, 0])[0]


class PlainSketch:
    """The published sketch: one polynomial of the whole kernel, one tree for each of its degrees."""

    def __init__(self, m: int, d: int, depth: int = 1, degree: int = 8, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.d, self.degree, self.wide = d, degree, m // 4
        self.c = fitted(depth, degree)
        self.levels = [[TensorSRHT(rng, d, d, self.wide) for _ in range(degree // 2)]]
        while len(self.levels[-1]) > 1:
            nodes = len(self.levels[-1]) // 2
            self.levels.append([TensorSRHT(rng, self.wide, self.wide, self.wide) for _ in range(nodes)])
        self.last = SRHT(rng, degree * self.wide, m // 2 - 1)

    def __call__(self, x: F) -> F:
        u, norm = unit(x)
        e1 = np.zeros_like(u)
        e1[:, 0] = 1
        leaves = [u] * self.degree
        values = [leaves]  # of every level; then one leaf after another becomes e1, and its path is computed again
        for level in self.levels:
            below = values[-1]
            values.append([node(below[2 * i], below[2 * i + 1]) for i, node in enumerate(level)])
        powers = [values[-1][0] * np.float32(np.sqrt(self.c[self.degree]))]
        for j in range(self.degree - 1, 0, -1):
            i = j
            values[0][j] = e1
            for level, below, above in zip(self.levels, values[:-1], values[1:], strict=True):
                i //= 2
                above[i] = level[i](below[2 * i], below[2 * i + 1])
            powers.append(values[-1][0] * np.float32(np.sqrt(self.c[j])))
        z = self.last(np.concatenate(powers, axis=1))
        one = np.full((len(x), 1), np.sqrt(self.c[0]), x.dtype)
        return np.concatenate([one, real(z)], axis=1) * norm


class PlainRandomFeatures:
    """The published random features: step and ReLU of Gaussian directions, TensorSRHT for products."""

    def __init__(self, m: int, d: int, depth: int = 1, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        ms = int(0.6 * m) // 2 * 2
        m1 = m - ms
        self.layers = []
        wide, deep = d, d
        for _ in range(depth):
            w0, w1 = (rng.standard_normal((wide, m1), dtype=np.float32) for _ in range(2))
            self.layers.append((w0, w1, TensorSRHT(rng, deep, m1, ms // 2)))
            wide, deep = m1, m1 + ms

    def __call__(self, x: F) -> F:
        u, norm = unit(x)
        phi = psi = u
        for w0, w1, product in self.layers:
            root = np.float32(np.sqrt(2 / w0.shape[1]))
            step = (phi @ w0 > 0).astype(u.dtype) * root
            phi = np.maximum(phi @ w1, 0) * root
            psi = np.concatenate([phi, real(product(psi, step))], axis=1)
        return psi * norm


class PlainCNTK:
    """The published sketch of the CNTK.

    Legend: n images, m columns of the result, N the squared norm of a pixel's patch, q the filter's side; φ, φ̇, ψ
    complex vectors of each pixel whose inner products are those of the recursion.  Internal widths: m/8 of φ before a
    window is taken, m/4 of φ ⊕ ψ⊗φ̇ before the next, m/2 of all else; complex, so that the mean of the last over pixels
    has m real numbers.  Polynomials as in `nd.CNTKSketch`.
    """

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
    """Scale powers by the roots of their coefficients, and put them side by side."""
    return np.concatenate([p * np.float32(np.sqrt(v)) for p, v in zip(powers, c, strict=True)], 1)


def windows(x: Array, q: int) -> Array:
    """Take the windows of one image (h, w, c), zero-padded, as rows (h·w, c·q²)."""
    h, w, c = x.shape
    x = np.pad(x, (((q - 1) // 2, q // 2), ((q - 1) // 2, q // 2), (0, 0)))
    return sliding_window_view(x, (q, q), (0, 1)).reshape(h * w, c * q * q)


def mixed(x: Array, m: int, rng: np.random.Generator) -> Array:
    """Sample m entries of the Fourier transform of the rows with random signs."""
    d = fft.next_fast_len(x.shape[1])
    signs = rng.choice(np.array([-1, 1], np.float32), x.shape[1])
    return fft.fft(x * signs, d, axis=1)[:, rng.integers(d, size=m)]


def srht(x: Array, m: int, rng: np.random.Generator) -> Array:
    """Sketch rows in C^m."""
    return mixed(x, m, rng) / np.float32(np.sqrt(m))


def tensor_srht(x: Array, y: Array, m: int, rng: np.random.Generator) -> Array:
    """Sketch x ⊗ y."""
    return mixed(x, m, rng) * mixed(y, m, rng) / np.float32(np.sqrt(m))
