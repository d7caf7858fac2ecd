"""RandomFourier: kernels of the distance, as means of cosines over random frequencies.

Legend: w a frequency, (length of a Gaussian vector)·√(2S)/lengthscale times a unit direction; S the random scale for
which the kernel is a mixture of Gaussians, E exp(−s·S) = exp(−s^{γ/2}).
"""

import math
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.special import gammaincinv, ndtri

from ntkdist import gpu, random
from ntkdist.errors import SpecError
from ntkdist.features.base import FeatureMap, Params, flat, normalised
from ntkdist.features.pull_back import of_lengths, pull_back
from ntkdist.kernels import GammaExponential, Gaussian, Laplace

F8 = NDArray[np.float64]
DIRECTION, RADIUS, SCALE, PHASE = range(4)  # roles of the random streams
SMALLEST_GAMMA = 0.5


class RandomFourier(FeatureMap, frozen=True):
    """Random Fourier features: cos(w·x) and sin(w·x) over √(number of w), with orthogonal directions of w.

    Rahimi, Recht, "Random features for large-scale kernel machines", NeurIPS 2007; directions as in Yu et al.,
    "Orthogonal random features", NeurIPS 2016.  Frequencies follow the kernel's spectral law exactly: normal for the
    Gaussian, multivariate Cauchy for the Laplace kernel, and for exp(−r^γ) normal times the root of a positive
    (γ/2)-stable scale (Kanter, "Stable densities under change of scale", Annals of Probability 1975).  If
    n_components is odd, the last column is √2 cos(w·x + a), a a random phase.

    Promise: depends on seed and shape only; unbiased; the error falls like n_components^-½.  A homogeneous kernel is
    ‖x‖ times the features of x/‖x‖, and a zero row then has zero features.

    Parameters
    ----------
    n_components : int
        Columns.
    kernel : Gaussian, Laplace or GammaExponential
        ``gamma`` at least 0.5: below, frequencies are so large that the phases w·x have no correct digit.  For gamma
        below 1, a row's features depend on other rows by about 1e-15 times the largest frequency, which is of order
        n_components^(1/gamma), so that the bound 1e-12 may be exceeded.
    seed : int
    """

    kernel: Gaussian | Laplace | GammaExponential = Gaussian(1.0)
    seed: Annotated[int, Meta(ge=0)] = 0

    def validate(self) -> None:
        if isinstance(self.kernel, GammaExponential) and self.kernel.gamma < SMALLEST_GAMMA:
            raise SpecError(
                f"RandomFourier cannot hold the frequencies of gamma = {self.kernel.gamma}; "
                f"use a gamma of at least {SMALLEST_GAMMA}"
            )

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        d, count = math.prod(input_shape), -(-self.n_components // 2)
        w = random.directions(d, count, self.seed, 0, DIRECTION)
        length = np.sqrt(2 * gammaincinv(d / 2, random.uniforms(count, self.seed, 0, RADIUS)))
        w *= length * spread(self.kernel, count, self.seed) / (2 * np.pi * self.kernel.lengthscale)
        # Integers are not cast, so that w/2π stays float64 for float32 rows too: the Cauchy law has no moments.
        return {"turns": w.view(np.int64), "phase": random.uniforms(1, self.seed, 0, PHASE)}

    def apply(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        half, dtype, xp = self.n_components // 2, x.dtype, gpu.array_module(x)
        x, length = self._rows(x)
        angle = self._angles(params, x, dtype)
        out = xp.empty((len(x), self.n_components), dtype)
        xp.cos(angle[:, :half], out=out[:, :half])
        xp.sin(angle[:, :half], out=out[:, half : 2 * half])
        xp.multiply(xp.cos(angle[:, half:]), math.sqrt(2), out=out[:, 2 * half :])
        out *= math.sqrt(1 / angle.shape[1])
        if length is not None:
            out *= length.astype(dtype)
        return out

    def _rows(self, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return flat rows in float64, if the kernel is homogeneous of length 1, and then their lengths (n, 1)."""
        x = flat(x).astype(np.float64)
        return normalised(x) if self.kernel.homogeneous else (x, None)

    def _angles(self, params: Params, x: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Compute w·x in a dtype, with the phase of the odd column, if any, and without whole turns."""
        turns = x @ params["turns"].view(np.float64)
        turns[:, self.n_components // 2 :] += params["phase"]
        turns -= gpu.array_module(x).rint(turns)
        angle = turns.astype(dtype, copy=False)
        angle *= 2 * math.pi
        return angle

    @property
    def has_gradient(self) -> bool:
        return True

    def gradient_weights(self, params: Params, coef: NDArray[Any], dtype: np.dtype[Any]) -> Any:
        """Return the weights of cos(w·x) and of sin(w·x), (count, t) each, and the frequencies w (count, d)."""
        half, turns = self.n_components // 2, params["turns"].view(np.float64)
        cosines, sines, odd = coef[:half], coef[half : 2 * half], math.sqrt(2) * coef[2 * half :]
        parts = np.concatenate([cosines, odd]), np.concatenate([sines, np.zeros_like(odd)])
        root = math.sqrt(1 / turns.shape[1])
        return *((root * part).astype(dtype) for part in parts), (2 * math.pi * turns.T).astype(dtype)

    def gradient_of(self, params: Params, x: NDArray[Any], weights: Any) -> NDArray[Any]:
        of_cosines, of_sines, w = weights
        u, length = self._rows(x)
        angle = self._angles(params, u, x.dtype)
        cosines = np.cos(angle)
        sines = np.sin(angle, out=angle)
        values = cosines @ of_cosines + sines @ of_sines
        out = pull_back(cosines, of_sines, w)
        del cosines
        out -= pull_back(sines, of_cosines, w)
        return out if length is None else of_lengths(out, u, values, length, u.shape[1])

    def runs_on_gpu(self, input_shape: tuple[int, ...]) -> bool:
        return True

    def prefix(self, k: int, input_shape: tuple[int, ...]) -> tuple[NDArray[np.int64], F8]:
        """Select cosine and sine of the first k/2 frequencies: ``RandomFourier(k)``; see `FeatureMap.prefix`."""
        half, count = self.n_components // 2, -(-self.n_components // 2)
        if k == self.n_components:
            return np.arange(k), np.ones(k)
        if not 0 < k // 2 <= half or k % 2:
            raise SpecError(
                f"a prefix of {k} columns is none of RandomFourier; expected an even number up to {2 * half}"
            )
        first = np.arange(k // 2)
        return np.concatenate([first, half + first]), np.full(k, math.sqrt(count / (k // 2)))

    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        d, size = math.prod(input_shape), np.dtype(dtype).itemsize
        return (24 + size) * d + (12 + 2 * size) * (self.n_components + 1) + 32

    def gradient_bytes(self, input_shape: tuple[int, ...], dtype: Any, t: int) -> int:
        d, count, size = math.prod(input_shape), -(-self.n_components // 2), np.dtype(dtype).itemsize
        return (24 + size) * d + max(16, 3 * size) * (count + 1) + t * (3 * size * d + 24) + 32

    def gradient_weights_bytes(self, input_shape: tuple[int, ...], dtype: Any, t: int) -> int:
        d, count = math.prod(input_shape), -(-self.n_components // 2)
        return (8 + np.dtype(dtype).itemsize) * count * (d + 3 * t)

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        d, count = math.prod(input_shape), -(-self.n_components // 2)
        return 8 * d * (3 * max(count, d) + 6 * d) + 80 * count + 2**14  # the last term: generators and other objects


def spread(kernel: Gaussian | Laplace | GammaExponential, count: int, seed: int) -> F8:
    """Draw √(2S), (count,): the factor of the kernel's frequencies over those of the Gaussian kernel.

    Gaussian: 1.  Laplace: 1/|h|, h normal, as S has Lévy's law.  Else, with α = γ/2, A uniform on (0, π) and E
    exponential, S = sin(αA) sin(A)^{−1/α} (sin((1 − α)A)/E)^{(1−α)/α}: Lévy's law at α = ½, the constant 1 at α = 1.
    """
    if isinstance(kernel, Gaussian):
        return np.ones(count)
    if isinstance(kernel, Laplace):
        return np.abs(1 / ndtri(random.uniforms(count, seed, 0, SCALE) / 2))
    alpha = kernel.gamma / 2
    if alpha == 1:
        return np.full(count, math.sqrt(2))
    a = np.pi * random.uniforms(count, seed, 0, SCALE)
    e = -np.log(random.uniforms(count, seed, 0, SCALE, 1))
    s = np.sin(alpha * a) / np.sin(a) ** (1 / alpha) * (np.sin((1 - alpha) * a) / e) ** ((1 - alpha) / alpha)
    return np.sqrt(2 * s)
