"""NTKRandomFeatures: the tangent kernel of a deep ReLU network, layer by layer, from random directions.

Legend: u unit input rows; t = √d·u·(directions); φ features of the covariance Σ; ψ features of the
tangent kernel K; d their dimension; c = E|t|, so that c·const and the linear part are exact.

The recursion is that of the kernel, K ← K·κ₀(Σ) + κ₁(Σ), Σ ← κ₁(Σ), with features in place of kernels:
a sum of kernels is a concatenation, a product is a sketch of the tensor product.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ntkdist import gpu, random
from ntkdist.errors import SpecError
from ntkdist.features.base import OTHER_MAP, FeatureMap, Params, flat, normalised
from ntkdist.features.sketch import (
    draw_count_sketch,
    draw_srht,
    drawn_values,
    srht,
    srht_values,
    tensor_sketch,
    tensor_sketch_bytes,
)
from ntkdist.kernels import NTK, with_bias

STEP, RELU, LEFT, RIGHT, INPUT = range(5)  # roles of the random streams


class NTKRandomFeatures(FeatureMap, frozen=True):
    """Random features of `NTK` (Algorithm 2 of Zandieh et al., NeurIPS 2021), with less variance by default.

    The default takes the constant and linear parts of both arc-cosine functions exactly, and the rest from orthogonal
    directions by |t| − c (order 1) and sgn(t)⊙(Rψ) (order 0 times ψ).  Each layer has twice the columns of the one
    before.  Shared blocks of columns are merged: ψ = [1; u; |t|-blocks; sgn-blocks].  R consists of orthogonal
    directions in the first layer; where ψ is long, it is an SRHT, as it only has to preserve inner products.
    ``variant="paper"`` is the published form: step and ReLU features of Gaussian directions and a tensor
    sketch of 0.6·n_components columns for their product with ψ.

    Promise: depends on seed and shape only; unbiased at depth 1; at depth L > 1 the bias is O(1/n_components)
    and the error falls like n_components^-½; a zero row (with ``bias`` 0) has zero features.  No gradients:
    functions of the features are sums of steps, whose derivative almost everywhere lacks what the jumps contribute, so
    that it is not the gradient of the kernel's function.

    Parameters
    ----------
    n_components : int
        Columns.  The default variant uses 1 + d of them for the exact parts, d the input dimension; where that is more
        than half, it projects the linear part at random to a quarter of the columns.
    depth : int
        Hidden layers.
    leverage_scores : bool
        Draw the order-1 directions of the paper's variant by their leverage scores, density ∝ ‖w‖²N(w; 0, I)
        with features reweighted by 1/‖w‖.  Up to a constant both depend only on w/‖w‖, which is uniform on the sphere:
        the exact sampler is a normalised Gaussian, without Gibbs steps or data.  The default variant uses such
        directions already and refuses the flag.
    variant : {"default", "paper"}
    bias : float
        Constant column appended to every row before mapping.
    seed : int
    """

    no_gradient: ClassVar[tuple[str, str]] = ("its functions are sums of steps", OTHER_MAP)
    depth: Annotated[int, Meta(ge=1)] = 1
    leverage_scores: bool = False
    variant: Literal["default", "paper"] = "default"
    bias: float = 0.0
    seed: Annotated[int, Meta(ge=0)] = 0

    def validate(self) -> None:
        if self.leverage_scores and self.variant == "default":
            raise SpecError(
                'leverage_scores = true needs variant = "paper": the default variant already uses the unit directions '
                "that leverage scores lead to; leave it out"
            )
        self._require_columns(self._smallest(), f" at depth {self.depth}")

    def _smallest(self) -> int:
        return 4 if self.variant == "paper" else 2 ** (self.depth + 3)

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        d = int(np.prod(input_shape)) + (self.bias != 0)
        return self._draw_paper(d) if self.variant == "paper" else self._draw_default(d)

    def apply(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        u, length = normalised(with_bias(flat(x), self.bias))
        out = gpu.array_module(x).empty((len(x), self.n_components), x.dtype)
        (self._apply_paper if self.variant == "paper" else self._apply_default)(params, u, out)
        out *= length
        return out

    def runs_on_gpu(self, input_shape: tuple[int, ...]) -> bool:
        return self.variant == "default"

    def kernel(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> NDArray[np.float64]:
        return NTK(self.depth, self.bias)(x, y)

    def prefix(self, k: int, input_shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Select the columns of ``NTKRandomFeatures(k)``, at depth 1; see `FeatureMap.prefix`.

        Refused at other depths, whose layers mix all columns of those before, and for the paper's sketched products.
        """
        if self.depth > 1 or self.variant == "paper":
            return super().prefix(k, input_shape)
        d = int(np.prod(input_shape)) + (self.bias != 0)
        p, [(_, _, m1, ms)] = self._layers(d)
        fewer = msgspec.structs.replace(self, n_components=k) if self._smallest() <= k <= self.n_components else None
        q, [(_, _, n1, ns)] = fewer._layers(d) if fewer else (0, [(0, 0, 0, 0)])
        if not (0 < q <= p and (q < d or p == d) and 0 < n1 <= m1 and 0 < ns <= ms):
            raise self._too_few(k, 2 * (1 + d) if p == d else self._smallest())
        starts, widths, wholes = (0, p, p + 1, p + 1 + m1), (q, 1, n1, ns), (p, 1, m1, ms)
        columns = [np.arange(a, a + n) for a, n in zip(starts, widths, strict=True)]
        scale = [np.full(n, math.sqrt(w / n)) for n, w in zip(widths, wholes, strict=True)]
        return np.concatenate(columns), np.concatenate(scale)

    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        d, size = int(np.prod(input_shape)) + 1, np.dtype(dtype).itemsize
        if self.variant == "paper":
            m1, ms = self._paper_widths()
            return size * (3 * d + 6 * m1 + 2 * self.n_components) + tensor_sketch_bytes(m1, m1 + ms + d, ms, size)
        products = (srht_values(deep, ms) + deep for _, deep, _, ms in self._layers(d)[1][1:])
        return size * (4 * d + 2 * self.n_components + max(products, default=0))

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        d, size = int(np.prod(input_shape)) + (self.bias != 0), np.dtype(dtype).itemsize
        if self.variant == "paper":
            m1, ms = self._paper_widths()
            kept = 2 * m1 * (d + (self.depth - 1) * m1)
            widest = m1 * (d if self.depth == 1 else max(d, m1))
            return (8 + size) * kept + 32 * widest + 80 * self.depth * (m1 + ms + d)
        shapes = self._default_shapes(d)
        kept = sum(wide * columns for wide, columns in shapes)
        widest = max(wide * (3 * columns + 6 * wide) for wide, columns in shapes)
        products = [drawn_values(deep, ms) for _, deep, _, ms in self._layers(d)[1][1:]]
        return (8 + size) * kept + 8 * max([widest, *products]) + 24 * sum(products) + 40 * (d + self.n_components)

    def kept_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        if self.variant == "paper":
            return super().kept_bytes(input_shape, dtype)
        d, size = int(np.prod(input_shape)) + (self.bias != 0), np.dtype(dtype).itemsize
        products = sum(drawn_values(deep, ms) for _, deep, _, ms in self._layers(d)[1][1:])
        directions = sum(wide * columns for wide, columns in self._default_shapes(d))
        return size * directions + 24 * products + 40 * (d + self.n_components)

    # The default variant.

    def _layers(self, d: int) -> tuple[int, list[tuple[int, int, int, int]]]:
        """Return the columns of the linear part and, of each layer, lengths before it and columns that it adds.

        They are the lengths of φ and ψ, and the columns of |t| and of sgn: three of sgn for one of |t|.
        """
        p = d if 2 * (1 + d) <= self.n_components else self.n_components // 4
        rest, start, layers, wide, deep = self.n_components - 1 - p, 0, [], d, d
        for h in range(self.depth):
            end = rest * (2 ** (h + 1) - 1) // (2**self.depth - 1)
            m1 = (end - start) // 4
            ms = end - start - m1
            layers.append((wide, deep, m1, ms))
            start, wide, deep = end, wide + (h == 0) + m1, deep + (h == 0) + m1 + ms
        return p, layers

    def _default_shapes(self, d: int) -> list[tuple[int, int]]:
        """List the dimension and number of the directions of each array that is drawn."""
        p, layers = self._layers(d)
        shapes = [(d, p)] if p < d else []
        for wide, _, m1, ms in layers:
            shapes += [(wide, m1), (wide, ms)]
        return [*shapes, (d, layers[0][3])]

    def _draw_default(self, d: int) -> Params:
        p, layers = self._layers(d)
        params: Params = {"project": random.directions(d, p, self.seed, 0, INPUT) * math.sqrt(d / p)} if p < d else {}
        # Factors of the blocks [u | 1 | |t|-blocks | sgn-blocks] in φ (row 0) and in ψ (row 1).  The directions include
        # them, so that every block is computed once and never scaled again.
        u, one, r, s = np.ones((2, d)), np.zeros((2, 1)), np.empty((2, 0)), np.empty((2, 0))
        for h, (wide, deep, m1, ms) in enumerate(layers):
            phi = np.concatenate([u, one, r] if h else [u], axis=1)[0]
            psi = np.concatenate([u, one, r, s] if h else [u], axis=1)[1]
            relu = random.directions(wide, m1, self.seed, h, RELU) * math.sqrt(wide / (2 * m1))
            params[f"relu{h}"] = relu * phi[:, None]
            params[f"step{h}"] = random.directions(wide, ms, self.seed, h, STEP) * phi[:, None]
            if h == 0:
                params["right0"] = random.directions(deep, ms, self.seed, h, RIGHT) * math.sqrt(deep / (2 * ms))
            else:
                params[f"right{h}"] = draw_srht(deep, ms, self.seed, h, RIGHT, psi * math.sqrt(0.5))
            params[f"mean{h}"] = np.array(mean_abs(wide) / math.sqrt(2 * m1))
            # Σ ← c²/2 + Σ/2 + ⟨r, r⟩ and K ← K/2 + ⟨s, s⟩ + Σ
            one = _next(one, mean_abs(wide) * math.sqrt(0.5))
            u, r, s = _next(u), _next(r), _next(s)
            r = np.concatenate([r, np.ones((2, m1))], axis=1)
            s = np.concatenate([s, np.repeat([[0.0], [1.0]], ms, axis=1)], axis=1)
        params["factors"] = np.concatenate([u[:, :p], one, r, s], axis=1)[1]
        return params

    def _apply_default(self, params: Params, u: NDArray[Any], out: NDArray[Any]) -> None:
        d, xp = u.shape[1], gpu.array_module(u)
        p, layers = self._layers(d)
        first_s = p + 1 + sum(m1 for _, _, m1, _ in layers)
        end_r, end_s = p + 1, first_s
        out[:, :p] = u @ params["project"] if p < d else u
        out[:, p] = 1
        for h, (_, _, m1, ms) in enumerate(layers):
            # All of φ so far: the input itself (its projection is for the output only), then the blocks in ``out``.
            phi = [u, out[:, p:end_r]] if h else [u]
            r = _times(phi, params[f"relu{h}"], out[:, end_r : end_r + m1])
            xp.abs(r, out=r)
            r -= params[f"mean{h}"]
            s = out[:, end_s : end_s + ms]
            if h == 0:
                gpu.product(u, params["right0"], out=s)
            else:
                s[:] = srht(params[f"right{h}"], xp.concatenate([*phi, out[:, first_s:end_s]], axis=1))
            _flip(s, _times(phi, params[f"step{h}"]))
            end_r, end_s = end_r + m1, end_s + ms
        out *= params["factors"]

    # The paper's variant.

    def _paper_widths(self) -> tuple[int, int]:
        ms = int(0.6 * self.n_components)
        return self.n_components - ms, ms

    def _draw_paper(self, d: int) -> Params:
        m1, ms = self._paper_widths()
        params: Params = {}
        wide, deep = d, d
        for h in range(self.depth):
            relu = random.normals((wide, m1), self.seed, h, RELU)
            if self.leverage_scores:
                relu *= math.sqrt(wide) / np.linalg.norm(relu, axis=0)
            params[f"relu{h}"] = relu * math.sqrt(2 / m1)
            params[f"step{h}"] = random.normals((wide, m1), self.seed, h, STEP)
            params[f"left{h}"] = draw_count_sketch(m1, ms, self.seed, h, LEFT)
            params[f"right{h}"] = draw_count_sketch(deep, ms, self.seed, h, RIGHT)
            wide, deep = m1, m1 + ms
        return params

    def _apply_paper(self, params: Params, u: NDArray[Any], out: NDArray[Any]) -> None:
        m1, ms = self._paper_widths()
        phi = psi = u
        for h in range(self.depth):
            step = np.where(phi @ params[f"step{h}"] > 0, u.dtype.type(math.sqrt(2 / m1)), u.dtype.type(0))
            product = tensor_sketch(params[f"left{h}"], step, params[f"right{h}"], psi, ms)
            phi = np.maximum(phi @ params[f"relu{h}"], 0)
            psi = np.concatenate([phi, product], axis=1)
        out[:] = psi


