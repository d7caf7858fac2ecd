"""CNTKRandomFeatures: the convolutional tangent kernel, layer by layer, from random filters.

Legend: F features of a pixel for the covariance Γ; [S, F] its features for the tangent kernel Π; u and v the windows
of F and of [S, F] around a pixel, as rows of dimension d; r = ‖u‖; q the filter size; c = E|√d û·w| for a random
direction w.

The recursion is that of the kernel, Π ← κ₀·(window sum of Π) + Γ, with features in place of kernels: a window sum is
the window itself, a sum is a concatenation, and multiplying by κ₀ is flipping signs at random.
"""

import functools
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ntkdist import backend, gpu
from ntkdist.errors import SpecError
from ntkdist.features.base import PIECE_BYTES, Arrays, FeatureMap, FittedMap, Params
from ntkdist.features.cntk_layers import (
    WHITENING_SIDE,
    Average,
    Layer,
    averaging,
    beside,
    flat_pixels,
    pooling,
    principal,
    whitened,
    whitening_filter,
    windows,
)
from ntkdist.features.projection import span
from ntkdist.kernels.cntk import CNTK

F8 = NDArray[np.float64]
LINEAR = ("linear", "tangent")  # what is drawn, or learnt, for the linear parts of F and of S
SAMPLE_ROWS = 256  # images that whitening and compression are learnt from: some 10⁵ windows
IMAGES = 4  # drawn at a time, at least: with fewer, reading the filters takes as long as multiplying by them
ROWS = 256  # that are projected at a time: fewer, and reading the projection takes longer than multiplying by it


