"""The published feature maps, written down plainly: what `NTKSketch` and `NTKRandomFeatures` are compared with.

NumPy only, nothing shared with the library: complex TensorSRHTs, whose orthogonal matrix is the Fourier transform and
whose coordinates are sampled with replacement, as in the programs that came with Zandieh et al., NeurIPS 2021.  All
rows at once.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

C = NDArray[np.complexfloating]
F = NDArray[np.floating]


def unit(x: F) -> tuple[F, F]:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm == 0, 1, norm), norm


class SRHT:
    """R^d → C^m: random signs, Fourier transform, coordinates with replacement."""

    def __init__(self, rng: np.random.Generator, d: int, m: int) -> None:
        self.signs, self.picked = rng.choice([-1.0, 1.0], d), rng.integers(d, size=m)

    def __call__(self, x: C | F) -> C:
        return np.fft.fft(x * self.signs.astype(x.real.dtype), axis=1)[:, self.picked] / np.float32(
            np.sqrt(len(self.picked))
        )


class TensorSRHT:
    """x, y ↦ a sketch of x ⊗ y in C^m."""

    def __init__(self, rng: np.random.Generator, p: int, q: int, m: int) -> None:
        self.left, self.right, self.root = SRHT(rng, p, m), SRHT(rng, q, m), np.float32(np.sqrt(m))

    def __call__(self, x: C | F, y: C | F) -> C:
        return self.left(x) * self.right(y) * self.root


def real(z: C) -> F:
    """Re and Im side by side: ⟨z, z'⟩'s real part as an inner product."""
    return np.concatenate([z.real, z.imag], axis=1)


def ntk(t: F, depth: int) -> F:
    """The kernel of unit rows as a function of the cosine."""
    total, sigma = t, t
    for _ in range(depth):
        sigma = np.clip(sigma, -1, 1)
        k0 = (np.pi - np.arccos(sigma)) / np.pi
        sigma = (np.sqrt(1 - sigma**2) + sigma * (np.pi - np.arccos(sigma))) / np.pi
        total = total * k0 + sigma
    return total


def fitted(depth: int, degree: int) -> F:
    """Non-negative coefficients by least squares: equispaced and Chebyshev nodes, weights that grow with t."""
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
        values = [leaves]  # of every level; then one leaf after the other becomes e1, and its path is done again
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