def mean_abs(d: int) -> float:
    """Return E|√d·u·v| for u uniform on the unit sphere of R^d and any unit v; √(2/π) as d → ∞."""
    return math.sqrt(d / math.pi) * math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2))


def _next(factors: NDArray[Any], added: float = 0.0) -> NDArray[Any]:
    """Update the factors (2, columns) of a block in φ and ψ by one layer: squares halve, ψ gains the new φ's."""
    phi = np.hypot(factors[0] * math.sqrt(0.5), added)
    return np.stack([phi, np.hypot(factors[1] * math.sqrt(0.5), phi)])


def _flip(s: NDArray[Any], t: NDArray[Any]) -> None:
    """Compute s ⊙ sgn(t) in place, by the sign bits, many times faster than by `np.sign`; t is overwritten."""
    word = np.dtype(f"u{s.itemsize}")
    bits = t.view(word)
    bits &= word.type(1 << (8 * s.itemsize - 1))
    flipped = s.view(word)
    flipped ^= bits


def _times(blocks: list[NDArray[Any]], w: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Multiply the blocks, side by side, with w, without concatenating them."""
    at = blocks[0].shape[1]
    out = blocks[0] @ w[:at] if out is None else gpu.product(blocks[0], w[:at], out)
    for block in blocks[1:]:
        out += block @ w[at : at + block.shape[1]]
        at += block.shape[1]
    return out
