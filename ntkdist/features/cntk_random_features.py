"""CNTKRandomFeatures: the convolutional tangent kernel, layer by layer, from random filters.

Legend: F features of a pixel for the covariance Γ; [S, F] its features for the tangent kernel Π; u and v the windows
of F and of [S, F] around a pixel, as rows of dimension d; r = ‖u‖; q the filter size; c = E|√d û·w| for a random
direction w.

The recursion is that of the kernel, Π ← κ₀·(window sum of Π) + Γ, with features in place of kernels: a window sum is
the window itself, a sum is a concatenation, and multiplying by κ₀ is flipping signs at random.
"""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from ntkdist import backend, gpu
from ntkdist.errors import SpecError
from ntkdist.features.base import OF_IMAGES, PIECE_BYTES, Arrays, FeatureMap, FittedMap, Params
from ntkdist.features.cntk_layers import WHITENING_SIDE, whitened, whitening_filter
from ntkdist.features.cntk_network import Network
from ntkdist.kernels.cntk import CNTK

F8 = NDArray[np.float64]
SAMPLE_ROWS = 256  # images that whitening and compression are fitted to: some 10⁵ windows
IMAGES = 4  # drawn at a time, at least: with fewer, reading the filters takes as long as multiplying by them
RIDGE = 1e-6  # δ in units of the mean of ‖ψ‖²: the rounding of float32 features
COLUMNS = 4096  # of Ψ that are multiplied at a time
ROWS = 256  # that are projected at a time: with fewer, reading the projection takes longer than multiplying by it


