"""The exact convolutional tangent kernel with global average pooling, of pairs of images.

Legend: y, z images of a pair; i a pixel of y and i' one of z; S the covariance of two pixels before a ReLU, N = S of a
pixel with itself, θ the angle, cos θ = S/n with n = √(N N'); M and Γ the same after the ReLU (and its pooling);
Π the tangent kernel of two pixels; arrays of pairs of pixels are (pairs, h, w, h', w').

Each layer passes on the defect E = √(M M') − Γ ≥ 0 of the covariance only, so that no angle is computed from a cosine:
with â and b̂ the unit vectors of √M and √M' over the two windows, 1 − cos θ = (1 − â·b̂) + (sum of E over the window)/n,
whose first term, where it is small, is computed as half the square of a difference.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.errors import DataError, SpecError
from ntkdist.kernels.base import F8, Depth, Kernel, chosen
from ntkdist.kernels.windows import cells, check_images, diagonal_sum, images, pooled, window_sum, windows

Count = Annotated[int, Meta(ge=1)]
BLOCK_BYTES = 2**20  # of one array of pairs of pixels; at most fifteen exist at a time
ROUNDINGS = 16 * 2.0**-52
CLOSE = 1e-4  # half of 1 ∓ cos θ below which it is computed from a difference; the others keep 14 digits


class CNTK(Kernel, frozen=True):
    """The neural tangent kernel of a convolutional ReLU network with global average pooling, of infinite width.

    The network is z¹ = W¹ * y, a^h = √(2/(q²·width)) relu(z^h), z^{h+1} = W^{h+1} * a^h, f = mean over pixels of v·a^L,
    all weights N(0, 1), q×q filters.  As in Arora et al., "On exact computation with an infinitely wide neural net",
    NeurIPS 2019, section 4, and Zandieh et al., NeurIPS 2021, only W² … W^L are trained:

        S^h = window sum of Γ^{h−1},  Γ^h = (n/q²) κ₁(cos θ),  Γ⁰ = ⟨y_i, z_i'⟩,
        Π^h = window sum of Π^{h−1} κ₀(cos θ)/q² + Γ^h,  Π⁰ = 0,  k = mean over i, i' of Π^{L−1} κ₀/q².

    Images are (n, h, w, channels), float64 throughout.  Work and memory: (h·w)² per pair of images and layer, about
    15 × max(1 MiB, 8 (h·w)²) bytes at a time and thread; of ``kernel(x)``, each pair once.  An all-zero patch gives
    zero, and the kernel is homogeneous in each image.

    Parameters
    ----------
    depth : int
        L, the number of convolutions, each with its ReLU; at least 2, as the first is not trained (1 with ``ends``).
    filter_size : int
        q.
    padding : {"same", "valid"}
        Zeros around the image, (q − 1)//2 before and q//2 after, so that its size stays; or none, so that each
        convolution reduces it by q − 1.
    ends : bool
        Train W¹ and v too: Π⁰ = S¹, and k gains the mean of Γ^L.  Other tools call this kernel the NTK: it is
        the number of input channels times the kernel of neural-tangents for ``Conv(W_std=√2), Relu()`` repeated,
        ``GlobalAvgPool(), Dense(W_std=1)``, without biases.
    pool : tuple of int
        Side of the squares over which the activations of each layer are averaged after the ReLU, as strided average
        pooling does: a ragged edge is dropped.  One number per layer, 1 for none; empty: no pooling.
    grid : int
        Average over the cells of a grid × grid at the end, of sizes as equal as possible, each with its own readout:
        k is the mean over cells of the mean over i and i' in that cell.  1: global average pooling.
    tangent : bool
        False: only v is trained, so that k is the mean of Γ^L, the covariance at initialisation (NNGP); any depth.
    """

    depth: Depth
    filter_size: Count
    padding: Literal["same", "valid"] = "same"
    ends: bool = False
    pool: tuple[Count, ...] = ()
    grid: Count = 1
    tangent: bool = True

    def validate(self) -> None:
        if self.depth == 1 and self.tangent and not self.ends:
            raise SpecError(
                "CNTK.depth is 1, at which the kernel is zero, for the first convolution and the readout do not "
                "count; use depth >= 2, or ends = true"
            )
        if self.pool and len(self.pool) != self.depth:
            raise SpecError(
                f"CNTK.pool has {len(self.pool)} numbers for {self.depth} layers; give one per layer, 1 for no pooling"
            )

    def check_shape(self, input_shape: tuple[int, ...], source: str = "X") -> None:
        check_images(input_shape, source)
        self.sizes(*input_shape[:2])

    def __call__(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        x = images(x)
        other = x if y is None else images(y)
        if x.shape[1:] != other.shape[1:]:
            raise DataError(f"CNTK compares images of one shape, got {x.shape[1:]} and {other.shape[1:]}")
        self.sizes(x.shape[1], x.shape[2])
        norms = self._norms(x)
        others = norms if y is None else self._norms(other)
        out = np.empty((len(x), len(other)))
        i, j = np.triu_indices(len(x)) if y is None else np.indices(out.shape).reshape(2, -1)

        def block(part: slice) -> None:
            a, b = i[part], j[part]
            out[a, b] = self._pairs(x[a], other[b], [m[a] for m in norms], [m[b] for m in others])
            if y is None:
                out[b, a] = out[a, b]

        backend.parallel_for(block, _blocks(len(i), x.shape))
        return out

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return height and width after each convolution and at the end; raise `DataError` where no pixels are left."""
        made, (h, w), lost = [], (height, width), self.filter_size - 1 if self.padding == "valid" else 0
        for factor in self._factors():
            h, w = h - lost, w - lost
            made.append((h, w))
            h, w = h // factor, w // factor
            if min(made[-1]) < 1 or min(h, w) < 1:
                break
        if min(made[-1]) < 1 or min(h, w) < self.grid:
            raise DataError(
                f"images of {height} x {width} pixels are too small for {self}: "
                f"{max(h, 0)} x {max(w, 0)} are left after layer {len(made)}; use fewer layers or less pooling"
            )
        return [*made, (h, w)]

    def _factors(self) -> tuple[int, ...]:
        return self.pool or (1,) * self.depth

    def _norms(self, x: F8) -> list[F8]:
        """Compute M⁰ = q²‖y_i‖² and M of each layer but the last, (n, h, w); with pooling, by an image's recursion."""
        norms = [self.filter_size**2 * np.einsum("nijc,nijc->nij", x, x)]
        if not any(factor > 1 for factor in self._factors()[:-1]):
            for _ in range(self.depth - 1):
                norms.append(window_sum(norms[-1], self.filter_size, self.padding) / self.filter_size**2)
            return norms
        parts = []
        for part in _blocks(len(x), x.shape):
            own = [norms[0][part]]
            for (_, gamma), factor in zip(self._layers(x[part], x[part], own, own), self._factors()[:-1], strict=False):
                own.append(np.einsum("pijij->pij", pooled(gamma, factor)))
            parts.append(own[1:])
        return norms + [np.concatenate(layer) for layer in zip(*parts, strict=True)]

    def _layers(self, y: F8, z: F8, norms: list[F8], others: list[F8]) -> Iterator[tuple[F8, F8]]:
        """Yield κ₀ and q²Γ before pooling, of each layer.

        M of a layer is read only when the next layer is made, as an image's own recursion computes it from this one.
        """
        q, padding = self.filter_size, self.padding
        u, v = _unit(windows(y, q, padding)), _unit(windows(z, q, padding))
        s2, c2 = _half_angles(u, v)
        for h, factor in enumerate(self._factors()):
            n = _outer(window_sum(norms[h], q, padding), window_sum(others[h], q, padding)) / q**2
            kappa0, defect = _arc_cosines(s2.reshape(n.shape), c2.reshape(n.shape))
            defect *= n
            gamma = n - defect
            yield kappa0, gamma
            if h == self.depth - 1:
                return
            if factor > 1:
                n = _outer(norms[h + 1], others[h + 1])
                defect = n - pooled(gamma, factor)
                defect[defect < ROUNDINGS * n] = 0  # a pixel with itself, up to rounding
            a, b = np.sqrt(norms[h + 1])[..., None], np.sqrt(others[h + 1])[..., None]
            n = _outer(window_sum(norms[h + 1], q, padding), window_sum(others[h + 1], q, padding))
            gap = diagonal_sum(defect, q, padding)
            np.divide(gap, n, out=gap, where=n > 0)
            s2, c2 = _half_angles(_unit(windows(a, q, padding)), _unit(windows(b, q, padding)), gap)

    def _pairs(self, y: F8, z: F8, norms: list[F8], others: list[F8]) -> F8:
        """Compute k of each pair of images, (pairs,)."""
        q = self.filter_size
        tangent: F8 = np.zeros(1)
        if self.ends:
            flat = [a.reshape(len(a), -1, a.shape[3]) for a in (y, z)]
            first = np.matmul(flat[0], flat[1].swapaxes(1, 2)).reshape(len(y), *y.shape[1:3], *z.shape[1:3])
            tangent = diagonal_sum(first, q, self.padding)
        for h, ((kappa0, gamma), factor) in enumerate(
            zip(self._layers(y, z, norms, others), self._factors(), strict=True)
        ):
            kappa0 *= tangent if self.tangent else 0
            if self.ends or not self.tangent or h < self.depth - 1:
                kappa0 += gamma
            tangent = pooled(kappa0, factor) / q**2
            if h < self.depth - 1:
                tangent = diagonal_sum(tangent, q, self.padding)
        _, height, width, _, _ = np.shape(tangent)
        means: list[F8] = [
            np.asarray(tangent)[:, r, c, r, c].mean((1, 2, 3, 4)) for r, c in cells(height, width, self.grid)
        ]
        return np.mean(means, axis=0)


