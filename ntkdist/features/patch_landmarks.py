"""PatchLandmarks: convolutional Nyström features, layers of patches compared with landmarks drawn from the data.

Legend: u (pixels, d) unit patches as rows, r their lengths; Z (k, d) a layer's unit landmarks; K_ZZ + δI = LLᵀ.
"""

import functools
import math
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.errors import SpecError
from ntkdist.features import loops
from ntkdist.features.base import OF_IMAGES, Arrays, FeatureMap, FittedMap, Params
from ntkdist.features.cntk_layers import WHITENING_SIDE, principal, whitened, whitening_filter
from ntkdist.features.patch_layers import COLUMNS, WHITENED, PatchLayer, self_whitened
from ntkdist.kernels.patches import Activation, PatchKernel

F8 = NDArray[np.float64]
Count = Annotated[int, Meta(ge=1)]
SAMPLE_ROWS = 1024  # images that landmarks are chosen from
ZCA_ROWS, ZCA_SHARE = 256, 0.1  # images that the ZCA filter is fitted to, and what is added to its eigenvalues
PATCHES, PER_LANDMARK = 2**17, 4  # patches that landmarks are chosen from: at most, and of each landmark at least
PRODUCTS = 2**37  # of patches with landmarks, about, in a round of k-means: they bound its time
IMAGES = 4  # mapped at a time, at least: with fewer, reading the landmarks takes as long as multiplying by them


