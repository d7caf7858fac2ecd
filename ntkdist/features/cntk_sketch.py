"""CNTKSketch: the convolutional tangent kernel by sketches of polynomials, pixel by pixel.

Legend: planes (n, columns, h, w), one number of every pixel each; N the squared norm of a pixel's patch as in the
kernel; q the filter's side; X the columns of which, with other factors, both φ (inner products: the covariance Γ) and η
(what the next convolution sums over its window) consist; ψ the window of η, μ the window of φ made unit; b_j, c_j ≥ 0
the coefficients of the polynomials for κ₀ and κ₁.

A window of X, q² times as wide, is never formed.  Its mean is exact, and so is all that the constant and linear parts
of κ₀ and κ₁ contribute to the average over pixels.  A random vector of the window is one of a single pixel, drawn from
the window: one plane of a matrix product, shifted.
"""

import math
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from msgspec import Meta
from numpy.polynomial.polynomial import polyval
from numpy.typing import NDArray
from scipy.optimize import nnls

from ntkdist import random
from ntkdist.features.base import OF_IMAGES, FeatureMap, Params
from ntkdist.kernels import CNTK, kappa0, one_minus_kappa1
from ntkdist.kernels.windows import margins, overlap, shifted_sum

F8 = NDArray[np.float64]
Planes = NDArray[Any]
CHEBYSHEV = 256  # nodes that polynomials are fitted at
CHANGE, DEEP, CHANNELS, POWER = 0, 2, 3, 4  # roles of the random streams; CHANGE + 1 of ψ, POWER + j of factor j
PLACE = 64  # added to a role, for the choice of the window's pixel
ORTHOGONAL = 1024  # dimensions up to which random vectors are made orthogonal; in higher ones they nearly are


class SketchLayer(NamedTuple):
    """The columns of a layer, by kind."""

    whole: bool  # whether all pixels of the input's windows are columns
    change: tuple[int, int]  # of the difference from the window's mean: in φ (and ψ), in ψ only
    kappa1: int  # of the sketch of c₂μ⊗μ + …
    kappa0: int  # of the sketch of ψ⊗(b₁μ + b₂μ⊗μ + …)

    @property
    def factors(self) -> int:
        return max(self.kappa1, self.kappa0)


