"""The exact convolutional tangent kernel with global average pooling, of pairs of images.

Legend: y, z images of a pair; i a pixel of y and i' one of z; S the covariance of two pixels before a ReLU, N = S of a
pixel with itself, θ the angle, cos θ = S/n with n = √(N N'); M and Γ the same after the ReLU (and its pooling), both
times q²; Π the tangent kernel of two pixels.

Each layer passes on the defect E = √(M M') − Γ ≥ 0 of the covariance only, so that no angle is computed from a cosine:
with â and b̂ the unit vectors of √M and √M' over the two windows, 1 − cos θ = (1 − â·b̂) + (sum of E over the window)/n,
whose first term, where it is small, is computed as half the square of a difference.
"""

from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.errors import DataError, SpecError
from ntkdist.kernels import cntk_loops
from ntkdist.kernels.base import F8, Depth, Kernel
from ntkdist.kernels.windows import blocks, cells, check_images, margins, over_pairs, two_sets, window_sum

Count = Annotated[int, Meta(ge=1)]
PIXEL_PAIRS = 2**22  # of the pairs of images that a thread takes at a time, some hundredths of a second of work


class CNTK(Kernel, frozen=True):
    """The neural tangent kernel of a convolutional ReLU network with global average pooling, of infinite width.

    The network is z¹ = W¹ * y, a^h = √(2/(q²·width)) relu(z^h), z^{h+1} = W^{h+1} * a^h, f = mean over pixels of v·a^L,
    all weights N(0, 1), q×q filters.  As in Arora et al., "On exact computation with an infinitely wide neural net",
    NeurIPS 2019, section 4, and Zandieh et al., NeurIPS 2021, only W² … W^L are trained:

        S^h = window sum of Γ^{h−1},  Γ^h = (n/q²) κ₁(cos θ),  Γ⁰ = ⟨y_i, z_i'⟩,
        Π^h = window sum of Π^{h−1} κ₀(cos θ)/q² + Γ^h,  Π⁰ = 0,  k = mean over i, i' of Π^{L−1} κ₀/q².

    Images are (n, h, w, channels), float64 throughout.  Work: (h·w)² per pair of images and layer, 3 to 5 ns on a core
    of 2023; of ``kernel(x)``, each pair once.  Memory of a thread: 48 h·w² bytes, and 48 (h·w)² with h and w after the
    first pooling before the last layer; of all, 24 bytes per image, pixel and layer.  An all-zero patch gives zero, and
    the kernel is homogeneous in each image.  The loops are compiled at first use, in some seconds.

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
        x, other = two_sets(x, y, "CNTK")
        layers = self._layers(x.shape[1], x.shape[2])
        rows, columns = (self._weights(size) for size in self.sizes(*x.shape[1:3])[-2])
        of_x = self._of_images(x, layers)
        of_y = of_x if y is None else self._of_images(other, layers)
        given, others = np.ascontiguousarray(x), _columns_last(other)

        def pairs(i: NDArray[np.intp], j: NDArray[np.intp]) -> F8:
            k = np.empty(len(i))
            cntk_loops.run(i, j, given, others, of_x, of_y, layers, rows, columns, cntk_loops.memory(layers), k)
            return k

        return over_pairs(len(x), None if y is None else len(other), _at_once(x.shape), pairs)

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

    def _layers(self, height: int, width: int) -> cntk_loops.Layers:
        """Return the network for images of this size."""
        after, factors = self.sizes(height, width)[:-1], self._factors()
        pooled = [(h // f, w // f) for (h, w), f in zip(after, factors, strict=True)]
        around = margins(self.filter_size, self.padding)
        sizes = np.array([[(height, width), *pooled[:-1]], after]).swapaxes(0, 1)
        return cntk_loops.Layers(
            self.filter_size, around[0], sum(around), self.ends, self.tangent, sizes.copy(), np.array(factors)
        )

    def _weights(self, size: int) -> F8:
        """Compute the weights of pairs of rows, or of columns, in k: of each cell, of the pixels that are pooled."""
        factor, weights = self._factors()[-1], np.zeros((size, size))
        for rows, _ in cells(size // factor, self.grid, self.grid)[:: self.grid]:
            inside = slice(rows.start * factor, rows.stop * factor)
            weights[inside, inside] = 1 / (self.grid * (inside.stop - inside.start) ** 2)
        return weights

    def _of_images(self, x: F8, layers: cntk_loops.Layers) -> F8:
        """Compute what `cntk_loops` reads of each image and layer, (n, depth, 3, h, w), of the largest h and w.

        Columns of zeros follow, as many as the margins are wide.
        """
        q, sizes = self.filter_size, layers.sizes
        tall, wide = sizes[0].max(0)
        made = np.zeros((len(x), self.depth, 3, tall, wide + layers.margin))
        norms = q**2 * np.einsum("nijc,nijc->nij", x, x)  # M
        for h in range(self.depth):
            (height, width), (tall, wide) = sizes[h]
            summed = window_sum(norms, q, self.padding)
            length = np.sqrt(summed) / q
            window = length if h == 0 else np.sqrt(summed)
            made[:, h, cntk_loops.ROOT, :height, :width] = np.sqrt(norms)
            made[:, h, cntk_loops.LENGTH, :tall, :wide] = length
            inverse = made[:, h, cntk_loops.INVERSE, :tall, :wide]
            np.divide(1, window, out=inverse, where=window > 0)
            if layers.factors[h] == 1 or h == self.depth - 1:
                norms = summed / q**2
            else:
                norms = self._pooled_norms(x, made, layers, h)
        return made

    def _pooled_norms(self, x: F8, of_x: F8, layers: cntk_loops.Layers, h: int) -> F8:
        """Compute M after a layer that pools, by the recursion of each image with itself."""
        norms, others, none = np.empty((len(x), *layers.sizes[h + 1, 0])), _columns_last(x), np.zeros((0, 0))

        def block(part: slice) -> None:
            few = np.ascontiguousarray(x[part])
            memory = cntk_loops.memory(layers)
            cntk_loops.pooled_norms(few, others[part], of_x[part], layers, none, h, memory, norms[part])

        backend.parallel_for(block, blocks(len(x), _at_once(x.shape)))
        return norms


def _columns_last(x: F8) -> F8:
    """Return images as (n, h, channels, w)."""
    return np.ascontiguousarray(x.swapaxes(2, 3))


def _at_once(shape: tuple[int, ...]) -> int:
    """Return the number of pairs of images that have `PIXEL_PAIRS`."""
    return max(1, PIXEL_PAIRS // (shape[1] * shape[2]) ** 2)