class PatchLandmarks(FeatureMap, frozen=True):
    """Nyström features of a convolutional kernel network, `PatchKernel`, layer by layer.

    Mairal, "End-to-end kernel learning with supervised convolutional kernel networks", NeurIPS 2016, section 3, without
    the supervision; the network's filters are landmarks Z, the centres of a spherical k-means on patches of up to 1,024
    images.  A layer takes every patch u (unit, of length r) to

        ψ(u) = A(r κ(u Zᵀ)) L⁻ᵀ,    K_ZZ + δI = L Lᵀ,  δ = 10⁻³,

    A the Gaussian pooling.  "ntk" has beside ψ the features of the tangent kernel κ₀(u·u')⟨v, v'⟩ + κ₁(u·u'), v the
    patch of the tangent features before, by the same method: a landmark stands for the mean v of its cluster too.  The
    features are those of the grid's cells, beside each other.  All is matrix products and one exponential or
    polynomial of every value; the cost is linear in the pixels.

    Promise: a function of the data and the seed, for any partitions and threads; its kernel tends to that of
    `PatchKernel` as the landmarks of all layers grow, down to δ; homogeneous; a row depends on its own image; a black
    image gives zero.  Landmarks that there are not enough patches for leave their columns zero.  Only landmarks and
    directions are stored: every process computes L again.

    Parameters
    ----------
    n_components : int
        Columns: the last layer has n_components // grid² landmarks; columns that are left over are zero.
    landmarks : tuple of int
        Landmarks of the layers before the last, of which there are none to three.
    compress : int
        Principal directions that are kept of each layer before the last, fitted to the sample: the next layer's work is
        in proportion.  0: all.
    whiten : {"image", "zca", "none"}
        Whiten each image first by its own patches (`patch_layers.self_whitened`), all by one filter fitted to the
        sample (as `CNTKRandomFeatures` does, with a share of 0.1), or not.
    flips : bool
        Average the features of the image and of its mirror image, at twice the work: the kernel is then the mean over
        both versions of each image.
    pool, filter_size, grid, activation, lengthscale
        As in `PatchKernel`; one stride for each of ``landmarks``.
    seed : int

    Examples
    --------
    >>> import ntkdist as nd
    >>> x = np.random.default_rng(0).random((64, 8, 8, 3))
    >>> features = nd.PatchLandmarks(144, landmarks=(32,), grid=2).fit(x)  # `ntkdist.fit` and the estimators do this
    >>> features(x).shape
    (64, 144)
    """

    no_gradient: ClassVar[tuple[str, str]] = OF_IMAGES
    landmarks: tuple[Count, ...] = (128,)
    compress: Annotated[int, Meta(ge=0)] = 64
    whiten: Literal["image", "zca", "none"] = "image"
    flips: bool = False
    pool: tuple[Count, ...] = (2,)
    filter_size: Count = 3
    grid: Count = 3
    activation: Activation = "exponential"
    lengthscale: Annotated[float, Meta(gt=0)] = 0.6
    seed: Annotated[int, Meta(ge=0)] = 0

    def validate(self) -> None:
        self._exact()
        if len(self.pool) != len(self.landmarks):
            raise SpecError(
                f"PatchLandmarks.pool has {len(self.pool)} strides for {len(self.landmarks)} layers before the last; "
                "give one for each of landmarks"
            )
        self._require_columns(self.grid**2, f", a landmark for each of the {self.grid**2} cells")

    @property
    def sample_rows(self) -> int:
        return SAMPLE_ROWS

    @property
    def rehearsal_rows(self) -> int:
        return SAMPLE_ROWS // 8

    @property
    def piece_rows(self) -> int:
        return IMAGES

    def check_shape(self, input_shape: tuple[int, ...], source: str = "X") -> None:
        self._exact().check_shape(input_shape, source)

    def kernel(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        """Compute `PatchKernel` of images, whitened unless a filter has to be fitted for it."""
        return self.kernel_fitted({}, x, y)

    def kernel_fitted(self, arrays: Arrays, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        versions = [None if images is None else self._versions(arrays, images) for images in (x, y)]
        assert versions[0] is not None
        k = self._exact()(versions[0], versions[1])
        count = 1 + self.flips
        mean: F8 = k.reshape(count, len(x), count, -1).mean((0, 2))
        return mean

    def _versions(self, arrays: Arrays, x: NDArray[Any]) -> F8:
        x = self._input(arrays, np.asarray(x, np.float64))
        return np.concatenate([x, x[:, :, ::-1]]) if self.flips else x

    def _exact(self) -> PatchKernel:
        return PatchKernel(self.pool, self.filter_size, self.grid, self.activation, self.lengthscale)

    def _layer(self) -> PatchLayer:
        return PatchLayer(self.filter_size, self.activation, self.lengthscale)

    def _counts(self) -> tuple[int, ...]:
        """Return the landmarks of each layer."""
        return (*self.landmarks, self.n_components // self.grid**2)

    # Fitting.

    def fit(self, sample: NDArray[Any]) -> FittedMap:
        """Choose the landmarks, and the directions that are kept, from the first 1,024 images, layer by layer."""
        x = np.asarray(sample[:SAMPLE_ROWS], np.float32)
        arrays: Arrays = {}
        with backend.one_thread():
            if self.whiten == "zca":
                arrays["whiten"] = whitening_filter(x[:ZCA_ROWS].astype(np.float64), ZCA_SHARE)
            maps = backend.parallel_for(lambda image: {"F": self._input(arrays, image[None])}, x)
            for h, (k, pooling) in enumerate(zip(self._counts(), self._poolings(x.shape[1:]), strict=True)):
                layer = self._layer().fit(maps, k, self._patches(maps, k), self.seed, h)
                arrays |= {f"{name}{h}": a for name, a in layer.items()}
                if h < len(self.landmarks):
                    w = self._weights(arrays, h, np.float32)
                    maps = backend.parallel_for(functools.partial(self._layer().apply, w, pooling), maps)
                    kept = self._directions(maps)
                    arrays |= {f"kept{name}{h}": a for name, a in kept.items()}
                    maps = [m | {name: m[name] @ a.astype(np.float32) for name, a in kept.items()} for m in maps]
        return FittedMap(self, arrays)

    def _patches(self, maps: list[Params], k: int) -> int:
        """Count the patches that k landmarks are chosen from."""
        channels = max(maps[0]["F"].shape[3], 1) if maps else 1
        return max(PER_LANDMARK * k, min(PATCHES, PRODUCTS // (k * channels * self.filter_size**2)))

    def _directions(self, maps: list[Params]) -> Arrays:
        """Compute the directions that are kept, by the name of a map."""
        return {
            name: principal([m[name] for m in maps], self.compress)
            for name in (maps[0] if maps else ())
            if 0 < self.compress < maps[0][name].shape[3]
        }

    # Applying.

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        raise SpecError("PatchLandmarks has to look at images first; use its fit(sample), or the model of nd.fit")

    def draw_fitted(self, input_shape: tuple[int, ...], arrays: Arrays) -> Params:
        self.check_shape(input_shape)
        params: Params = {f"layer{h}": self._weights(arrays, h, np.float64) for h in range(len(self._counts()))}
        return params | {name: arrays[name] for name in ("whiten",) if name in arrays}

    def _weights(self, arrays: Arrays, h: int, dtype: Any) -> Params:
        """Return what `PatchLayer.apply` needs for layer h."""
        with backend.one_thread():
            last = h == len(self.landmarks)  # of a tangent kernel, its covariance is not used
            w = self._layer().weights(arrays[f"landmarks{h}"], arrays.get(f"companions{h}"), last)
        for name in "FS":
            if f"kept{name}{h}" in arrays:
                w[f"mix{name}"] = w[f"mix{name}"] @ arrays[f"kept{name}{h}"]
        return {name: a.astype(dtype) for name, a in w.items()}

    def apply(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        x = self._input(params, x)
        out = np.zeros((len(x), self.n_components), x.dtype)
        versions = [x, x[:, :, ::-1]] if self.flips else [x]
        for image in versions:
            maps: Params = {"F": image}
            for h, pooling in enumerate(self._poolings(x.shape[1:])):
                maps = self._layer().apply(params[f"layer{h}"], pooling, maps)
            cells = maps["S" if self.activation == "ntk" else "F"]
            used = out[:, : math.prod(cells.shape[1:])]
            used += cells.reshape(used.shape)
        out /= self.grid * len(versions)
        return out

    def _input(self, arrays: Params, x: NDArray[Any]) -> NDArray[Any]:
        """Whiten images (n, h, w, channels), unless it takes a filter that is not there."""
        if self.whiten == "image":
            return self_whitened(x)
        return whitened(x, arrays["whiten"].astype(x.dtype, copy=False)) if "whiten" in arrays else x

    def _poolings(self, input_shape: tuple[int, ...]) -> list[tuple[F8, F8]]:
        return self._exact().poolings(*input_shape[:2])

    # Memory.

    def warm(self, dtype: Any) -> None:
        if self.activation != "exponential":
            one = np.ones((1, 1), dtype)
            loops.zonal(one, one, one, one[0], one[0])

    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        sizes, most = self._exact().sizes(*input_shape[:2]), 0
        pixels, given = math.prod(sizes[0]), math.prod(input_shape)
        if self.whiten != "none":
            patches = pixels * input_shape[2] * (WHITENED if self.whiten == "image" else WHITENING_SIDE) ** 2
            most = 3 * patches + 2 * given + 6 * patches // pixels * input_shape[2] * WHITENED**2
        tangent = 1 + (self.activation == "ntk")
        for (before, after), (d, k, p) in zip(pairwise(sizes), self._widths(input_shape[2]), strict=True):
            pixels, pooled = math.prod(before), math.prod(after)
            values = 2 * pixels * d + tangent * (2 * pixels * min(k, COLUMNS) + 2 * pooled * k + pooled * p)
            most = max(most, values + pixels * d)
        return np.dtype(dtype).itemsize * (most + 2 * given + 3 * self.n_components)

    def _widths(self, channels: int) -> list[tuple[int, int, int]]:
        """Return the numbers of values of a patch, of landmarks and of columns that are kept, of each layer."""
        widths = []
        for h, k in enumerate(self._counts()):
            p = min(k, self.compress or k) if h < len(self.landmarks) else k
            tangent = 1 + (self.activation == "ntk" and h > 0)
            widths.append((self.filter_size**2 * channels * tangent, k, p))
            channels = p
        return widths

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        size, kept, made = 8 + np.dtype(dtype).itemsize, 0, 0
        for d, k, p in self._widths(input_shape[2]):
            kept += k * (d + p)
            made = max(made, 8 * k * (5 * k + 2 * d))
        return size * kept + made + 2**18

    def learnt_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        return 8 * sum(k * d for d, k, _ in self._widths(input_shape[2]))
