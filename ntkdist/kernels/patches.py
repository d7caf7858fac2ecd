"""The exact kernel of a convolutional kernel network: layers of a kernel between patches and of Gaussian pooling.

Legend: y, z two images, i, i' pixels of them; Γ their inner products before a layer and after its pooling; Π likewise
for the tangent kernel; arrays of pairs of pixels are (pairs, h, w, h', w').
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ntkdist.errors import DataError, SpecError
from ntkdist.kernels.base import F8, Kernel, angle_of, kappa0, one_minus_kappa1
from ntkdist.kernels.windows import (
    blocks,
    check_images,
    diagonal_sum,
    gaussian_pooling,
    over_pairs,
    two_sets,
    window_sum,
)

Count = Annotated[int, Meta(ge=1)]
Activation = Literal["exponential", "nngp", "ntk"]
BLOCK_BYTES = 2**20  # of one array of pairs of pixels
ROUNDINGS = 64 * 2.0**-52  # 1 − cos θ below which two patches are parallel


class PatchKernel(Kernel, frozen=True):
    """The kernel of a convolutional kernel network (Mairal, NeurIPS 2016; Bietti, ICLR 2022), exactly.

    Every layer compares the q×q patches of two maps and pools:

        S = window sum of Γ,  N = S of a pixel with itself,  K = √(N N') κ(S/√(N N')),  Γ ← A K Aᵀ,

    A the pooling of both axes of an image by a Gaussian; before the first layer Γ is the pixels' inner product, and k
    is the mean of the last Γ of a cell with the same cell.  With "ntk", Π ← A (κ₀ (window sum of Π) + K) Aᵀ goes
    beside it, from the pixels' inner products on, and is what k is the mean of.

    Images are (n, h, w, channels), float64 throughout.  Work and memory as of `CNTK`.  An all-zero patch gives zero;
    homogeneous in each image.

    Parameters
    ----------
    pool : tuple of int
        Strides of the layers before the last, one for each: a map of h pixels is pooled to h // stride, from
        a Gaussian around each of them of stride/√2 pixels, cut off at a stride.  1: no pooling.
    filter_size : int
        q, zeros around.
    grid : int
        The last layer is pooled to grid × grid cells, likewise.
    activation : {"exponential", "nngp", "ntk"}
        κ of an angle: exp((cos − 1)/lengthscale²), the Gaussian kernel of unit patches; the arc-cosine kernel κ₁ of a
        ReLU layer, all of whose weights but the readout's are as drawn; or that layer's tangent kernel.
    lengthscale : float
        Of "exponential".
    """

    pool: tuple[Count, ...] = (2,)
    filter_size: Count = 3
    grid: Count = 3
    activation: Activation = "exponential"
    lengthscale: Annotated[float, Meta(gt=0)] = 0.6

    def validate(self) -> None:
        if len(self.pool) > 3:
            raise SpecError(f"PatchKernel.pool has {len(self.pool)} strides; expected at most 3, of 4 layers")

    @property
    def depth(self) -> int:
        return len(self.pool) + 1

    def check_shape(self, input_shape: tuple[int, ...], source: str = "X") -> None:
        check_images(input_shape, source, "PatchKernel")
        self.sizes(*input_shape[:2])

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Return height and width before each layer and at the end; raise `DataError` where no pixels are left."""
        made = [(height, width)]
        for stride in self.pool:
            made.append((made[-1][0] // stride, made[-1][1] // stride))
        if min(made[-1]) < self.grid:
            raise DataError(
                f"images of {height} x {width} pixels are too small for {self}: {made[-1][0]} x {made[-1][1]} are left "
                f"for {self.grid} x {self.grid} cells; use smaller strides or a smaller grid"
            )
        return [*made, (self.grid, self.grid)]

    def poolings(self, height: int, width: int) -> list[tuple[F8, F8]]:
        """Return each layer's pooling of the rows and of the columns of a map, (h', h) and (w', w)."""
        sizes = self.sizes(height, width)
        return [
            (gaussian_pooling(before[0], after[0]), gaussian_pooling(before[1], after[1]))
            for before, after in pairwise(sizes)
        ]

    def __call__(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        x, other = two_sets(x, y, "PatchKernel")
        self.check_shape(x.shape[1:])
        size = max(1, BLOCK_BYTES // (8 * (x.shape[1] * x.shape[2]) ** 2))
        norms = self._norms(x, size)
        others = norms if y is None else self._norms(other, size)

        def pairs(i: NDArray[np.intp], j: NDArray[np.intp]) -> F8:
            *_, (gamma, pi) = self._layers(x[i], other[j], [n[i] for n in norms], [n[j] for n in others])
            k: F8 = np.einsum("pijij->p", pi if self.activation == "ntk" else gamma) / self.grid**2
            return k

        return over_pairs(len(x), None if y is None else len(other), size, pairs)

    def _norms(self, x: F8, size: int) -> list[F8]:
        """Compute N of each layer, (n, h, w) each, by each image's own recursion, ``size`` of them at a time."""
        parts: list[list[F8]] = [[] for _ in range(self.depth)]
        for part in blocks(len(x), size):
            own: list[F8] = []
            before = self._layers(x[part], x[part], own, own)
            for layer, (gamma, _) in zip(parts, before, strict=False):  # not the end
                own.append(window_sum(np.einsum("nijij->nij", gamma), self.filter_size, "same"))
                layer.append(own[-1])
        return [np.concatenate(layer) for layer in parts]

    def _layers(self, y: F8, z: F8, norms: list[F8], others: list[F8]) -> Iterator[tuple[F8, F8]]:
        """Yield Γ and Π, which only "ntk" has, before each layer and at the end; N is read when its layer is made."""
        gamma = pi = np.einsum("phwc,pijc->phwij", y, z, optimize=True)
        for h, (rows, columns) in enumerate(self.poolings(*y.shape[1:3])):
            yield gamma, pi
            n = np.sqrt(norms[h])[:, :, :, None, None] * np.sqrt(others[h])[:, None, None]
            gap = n - diagonal_sum(gamma, self.filter_size, "same")
            np.divide(gap, n, out=gap, where=n > 0)
            gap[gap < ROUNDINGS] = 0
            if self.activation == "exponential":
                k = n * np.exp(gap / -(self.lengthscale**2))
            else:
                theta = angle_of(gap)
                k = n * (1 - one_minus_kappa1(theta))
                if self.activation == "ntk":
                    pi = _pooled(kappa0(theta) * diagonal_sum(pi, self.filter_size, "same") + k, rows, columns)
            gamma = _pooled(k, rows, columns)
        yield gamma, pi


def _pooled(k: F8, rows: F8, columns: F8) -> F8:
    """Compute A K Aᵀ."""
    return np.einsum("ah,bw,phwij,ci,dj->pabcd", rows, columns, k, rows, columns, optimize=True)