def _outer(a: F8, b: F8) -> F8:
    """Compute √(a b) of all pairs of pixels."""
    return np.multiply(np.sqrt(a)[:, :, :, None, None], np.sqrt(b)[:, None, None, :, :])


def _unit(u: F8) -> F8:
    """Return unit rows (n, pixels, d); a zero row stays zero."""
    r = np.linalg.norm(u, axis=2, keepdims=True)
    return u / np.where(r == 0, 1.0, r)


def _half_angles(u: F8, v: F8, gap: F8 | None = None) -> tuple[F8, F8]:
    """Compute sin²(θ/2) and cos²(θ/2), cos θ = u·v − gap, of unit rows u (pairs, a, d) and v (pairs, b, d)."""
    dot = np.matmul(u, v.swapaxes(1, 2))
    if gap is not None:
        gap = gap.reshape(dot.shape)
        dot -= gap
    s2, c2 = (1 - dot) / 2, (1 + dot) / 2
    for sign, square in ((1, s2), (-1, c2)):
        near = (square < CLOSE).reshape(-1, u.shape[1], v.shape[1])
        for p in np.flatnonzero(near.any((1, 2))):
            for a, b in chosen(near[p]):
                square[p, a, b] = np.square(u[p, a] - sign * v[p, b]).sum(1) / 4
                if gap is not None:
                    square[p, a, b] += sign * gap[p, a, b] / 2
    return s2, c2


def _arc_cosines(s2: F8, c2: F8) -> tuple[F8, F8]:
    """Compute κ₀ and 1 − κ₁ from sin²(θ/2) and cos²(θ/2)."""
    s2, c2 = np.maximum(s2, 0), np.maximum(c2, 0)
    theta = 2 * np.arctan2(np.sqrt(s2), np.sqrt(c2))
    gap = 2 * s2 - (2 * np.sqrt(s2 * c2) - theta * (c2 - s2)) / np.pi
    return 1 - theta / np.pi, gap


def _blocks(count: int, shape: tuple[int, ...]) -> list[slice]:
    """Split ``count`` pairs of images into blocks of `BLOCK_BYTES`."""
    size = max(1, BLOCK_BYTES // (8 * (shape[1] * shape[2]) ** 2))
    return [slice(k, k + size) for k in range(0, count, size)]
