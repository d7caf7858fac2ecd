"""ZonalFeatures: a kernel of the angle, of any depth, by one matrix product and one polynomial.

Legend: u unit input rows of dimension d; t = √d·u·(directions); p_l the polynomial of degree l that is orthonormal for
the law of u·v, v uniform on the sphere; N_l = p_l(1)² the number of spherical harmonics of degree l; C̄_l = p_l/√N_l the
Gegenbauer polynomial with C̄_l(1) = 1; b_l ≥ 0 the kernel's coefficients, k(cos θ) = Σ b_l C̄_l(cos θ), Σ b_l = k(1);
e the degree up to which the features are exact, by monomials of u.
"""

import math
from functools import cache
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.polynomial import Polynomial
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.special import betaincinv, roots_legendre

from ntkdist import gpu, random
from ntkdist.errors import SpecError
from ntkdist.features import loops, monomials
from ntkdist.features.base import FeatureMap, Params, flat, normalised
from ntkdist.features.pull_back import of_lengths, pull_back
from ntkdist.kernels import NTK, RadialKernel, RowKernel, ZonalKernel

F8 = NDArray[np.float64]
DIRECTION, INPUT = range(2)  # roles of the random streams
DEGREE = 12  # a higher degree changes the error at a given number of columns by a few per cent, either way
NODES = 512
_nodes = cache(roots_legendre)  # Gauss–Legendre nodes and weights on (−1, 1), from the Jacobi matrix (Golub, Welsch)
RARE = 1e-6  # the share of the largest values of |t|, for which A is held constant
ROUNDING = 1e-5  # of k(1), the largest error allowed in a coefficient: √N_l roundings


