"""NTKSketch: the tangent kernel of a deep ReLU network as a polynomial of the cosine, by sketches of tensor powers.

Legend: u unit input rows of dimension d; c_j the polynomial's coefficients, p its degree; m_j columns of degree j;
e the largest degree that is exact, N_j = C(d + j − 1, j) its monomials.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from msgspec import Meta
from numpy.polynomial.polynomial import polyval, polyvander
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, issparse

from ntkdist.errors import SpecError
from ntkdist.features import monomials, sketch
from ntkdist.features.base import FeatureMap, Params, flat, normalised
from ntkdist.features.pull_back import of_lengths
from ntkdist.kernels import NTK, with_bias

F8 = NDArray[np.float64]
LINEAR = 1000  # the layer of the random stream of a sketched linear part
ANGLES, FINE = 401, 20001  # numbers of angles for the fit, and for the uniform error
FLOOR = 0.01  # of t² in the weight 1/t² of the fit
UNIT = 2.0**-20  # coefficients are multiples of it, so that they do not depend on a solver's rounding


class Columns(NamedTuple):
    """The allocation of columns, and the chain of products that it needs."""

    exact: int  # e
    sketched: dict[int, int]  # m_j of each sketched degree j
    state: int  # columns of the state that sketches of higher degrees start from
    dims: list[int]  # lengths of the rows and of their powers that are exact
    chain: list[sketch.Step]  # products that lead to the sketched degrees above 1

    @property
    def factors(self) -> list[tuple[int, int]]:
        """The input and output length of each factor of the chain."""
        return [(self.dims[-1], self.state), *((self.dims[r - 1], m) for _, r, m in self.chain)] if self.chain else []


class Block(NamedTuple):
    """Columns of one degree: a kind, the degree, the columns z (n, m) and the factor that they still need."""

    kind: Literal["constant", "exact", "linear", "product"]
    degree: int
    z: NDArray[Any]
    factor: Any


class NTKSketch(FeatureMap, frozen=True):
    """An oblivious polynomial sketch of `NTK`: ‖x‖·[√c₀; √c₁ u; …; monomials of degree e; sketches √c_j S u^{⊗j}].

    Algorithm 1 of Zandieh et al., NeurIPS 2021, sketches two polynomials a layer, of κ₁ and κ₀, and their products.
    The composition over layers is one polynomial of t = cos θ with non-negative coefficients, so that a network of any
    depth is approximated here by one, K_p(t) = Σ c_j t^j (as in the authors' program), and no layer's error enters the
    next.  c_j ≥ 0 has the least error weighted by 1/t²; see `coefficients` and `uniform_error`.  A low degree is exact
    where spending columns on its monomials reduces the variance; the others share one chain of products
    (`ntkdist.features.sketch`), each with columns in proportion to c_j, which minimises Σ c_j²/m_j, the
    variance of inner products of rows that are nearly orthogonal.

    Promise: depends on seed and shape only; unbiased for ‖x‖‖y‖ K_p, which is positive definite; the error falls like
    n_components^-½ down to `uniform_error`.  Where all monomials up to degree p fit, the kernel is ‖x‖‖y‖ K_p to
    rounding and the other columns are zero.  A zero row (with ``bias`` 0) has zero features.  Sparse rows are not made
    dense: where d > 1024 the cost is in proportion to their non-zeros, and dense rows have the same features.

    Parameters
    ----------
    n_components : int
        Columns, at least degree + 1.
    depth : int
        Hidden layers of the network.
    degree : int
        p, at most 32.  A higher one has a smaller uniform error and more variance: its terms matter between nearly
        parallel rows only.
    bias : float
        Constant column appended to every row before mapping.
    seed : int
    """

    takes_sparse: ClassVar[bool] = True
    depth: Annotated[int, Meta(ge=1)] = 1
    degree: Annotated[int, Meta(ge=1, le=32)] = 8
    bias: float = 0.0
    seed: Annotated[int, Meta(ge=0)] = 0

    def validate(self) -> None:
        if self.n_components <= self.degree:
            raise SpecError(
                f"NTKSketch.n_components is {self.n_components}; expected at least degree + 1 = {self.degree + 1}"
            )

    def coefficients(self) -> F8:
        """Return c_0 … c_p of K_p(t) = Σ c_j t^j, the expected kernel of the features on unit rows, (p + 1,)."""
        return coefficients(self.depth, self.degree)

    def uniform_error(self) -> float:
        """Return max |K_p(t) − K(t)| over t in [−1, 1], which more columns do not reduce; K(1) = depth + 1."""
        t, k = _kernel(self.depth, FINE)
        return float(np.abs(polyval(t, self.coefficients()) - k).max())

    def kernel(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        return NTK(self.depth, self.bias)(_dense(x), None if y is None else _dense(y))

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        d, root = self._width(input_shape), np.sqrt(self.coefficients())
        columns = self._columns(d)
        scales: list[float | F8] = [1.0, *(monomials.root_multinomials(d, j) for j in range(2, columns.exact + 1))]
        params: Params = {"one": root[:1]}
        params |= {f"exact{j}": root[j] * scales[j - 1] for j in range(1, columns.exact + 1) if root[j] > 0}
        if m := columns.sketched.get(1, 0):
            params["factor1"] = root[1:2]
            draw = sketch.draw_buckets if d > sketch.WIDE else sketch.draw_srht
            params["linear"] = draw(d, m, self.seed, LINEAR, 0)
        if columns.chain:
            params["poly"] = sketch.draw_poly(columns.dims, scales, columns.chain, columns.state, self.seed)
            params |= {
                f"factor{j}": root[j : j + 1] * math.sqrt(columns.state / m)
                for j, m in columns.sketched.items()
                if j > 1
            }
        return params

    def apply(self, params: Params, x: NDArray[Any] | csr_array) -> NDArray[Any]:
        u, length = _unit_rows(x, self.bias)
        out, at = np.empty((u.shape[0], self.n_components), x.dtype), 0
        for block in self._blocks(params, [u]):
            m = block.z.shape[1]
            np.multiply(block.z, block.factor, out=out[:, at : at + m])
            at += m
        out[:, at:] = 0
        out *= length
        return out

    def _blocks(self, params: Params, powers: list[Any], kept: list[sketch.Factors] | None = None) -> Iterator[Block]:
        """Yield the columns block by block, each to be read before the next.

        ``powers`` begins as [u], to which the monomials are appended; ``kept`` is that of `sketch.poly_sketch`.
        """
        u = powers[0]
        columns = self._columns(u.shape[1])
        yield Block("constant", 0, np.ones((u.shape[0], 1), u.dtype), params["one"])
        for j in range(1, columns.exact + 1):
            if j > 1:
                powers.append(monomials.next_degree(u, powers[-1], j))
            if (factor := params.get(f"exact{j}")) is not None:
                yield Block("exact", j, _dense(powers[-1]), factor)
        if m := columns.sketched.get(1, 0):
            z = sketch.sparse_count_sketch(params["linear"], u, m) if issparse(u) else sketch.srht(params["linear"], u)
            yield Block("linear", 1, z, params["factor1"])
        if columns.chain:
            for j, z in sketch.poly_sketch(params["poly"], powers, columns.chain, columns.state, kept):
                if m := columns.sketched.get(j, 0):
                    yield Block("product", j, z[:, :m], params[f"factor{j}"])

    @property
    def has_gradient(self) -> bool:
        return True

    def gradient_weights(self, params: Params, coef: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        return coef.astype(dtype)

    def gradient_of(self, params: Params, x: NDArray[Any] | csr_array, weights: NDArray[Any]) -> NDArray[Any]:
        u, length = _unit_rows(x, self.bias)
        powers, kept, each, at = [u], list[sketch.Factors](), list[tuple[str, int, NDArray[Any]]](), 0
        values = np.zeros((u.shape[0], weights.shape[1]), u.dtype)
        for block in self._blocks(params, powers, kept):
            m = block.z.shape[1]
            by_column = np.reshape(block.factor, (-1, 1)) * weights[at : at + m]
            values += block.z @ by_column
            each.append((block.kind, block.degree, by_column))
            at += m
        slopes = np.empty((*values.shape, u.shape[1]), u.dtype)
        for i in range(values.shape[1]):
            slopes[:, i] = self._slopes(params, powers, kept, [(kind, j, w[:, i]) for kind, j, w in each])
        return of_lengths(slopes, _dense(u), values, length, math.prod(x.shape[1:]))

    def _slopes(
        self,
        params: Params,
        powers: list[Any],
        kept: list[sketch.Factors],
        weights: list[tuple[str, int, NDArray[Any]]],
    ) -> NDArray[Any]:
        """Return the gradients by u of one function, from the weights (m_j,) of each block, by its kind and degree."""
        d, dtype, columns = powers[0].shape[1], powers[0].dtype, self._columns(powers[0].shape[1])
        out, products = [np.zeros(power.shape, dtype) for power in powers], dict[int, NDArray[Any]]()
        for kind, j, w in weights:
            if kind == "exact":
                out[j - 1] += w
            elif kind == "linear":
                linear = params["linear"]
                out[0] += (
                    sketch.count_sketch_transposed(linear, w[None])
                    if "bucket" in linear
                    else sketch.srht_transposed(linear, w[None], d)
                )
            elif kind == "product":
                products[j] = w
        if columns.chain:
            sketch.poly_pull_back(params["poly"], kept, columns.chain, columns.state, products, out)
        for j in range(2, len(powers) + 1):
            place, exponent = monomials.raised(d, j)
            by_lower = out[j - 1][:, place]
            by_lower *= exponent.astype(dtype)
            out[0] += np.matmul(powers[j - 2][:, None], by_lower)[:, 0]
        return out[0]

    def gradient_bytes(self, input_shape: tuple[int, ...], dtype: Any, t: int) -> int:
        d, size = self._width(input_shape), np.dtype(dtype).itemsize
        columns, hashed = self._columns(d), d > sketch.WIDE
        values = 2 * t * d + 4 * d + 2 * sum(columns.dims) + self.n_components
        values += 2 * max((d * count for count in columns.dims[:-1]), default=0)
        if columns.chain:
            lefts = 1 + len({step.j - step.r for step in columns.chain})
            factors = max(sketch.factor_values(q, k, hashed) + q for q, k in columns.factors)
            values += sum(step.columns for step in columns.chain) + (lefts + 5) * columns.state + factors
        if m := columns.sketched.get(1, 0):
            values += sketch.factor_values(d, m, hashed)
        return size * values + 24 * d * hashed + 64

    def gradient_weights_bytes(self, input_shape: tuple[int, ...], dtype: Any, t: int) -> int:
        return 2 * np.dtype(dtype).itemsize * self.n_components * t

    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        d = self._width(input_shape)
        dense = 4 * d * np.dtype(dtype).itemsize
        return dense + self.sparse_row_bytes(input_shape, dtype, d if d > sketch.WIDE else 0)

    def sparse_row_bytes(self, input_shape: tuple[int, ...], dtype: Any, nonzeros: int) -> int:
        d, size = self._width(input_shape), np.dtype(dtype).itemsize
        columns = self._columns(d)
        powers = columns.exact * d if d > sketch.WIDE else d + sum(columns.dims)
        values = self.n_components + powers
        if columns.chain:
            factors = (sketch.factor_values(q, k, d > sketch.WIDE) for q, k in columns.factors)
            values += 3 * columns.state + max(3 * columns.state, *factors)
        if m := columns.sketched.get(1, 0):
            values += sketch.factor_values(d, m, d > sketch.WIDE)
        return size * values + (3 * size + 24) * nonzeros + 64

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        d, size = self._width(input_shape), np.dtype(dtype).itemsize
        columns = self._columns(d)
        factors = columns.factors
        if m := columns.sketched.get(1, 0):
            factors.append((d, m))
        kept = [sketch.drawn_values(q, k, d > sketch.WIDE) for q, k in factors] or [0]
        # Multinomials are made one by one, as Python's numbers.
        return (8 + size) * sum(kept) + 16 * max(kept) + 300 * sum(columns.dims[1:]) + 2**18

    def _width(self, input_shape: tuple[int, ...]) -> int:
        return math.prod(input_shape) + (self.bias != 0)

    def _columns(self, d: int) -> Columns:
        c, left, e = self.coefficients(), self.n_components - 1, 0
        degrees = [j for j in range(1, self.degree + 1) if c[j] > 0]
        while degrees and (d <= sketch.WIDE or e == 0):
            j, after = degrees[0], float(c[degrees[1:]].sum())
            fits = left - monomials.count(d, j) - len(degrees) + 1
            # The variance of sketched degrees is (Σ c_j)² over their columns; compare with and without this degree.
            better = after**2 * left <= (c[j] + after) ** 2 * fits
            if fits < 0 or not (better or (j == 1 and 2 * (1 + d) <= self.n_components)):
                break
            left, e, degrees = left - monomials.count(d, j), j, degrees[1:]
        weights = c[degrees]
        ends = np.floor((left - len(degrees)) * np.cumsum([0.0, *weights]) / max(weights.sum(), UNIT)).astype(int)
        sketched = {j: 1 + int(m) for j, m in zip(degrees, np.diff(ends), strict=True)}
        higher = {j: m for j, m in sketched.items() if j > 1}
        state = sketch.next_power(max(higher.values(), default=1))
        dims = [monomials.count(d, j) for j in range(1, max(e, 1) + 1)]
        return Columns(e, sketched, state, dims, sketch.steps(len(dims), higher, state) if higher else [])


def _unit_rows(x: NDArray[Any] | csr_array, bias: float) -> tuple[Any, NDArray[Any]]:
    """Return unit rows and their lengths (n, 1), sparse where they are long, else dense."""
    n, d = x.shape[0], math.prod(x.shape[1:]) + (bias != 0)
    if not isinstance(x, csr_array):
        u, length = normalised(with_bias(flat(x), bias))
        return csr_array(u) if d > sketch.WIDE else u, length
    if d <= sketch.WIDE:
        return _unit_rows(x.toarray(), bias)
    if bias:
        x = hstack([x, csr_array(np.full((n, 1), bias, x.dtype))], format="csr")
    length = np.sqrt(x.multiply(x).sum(axis=1)).astype(x.dtype)
    scale = np.repeat(np.where(length == 0, 1, length), np.diff(x.indptr))
    return csr_array((x.data / scale, x.indices, x.indptr), x.shape), length[:, None]


def _dense(x: Any) -> NDArray[Any]:
    return x.toarray() if issparse(x) else flat(np.asarray(x))


@cache
def coefficients(depth: int, degree: int) -> F8:
    """Compute c_0 … c_p ≥ 0 of least max |K_p(t) − K(t)| / max(t², 0.01) over angles of [0, π], by a linear program.

    Cosines of rows concentrate around 0, more so in higher dimension, and there the weight makes K_p exact to a
    thousandth of K(1) or less; at the ends, t = ±1, the error is some tenths larger than the least uniform one.
    """
    t, k = _kernel(depth, ANGLES)
    powers, weight = polyvander(t, degree), np.maximum(t**2, FLOOR)[:, None]
    program = linprog(
        np.append(np.zeros(degree + 1), 1.0),
        A_ub=np.block([[powers, -weight], [-powers, -weight]]),
        b_ub=np.concatenate([k, -k]),
        bounds=(0, None),
        method="highs",
    )
    c: F8 = np.rint(program.x[:-1] / UNIT) * UNIT
    c.flags.writeable = False
    return c


def _kernel(depth: int, count: int) -> tuple[F8, F8]:
    theta = np.linspace(0, np.pi, count)
    return np.cos(theta), NTK(depth).zonal(theta)
