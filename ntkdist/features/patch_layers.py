"""One layer of a convolutional kernel network: patches compared with landmarks, and pooled; how landmarks are chosen.

Legend: u (pixels, d) unit patches as rows, r their lengths; v the patches of the tangent features, divided by r; Z
(k, d) unit landmarks, V (k, dv) what they have in place of v; t = u·Zᵀ.  Maps are (n, h, w, channels).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.sparse import csr_array

from ntkdist import backend, random
from ntkdist.features import loops
from ntkdist.features.base import Params, normalised
from ntkdist.features.cntk_layers import flat_pixels, windows
from ntkdist.features.landmarks import fit_zonal
from ntkdist.kernels import kappa0, one_minus_kappa1
from ntkdist.kernels.patches import Activation
from ntkdist.kernels.windows import overlap

F8 = NDArray[np.float64]
COLUMNS = 512  # landmarks that patches are compared with at a time, so that the values are pooled while in cache
RIDGE = 1e-3  # added to κ(1) = 1 of landmarks: below, directions are rounding
ROUNDS, ROWS = 12, 4096  # of k-means; patches at a time
WHITENED, FLOOR = 3, 1e-3  # side of the patches of whitening, and what is added to their eigenvalues
CHOICE = 64  # the role of the random streams, apart from those of layers


class PatchLayer(NamedTuple):
    """A layer's kernel of patches, and its pooling."""

    filter_size: int
    activation: Activation
    lengthscale: float

    def apply(self, w: Params, poolings: tuple[F8, F8], maps: Params) -> Params:
        """Compute the pooled features of maps: "F" of the covariance, "S" of the tangent kernel, if w mixes them.

        ``w`` is as `weights` returns it.
        """
        u, r, v = self._patches(maps, "companions" in w)
        shape = maps["F"].shape
        parts: dict[str, list[Any]] = {name: [] for name in "FS" if f"mix{name}" in w}
        for start in range(0, max(len(w["landmarks"]), 1), COLUMNS):
            block = slice(start, start + COLUMNS)
            for name, values in self._values(w, block, u, v).items():
                if name in parts:
                    values *= r
                    parts[name].append(pooled(values, shape, poolings))
        return {name: np.concatenate(part, axis=3) @ w[f"mix{name}"] for name, part in parts.items()}

    def _values(self, w: Params, block: slice, u: Any, v: Any) -> Params:
        """Compute the kernels of unit patches with a block of landmarks."""
        z = w["landmarks"][block]
        t = u @ z.T
        if self.activation == "exponential":
            t -= 1
            t *= t.dtype.type(self.lengthscale**-2)
            np.exp(t, out=t)
            return {"F": t}
        if v is None:
            loops.zonal(t, u, z, w["near1"], w["far1"])
            return {"F": t}
        step = t.copy()
        loops.zonal(t, u, z, w["near1"], w["far1"])
        loops.zonal(step, u, z, w["near0"], w["far0"])
        step *= v @ w["companions"][block].T
        step += t
        return {"F": t, "S": step}

    def _patches(self, maps: Params, tangent: bool) -> tuple[Any, Any, Any]:
        """Return u, r and v of all pixels; v is None without tangent features."""
        u, r = normalised(flat_pixels(windows(maps["F"], self.filter_size, "same")))
        if not tangent:
            return u, r, None
        if "S" not in maps:  # the first layer: its inputs are those of the tangent kernel too
            return u, r, u
        v = flat_pixels(windows(maps["S"], self.filter_size, "same"))
        return u, r, v / np.where(r == 0, 1, r)

    def fit(self, maps: list[Params], k: int, count: int, seed: int, h: int) -> Params:
        """Choose k landmarks, fewer if there are not so many patches, from about ``count`` patches of one-image maps.

        A landmark is the mean, made unit, of the unit patches that are nearer to it than to others; its companion is
        their mean v.
        """
        tangent = self.activation == "ntk"
        per = -(-count // max(len(maps), 1))

        def pick(i: int) -> tuple[Any, Any]:
            u, r, v = self._patches(maps[i], tangent)
            at = np.flatnonzero(r[:, 0] > 1e-6 * r.max(initial=0))
            at = at[np.argsort(random.uniforms(len(at), seed, h, CHOICE, i), kind="stable")[:per]]
            return u[at], u[at] if v is None else v[at]

        u, v = map(np.concatenate, zip(*backend.parallel_for(pick, range(len(maps))), strict=True))
        z, nearest = spherical_means(u, k, seed, h)
        w: Params = {"landmarks": z}
        if tangent:
            w["companions"] = _sums(v, nearest, len(z)) / np.maximum(np.bincount(nearest, minlength=len(z)), 1)[:, None]
        return w

    def weights(self, landmarks: NDArray[Any], companions: NDArray[Any] | None, last: bool) -> Params:
        """Return landmarks, companions, "mixF" = L⁻ᵀ, which makes features of the values, "mixS" and polynomials.

        Of the tangent kernel's ``last`` layer there is no "mixF".
        """
        z = landmarks.astype(np.float64)
        cosines = np.clip(z @ z.T, -1, 1)
        np.fill_diagonal(cosines, 1)
        w: Params = {"landmarks": z}
        if self.activation == "exponential":
            return w | {"mixF": inverse_root(np.exp((cosines - 1) / self.lengthscale**2))}
        theta = np.arccos(cosines)
        k = 1 - one_minus_kappa1(theta)
        w |= self._polynomials()
        if companions is not None:
            v = companions.astype(np.float64)
            w |= {"companions": v, "mixS": inverse_root(k + kappa0(theta) * (v @ v.T))}
        return w if companions is not None and last else w | {"mixF": inverse_root(k)}

    def _polynomials(self) -> Params:
        """Return the polynomials of the arc-cosine functions, by name."""
        functions = {"1": lambda t: 1 - one_minus_kappa1(t), "0": kappa0}
        params = Params()
        for order in functions if self.activation == "ntk" else "1":
            fits = fit_zonal(functions[order])
            assert fits is not None  # both are smooth
            params |= {f"near{order}": fits[0], f"far{order}": fits[1]}
        return params


def pooled(t: Any, shape: tuple[int, ...], poolings: tuple[F8, F8]) -> Any:
    """Average values of pixels (n·h·w, k) by weights of rows and of columns, (n, h', w', k)."""
    (n, h, w), k = shape[:3], t.shape[1]
    rows, columns = (a.astype(t.dtype) for a in poolings)
    t = (rows @ t.reshape(n, h, w * k)) if len(rows) < h else t
    t = t.reshape(n * len(rows), w, k)
    t = (columns @ t) if len(columns) < w else t
    return t.reshape(n, len(rows), len(columns), k)


def inverse_root(k: F8) -> F8:
    """Compute L⁻ᵀ of a kernel matrix (k, k), δ being in units of its mean diagonal."""
    if not len(k):
        return k
    k = k + np.diag(np.full(len(k), RIDGE * k.trace() / len(k)))
    inverse: F8 = solve_triangular(cholesky(k, check_finite=False), np.eye(len(k)), check_finite=False)
    return inverse


def spherical_means(u: NDArray[Any], k: int, seed: int, h: int) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Cluster unit rows u (n, d) by their cosines: unit means (k, d), fewer if n < k, and each row's cluster (n,).

    Spherical k-means from random rows; a cluster that loses all its rows keeps its mean.  The same bits on any number
    of threads.
    """
    z = u[np.argsort(random.uniforms(len(u), seed, h, CHOICE - 1), kind="stable")[:k]]
    nearest = np.zeros(len(u), np.intp)

    def assign(start: int) -> None:
        nearest[start : start + ROWS] = (u[start : start + ROWS] @ z.T).argmax(1)

    for _ in range(ROUNDS if len(u) > k else 0):
        backend.parallel_for(assign, range(0, len(u), ROWS))
        sums, length = normalised(_sums(u, nearest, len(z)))
        z = np.where(length > 0, sums, z)
    backend.parallel_for(assign, range(0, len(u), ROWS))
    return z, nearest


def _sums(u: NDArray[Any], nearest: NDArray[np.intp], k: int) -> NDArray[Any]:
    """Sum the rows of each cluster, (k, d)."""
    each = csr_array((np.ones(len(u), u.dtype), (nearest, np.arange(len(u)))), shape=(k, len(u)))
    total: NDArray[Any] = each @ u
    return total


# Whitening of one image by its own patches.


def self_whitened(x: NDArray[Any]) -> NDArray[Any]:
    """Whiten each image by the covariance of its own 3×3 patches, to the power −1/4, nothing being fitted.

    The mean of each patch and channel is subtracted and the patches are averaged back to an image; those of that
    image, multiplied by (C/λ̄ + 10⁻³)^−¼, C their covariance and λ̄ its mean eigenvalue, are averaged back once more.
    Homogeneous: an image times c > 0 is whitened to as much.
    """
    n, h, w, c = x.shape
    u: Any = windows(x, WHITENED, "same").reshape(n, h * w, WHITENED**2, c)
    u = windows(_averaged(u - u.mean(2, keepdims=True), x.shape), WHITENED, "same").reshape(n, h * w, WHITENED**2 * c)
    covariance = (u.swapaxes(1, 2) @ u).astype(np.float64)
    values, vectors = np.linalg.eigh(covariance)
    mean = values.mean(1, keepdims=True)
    roots = (np.maximum(values / np.where(mean > 0, mean, 1), 0) + FLOOR) ** -0.25
    turned = (vectors * roots[:, None]) @ vectors.swapaxes(1, 2)
    return _averaged(u @ turned.astype(x.dtype), x.shape)


def _averaged(u: Any, shape: tuple[int, ...]) -> Any:
    """Average overlapping patches (n, h·w, q²·c) back to images of a shape, (n, h, w, c)."""
    n, h, w, c = shape
    side = WHITENED // 2
    u = u.reshape(n, h, w, WHITENED, WHITENED, c)
    out, times = np.zeros((n, h, w, c), u.dtype), np.zeros((h, w, 1), u.dtype)
    for i in range(WHITENED):
        to_y, from_y = overlap(h, h, side - i)
        for j in range(WHITENED):
            to_x, from_x = overlap(w, w, side - j)
            out[:, to_y, to_x] += u[:, from_y, from_x, i, j]
            times[to_y, to_x] += 1
    out /= times
    return out