class CNTKSketch(FeatureMap, frozen=True):
    """A sketch of `CNTK` in time linear in the number of pixels (after CNTKSketch of Zandieh et al., NeurIPS 2021).

    κ₀ and κ₁ are replaced by polynomials with coefficients ≥ 0 (non-negative least squares at Chebyshev's nodes):

        φ^h = (√N/q)[√c₀; √c₁ μ; √c₂ μ⊗μ; …],  η^h = [(1/q)(√b₀ ψ; √b₁ ψ⊗μ; √b₂ ψ⊗μ⊗μ; …); φ^h]

    and the features are the mean over pixels of the last η without φ.  Tensor products are sketched by products of
    random projections: a column is ⟨g, ψ⟩ Σ_j √b_j ⟨g₁, μ⟩ ⋯ ⟨g_j, μ⟩.  All projections of a layer are one real matrix
    product.  The constant and linear parts have noise only in the differences between the pixels of a window.

    Promise: depends on seed and shape only; the error falls like n_components^-½ down to that of the polynomials, see
    `polynomial_error`; a row depends on its own image; an all-zero patch has zero features.

    Parameters
    ----------
    n_components : int
        Columns, at least 16 for each layer.
    depth : int
        Convolutions, at least 2.
    filter_size : int
        q.
    degree : int
        Of the polynomials.
    padding : {"same", "valid"}
        As in `CNTK`.
    seed : int
    """

    no_gradient: ClassVar[tuple[str, str]] = OF_IMAGES
    depth: Annotated[int, Meta(ge=2)] = 3
    filter_size: Annotated[int, Meta(ge=1)] = 3
    degree: Annotated[int, Meta(ge=1, le=32)] = 2
    padding: Literal["same", "valid"] = "same"
    seed: Annotated[int, Meta(ge=0)] = 0

    def validate(self) -> None:
        self._require_columns(16 * self.depth, f" at depth {self.depth}")

    def kernel(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        return self._exact()(x, y)

    def check_shape(self, input_shape: tuple[int, ...], source: str = "X") -> None:
        self._exact().check_shape(input_shape, source)

    def polynomial_error(self) -> tuple[float, float]:
        """Return the uniform errors for κ₀ on [0, 1] and for κ₁, the larger on [−1, 1] (first layer) and [0, 1]."""
        zero, one = ([polynomial_error(k, self.degree, lowest) for lowest in (0.0, -1.0)] for k in (0, 1))
        return zero[0], max(one)  # the first layer has no κ₀

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        self.check_shape(input_shape)
        q, channels = self.filter_size, self._channels(input_shape)
        params: Params = {}
        if channels < input_shape[2]:
            params["channels"] = self._vectors(0, CHANNELS, channels, input_shape[2]).T / math.sqrt(channels)
        phi, eta = np.ones(channels), np.zeros(channels)  # factors of the columns of X
        for h, layer in enumerate(self._layers(channels)):
            if layer.whole:
                phi, eta = np.tile(phi, q**2), np.tile(eta, q**2)
            b, c = self._polynomials(h)
            kinds = [
                (CHANGE + i, n, f / math.sqrt(max(n, 1)))
                for i, (n, f) in enumerate(zip(layer.change, (phi, eta), strict=True))
            ]
            kinds += [(DEEP, layer.kappa0, eta / math.sqrt(max(layer.kappa0, 1)))]
            kinds += [(POWER + j, layer.factors, phi) for j in range(self.degree)]
            reach = 1 if layer.whole else q  # a pixel stands for q² of them
            params[f"mix{h}"] = np.concatenate(
                [self._vectors(h, role, n, len(f)) * (reach * f) for role, n, f in kinds]
            )
            params[f"place{h}"] = np.concatenate([self._places(h, role, n) for role, n, _ in kinds])
            params |= {f"phi{h}": phi**2, f"b{h}": np.sqrt(b), f"c{h}": np.sqrt(c / max(layer.kappa1, 1))}
            if h == self.depth - 1:
                through = math.sqrt(b[0]) / q
                ends = [eta * through, np.full(layer.change[1], through), np.full(layer.kappa0, 1 / q)]
                params["factors"] = np.concatenate(ends)
            phi, eta = _next(h, layer, phi, eta, b, c, q)
        return params

    def apply(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        q, padding = self.filter_size, self.padding
        layers = self._layers(self._channels(x.shape[1:]))
        norm = q**2 * np.square(x).sum(3)[:, None]
        if "channels" in params:
            x = x @ params["channels"]
        planes = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        new: list[Planes] = []
        for h, layer in enumerate(layers):
            norm = window_sum(norm, q, padding, 1 / q**2)
            if layer.whole:
                planes = whole(planes, q, padding)
            new = self._columns(params, h, layer, planes, norm)
            if h < self.depth - 1:
                planes = np.concatenate(new, axis=1)
        return np.concatenate([part.mean((2, 3)) for part in new], axis=1) * params["factors"]

    def _columns(self, params: Params, h: int, layer: SketchLayer, planes: Planes, norm: Planes) -> list[Planes]:
        """Compute the next X: [mean of the window | difference from it | √N | κ₁ | κ₀]; the last has no √N and κ₁."""
        q, padding = self.filter_size, self.padding
        flat, mix = planes.reshape(*planes.shape[:2], math.prod(planes.shape[2:])), params[f"mix{h}"]
        mixed = np.matmul(mix, flat).reshape(len(flat), len(mix), *planes.shape[2:])
        length = np.matmul(params[f"phi{h}"], np.square(flat)).reshape(len(flat), 1, *planes.shape[2:])
        at = mixed
        if not layer.whole:
            at, length = moved(mixed, params[f"place{h}"], q, padding), window_sum(length, q, padding)
        new = [planes if layer.whole else window_sum(planes, q, padding, 1 / q)]
        n = sum(layer.change)
        if n:
            at[:, :n] -= window_sum(mixed[:, :n], q, padding, 1 / q**2)
            new.append(at[:, :n])
        powers = at[:, n + layer.kappa0 :].reshape(len(at), self.degree, layer.factors, *at.shape[2:])
        powers *= np.divide(1, np.sqrt(length), out=np.zeros_like(length), where=length > 0)[:, None]
        if h < self.depth - 1:
            new.append(np.sqrt(norm))
            new.append(_polynomial(powers[:, :, : layer.kappa1], params[f"c{h}"], 2) * new[-1])
        if layer.kappa0:
            new.append(_polynomial(powers[:, :, : layer.kappa0], params[f"b{h}"], 1))
            new[-1] *= at[:, n : n + layer.kappa0]
        return new

    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        channels = self._channels(input_shape)
        sizes = [input_shape[:2], *self._exact().sizes(*input_shape[:2])]
        most = 0
        for h, (layer, wide, rows, made) in enumerate(self._widths(channels)):
            most = max(most, math.prod(sizes[h + layer.whole]) * (3 * wide + 3 * rows + 2 * made))
        return np.dtype(dtype).itemsize * (most + math.prod(sizes[0]) * (2 * input_shape[2] + 8))

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        size, kept, widest = np.dtype(dtype).itemsize, 0, 0
        channels = self._channels(input_shape)
        for _, wide, rows, _ in self._widths(channels):
            kept, widest = kept + rows * (wide + 1), max(widest, 3 * rows * wide + 9 * min(wide, ORTHOGONAL) ** 2)
        given = input_shape[2] if channels < input_shape[2] else 0
        return (8 + size) * (kept + given * channels) + 8 * max(widest, 9 * given**2) + 80 * self.n_components + 2**15

    def _widths(self, channels: int) -> Iterator[tuple[SketchLayer, int, int, int]]:
        """Yield each layer with the columns that it reads, the rows of its projections, and the columns it makes."""
        made = channels
        for layer in self._layers(channels):
            wide = made * (self.filter_size**2 if layer.whole else 1)
            rows = sum(layer.change) + layer.kappa0 + self.degree * layer.factors
            made = wide + sum(layer.change) + 1 + layer.kappa1 + layer.kappa0
            yield layer, wide, rows, made

    def _channels(self, input_shape: tuple[int, ...]) -> int:
        """Count the channels of the input, or of its random projection to an eighth of the columns if it has more."""
        return min(input_shape[2], self.n_components // 8)

    def _exact(self) -> CNTK:
        return CNTK(self.depth, self.filter_size, self.padding)

    def _layers(self, channels: int) -> list[SketchLayer]:
        """Allocate the columns: each layer has twice those of the one before, most of them products."""
        whole = self.filter_size**2 * channels <= self.n_components // 4
        free = self.n_components - channels * (self.filter_size**2 if whole else 1) - (self.depth - 1)
        ends = [free * (2**h - 1) // (2**self.depth - 1) for h in range(self.depth + 1)]
        layers = []
        for h, (start, stop) in enumerate(pairwise(ends)):
            n, last = stop - start, h == self.depth - 1
            change = 0 if h == 0 and whole else n // (6 if last else 5)
            quad = 0 if last or self.degree == 1 else (n - change if h == 0 else 2 * n // 5)
            change = n if h == 0 and self.degree == 1 else change
            both = (0, change) if last else (change, 0) if h < 2 else (change - change // 2, change // 2)
            layers.append(SketchLayer(h == 0 and whole, both, quad, n - change - quad if h else 0))
        return layers

    def _polynomials(self, h: int) -> tuple[F8, F8]:
        """Return b and c of a layer: cosines are in [−1, 1] at the first, in [0, 1] after a ReLU."""
        return polynomial(0, self.degree, 0.0), polynomial(1, self.degree, 0.0 if h else -1.0)

    def _vectors(self, h: int, role: int, n: int, d: int) -> F8:
        """Draw n vectors g with E ggᵀ = I, as rows."""
        if d > ORTHOGONAL:
            return random.normals((n, d), self.seed, h, role)
        return random.directions(d, n, self.seed, h, role).T * math.sqrt(d)

    def _places(self, h: int, role: int, n: int) -> NDArray[np.int64]:
        """Draw a pixel of the window for each of n planes: each pixel equally often, in random order."""
        order = np.argsort(random.uniforms(n, self.seed, h, role + PLACE), kind="stable")
        first = random.integers(self.filter_size**2, 1, self.seed, h, role + PLACE, 1)
        return (order + first) % self.filter_size**2


def _next(h: int, layer: SketchLayer, phi: F8, eta: F8, b: F8, c: F8, q: int) -> tuple[F8, F8]:
    """Compute the factors of the next X: [mean of the window | difference: in φ, in ψ | 1 | κ₁ | κ₀]."""
    deep = b[0] if h else 0.0  # ψ⁰ = 0, and ψ¹ is the window of φ¹
    (first, second), k, p = layer.change, layer.kappa1, layer.kappa0
    shared = deep + c[1] if h == 1 else c[1]
    phi, eta = (
        np.concatenate([mean, [one] * first, [other] * second, [math.sqrt(c[0])], np.ones(k), np.full(p, last)]) / q
        for mean, one, other, last in (
            (phi * math.sqrt(c[1]), math.sqrt(c[1]), 0.0, 0.0),
            (np.sqrt(deep * eta**2 + c[1] * phi**2), math.sqrt(shared), math.sqrt(deep), 1.0),
        )
    )
    return phi, eta


def _polynomial(powers: Planes, root: F8, lowest: int) -> Planes:
    """Evaluate Σ_j root_j t₁ ⋯ t_j over j ≥ ``lowest``, of planes t_j = powers[:, j − 1], by Horner's rule."""
    degree = powers.shape[1]
    out = powers[:, degree - 1] * root[degree]
    for j in range(degree - 1, 0, -1):
        if j >= lowest:
            out += root[j]
        out *= powers[:, j - 1]
    return out


# Windows of planes.


def whole(planes: Planes, q: int, padding: str) -> Planes:
    """Return all pixels of each window, (n, q²·columns, h, w)."""
    places = np.repeat(np.arange(q**2), planes.shape[1])
    return moved(np.tile(planes, (1, q**2, 1, 1)), places, q, padding)


def moved(planes: Planes, places: NDArray[np.int64], q: int, padding: str) -> Planes:
    """Shift each plane so that a pixel has the value at that plane's place in its window, counted row by row."""
    before, after = margins(q, padding)
    h, w = (size + before + after - q + 1 for size in planes.shape[2:])
    out = np.zeros((*planes.shape[:2], h, w), planes.dtype)
    for place in range(q**2):
        chosen = np.flatnonzero(places == place)
        y, from_y = overlap(planes.shape[2], h, place // q - before)
        x, from_x = overlap(planes.shape[3], w, place % q - before)
        out[:, chosen, y, x] = planes[:, chosen, from_y, from_x]
    return out


def window_sum(planes: Planes, q: int, padding: str, factor: float = 1.0) -> Planes:
    """Compute ``factor`` times the sum over the window of each pixel."""
    for axis in (2, 3):
        planes = shifted_sum(planes, (axis,), q, padding)
    if factor != 1:
        planes *= factor
    return planes


# Polynomials for κ₀ and κ₁.


@cache
def polynomial(order: int, degree: int, lowest: float) -> F8:
    """Fit coefficients ≥ 0 to κ₀ or κ₁ of cosines in [lowest, 1], from the constant up, at Chebyshev's nodes."""
    t = lowest + (1 - lowest) * (1 + np.cos((np.arange(CHEBYSHEV) + 0.5) * np.pi / CHEBYSHEV)) / 2
    c: F8 = nnls(t[:, None] ** np.arange(degree + 1), _kappa(order, t))[0]
    c.flags.writeable = False
    return c


def polynomial_error(order: int, degree: int, lowest: float) -> float:
    """Return the uniform error of `polynomial`, at 20,000 points."""
    t = np.cos(np.linspace(0, math.acos(lowest), 20_000))
    return float(np.abs(polyval(t, polynomial(order, degree, lowest)) - _kappa(order, t)).max())


def _kappa(order: int, t: F8) -> F8:
    theta = np.arccos(np.clip(t, -1, 1))
    return kappa0(theta) if order == 0 else 1 - one_minus_kappa1(theta)