class CNTKRandomFeatures(FeatureMap, frozen=True):
    """Random features of `CNTK`: a network of random filters whose pooled outputs have that kernel.

    Each layer takes windows u of F and v of [S, F] to

        F ← 1/q [c r/√2; u/√2; (|√d u·w| − c r)/√(2m)],     S ← 1/q [v/√2; sgn(u·w)⊙√d (v·w')/√(2m)],

    that is κ₁ and κ₀ with their constant and linear parts exact and the rest from orthogonal directions; where u or v
    is too wide for its half of the columns, it is projected.  The cells of the last layer's map are averaged: the cost
    is linear in the pixels.  Zandieh et al., NeurIPS 2021, section 4, with random features in place of sketches.

    Promise: depends on seed and shape only (and on the sample, where it is fitted); the bias is O(1/width) and the
    error falls like n_components^-½ with ``width`` in proportion; homogeneous; an all-zero window gives zero.

    Parameters
    ----------
    n_components : int
        Columns: n_components // grid² for each cell of the grid, the rest of them zero.
    depth, filter_size, padding, ends, pool, grid
        As in `CNTK`.  depth = 1 needs ``ends``.
    tangent : bool
        False: the covariance alone, Γ of the last layer, which is the kernel of the same network when only its readout
        is trained (NNGP): half the work.  It needs no ``ends``.
    flips : bool
        Average the features of the image and of its mirror image, at twice the work: the kernel is then the mean over
        both of either image.
    width : int
        Columns of F, and as many of S, between layers; 0: a quarter of the columns of a cell, at most 256.
    whiten : float
        Whiten the image first (ZCA), by one filter of 7 x 7 pixels learnt from the covariance of such windows, to
        whose eigenvalues this share of their mean is added; 0: do not.
    oversample : int
        Columns drawn for each one kept.  From 2 on, what is drawn is projected to the span of the features of
        n_components images of the data, by the method of Nyström, so that a Gram of n_components² holds more of them.
        Worth it where the Gram costs more than drawing, and where the data has far more rows than columns; takes
        8 · oversample bytes times n_components² to learn, and half of that in every process.
    compress : int
        Principal directions of F, and as many of S, kept between layers, learnt from a sample; 0: keep all.  The last
        layer's linear parts keep as many of the cells' mean windows, whose pixels are nearly those of one pixel.
    seed : int
    """

    depth: Annotated[int, Meta(ge=1)] = 3
    filter_size: Annotated[int, Meta(ge=1)] = 3
    padding: Literal["same", "valid"] = "same"
    ends: bool = False
    pool: tuple[Annotated[int, Meta(ge=1)], ...] = ()
    grid: Annotated[int, Meta(ge=1)] = 1
    tangent: bool = True
    flips: bool = False
    width: Annotated[int, Meta(ge=0)] = 0
    whiten: Annotated[float, Meta(ge=0)] = 0.0
    compress: Annotated[int, Meta(ge=0)] = 0
    oversample: Annotated[int, Meta(ge=1, le=8)] = 1
    seed: Annotated[int, Meta(ge=0)] = 0

    def validate(self) -> None:
        self._exact()
        if 0 < self.width < 8:
            raise SpecError(f"CNTKRandomFeatures.width is {self.width}; expected at least 8, or 0 for the default")
        if self.n_components < 8 * self.grid**2:
            raise SpecError(
                f"CNTKRandomFeatures.n_components is {self.n_components}; expected at least {8 * self.grid**2}, "
                f"8 for each of the {self.grid**2} cells"
            )

    @property
    def sample_rows(self) -> int:
        return max(SAMPLE_ROWS * bool(self.whiten or self.compress), self.n_components * (self.oversample > 1))

    @property
    def rehearsal_rows(self) -> int:
        return min(self.sample_rows, SAMPLE_ROWS)

    @property
    def piece_rows(self) -> int:
        return ROWS if self.oversample > 1 else IMAGES

    @property
    def drawn(self) -> int:
        """Columns before the projection."""
        return self.n_components * self.oversample

    def kernel(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        """`CNTK` of images as they are: a map that whitens has this kernel of the whitened images."""
        exact = self._exact()
        if not self.flips:
            return exact(x, y)
        both = exact(_mirrored(x), None if y is None else _mirrored(y))
        return both.reshape(2, len(both) // 2, 2, -1).mean((0, 2))

    def kernel_fitted(self, arrays: Arrays, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        if "whiten" in arrays:
            x = whitened(np.asarray(x, np.float64), arrays["whiten"])
            y = y if y is None else whitened(np.asarray(y, np.float64), arrays["whiten"])
        return self.kernel(x, y)

    def _exact(self) -> CNTK:
        return CNTK(self.depth, self.filter_size, self.padding, self.ends, self.pool, self.grid, self.tangent)

    # Shapes.

    def check_shape(self, input_shape: tuple[int, ...], source: str = "X") -> None:
        self._exact().check_shape(input_shape, source)

    def _layers(self, channels: int) -> list[Layer]:
        """The sizes of each layer: a function of the spec and of the channels of an image."""
        cell, found = self.drawn // self.grid**2, []
        hidden = self.width or min(max(8, cell // 4), 256)
        f, s, q2 = channels, 0, self.filter_size**2
        for h in range(self.depth):
            d = q2 * f
            dv = q2 * s + (d if h or self.ends else 0) if self.tangent else 0
            if h < self.depth - 1:
                made, made_s = hidden, hidden if dv else 0
            else:
                made_s = 0 if not self.tangent else cell // 2 if self.ends else cell
                made = cell - made_s
            found.append(Layer(d, dv, made, made_s, self.compress if h == self.depth - 1 else 0))
            f, s = (min(n, self.compress or n) for n in (made, made_s))
        return found

    def _maps(self, input_shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Height and width of the maps that the windows are taken from, and of the last layer's."""
        return self._exact().sizes(*input_shape[:2])

    def _wide(self) -> "CNTKRandomFeatures":
        """The map before the projection."""
        return msgspec.structs.replace(self, n_components=self.drawn, oversample=1)

    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        drawn, size = self._drawn_row_bytes(input_shape, dtype), np.dtype(dtype).itemsize
        if self.oversample == 1:
            return drawn
        few = min(_few(drawn), ROWS)  # whose features wait beside those of all
        return size * (2 * self.drawn + self.n_components) + -(-few * drawn // ROWS)

    def gpu_row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        return super(CNTKRandomFeatures, self._wide()).gpu_row_bytes(input_shape, dtype)

    def _drawn_row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        size, (height, width, channels) = np.dtype(dtype).itemsize, input_shape
        layers, sizes, q = self._layers(channels), self._maps(input_shape), self.filter_size
        given, most = height * width * channels, 0
        if self.whiten:
            most = height * width * WHITENING_SIDE**2 * channels + 3 * given
        maps = given  # F and S, as the layer finds them
        for h, (layer, before, after) in enumerate(
            zip(layers, sizes[:-1], [*sizes[1:-1], (self.grid, self.grid)], strict=True)
        ):
            of_s = layer.dv - (layer.d if h or self.ends else 0) if layer.dv else 0  # columns of v beyond those of u
            padded = math.prod(n + q for n in before) * max(layer.d, of_s) // q**2
            pixels, pooled = math.prod(before), math.prod(after)
            seen = maps + pixels * (layer.d + of_s)
            most = max(most, seen + padded, seen + layer.values(pixels, pooled))
            maps = pooled * (layer.made + layer.made_s)
        return size * (most + 3 * self.drawn + (given if self.whiten else 0))

    def runs_on_gpu(self, input_shape: tuple[int, ...]) -> bool:
        return True

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        shapes = [shape for layer in self._layers(input_shape[2]) for shape in layer.shapes().values()]
        kept = sum(d * k for _, d, k in shapes)
        # Directions are made in blocks of d, each by a factorisation of d² normals; then all are cast.
        made = max(max(d * k, 3 * d * d, d * d + 8 * d * min(d, k)) for _, d, k in shapes)
        return max((8 + np.dtype(dtype).itemsize) * kept, 8 * (kept + made)) + 2**18

    def learnt_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        single = np.dtype(dtype) == np.float32  # else it is kept in both
        return (4 if single else 12) * self.drawn * self.n_components * (self.oversample > 1)

    # Drawing and fitting.

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        self.check_shape(input_shape)
        return {f"layer{h}": layer.draw(h, self.seed) for h, layer in enumerate(self._layers(input_shape[2]))}

    def fit(self, sample: NDArray[Any]) -> FittedMap:
        """Filter and compression learnt from the first 256 images, the projection from the first n_components."""
        if not self.sample_rows:
            return super().fit(sample)
        arrays: Arrays = {}
        if self.whiten or self.compress:
            with backend.one_thread():
                arrays = self._filters(np.asarray(sample[:SAMPLE_ROWS], np.float64))
        if self.oversample > 1:
            psi = FittedMap(self._wide(), arrays)(np.asarray(sample[: self.n_components], np.float32))
            arrays = arrays | {"span": span(psi, self.n_components)}
        return FittedMap(self, arrays)

    def _filters(self, sample: F8) -> Arrays:
        """The whitening filter, then the principal directions of each layer's features in the pixels of the sample."""
        params: Params = self.draw(sample.shape[1:])
        arrays: Arrays = {}
        if self.whiten:
            arrays["whiten"] = whitening_filter(_mirrored(sample) if self.flips else sample, self.whiten)
            sample = whitened(sample, arrays["whiten"])
        if self.compress:
            maps = [{"F": image[None]} for image in sample]
            *layers, last = self._layers(sample.shape[3])
            for h, layer in enumerate(layers):
                maps = _of_each(maps, functools.partial(self._layer, params, h, layer))
                for name in [name for name in maps[0] if maps[0][name].shape[3] > self.compress]:
                    arrays[f"{name}{h}"] = principal([each[name] for each in maps], self.compress)
                    maps = [each | {name: each[name] @ arrays[f"{name}{h}"]} for each in maps]
            arrays |= self._linear(last, maps)
        return arrays

    def _linear(self, last: Layer, maps: list[Params]) -> Arrays:
        """Principal directions of the cells' mean windows, for the linear parts of the last layer."""
        means: dict[str, list[NDArray[Any]]] = {part: [] for part in LINEAR}
        for each in maps:
            u, v, average = self._seen(self.depth - 1, each)
            means["linear"].append(average(u))
            means["tangent"].append(beside(v, average) if v else means["linear"][-1])
        narrowed = {"linear": (last.made, last.p, last.d), "tangent": (last.made_s, last.ps, last.dv)}
        return {
            f"{name}{self.depth - 1}": principal(means[name], p) * math.sqrt(0.5)
            for name, (made, p, d) in narrowed.items()
            if made and p < d
        }

    # Applying.

    def apply(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        if "span" not in params:
            return self._drawn(params, x)
        xp, few = gpu.array_module(x), len(x) or 1
        if xp is np:
            few = _few(self._drawn_row_bytes(x.shape[1:], x.dtype))
        drawn = [self._drawn(params, x[start : start + few]) for start in range(0, len(x) or 1, few)]
        return xp.concatenate(drawn) @ params["span"]

    def _drawn(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        """φ before the projection."""
        if "whiten" in params:
            x = whitened(x, params["whiten"])
        out = self._features(params, x)
        if self.flips:
            out += self._features(params, x[:, :, ::-1])
            out /= 2
        return out

    def _features(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        """φ of images that are whitened already, as they are."""
        maps, xp = {"F": x}, gpu.array_module(x)
        for h, layer in enumerate(self._layers(x.shape[3])):
            maps = self._layer(params, h, layer, maps)
            maps = {name: m @ params[f"{name}{h}"] if f"{name}{h}" in params else m for name, m in maps.items()}
        out = xp.zeros((len(x), self.drawn), x.dtype)
        cells = xp.concatenate(list(maps.values()), axis=3)[:, 0]
        used = out[:, : cells.shape[1] * cells.shape[2]]
        xp.multiply(cells.reshape(used.shape), 1 / (self.filter_size**self.depth * self.grid), out=used)
        return out

    def _layer(self, params: Params, h: int, layer: Layer, maps: Params) -> Params:
        """F and S of the next layer, pooled, or averaged over the cells if it is the last."""
        u, v, average = self._seen(h, maps)
        w = params[f"layer{h}"] | {part: params[f"{part}{h}"] for part in LINEAR if f"{part}{h}" in params}
        made = {}
        if layer.made:
            made["F"] = layer.covariance(w, u, average)
        if layer.made_s:
            made["S"] = layer.tangent(w, u, v, average)
        return made

    def _seen(self, h: int, maps: Params) -> tuple[NDArray[Any], list[NDArray[Any]], Average]:
        """The windows u and v of a layer, and what averages over them."""
        u, *rest = (windows(m, self.filter_size, self.padding) for m in maps.values())
        shape = u.shape[:3]
        factor = self.pool[h] if self.pool else 1
        average = averaging(shape, factor, self.grid) if h == self.depth - 1 else pooling(shape, factor)
        u, v = flat_pixels(u), [flat_pixels(s) for s in rest]
        return u, [*v, u] if h or self.ends else v, average


def _mirrored(x: NDArray[Any]) -> NDArray[Any]:
    """Images and, after them, their mirror images."""
    return np.concatenate([x, np.asarray(x)[:, :, ::-1]])


def _few(row_bytes: int) -> int:
    """Images that are drawn at a time."""
    return max(IMAGES, PIECE_BYTES // row_bytes)


def _of_each(maps: list[Params], call: Callable[[Params], Params]) -> list[Params]:
    """Of every image, on all threads."""
    made: list[Params] = [{}] * len(maps)

    def put(at: int) -> None:
        made[at] = call(maps[at])

    backend.parallel_for(put, range(len(maps)))
    return made
