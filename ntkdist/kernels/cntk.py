"""The exact convolutional tangent kernel with global average pooling, of pairs of images.

Legend: y, z images of a pair; i a pixel of y and i' one of z; S the covariance of two pixels before a ReLU, N = S of a
pixel with itself, θ the angle, cos θ = S/n with n = √(N N'); M and Γ the same after the ReLU (and its pooling);
Π the tangent kernel of two pixels; arrays of pairs of pixels are (pairs, h, w, h', w').

Of a covariance only its defect E = √(M M') − Γ ≥ 0 is passed on, so that no angle is taken from a cosine: with â and
b̂ the unit vectors of √M and √M' over the two windows, 1 − cos θ = (1 − â·b̂) + (sum of E over the window)/n, whose
first term is half the square of a difference where it is small.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.errors import DataError, SpecError
from ntkdist.kernels.base import F8, Depth, Kernel, chosen

Count = Annotated[int, Meta(ge=1)]
BLOCK_BYTES = 2**20  # of one array of pairs of pixels; at most fifteen of them live at a time
ROUNDINGS = 16 * 2.0**-52
CLOSE = 1e-4  # half of 1 ∓ cos θ below which it is taken from a difference: the rest keeps 14 digits


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
        L, the number of convolutions, each with its ReLU; at least 2, for the first does not count (1 with ``ends``).
    filter_size : int
        q.
    padding : {"same", "valid"}
        Zeros around the image, (q − 1)//2 before and q//2 after, so that its size stays; or none, so that each
        convolution takes q − 1 off.
    ends : bool
        Train W¹ and v too: Π⁰ = S¹, and k gains the mean of Γ^L.  That is what other tools call the NTK: it is
        the number of input channels times the kernel of neural-tangents for ``Conv(W_std=√2), Relu()`` repeated,
        ``GlobalAvgPool(), Dense(W_std=1)``, without biases.
    pool : tuple of int
        Side of the squares over which the activations of each layer are averaged after the ReLU, as strided average
        pooling does: a ragged edge is dropped.  One number per layer, 1 for none; empty: no pooling.
    grid : int
        Average over the cells of a grid × grid at the end, as even as can be, each with a readout of its own:
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
        """Height and width after each convolution, and at the end; a `DataError` if nothing is left of an image."""
        found, (h, w), lost = [], (height, width), self.filter_size - 1 if self.padding == "valid" else 0
        for factor in self._factors():
            h, w = h - lost, w - lost
            found.append((h, w))
            h, w = h // factor, w // factor
            if min(found[-1]) < 1 or min(h, w) < 1:
                break
        if min(found[-1]) < 1 or min(h, w) < self.grid:
            raise DataError(
                f"images of {height} x {width} pixels are too small for {self}: "
                f"{max(h, 0)} x {max(w, 0)} are left after layer {len(found)}; use fewer layers or less pooling"
            )
        return [*found, (h, w)]

    def _factors(self) -> tuple[int, ...]:
        return self.pool or (1,) * self.depth

    def _norms(self, x: F8) -> list[F8]:
        """M⁰ = q²‖y_i‖², then M of each layer but the last, (n, h, w) each; with pooling, by each image's recursion."""
        norms = [self.filter_size**2 * np.einsum("nijc,nijc->nij", x, x)]
        if not any(factor > 1 for factor in self._factors()[:-1]):
            for _ in range(self.depth - 1):
                norms.append(window_sum(norms[-1], self.filter_size, self.padding) / self.filter_size**2)
            return norms
        parts = []
        for part in _blocks(len(x), x.shape):
            own = [norms[0][part]]
            for (_, gamma), factor in zip(self._layers(x[part], x[part], own, own), self._factors()[:-1], strict=False):
                own.append(np.einsum("pijij->pij", _pooled(gamma, factor)))
            parts.append(own[1:])
        return norms + [np.concatenate(layer) for layer in zip(*parts, strict=True)]

    def _layers(self, y: F8, z: F8, norms: list[F8], others: list[F8]) -> Iterator[tuple[F8, F8]]:
        """κ₀ and q²Γ before pooling, of each layer.

        M of a layer is asked for when the next layer is, so that an image's own recursion can find it from this one's.
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
                defect = n - _pooled(gamma, factor)
                defect[defect < ROUNDINGS * n] = 0  # a pixel with itself, up to rounding
            a, b = np.sqrt(norms[h + 1])[..., None], np.sqrt(others[h + 1])[..., None]
            n = _outer(window_sum(norms[h + 1], q, padding), window_sum(others[h + 1], q, padding))
            gap = diagonal_sum(defect, q, padding)
            np.divide(gap, n, out=gap, where=n > 0)
            s2, c2 = _half_angles(_unit(windows(a, q, padding)), _unit(windows(b, q, padding)), gap)

    def _pairs(self, y: F8, z: F8, norms: list[F8], others: list[F8]) -> F8:
        """k of each pair of images, (pairs,)."""
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
            tangent = _pooled(kappa0, factor) / q**2
            if h < self.depth - 1:
                tangent = diagonal_sum(tangent, q, self.padding)
        _, height, width, _, _ = np.shape(tangent)
        found: list[F8] = [
            np.asarray(tangent)[:, r, c, r, c].mean((1, 2, 3, 4)) for r, c in cells(height, width, self.grid)
        ]
        return np.mean(found, axis=0)


def images(x: NDArray[Any]) -> F8:
    """Images (n, h, w, channels) in float64."""
    x = np.asarray(x, np.float64)
    check_images(x.shape[1:], "X")
    return x


def check_images(input_shape: tuple[int, ...], source: str) -> None:
    """Refuse rows that are no images."""
    if len(input_shape) != 3:
        raise DataError(
            f"CNTK takes images (rows, height, width, channels), but {source} has rows of shape {input_shape}; give "
            "images, or use features for tables, such as ZonalFeatures"
        )


def cells(height: int, width: int, grid: int) -> list[tuple[slice, slice]]:
    """The rows and columns of each cell of a grid × grid, as even as can be."""
    rows, columns = ([size * k // grid for k in range(grid + 1)] for size in (height, width))
    return [(slice(*r), slice(*c)) for r in pairwise(rows) for c in pairwise(columns)]


def margins(filter_size: int, padding: str) -> tuple[int, int]:
    """Zeros before and after each axis."""
    return ((filter_size - 1) // 2, filter_size // 2) if padding == "same" else (0, 0)


def windows(x: F8, filter_size: int, padding: str) -> F8:
    """The windows of images (n, h, w, c) as rows, (n, pixels, c·q²)."""
    around = margins(filter_size, padding)
    x = sliding_window_view(np.pad(x, ((0, 0), around, around, (0, 0))), (filter_size, filter_size), (1, 2))
    return x.reshape(len(x), x.shape[1] * x.shape[2], math.prod(x.shape[3:]))


def window_sum(x: F8, filter_size: int, padding: str) -> F8:
    """The sum over the window of each pixel, (n, h, w)."""
    around = margins(filter_size, padding)
    x = np.pad(x, ((0, 0), around, around))
    for axis in (1, 2):
        x = sliding_window_view(x, filter_size, axis).sum(-1)
    return x


def diagonal_sum(x: F8, filter_size: int, padding: str) -> F8:
    """Sums over the windows of two pixels, moved together: Σ_{a,b} x[i + a, j + b, i' + a, j' + b]."""
    return _shifted_sum(_shifted_sum(x, 1, filter_size, padding), 2, filter_size, padding)


def _shifted_sum(x: F8, axis: int, filter_size: int, padding: str) -> F8:
    """Along the axes ``axis`` and ``axis + 2`` of the two images."""
    before, after = margins(filter_size, padding)
    shape = list(x.shape)
    for k in (axis, axis + 2):
        shape[k] += before + after - filter_size + 1
    out = np.zeros(shape)
    for shift in range(-before, filter_size - before):
        to, source = [slice(None)] * 5, [slice(None)] * 5
        for k in (axis, axis + 2):
            start, stop = max(0, -shift), min(shape[k], x.shape[k] - shift)
            to[k], source[k] = slice(start, max(start, stop)), slice(start + shift, max(start, stop) + shift)
        out[tuple(to)] += x[tuple(source)]
    return out


def _pooled(x: F8, factor: int) -> F8:
    """Means over the squares of both images; a ragged edge is dropped."""
    if factor == 1:
        return x
    p, h, w = x.shape[0], x.shape[1] // factor, x.shape[2] // factor
    x = x[:, : h * factor, : w * factor, : h * factor, : w * factor]
    return x.reshape(p, h, factor, w, factor, h, factor, w, factor).mean((2, 4, 6, 8))


def _outer(a: F8, b: F8) -> F8:
    """√(a b) of all pairs of pixels."""
    return np.multiply(np.sqrt(a)[:, :, :, None, None], np.sqrt(b)[:, None, None, :, :])


def _unit(u: F8) -> F8:
    r = np.linalg.norm(u, axis=2, keepdims=True)
    return u / np.where(r == 0, 1.0, r)


def _half_angles(u: F8, v: F8, gap: F8 | None = None) -> tuple[F8, F8]:
    """sin²(θ/2) and cos²(θ/2), cos θ = u·v − gap, for unit rows u (pairs, a, d) and v (pairs, b, d)."""
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
    """κ₀ and 1 − κ₁ from sin²(θ/2) and cos²(θ/2)."""
    s2, c2 = np.maximum(s2, 0), np.maximum(c2, 0)
    theta = 2 * np.arctan2(np.sqrt(s2), np.sqrt(c2))
    gap = 2 * s2 - (2 * np.sqrt(s2 * c2) - theta * (c2 - s2)) / np.pi
    return 1 - theta / np.pi, gap


def _blocks(count: int, shape: tuple[int, ...]) -> list[slice]:
    """Pairs at a time."""
    size = max(1, BLOCK_BYTES // (8 * (shape[1] * shape[2]) ** 2))
    return [slice(k, k + size) for k in range(0, count, size)]