class CNTKRandomFeatures(FeatureMap, frozen=True):
    """Random features of `CNTK`: a network of random filters whose pooled outputs have that kernel.

    Each layer takes windows u of F and v of [S, F] to

        F ← 1/q [c r/√2; u/√2; (|√d u·w| − c r)/√(2m)],     S ← 1/q [v/√2; sgn(u·w)⊙√d (v·w')/√(2m)],

    that is κ₁ and κ₀ with their constant and linear parts exact and the rest from orthogonal directions; where u or v
    is too wide for its half of the columns, it is projected.  The last layer's map is averaged over each cell, so that
    the cost is linear in the pixels.  Zandieh et al., NeurIPS 2021, section 4, with random features in place of
    sketches.

    By default the kernel is that of `CNTK`'s defaults, the slowest.  Fast are ``tangent=False`` (half the work),
    ``pool`` of (2, 2, 1) or so (work falls with the pixels), ``grid`` of 2 or 3 in place of more columns, and
    ``whiten=0.1`` with ``compress=64`` and ``width=256``; `fit` chooses these for images where a job has no features.

    Promise: depends on seed and shape only (and on the sample, if fitted); the bias is O(1/width) and the
    error falls like n_components^-½ with ``width`` in proportion; homogeneous; an all-zero window gives zero.

    Parameters
    ----------
    n_components : int
        Columns: n_components // grid² for each cell of the grid, the rest of them zero.
    depth, filter_size, padding, ends, pool, grid
        As in `CNTK`.  depth = 1 needs ``ends``.
    tangent : bool
        False: the covariance only, Γ of the last layer, which is the kernel of the same network when only its readout
        is trained (NNGP), at half the work.  It does not need ``ends``.
    flips : bool
        Average the features of the image and of its mirror image, at twice the work: the kernel is then the mean over
        both versions of each image.
    width : int
        Columns of F, and as many of S, between layers; 0: a quarter of the columns of a cell, at most 256.
    whiten : float
        Whiten the image first (ZCA), by one filter of 7 x 7 pixels fitted to the covariance of such windows, to whose
        eigenvalues this share of their mean is added; 0: no whitening.
    oversample : int
        Columns drawn for each column kept.  From 2 on, the drawn features are projected to the span of those of
        n_components images of the data, by the method of Nyström, so that a Gram of n_components² represents more of
        them.  Useful where the Gram costs more than the drawn features, and where the data has far more rows than
        columns; takes 8 · oversample bytes times n_components² to fit, and half of that in every process.
    compress : int
        Principal directions of F, and as many of S, kept between layers, fitted to a sample; 0: keep all.  The last
        layer's linear parts keep as many directions of the cells' mean windows, whose pixels nearly agree.
    seed : int
    """

    no_gradient: ClassVar[tuple[str, str]] = OF_IMAGES
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
        self._require_columns(8 * self.grid**2, f", 8 for each of the {self.grid**2} cells")

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
        """Compute `CNTK` of images that are not whitened: a map that whitens has this kernel of whitened images."""
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

    def _network(self, channels: int) -> Network:
        return Network(self._exact(), self.drawn, self.width, self.compress, channels)

    # Shapes.

    def check_shape(self, input_shape: tuple[int, ...], source: str = "X") -> None:
        self._exact().check_shape(input_shape, source)

    def _wide(self) -> "CNTKRandomFeatures":
        """Return the map before the projection."""
        return msgspec.structs.replace(self, n_components=self.drawn, oversample=1)

    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        drawn, size = self._drawn_row_bytes(input_shape, dtype), np.dtype(dtype).itemsize
        if self.oversample == 1:
            return drawn
        few = min(_few(drawn), ROWS)  # images, whose features are drawn while those of all are kept
        return size * (2 * self.drawn + self.n_components) + -(-few * drawn // ROWS)

    def _drawn_row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Count the peak bytes of one row before the projection."""
        height, width, channels = input_shape
        given, values = height * width * channels, self._network(channels).values(height, width)
        if self.whiten:
            values = given + max(values, height * width * WHITENING_SIDE**2 * channels + 3 * given)
        return np.dtype(dtype).itemsize * (values + 3 * self.drawn)

    def gpu_row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        return super(CNTKRandomFeatures, self._wide()).gpu_row_bytes(input_shape, dtype)

    def runs_on_gpu(self, input_shape: tuple[int, ...]) -> bool:
        return True

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        shapes = [shape for layer in self._network(input_shape[2]).layers() for shape in layer.shapes().values()]
        kept = sum(d * k for _, d, k in shapes)
        # Directions are made in blocks of d, each by a factorisation of d² normals; then all are cast.
        made = max(max(d * k, 3 * d * d, d * d + 8 * d * min(d, k)) for _, d, k in shapes)
        return max((8 + np.dtype(dtype).itemsize) * kept, 8 * (kept + made)) + 2**18

    def learnt_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        single = np.dtype(dtype) == np.float32  # else in both types
        return (4 if single else 12) * self.drawn * self.n_components * (self.oversample > 1)

    # Drawing and fitting.

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        self.check_shape(input_shape)
        layers = self._network(input_shape[2]).layers()
        return {f"layer{h}": layer.draw(h, self.seed) for h, layer in enumerate(layers)}

    def fit(self, sample: NDArray[Any]) -> FittedMap:
        """Fit filter and compression to the first 256 images, the projection to the first n_components."""
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
        """Compute the whitening filter, and then the principal directions of each layer's features."""
        params, arrays = self.draw(sample.shape[1:]), Arrays()
        if self.whiten:
            arrays["whiten"] = whitening_filter(_mirrored(sample) if self.flips else sample, self.whiten)
            sample = whitened(sample, arrays["whiten"])
        return arrays | (self._network(sample.shape[3]).directions(params, sample) if self.compress else {})

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
        """Compute φ before the projection."""
        if "whiten" in params:
            x = whitened(x, params["whiten"])
        network = self._network(x.shape[3])
        out = network.apply(params, x)
        if self.flips:
            out += network.apply(params, x[:, :, ::-1])
            out /= 2
        return out


def _mirrored(x: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([x, np.asarray(x)[:, :, ::-1]])


def _few(row_bytes: int) -> int:
    """Return the number of images whose features are drawn at a time."""
    return max(IMAGES, PIECE_BYTES // row_bytes)


def span(psi: NDArray[Any], m: int) -> NDArray[np.float32]:
    """Compute the projection P (M, m) to the span of features Ψ (k, M), the same bits on any number of threads.

    The method of Nyström for a kernel that is given by its features: ΨΨᵀ + δI = UᵀU; P = Ψᵀ U⁻¹, the last columns zero
    if k < m.  Then ψP has the kernel ψΨᵀ(ΨΨᵀ + δI)⁻¹Ψψᵀ, which is ψψᵀ for the rows themselves, but for δ.
    """
    k, wide = psi.shape
    gram = np.zeros((k, k))
    for start in range(0, wide, COLUMNS):
        block = np.ascontiguousarray(psi[:, start : start + COLUMNS].T)
        backend.add_products(gram, np.zeros((k, 0)), block, np.zeros((len(block), 0), block.dtype))
    gram.flat[:: k + 1] += RIDGE * (gram.trace() / max(k, 1) or 1.0)
    with backend.one_thread():
        upper = cholesky(gram.T, overwrite_a=True, check_finite=False) if k else gram
    projection = np.zeros((wide, m), np.float32)

    def solve(start: int) -> None:
        columns = slice(start, start + backend.TILE)
        solved = solve_triangular(upper, psi[:, columns].astype(np.float64), trans="T", check_finite=False)
        projection[columns, :k] = solved.T

    backend.parallel_for(solve, range(0, wide, backend.TILE) if k else ())
    return projection
