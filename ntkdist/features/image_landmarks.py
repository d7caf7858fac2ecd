"""ImageLandmarks: a kernel between the features of images, through its values at the features of some of them."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ntkdist.errors import SpecError
from ntkdist.features.base import OF_IMAGES, PIECE_BYTES, Arrays, FeatureMap, FittedMap, Params
from ntkdist.features.cntk_random_features import CNTKRandomFeatures
from ntkdist.features.nystrom import Nystrom
from ntkdist.features.patch_landmarks import PatchLandmarks
from ntkdist.kernels import Gaussian, RowKernel

F8 = NDArray[np.float64]
PREFIX = "images "  # of the names of the arrays of φ


class ImageLandmarks(FeatureMap, frozen=True):
    """The map of Nyström for a kernel of image features: one more layer, whose patch is the whole image.

    A ridge on it fits functions k(φ(x), φ(z)) of the images x, φ a convolutional map: the kernel adds what functions
    linear in φ(x) cannot do, at the cost of a product with the features of the landmarks, which are images.

    Promise: those of φ and of `Nystrom` together.  The landmarks' features are stored, and every process computes the
    factor of their kernel.

    Parameters
    ----------
    n_components : int
        Columns, and landmarks at most.
    images : PatchLandmarks or CNTKRandomFeatures
        φ, fitted to the same sample.
    head : kernel of rows
        Of the features of two images.
    landmarks : {"uniform", "rpcholesky"}
        As in `Nystrom`.
    seed : int
        Of the landmarks; φ has its own.

    Examples
    --------
    >>> import ntkdist as nd
    >>> x = np.random.default_rng(0).random((64, 8, 8, 3))
    >>> spec = nd.ImageLandmarks(32, nd.PatchLandmarks(144, landmarks=(32,), grid=2))
    >>> spec.fit(x)(x).shape  # `ntkdist.fit` and the estimators do this
    (64, 32)
    """

    no_gradient: ClassVar[tuple[str, str]] = OF_IMAGES
    images: PatchLandmarks | CNTKRandomFeatures
    head: RowKernel = Gaussian(1.4, homogeneous=True)
    landmarks: Literal["uniform", "rpcholesky"] = "uniform"
    seed: Annotated[int, Meta(ge=0)] = 0

    def check_shape(self, input_shape: tuple[int, ...], source: str = "X") -> None:
        self.images.check_shape(input_shape, source)

    def _last(self) -> Nystrom:
        """Return the map of the features."""
        return Nystrom(self.n_components, self.head, self.landmarks, self.seed)

    @property
    def sample_rows(self) -> int:
        return max(self._last().sample_rows, self.images.sample_rows)

    @property
    def rehearsal_rows(self) -> int:
        return min(self.sample_rows, max(self.images.rehearsal_rows, 1))

    @property
    def piece_rows(self) -> int:
        return self._last().piece_rows

    def fit(self, sample: NDArray[Any]) -> FittedMap:
        """Fit φ to a sample of images, and choose landmarks among their features."""
        first: Any = self.images.fit(sample) if self.images.sample_rows else self.images
        last = self._last().fit(first(np.asarray(sample, np.float32)))
        return FittedMap(self, last.arrays | {PREFIX + name: a for name, a in first.arrays.items()})

    def kernel(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        """Compute the head of the exact kernel of φ, as a kernel of rows that have those inner products."""
        return self.kernel_fitted({}, x, y)

    def kernel_fitted(self, arrays: Arrays, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        both = np.asarray(x, np.float64) if y is None else np.concatenate([x, y], dtype=np.float64)
        values, vectors = np.linalg.eigh(self.images.kernel_fitted(_of_images(arrays), both))
        rows = vectors * np.sqrt(np.maximum(values, 0))
        return self.head(rows[: len(x)], None if y is None else rows[len(x) :])

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        raise SpecError("ImageLandmarks has to look at images first; use its fit(sample), or the model of nd.fit")

    def draw_fitted(self, input_shape: tuple[int, ...], arrays: Arrays) -> Params:
        last = self._last().draw_fitted((self.images.n_components,), arrays)
        return {"images": self.images.draw_fitted(input_shape, _of_images(arrays)), "last": last}

    def apply(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        few = self._few(x.shape[1:], x.dtype)
        features = [self.images.apply(params["images"], x[i : i + few]) for i in range(0, len(x) or 1, few)]
        return self._last().apply(params["last"], np.concatenate(features))

    def _few(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Return the number of images that φ maps at a time."""
        return max(self.images.piece_rows, PIECE_BYTES // self.images.row_bytes(input_shape, dtype))

    # Memory.

    def warm(self, dtype: Any) -> None:
        self.images.warm(dtype)
        self._last().warm(dtype)

    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        shape, size = (self.images.n_components,), np.dtype(dtype).itemsize
        few = min(self._few(input_shape, dtype), self.piece_rows)
        first = self.images.row_bytes(input_shape, dtype) * few // self.piece_rows
        return max(first, self._last().row_bytes(shape, dtype)) + 2 * size * shape[0]

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        last = self._last().draw_bytes((self.images.n_components,), dtype)
        return last + self.images.draw_bytes(input_shape, dtype)

    def learnt_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        return 8 * self.n_components * self.images.n_components + self.images.learnt_bytes(input_shape, dtype)


def _of_images(arrays: Arrays) -> Arrays:
    """Return the arrays of φ, by their names there."""
    return {name.removeprefix(PREFIX): a for name, a in arrays.items() if name.startswith(PREFIX)}
