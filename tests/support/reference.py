"""The same mathematics once more, in the obvious way and slowly: what the library is held against."""

from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard

from ntkdist import random
from ntkdist.features.ntk_random_features import LEFT, RELU, RIGHT, STEP, mean_abs

F8 = NDArray[np.float64]
EPS = 2.0**-52
DIGITS = 60


def rows_at_angle(theta: float, d: int, pairs: int, seed: int = 0) -> tuple[F8, F8]:
    """Pairs of unit rows, ``theta`` apart to within rounding; what they are exactly, `exact_kernel` works out."""
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((pairs, d))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = rng.standard_normal((pairs, d))
    v -= (u * v).sum(1, keepdims=True) * u
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return u, np.cos(theta) * u + np.sin(theta) * v


def exact_kernel(name: str, x: F8, z: F8, depth: int) -> mpmath.mpf:
    """NTK or NNGP of one pair of rows, by the recursion on the cosine, in sixty digits."""
    with mpmath.workdps(DIGITS):
        a, b = [mpmath.mpf(float(v)) for v in x], [mpmath.mpf(float(v)) for v in z]
        norms = mpmath.sqrt(mpmath.fdot(a, a) * mpmath.fdot(b, b))
        if norms == 0:
            return mpmath.mpf(0)
        sigma = tangent = max(min(mpmath.fdot(a, b) / norms, mpmath.mpf(1)), mpmath.mpf(-1))
        for _ in range(depth):
            angle = mpmath.acos(sigma)
            kappa0 = (mpmath.pi - angle) / mpmath.pi
            kappa1 = (mpmath.sqrt(1 - sigma**2) + sigma * (mpmath.pi - angle)) / mpmath.pi
            sigma, tangent = kappa1, tangent * kappa0 + kappa1
        return norms * (tangent if name == "NTK" else sigma)


def exact_matrix(name: str, x: F8, z: F8, depth: int) -> F8:
    """`exact_kernel` of all pairs, rounded to float64."""
    return np.array([[float(exact_kernel(name, a, b, depth)) for b in z] for a in x])


def clipped_kernel(name: str, x: F8, z: F8, depth: int) -> F8:
    """The usual float64 code, arccos(clip(cos)): loses half of the digits near ±1."""
    norms = np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(z, axis=1))
    sigma = tangent = x @ z.T / norms
    for _ in range(depth):
        sigma = np.clip(sigma, -1, 1)
        angle = np.arccos(sigma)
        kappa0, kappa1 = 1 - angle / np.pi, (np.sqrt(1 - sigma**2) + sigma * (np.pi - angle)) / np.pi
        sigma, tangent = kappa1, tangent * kappa0 + kappa1
    return norms * (tangent if name == "NTK" else sigma)


