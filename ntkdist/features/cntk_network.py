"""The network of a convolutional random-feature map: its layers one after the other, on images that are whitened.

Legend: F features of a pixel for the covariance; [S, F] its features for the tangent kernel; u and v the windows of F
and of [S, F] around a pixel, as rows.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend, gpu
from ntkdist.features.base import Arrays, Params
from ntkdist.features.cntk_layers import Average, Layer, averaging, beside, flat_pixels, pooling, principal, windows
from ntkdist.kernels.cntk import CNTK

F8 = NDArray[np.float64]
LINEAR = ("linear", "tangent")  # names of the projections of the linear parts of F and of S, drawn or fitted


class Network(NamedTuple):
    """The sizes of a network, and its forward pass."""

    exact: CNTK  # the kernel whose layers it has
    columns: int  # of the features that it ends in
    width: int  # as in `CNTKRandomFeatures`
    compress: int  # likewise
    channels: int  # of the images

    def layers(self) -> list[Layer]:
        exact, cell, layers = self.exact, self.columns // self.exact.grid**2, []
        hidden = self.width or min(max(8, cell // 4), 256)
        f, s, q2 = self.channels, 0, exact.filter_size**2
        for h in range(exact.depth):
            d = q2 * f
            dv = q2 * s + (d if h or exact.ends else 0) if exact.tangent else 0
            if h < exact.depth - 1:
                made, made_s = hidden, hidden if dv else 0
            else:
                made_s = 0 if not exact.tangent else cell // 2 if exact.ends else cell
                made = cell - made_s
            layers.append(Layer(d, dv, made, made_s, self.compress if h == exact.depth - 1 else 0))
            f, s = (min(n, self.compress or n) for n in (made, made_s))
        return layers

    def values(self, height: int, width: int) -> int:
        """Count the numbers that exist at the peak of the forward pass, for one image."""
        exact, sizes, q = self.exact, self.exact.sizes(height, width), self.exact.filter_size
        most, maps = 0, height * width * self.channels  # F and S before the layer
        for h, (layer, before, after) in enumerate(
            zip(self.layers(), sizes[:-1], [*sizes[1:-1], (exact.grid, exact.grid)], strict=True)
        ):
            of_s = layer.dv - (layer.d if h or exact.ends else 0) if layer.dv else 0  # columns of v beyond those of u
            padded = math.prod(n + q for n in before) * max(layer.d, of_s) // q**2
            pixels, pooled = math.prod(before), math.prod(after)
            seen = maps + pixels * (layer.d + of_s)
            most = max(most, seen + padded, seen + layer.values(pixels, pooled))
            maps = pooled * (layer.made + layer.made_s)
        return most

    def apply(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        """Compute the features (n, columns) of images."""
        exact, maps, xp = self.exact, {"F": x}, gpu.array_module(x)
        for h, layer in enumerate(self.layers()):
            maps = self.forward(params, h, layer, maps)
            maps = {name: m @ params[f"{name}{h}"] if f"{name}{h}" in params else m for name, m in maps.items()}
        out = xp.zeros((len(x), self.columns), x.dtype)
        cells = xp.concatenate(list(maps.values()), axis=3)[:, 0]
        used = out[:, : cells.shape[1] * cells.shape[2]]
        xp.multiply(cells.reshape(used.shape), 1 / (exact.filter_size**exact.depth * exact.grid), out=used)
        return out

    def forward(self, params: Params, h: int, layer: Layer, maps: Params) -> Params:
        """Compute F and S of the next layer, pooled, or averaged over the cells if it is the last."""
        u, v, average = self._windows(h, maps)
        w = params[f"layer{h}"] | {part: params[f"{part}{h}"] for part in LINEAR if f"{part}{h}" in params}
        made = {}
        if layer.made:
            made["F"] = layer.covariance(w, u, average)
        if layer.made_s:
            made["S"] = layer.tangent(w, u, v, average)
        return made

    def _windows(self, h: int, maps: Params) -> tuple[NDArray[Any], list[NDArray[Any]], Average]:
        """Return the windows u and v of a layer, and the function that averages over them."""
        exact = self.exact
        u, *rest = (windows(m, exact.filter_size, exact.padding) for m in maps.values())
        shape = u.shape[:3]
        factor = exact.pool[h] if exact.pool else 1
        average = averaging(shape, factor, exact.grid) if h == exact.depth - 1 else pooling(shape, factor)
        u, v = flat_pixels(u), [flat_pixels(s) for s in rest]
        return u, [*v, u] if h or exact.ends else v, average

    def directions(self, params: Params, images: F8) -> Arrays:
        """Compute the principal directions of each layer's features in the pixels of sample images."""
        arrays: Arrays = {}
        maps = [{"F": image[None]} for image in images]
        *layers, last = self.layers()
        for h, layer in enumerate(layers):
            maps = backend.parallel_for(functools.partial(self.forward, params, h, layer), maps)
            for name in [name for name in maps[0] if maps[0][name].shape[3] > self.compress]:
                arrays[f"{name}{h}"] = principal([each[name] for each in maps], self.compress)
                maps = [each | {name: each[name] @ arrays[f"{name}{h}"]} for each in maps]
        return arrays | self._linear(last, maps)

    def _linear(self, last: Layer, maps: list[Params]) -> Arrays:
        """Compute principal directions of the cells' mean windows, for the linear parts of the last layer."""
        h = self.exact.depth - 1
        means: dict[str, list[NDArray[Any]]] = {part: [] for part in LINEAR}
        for each in maps:
            u, v, average = self._windows(h, each)
            means["linear"].append(average(u))
            means["tangent"].append(beside(v, average) if v else means["linear"][-1])
        narrowed = {"linear": (last.made, last.p, last.d), "tangent": (last.made_s, last.ps, last.dv)}
        return {
            f"{name}{h}": principal(means[name], p) * math.sqrt(0.5)
            for name, (made, p, d) in narrowed.items()
            if made and p < d
        }
