"""The exact kernel of a convolutional kernel network: layers of a kernel between patches and of Gaussian pooling.

Legend: y, z two images, i, i' pixels of them; Γ their inner products before a layer and after its pooling; Π likewise
for the tangent kernel; arrays of pairs of pixels are (pairs, h, w, h', w').
"""

from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.errors import DataError, SpecError
from ntkdist.kernels.base import F8, Kernel, angle_of, kappa0, one_minus_kappa1
from ntkdist.kernels.windows import check_images, diagonal_sum, gaussian_pooling, images, window_sum

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
        x = images(x, "PatchKernel")
        other = x if y is None else images(y, "PatchKernel")
        if x.shape[1:] != other.shape[1:]:
            raise DataError(f"PatchKernel compares images of one shape, got {x.shape[1:]} and {other.shape[1:]}")
        self.check_shape(x.shape[1:])
        norms = self._norms(x)
        others = norms if y is None else self._norms(other)
        out = np.empty((len(x), len(other)))
        i, j = np.triu_indices(len(x)) if y is None else np.indices(out.shape).reshape(2, -1)

        def block(part: slice) -> None:
            a, b = i[part], j[part]
            gamma = self._layers(x[a], other[b], [n[a] for n in norms], [n[b] for n in others])[-1]
            out[a, b] = np.einsum("pijij->p", gamma) / self.grid**2
            if y is None:
                out[b, a] = out[a, b]

        backend.parallel_for(block, _blocks(len(i), x.shape))
        return out

    def _norms(self, x: F8) -> list[F8]:
        """Compute N of each layer, (n, h, w) each, by each image's own recursion."""
        parts: list[list[F8]] = [[] for _ in range(self.depth)]
        for part in _blocks(len(x), x.shape):
            own = [window_sum(np.einsum("nijc,nijc->nij", x[part], x[part]), self.filter_size, "same")]
            for h in range(self.depth - 1):
                gamma = self._layers(x[part], x[part], own, own, "covariance")[h]
                own.append(window_sum(np.einsum("nijij->nij", gamma), self.filter_size, "same"))
            for layer, norm in zip(parts, own, strict=True):
                layer.append(norm)
        return [np.concatenate(layer) for layer in parts]

    def _layers(self, y: F8, z: F8, norms: list[F8], others: list[F8], what: str = "") -> list[F8]:
        """Compute Γ, or Π unless ``what`` is the covariance, after each layer of which N is given."""
        tangent = self.activation == "ntk" and what != "covariance"
        gamma = np.einsum("phwc,pijc->phwij", y, z, optimize=True)
        theta, made, pi = gamma, [], gamma
        poolings = self.poolings(*y.shape[1:3])
        for (rows, columns), own, other in zip(poolings, norms, others, strict=False):
            n = np.sqrt(own)[:, :, :, None, None] * np.sqrt(other)[:, None, None]
            gap = n - diagonal_sum(gamma, self.filter_size, "same")
            np.divide(gap, n, out=gap, where=n > 0)
            gap[gap < ROUNDINGS] = 0
            if self.activation == "exponential":
                k = n * np.exp(gap / -(self.lengthscale**2))
            else:
                theta = angle_of(gap)
                k = n * (1 - one_minus_kappa1(theta))
            if tangent:
                pi = kappa0(theta) * diagonal_sum(pi, self.filter_size, "same")
                pi = _pooled(pi + k, rows, columns)
            gamma = _pooled(k, rows, columns)
            made.append(pi if tangent else gamma)
        return made


def _pooled(k: F8, rows: F8, columns: F8) -> F8:
    """Compute A K Aᵀ."""
    return np.einsum("ah,bw,phwij,ci,dj->pabcd", rows, columns, k, rows, columns, optimize=True)


def _blocks(count: int, shape: tuple[int, ...]) -> list[slice]:
    """Split ``count`` pairs of images into blocks of `BLOCK_BYTES`."""
    size = max(1, BLOCK_BYTES // (8 * (shape[1] * shape[2]) ** 2))
    return [slice(k, k + size) for k in range(0, count, size)]