class ZonalFeatures(FeatureMap, frozen=True):
    """Random features of a kernel of the angle: ‖x‖·[monomials of u; A(u·v)/√r], v one of r orthogonal directions.

    The monomials give the degrees 0 … e exactly; e ≥ 1 is chosen for the least variance of the other columns.
    A = Σ s_l √b_l p_l over the degrees e + 1 … l_max with the signs s_l = (−1)^⌊l/2⌋, which keep A small, as the ReLU.
    E[p_l(u·v) p_j(u'·v)] = C̄_l(u·u') if l = j, else 0, so that ⟨A, A⟩ is unbiased for Σ b_l C̄_l.  The cost does
    not depend on the depth: one matrix product, and a polynomial by Horner's rule.  Han, Zandieh, Avron, "Random
    Gegenbauer features", ICML 2022, with one activation for all degrees as in Simon, Anand, DeWeese, "Reverse
    engineering the neural tangent kernel", ICML 2022.

    Promise: depends on seed and shape only; unbiased for the kernel without its degrees above l_max, whose mass is
    `tail_mass`, except for the largest |t|, one in a million, where A is held constant; otherwise one row in 10⁵ would
    have a feature of thousands.  For any d and n_components this reduces k(x, x) by at most 0.4 % for the NTK and 0.1 %
    for the NNGP; for exponential kernels so short that the tail is at least half of them, by up to 0.7 % (Laplace), 3 %
    (gamma to 1.9) and 3.7 % (Gaussian).  The error falls like n_components^-½ down to that.
    l_max is 12, less in high dimension, where float64 does not resolve the coefficients (9 at d = 700).  On a line
    (d = 1) the kernel is exact, in the plane (d = 2) it is exact up to degree (n_components − 1)/2, both without random
    numbers.  Without a bias, a zero row has zero features.

    Parameters
    ----------
    n_components : int
        Columns, at least 4.  At most half of them are exact; where the linear part's d columns do not fit in that half,
        a quarter are a random projection of it.
    kernel : NTK, NNGP, or a homogeneous Gaussian, Laplace or GammaExponential
        Its bias, if it has one, is appended to every row as one more column: by default 1, as for an estimator without
        features.
    seed : int

    Examples
    --------
    >>> import ntkdist as nd
    >>> x = np.random.default_rng(0).standard_normal((100, 4))
    >>> kernel = nd.NTK(depth=2, bias=1.0)
    >>> z = nd.ZonalFeatures(2048, kernel)(x)
    >>> z.shape
    (100, 2048)
    >>> bool(np.linalg.norm(z @ z.T - kernel(x)) < 0.05 * np.linalg.norm(kernel(x)))
    True
    """

    kernel: RowKernel = NTK(depth=2, bias=1.0)  # also implements `FeatureMap.kernel`, as a kernel is called with rows
    seed: Annotated[int, Meta(ge=0)] = 0

    def validate(self) -> None:
        self._require_columns(4)
        if isinstance(self.kernel, RadialKernel) and not self.kernel.homogeneous:
            raise SpecError(
                f"ZonalFeatures needs a kernel of the angle, but {type(self.kernel).__name__} is one of the distance; "
                "set homogeneous = true in it, or use RandomFourier"
            )

    def tail_mass(self, input_dim: int) -> float:
        """Return τ = Σ_{l > l_max} b_l, the part of k(x, x)/‖x‖² that the features lack.

        High degrees matter between nearly parallel rows only: the exact kernel is that of the features with about
        τ‖x‖² added to its diagonal, like a penalty.  On unit rows, alpha + τ gives the regression of the exact kernel.

        Parameters
        ----------
        input_dim : int
            Columns of x.
        """
        d = self._width((input_dim,))
        missing = float(self.kernel.zonal(np.zeros(1))[0]) - float(self._coefficients(d).sum())
        return max(missing, 0.0) if d > 1 else 0.0

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        d = self._width(input_shape)
        b = self._coefficients(d)
        root = np.sqrt(b)
        if d <= 2:
            return {"root": root}
        p, e, r = self._columns(d)
        shift = min(d / 2, 5.0)
        rest = np.where(np.arange(len(b)) > e, signs(len(b)) * root, 0)
        even, odd = activation(rest / math.sqrt(r), d, shift)
        scales = [np.ones(1), np.ones(p), *(monomials.root_multinomials(d, j) for j in range(2, e + 1))]
        params = {
            "scale": np.concatenate([math.sqrt(a) * s for a, s in zip(powers(b[: e + 1], d), scales, strict=True)]),
            "directions": random.directions(d, r, self.seed, 0, DIRECTION) * math.sqrt(d),
            "even": even,
            "odd": odd,
            "shift": np.array(shift),
            "reach": np.array(reach(d)),
        }
        if p < d:
            params["project"] = random.directions(d, p, self.seed, 0, INPUT) * math.sqrt(d / p)
        return params

    def apply(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        u, length = normalised(self.kernel.rows(flat(x)))
        d = u.shape[1]
        out = gpu.array_module(x).empty((len(x), self.n_components), x.dtype)
        if d <= 2:
            (_line if d == 1 else _plane)(params["root"], u, out)
        else:
            exact = len(params["scale"])
            gpu.product(u, params["directions"], out=out[:, exact:])
            even, odd, shift, reach = (params[k] for k in ("even", "odd", "shift", "reach"))
            loops.even_odd(out, exact, even, odd, shift, reach, length[:, 0])
            self._monomials(params, u, out[:, :exact])
            out[:, :exact] *= params["scale"]
            out[:, :exact] *= length
            return out
        out *= length
        return out

    def _monomials(self, params: Params, u: NDArray[Any], out: NDArray[Any]) -> None:
        """Write the monomials of degrees 0 … e, each from those of the degree before; their factors are ``scale``."""
        out[:, 0] = 1
        last = out[:, 1 : 1 + u.shape[1]]
        if "project" in params:
            last = gpu.product(u, params["project"], out=out[:, 1:])
        else:
            last[:] = u
        j, stop = 1, 1 + last.shape[1]  # ends at out's width: reading a number from a GPU would wait
        while stop < out.shape[1]:
            j, start, stop = j + 1, stop, stop + monomials.count(u.shape[1], j + 1)
            last = monomials.next_degree(u, last, j, out[:, start:stop])

    # Gradients.

    @property
    def has_gradient(self) -> bool:
        return True

    def gradient_weights(self, params: Params, coef: NDArray[Any], dtype: np.dtype[Any]) -> Any:
        """Return the weights (m, t) of values, and those of derivatives.

        The latter weigh the monomials up to degree e − 1, (·, t, d), or the waves of the plane, (m, t), for the
        derivative by its angle.
        """
        if "root" in params:
            values, slopes = coef, turned(coef, len(params["root"]))
        else:
            exact = len(params["scale"])
            values = np.concatenate([params["scale"][:, None] * coef[:exact], coef[exact:]])
            slopes = self._slopes(params, values[:exact])
        return values.astype(dtype), slopes.astype(dtype)

    def _slopes(self, params: Params, c: F8) -> F8:
        """Return the weights of monomials in the gradients of Σ c_α u^α, from those of degree 0 on, (·, t, d)."""
        if "project" in params:
            return (params["project"].astype(np.float64, copy=False) @ c[1:]).T[None]
        d = len(params["directions"])
        parts, at = list[F8](), 1
        while at < len(c):
            place, exponent = monomials.raised(d, len(parts) + 1)
            parts.append((exponent[:, :, None] * c[at + place]).transpose(0, 2, 1))
            at += monomials.count(d, len(parts))
        return np.concatenate(parts)

    def gradient_of(self, params: Params, x: NDArray[Any], weights: Any) -> NDArray[Any]:
        u, length = normalised(self.kernel.rows(flat(x)))
        part = self._low if u.shape[1] <= 2 else self._high
        values, slopes = part(params, u, *weights)
        return of_lengths(slopes, u, values, length, math.prod(x.shape[1:]))

    def _low(
        self, params: Params, u: NDArray[Any], of_values: NDArray[Any], of_slopes: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return values and gradients of functions of unit rows on a line, where they are constant, or in the plane."""
        z = np.empty((len(u), self.n_components), u.dtype)
        if u.shape[1] == 1:
            _line(params["root"], u, z)
            return z @ of_values, np.zeros((len(u), of_values.shape[1], 1), u.dtype)
        _plane(params["root"], u, z)
        across = np.stack([-u[:, 1], u[:, 0]], axis=1)
        return z @ of_values, (z @ of_slopes)[:, :, None] * across[:, None]

    def _high(
        self, params: Params, u: NDArray[Any], of_values: NDArray[Any], of_slopes: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return values and gradients of functions of unit rows, d ≥ 3; A' = 0 where |t| is clipped."""
        n, exact, low = len(u), len(params["scale"]), len(of_slopes)
        even, odd, shift, reach = (params[k] for k in ("even", "odd", "shift", "reach"))
        ones = np.ones(n, u.dtype)
        t = u @ params["directions"]
        slopes, clipped = t.copy(), t > reach
        clipped |= t < -reach
        loops.even_odd(slopes, 0, *differentiated(even, odd, float(shift)), shift, reach, ones)
        np.putmask(slopes, clipped, 0)
        loops.even_odd(t, 0, even, odd, shift, reach, ones)
        values = t @ of_values[exact:]
        del t, clipped
        out = pull_back(slopes, of_values[exact:], params["directions"].T)
        del slopes
        z = np.empty((n, exact), u.dtype)
        self._monomials(params, u, z)
        values += z @ of_values[:exact]
        out += (z[:, :low] @ of_slopes.reshape(low, -1)).reshape(out.shape)
        return values, out

    def gradient_bytes(self, input_shape: tuple[int, ...], dtype: Any, t: int) -> int:
        d, size = self._width(input_shape), np.dtype(dtype).itemsize
        waves = 16 * self.n_components if d == 2 else 0
        return size * (4 * d + (2 if d > 2 else 1) * self.n_components) + waves + size * t * (3 * d + 3) + 32

    def gradient_weights_bytes(self, input_shape: tuple[int, ...], dtype: Any, t: int) -> int:
        d, size = self._width(input_shape), np.dtype(dtype).itemsize
        p, e, _ = self._columns(d) if d > 2 else (d, 0, 0)
        cast = 8 * p * d if p < d and size < 8 else 0
        return (16 + size) * t * (2 * self.n_components + math.comb(d + e - 1, d) * d) + cast

    def runs_on_gpu(self, input_shape: tuple[int, ...]) -> bool:
        return self._width(input_shape) > 2  # on a line and in the plane a GPU gains nothing

    def warm(self, dtype: Any) -> None:
        one = np.ones((1, 1), dtype)
        loops.even_odd(one, 0, one[0], one[0], 0.0, 1.0, one[0])

    def prefix(self, k: int, input_shape: tuple[int, ...]) -> tuple[NDArray[np.int64], F8]:
        """Select the first k columns, with a share of the linear part if it is projected; see `FeatureMap.prefix`.

        Equal to ``ZonalFeatures(k)`` where that has the same exact degrees.
        """
        d = self._width(input_shape)
        if d <= 2:
            return super().prefix(k, input_shape)
        p, _, r = self._columns(d)
        exact = self.n_components - r
        kept = exact if p == d else 1 + k // 4  # columns of the exact part or of its projection, and the constant
        if not (1 + (p < d) <= kept <= exact and 0 < k - kept <= r):
            raise self._too_few(k, exact + 1 if p == d else 4)
        scale = np.full(k, math.sqrt(r / (k - kept)))
        scale[:kept] = 1.0 if p == d else math.sqrt(p / (kept - 1))
        scale[0] = 1.0
        return np.concatenate([np.arange(kept), np.arange(exact, exact + k - kept)]), scale

    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        d, size = self._width(input_shape), np.dtype(dtype).itemsize
        return size * (4 * d + self.n_components) + (16 * self.n_components if d == 2 else 0) + 32

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        d = self._width(input_shape)
        made = 8 * d * (2 * max(self._columns(d)[2], d) + 6 * d) if d > 2 else 0
        return self._directions_bytes(d, 8 + np.dtype(dtype).itemsize) + made

    def kept_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        return self._directions_bytes(self._width(input_shape), np.dtype(dtype).itemsize)

    def _directions_bytes(self, d: int, size: int) -> int:
        p, _, r = self._columns(d) if d > 2 else (0, 0, 0)
        return size * d * (r + (p if p < d else 0)) + 2**18 + (1200 * self.n_components if d == 2 else 0)

    def _width(self, input_shape: tuple[int, ...]) -> int:
        return int(self.kernel.rows(np.empty((0, math.prod(input_shape)))).shape[1])

    def _columns(self, d: int) -> tuple[int, int, int]:
        """Return the columns of the linear part, the largest exact degree e, and the columns of the activation."""
        m = self.n_components
        if 2 * (1 + d) > m:
            return m // 4, 1, m - 1 - m // 4
        b = self._coefficients(d)
        fits = [e for e in range(1, len(b) - 1) if 2 * math.comb(d + e, e) <= m and (powers(b[: e + 1], d) >= 0).all()]
        # Over rows of any angle, the variance is (Σ_{l > e} b_l)² over the columns of the activation.
        e = min(fits, key=lambda e: b[e + 1 :].sum() ** 2 / (m - math.comb(d + e, e)))
        return d, e, m - math.comb(d + e, e)

    def _coefficients(self, d: int) -> F8:
        if d == 1:
            ends = self.kernel.zonal(np.array([0, np.pi]))
            return np.array([ends.sum() / 2, (ends[0] - ends[1]) / 2])
        return (
            cosine_coefficients(self.kernel, (self.n_components - 1) // 2) if d == 2 else coefficients(self.kernel, d)
        )


def coefficients(kernel: ZonalKernel, d: int, degree: int = DEGREE) -> F8:
    """Compute b_0 … b_l of a kernel on the unit sphere of R^d, d ≥ 3, up to ``degree`` or to the limit of rounding.

    b_l = √N_l E[k p_l] under the density ∝ sin^{d−2} θ of the angle, by Gauss–Legendre quadrature in θ: k is smooth in
    θ even where it is not in cos θ, so that the rule converges geometrically for the NTK and the Laplace kernel, and
    one rule serves every d.  Where d is large, the whole density is within 12/√d of the right angle.
    """
    x, w = _nodes(NODES)
    theta = np.pi / 2 + min(np.pi / 2, 12 / math.sqrt(d)) * x
    w = w * np.sin(theta) ** (d - 2)
    root_n = np.array(_recurrence(1.0, 1.0, degree + 1, d))
    reliable = root_n * 2.0**-52 <= ROUNDING
    p = np.array(_recurrence(np.cos(theta), np.ones(NODES), degree + 1, d))
    b = root_n * (p @ (w / w.sum() * kernel.zonal(theta)))
    return np.maximum(b[reliable], 0)


def cosine_coefficients(kernel: ZonalKernel, degree: int) -> F8:
    """Compute b_0 … b_degree on the circle, where C̄_l(cos θ) = cos lθ, by a DCT of k at 16 times as many angles."""
    n = 16 * max(degree + 1, 64)
    b = dct(kernel.zonal((np.arange(n) + 0.5) * np.pi / n)) / n
    b[0] /= 2
    return np.maximum(b[: degree + 1], 0)


def powers(b: F8, d: int) -> F8:
    """Convert harmonics to powers: return a_0 … a_e with Σ a_j t^j = Σ b_l C̄_l(t), (e + 1,)."""
    p = _polynomials(len(b), d)
    total = sum((v / q(1.0) * q for v, q in zip(b, p, strict=True)), Polynomial([0.0] * len(b)))
    return np.asarray(total.coef, np.float64)


def signs(count: int) -> F8:
    """Return the signs + + − − + + − − … of the degrees from 0 on."""
    return np.where(np.arange(count) // 2 % 2, -1.0, 1.0)


def activation(c: F8, d: int, shift: float) -> tuple[F8, F8]:
    """Write Σ c_l p_l(t/√d) as even(t² − shift) + t·odd(t² − shift); return both coefficients, lowest degree first.

    Powers of t² around a typical value keep float32 errors near 1e-6 (powers of t around 0: 1e-4), at half the cost.
    """
    p = (q(Polynomial([0, 1 / math.sqrt(d)])) for q in _polynomials(len(c), d))
    total = sum((v * q for v, q in zip(c, p, strict=True)), Polynomial([0.0] * (len(c) + 1))).coef
    even, odd = (Polynomial(part)(Polynomial([shift, 1])).coef for part in (total[0::2], total[1::2]))
    return np.asarray(even, np.float64), np.asarray(odd, np.float64)


def differentiated(even: NDArray[Any], odd: NDArray[Any], shift: float) -> tuple[F8, F8]:
    """Return both parts of the derivative by t of even(t² − shift) + t·odd(t² − shift), which has the same form."""
    e, o, square = Polynomial(even), Polynomial(odd), Polynomial([shift, 1])
    parts = o + 2 * square * o.deriv(), 2 * e.deriv()
    return np.asarray(parts[0].coef, np.float64), np.asarray(parts[1].coef, np.float64)


def reach(d: int) -> float:
    """Return the |t| that one value in a million exceeds: t²/d is a Beta(½, (d − 1)/2) variable."""
    return math.sqrt(d * betaincinv(0.5, (d - 1) / 2, 1 - RARE))


@cache
def _polynomials(count: int, d: int) -> tuple[Polynomial, ...]:
    """Return p_0 … p_{count−1} as polynomials of t."""
    return tuple(_recurrence(Polynomial([0, 1]), Polynomial([1.0]), count, d))


def _recurrence(t: Any, one: Any, count: int, d: int) -> list[Any]:
    """Return p_0 … p_{count−1} by t p_l = a_{l+1} p_{l+1} + a_l p_{l−1}, as polynomials or values of t."""
    degrees = range(1, max(count, 2))
    a = [math.sqrt(l * (l + d - 3) / ((2 * l + d - 2) * (2 * l + d - 4))) for l in degrees]  # noqa: E741
    p = [one, t / a[0]]
    for before, this in pairwise(a):
        p.append((t * p[-1] - before * p[-2]) / this)
    return p[:count]


def turned(coef: F8, count: int) -> F8:
    """Return the weights of the waves of `_plane` in the derivative by φ of those with the weights ``coef``, (m, t)."""
    l = np.arange(1, count)[:, None]  # noqa: E741
    out = np.zeros_like(coef)
    out[1:count] = l * coef[count : 2 * count - 1]
    out[count : 2 * count - 1] = -l * coef[1:count]
    return out


def _line(root: NDArray[Any], u: NDArray[Any], out: NDArray[Any]) -> None:
    out[:, 0] = root[0]
    out[:, 1] = root[1] * u[:, 0]
    out[:, 2:] = 0


def _plane(root: NDArray[Any], u: NDArray[Any], out: NDArray[Any]) -> None:
    """Write √b_l cos lφ and √b_l sin lφ, φ the direction of a row; multiples of φ need float64."""
    l = np.arange(1, len(root))  # noqa: E741
    turned = np.multiply.outer(np.arctan2(u[:, 1], u[:, 0], dtype=np.float64), l)
    out[:, 0] = root[0]
    for first, wave in ((1, np.cos), (len(root), np.sin)):
        np.multiply(wave(turned), root[1:], out=out[:, first : first + len(l)], casting="same_kind")
    out[:, 2 * len(root) - 1 :] = 0