class Network:
    """A finite fully connected ReLU network, f(x) = v·a_L, a_h = √(2/width) relu(W_h a_{h−1}), all weights N(0, 1)."""

    def __init__(self, d: int, width: int, depth: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.weights = [rng.standard_normal((width, d if h == 0 else width)) for h in range(depth)]
        self.readout = rng.standard_normal(width)
        self.scale = np.sqrt(2 / width)

    def hidden(self, x: F8) -> list[F8]:
        """The input and the activations of every layer, (n, width) each."""
        layers = [x]
        for w in self.weights:
            layers.append(self.scale * np.maximum(layers[-1] @ w.T, 0))
        return layers

    def output(self, x: F8) -> F8:
        return self.hidden(x)[-1] @ self.readout

    def gradients(self, x: F8) -> list[tuple[F8, F8]]:
        """For each weight matrix, from the last: (δ, a) with ∂f/∂W = δ aᵀ for every row."""
        layers = self.hidden(x)
        found = [(np.ones((len(x), 1)), layers[-1])]
        back = np.broadcast_to(self.readout, layers[-1].shape)
        for h in reversed(range(len(self.weights))):
            delta = self.scale * back * (layers[h + 1] > 0)
            found.append((delta, layers[h]))
            back = delta @ self.weights[h]
        return found

    def tangent_kernel(self, x: F8) -> F8:
        """⟨∂f(x)/∂weights, ∂f(x')/∂weights⟩ over all weights."""
        return np.sum([(delta @ delta.T) * (a @ a.T) for delta, a in self.gradients(x)], axis=0)


def gram_schmidt(a: F8) -> F8:
    """The columns of ``a`` made orthonormal, one after the other (twice, for the digits)."""
    q = np.array(a)
    for j in range(q.shape[1]):
        for _ in range(2):
            q[:, j] -= q[:, :j] @ (q[:, :j].T @ q[:, j])
        q[:, j] /= np.linalg.norm(q[:, j])
    return q


def count_sketch_matrix(d: int, m: int, seed: int, layer: int, role: int) -> F8:
    """The CountSketch as a dense (d, m) matrix, entry by entry from its draws."""
    matrix = np.zeros((d, m))
    bucket, sign = random.integers(m, d, seed, layer, role, 0), random.signs(d, seed, layer, role, 1)
    for i in range(d):
        matrix[i, bucket[i]] = sign[i]
    return matrix


def circular_convolution(a: F8, b: F8) -> F8:
    """Σ_{i + j ≡ k mod m} a_i b_j of two vectors, by its definition."""
    m = len(a)
    out = np.zeros(m)
    for i in range(m):
        for j in range(m):
            out[(i + j) % m] += a[i] * b[j]
    return out


def paper_features(f: Any, x: F8) -> F8:
    """Algorithm 2 of Zandieh et al. as it stands, with the tensor products and the convolutions written out."""
    ms = int(0.6 * f.n_components)
    m = f.n_components - ms
    length = np.linalg.norm(x, axis=1, keepdims=True)
    phi = psi = x / np.where(length == 0, 1, length)
    for h in range(f.depth):
        d = phi.shape[1]
        g, w = random.normals((d, m), f.seed, h, STEP), random.normals((d, m), f.seed, h, RELU)
        if f.leverage_scores:
            w = np.sqrt(d) * w / np.linalg.norm(w, axis=0)
        step = np.sqrt(2 / m) * (phi @ g > 0)
        left = step @ count_sketch_matrix(m, ms, f.seed, h, LEFT)
        right = psi @ count_sketch_matrix(psi.shape[1], ms, f.seed, h, RIGHT)
        product = np.array([circular_convolution(a, b) for a, b in zip(left, right, strict=True)])
        phi = np.sqrt(2 / m) * np.maximum(phi @ w, 0)
        psi = np.hstack([phi, product])
    return length * psi


def srht_matrix(d: int, m: int, seed: int, layer: int, role: int) -> F8:
    """The (d, m) matrix of a subsampled randomised Hadamard transform, from its definition."""
    w = 2 ** int(np.ceil(np.log2(d)))
    count = int(np.ceil(m / w))
    signs = random.signs(count * d, seed, layer, role, 0).reshape(count, d)
    picked = np.argsort(random.uniforms(count * w, seed, layer, role, 1).reshape(count, w), axis=1)
    h = hadamard(w)[:d]
    return np.hstack([np.diag(s) @ h[:, p] for s, p in zip(signs, picked, strict=True)])[:, :m] / np.sqrt(m)


def default_gram(f: Any, x: F8) -> F8:
    """φ(x) φ(x)ᵀ of the default variant by its recursion on Gram matrices, with no columns merged or carried along.

    Only the vectors that the directions act on have merged columns: [u | 1 | |t|-blocks | sgn-blocks], in which the
    coefficient of every block is the root of that block's share of Σ (for φ) and of K (for ψ).
    """
    d, m = x.shape[1], f.n_components
    length = np.linalg.norm(x, axis=1, keepdims=True)
    u = x / np.where(length == 0, 1, length)
    sigma = tangent = u @ u.T
    blocks: list[tuple[F8, float, float]] = [(u, 1.0, 1.0)]  # columns, share of Σ, share of K
    ends = [(m - 1 - d) * (2**h - 1) // (2**f.depth - 1) for h in range(f.depth + 1)]
    for h, columns in enumerate(np.diff(ends)):
        m1, ms = columns // 4, columns - columns // 4
        in_order = sorted(blocks, key=lambda b: b[1] == 0)  # sgn-blocks, which Σ does not have, come last
        phi = np.hstack([np.sqrt(share) * b for b, share, _ in in_order if share > 0])
        psi = np.hstack([np.sqrt(share) * b for b, _, share in in_order])
        wide, deep = phi.shape[1], psi.shape[1]
        np.testing.assert_allclose(phi @ phi.T, sigma, atol=1e-13)
        np.testing.assert_allclose(psi @ psi.T, tangent, atol=1e-13)
        c = mean_abs(wide)
        t = np.sqrt(wide) * phi @ random.directions(wide, m1, f.seed, h, RELU)
        r = (np.abs(t) - c) / np.sqrt(2 * m1)
        right = srht_matrix(deep, ms, f.seed, h, RIGHT) if h else random.directions(deep, ms, f.seed, h, RIGHT)
        p = psi @ right * np.sqrt(ms if h else deep)
        s = np.sign(phi @ random.directions(wide, ms, f.seed, h, STEP)) * p / np.sqrt(2 * ms)
        sigma = c**2 / 2 + sigma / 2 + r @ r.T  # κ₁: constant, linear part, |t|
        tangent = tangent / 2 + s @ s.T + sigma  # κ₀ K = (½ + ½ E sgn sgn) K
        blocks = [(b, a / 2, k / 2 + a / 2) for b, a, k in blocks]
        if h == 0:
            blocks.append((np.ones((len(x), 1)), 0.0, 0.0))
        # The constant: a block like the others, and c²/2 more in both.
        blocks = [(b, a + c**2 / 2, k + c**2 / 2) if i == 1 else (b, a, k) for i, (b, a, k) in enumerate(blocks)]
        blocks += [(r, 1.0, 1.0), (s, 0.0, 1.0)]
    return length * tangent * length.T


def exact_cntk(kernel: Any, y: F8, z: F8) -> mpmath.mpf:
    """`CNTK` of a pair of images (h, w, c), by its recursion on all pairs of pixels, in forty digits."""
    with mpmath.workdps(40):
        q, layers = kernel.filter_size, kernel.depth
        both = {"y": y.astype(object) * mpmath.mpf(1), "z": z.astype(object) * mpmath.mpf(1)}
        s = {(a, b): _windows(np.einsum("ijc,klc->ijkl", both[a], both[b]), kernel) for a in "yz" for b in "yz"}
        tangent = s["y", "z"] * (1 if kernel.ends else 0)
        for h, factor in enumerate(kernel.pool or (1,) * layers):
            size = {a: np.einsum("ijij->ij", s[a, a]) for a in "yz"}
            arcs = {(a, b): _arc_cosines(s[a, b], size[a], size[b]) for a, b in s}
            tangent = tangent * arcs["y", "z"][0] / q**2 * (1 if kernel.tangent else 0)
            if kernel.ends or not kernel.tangent or h < layers - 1:
                tangent = tangent + arcs["y", "z"][1] / q**2
            tangent = _pool(tangent, factor)
            if h < layers - 1:
                tangent = _windows(tangent, kernel)
                s = {pair: _windows(_pool(gamma / q**2, factor), kernel) for pair, (_, gamma) in arcs.items()}
        height, width, g = *tangent.shape[:2], kernel.grid
        cells = [
            (slice(height * i // g, height * (i + 1) // g), slice(width * j // g, width * (j + 1) // g))
            for i in range(g)
            for j in range(g)
        ]
        return sum(tangent[r, c, r, c].mean() for r, c in cells) / g**2


def _windows(t: Any, kernel: Any) -> Any:
    """Σ_{a,b} t[i + a, j + b, k + a, l + b], entry by entry; zeros outside the image."""
    q, h, w = kernel.filter_size, *t.shape[:2]
    lost, first = (0, -((q - 1) // 2)) if kernel.padding == "same" else (q - 1, 0)
    out = np.zeros((h - lost, w - lost, h - lost, w - lost), object)
    for i, j, k, l in np.ndindex(out.shape):  # noqa: E741
        for a in range(first, first + q):
            for b in range(first, first + q):
                at = (i + a, j + b, k + a, l + b)
                if min(at) >= 0 and max(at[::2]) < h and max(at[1::2]) < w:
                    out[i, j, k, l] += t[at]
    return out


def _pool(t: Any, f: int) -> Any:
    """Means over f × f squares of both images."""
    h, w = t.shape[0] // f, t.shape[1] // f
    out = np.zeros((h, w, h, w), object)
    for i, j, k, l in np.ndindex(out.shape):  # noqa: E741
        part = t[i * f : i * f + f, j * f : j * f + f, k * f : k * f + f, l * f : l * f + f]
        out[i, j, k, l] = part.sum() / part.size
    return out


def _arc_cosines(s: Any, size: Any, other: Any) -> tuple[Any, Any]:
    """κ₀ and n κ₁ of all pairs of pixels."""
    kappa0, gamma = np.zeros(s.shape, object), np.zeros(s.shape, object)
    for at in np.ndindex(s.shape):
        n = mpmath.sqrt(size[at[:2]] * other[at[2:]])
        if n > 0:
            cosine = max(min(s[at] / n, mpmath.mpf(1)), mpmath.mpf(-1))
            angle = mpmath.acos(cosine)
            kappa0[at] = 1 - angle / mpmath.pi
            gamma[at] = n * (mpmath.sqrt(1 - cosine**2) + cosine * (mpmath.pi - angle)) / mpmath.pi
    return kappa0, gamma


class ConvNetwork:
    """The finite network of `CNTK`: z¹ = W¹ * y, a = √(2/(q² width)) relu(z), z = W * a, means over cells, readout."""

    def __init__(self, kernel: Any, channels: int, width: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.kernel, q = kernel, kernel.filter_size
        wide = [channels] + [width] * kernel.depth
        self.weights = [rng.standard_normal((q, q, a, b)) for a, b in pairwise(wide)]
        self.readout = rng.standard_normal((kernel.grid**2, width))
        self.scale = np.sqrt(2 / (q**2 * width))

    def tangent_kernel(self, x: F8) -> F8:
        """⟨∂f(x)/∂weights, ∂f(x')/∂weights⟩ over the trained weights, by backpropagation."""
        kernel, q = self.kernel, self.kernel.filter_size
        factors = kernel.pool or (1,) * kernel.depth
        inputs, pre = [x], []
        for w, f in zip(self.weights, factors, strict=True):
            pre.append(self._patches(inputs[-1]) @ w.reshape(-1, w.shape[3]))
            inputs.append(self._pooled(self.scale * np.maximum(pre[-1], 0), f))
        n, h, w_, _ = inputs[-1].shape
        mean, back = [], np.zeros_like(inputs[-1])
        g = kernel.grid
        for cell in range(g**2):
            i, j = divmod(cell, g)
            r, c = slice(h * i // g, h * (i + 1) // g), slice(w_ * j // g, w_ * (j + 1) // g)
            size = (r.stop - r.start) * (c.stop - c.start)
            mean.append(inputs[-1][:, r, c].mean((1, 2)) / g)
            back[:, r, c] = self.readout[cell] / (size * g)
        total = sum(m @ m.T for m in mean) if kernel.ends else np.zeros((n, n))
        for layer in reversed(range(kernel.depth)):
            delta = self._spread(back, factors[layer], pre[layer].shape) * self.scale * (pre[layer] > 0)
            if layer > 0 or kernel.ends:
                patches = self._patches(inputs[layer])
                rows, columns = (a.reshape(n, -1, a.shape[3]) for a in (patches, delta))
                flat = np.matmul(rows.swapaxes(1, 2), columns).reshape(n, -1)
                total = total + flat @ flat.T
            if layer > 0:
                back = self._back(delta @ self.weights[layer].reshape(-1, delta.shape[3]).T, inputs[layer].shape, q)
        return total

    def _around(self) -> tuple[int, int]:
        q = self.kernel.filter_size
        return ((q - 1) // 2, q // 2) if self.kernel.padding == "same" else (0, 0)

    def _patches(self, x: F8) -> F8:
        """(n, h, w, q·q·c)."""
        q, around = self.kernel.filter_size, self._around()
        x = np.pad(x, ((0, 0), around, around, (0, 0)))
        h, w = x.shape[1] - q + 1, x.shape[2] - q + 1
        return np.concatenate([x[:, a : a + h, b : b + w] for a in range(q) for b in range(q)], axis=3)

    def _back(self, p: F8, shape: tuple[int, ...], q: int) -> F8:
        """The transpose of `_patches`."""
        before, after = self._around()
        n, height, width, c = shape
        out = np.zeros((n, height + before + after, width + before + after, c))
        for k in range(q * q):
            a, b = divmod(k, q)
            out[:, a : a + p.shape[1], b : b + p.shape[2]] += p[..., k * c : (k + 1) * c]
        return out[:, before : before + height, before : before + width]

    def _pooled(self, x: F8, f: int) -> F8:
        n, h, w, c = x.shape[0], x.shape[1] // f, x.shape[2] // f, x.shape[3]
        return x[:, : h * f, : w * f].reshape(n, h, f, w, f, c).mean((2, 4))

    def _spread(self, back: F8, f: int, shape: tuple[int, ...]) -> F8:
        """The transpose of `_pooled`."""
        out = np.zeros(shape)
        wide = back.repeat(f, 1).repeat(f, 2) / f**2
        out[:, : wide.shape[1], : wide.shape[2]] = wide
        return out
