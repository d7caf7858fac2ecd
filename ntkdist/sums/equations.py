"""The summand: all that ridge regression needs to know of the data.

Legend: z (n, m) features; y (n, t) targets; w (n,) weights; G = Σ w z zᵀ; u the unit roundoff of products.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend, gpu, random
from ntkdist.data.dataset import Rows, Shard
from ntkdist.data.scaling import Preprocessing
from ntkdist.errors import DataError
from ntkdist.sums.mapped_rows import Features, check_finite, not_finite

F8 = NDArray[np.float64]
UNIT = 2.0**-53  # of float64
SKETCH, ROLE = 32, 1001
UNKNOWN = np.array([np.nan])  # rounding of sums that were kept by versions that did not count it
TF32 = 2.0**-11  # of factors that a GPU rounds to TF32 first


class Loss(NamedTuple):
    """Σ w (y − ŷ)² of each target of a model, evaluated from sums.

    Attributes
    ----------
    value : (t,) array
        May be below zero by its rounding.
    rounding : (t,) array
        Its bound.
    sketch : (SKETCH, t) array
        Of which `apart` bounds the rounding of the difference of two losses over the same rows.
    """

    value: F8
    rounding: F8
    sketch: F8


class TargetSums:
    """What sums hold beside a Gram: Σ w [z y 1]ᵀ[y 1], read by name."""

    _cross: F8  # (m, t + 1)
    _inner: F8  # (t + 1, t + 1)

    @property
    def rhs(self) -> F8:
        return self._cross[:, :-1]

    @property
    def z_sum(self) -> F8:
        return self._cross[:, -1]

    @property
    def y_sum(self) -> F8:
        return self._inner[:-1, -1]

    @property
    def yy(self) -> F8:
        return self._inner[:-1, :-1]

    @property
    def weight(self) -> float:
        return float(self._inner[-1, -1])

    @property
    def m(self) -> int:
        """Features."""
        return len(self._cross)

    @property
    def t(self) -> int:
        """Targets."""
        return len(self._inner) - 1

    def loss_of(self, coef: F8, intercept: F8, square: F8, squares: F8, rounding: float) -> Loss:
        """Evaluate the squared error of a model over the rows of the sums, and bound its rounding.

        The value is vᵀAv for A = Σ w [z 1 y]ᵀ[z 1 y] and v = (coef, intercept, −1): numbers of the size of yy that
        cancel.  An entry of A rounds by the order of ρ√(A_ii A_jj), independently of others, so that vᵀAv rounds by the
        order of ρ Σ v_i² A_ii = ρ‖x‖² for x_i = v_i √A_ii, not by the far larger ρ(Σ |x_i|)².  It is that for centred
        sums too: what rounds is added up before the means are known.  Evaluating in float64 adds to it.

        Parameters
        ----------
        coef : (m, t) array
        intercept : (t,) array
        square : (t,) array
            coefᵀG coef of every target.
        squares : (m,) array
            The diagonal of G.
        rounding : float
            Relative, of the entries of A; see `NormalEquations.rounding`.
        """
        yy = np.diagonal(self.yy)
        value = yy + square + 2 * intercept * (self.z_sum @ coef) + self.weight * intercept**2
        value -= 2 * (np.einsum("it,it->t", self.rhs, coef) + self.y_sum * intercept)
        root = np.sqrt(np.maximum(squares, 0.0))  # which subtracting rows may have left below
        x = np.vstack([root[:, None] * coef, np.sqrt(self.weight) * intercept, np.sqrt(np.maximum(yy, 0.0))])
        size = np.einsum("it,it->t", x, x)
        return Loss(value, (rounding + evaluating(self.m)) * size, np.sqrt(rounding) * (projection(len(x)) @ x))


def evaluating(m: int) -> float:
    """Bound the rounding of evaluating vᵀAv in float64, relative to Σ v_i² A_ii."""
    return float(2 * UNIT * np.sqrt(m))


@functools.lru_cache(4)
def projection(count: int) -> F8:
    """Draw random signs, (SKETCH, count), whose products keep lengths to an eighth (Johnson, Lindenstrauss 1984)."""
    return random.signs(SKETCH * count, 0, 0, ROLE).reshape(SKETCH, count) / np.sqrt(SKETCH)


def apart(one: F8, other: F8) -> F8:
    """Bound the rounding of the difference of losses, by their sketches (..., SKETCH, t).

    For a symmetric E, vᵀEv − uᵀEu = (v − u)ᵀE(v + u), of the order of ρ‖x_v − x_u‖·‖x_v + x_u‖: far less than that of
    either, where models are alike.
    """
    return np.asarray(np.linalg.norm(one - other, axis=-2) * np.linalg.norm(one + other, axis=-2))


def with_roots(z: NDArray[Any], y: NDArray[Any], weight: NDArray[Any] | None) -> tuple[NDArray[Any], F8]:
    """√w z in z's precision and √w [y 1] in float64: their products are the sums."""
    y1 = np.column_stack([np.asarray(y, np.float64), np.ones(len(y))])
    if weight is None:
        return z, y1
    root = np.sqrt(np.asarray(weight, np.float64))[:, None]
    return z * gpu.array_module(z).asarray(root.astype(z.dtype)), y1 * root


def block_rounding(rows: int, weight: float, dtype: Any, tf32: bool = False) -> float:
    """Bound the rounding of a block's sum of n squares of a weight of W, squared so that blocks add: (u√n W)².

    Adding the squares one after another, the order that rounds most, has a standard deviation of 0.29 u√n W.
    """
    unit = float(np.finfo(dtype).eps) / 2
    return (max(unit * rows**0.5, TF32 if tf32 and np.dtype(dtype) == np.float32 else 0.0) * weight) ** 2


def relative_rounding(squared: float, weight: float) -> float:
    """Take the root of what blocks have added, relative to the weight of all."""
    return squared**0.5 / weight if weight > 0 else 0.0


class NormalEquations(TargetSums):
    """Σ w [z y 1]ᵀ[z y 1] over rows, in float64: a value with ``+``, ``-`` and a size.

    Sums over disjoint rows add; rows that were added can be subtracted.  Float32 blocks are multiplied in float32 and
    added in float64.

    Attributes
    ----------
    gram : (m, m) float64 array
        Σ w z zᵀ
    rhs : (m, t) float64 array
        Σ w z yᵀ
    z_sum : (m,) float64 array
        Σ w z
    y_sum : (t,) float64 array
        Σ w y
    yy : (t, t) float64 array
        Σ w y yᵀ
    weight : float
        Σ w
    """

    def __init__(self, gram: F8, cross: F8, inner: F8, symmetric: bool = True, rounding: float = 0.0) -> None:
        self._gram, self._cross, self._inner = gram, cross, inner
        self._symmetric = symmetric  # else only the lower triangle of the Gram is valid
        self._rounding = rounding  # Σ of what `block_rounding` says of every block; nan where that is not known
        self._tf32 = False

    @classmethod
    def zeros(cls, m: int, t: int, on_gpu: bool = False, tf32: bool = False) -> "NormalEquations":
        """The empty sum for m features and t targets; on the GPU of a task, it has to be `taken` to leave that."""
        xp = gpu.cupy() if on_gpu else np
        empty = cls(xp.zeros((m, m)), xp.zeros((m, t + 1)), np.zeros((t + 1, t + 1)))
        empty._tf32 = tf32
        return empty

    def taken(self) -> "NormalEquations":
        """The same, on the host; nothing is left of it on the GPU."""
        self._gram, self._cross = gpu.to_host(self._gram), gpu.to_host(self._cross)
        return self

    @classmethod
    def of_arrays(cls, arrays: dict[str, F8]) -> "NormalEquations":
        """The sum whose `arrays` these are."""
        gram, rounding = backend.unpack(arrays["triangle"]), arrays.get("rounding", UNKNOWN)
        return cls(gram, arrays["cross"], arrays["inner"], symmetric=False, rounding=float(rounding[0]))

    def arrays(self) -> dict[str, F8]:
        """What is kept of it: every number once."""
        rounding = np.array([self._rounding])
        return {"triangle": backend.pack(self._gram), "cross": self._cross, "inner": self._inner, "rounding": rounding}

    @property
    def gram(self) -> F8:
        if not self._symmetric:
            backend.mirror(self._gram)
            self._symmetric = True
        return self._gram

    @property
    def squares(self) -> F8:
        """Σ w z² of every feature, (m,)."""
        return np.diagonal(self._gram)

    @property
    def rounding(self) -> float:
        """Relative rounding of the sums, to √(G_ii G_jj) of an entry: a bound if blocks are alike."""
        return relative_rounding(self._rounding, self.weight)

    def update(self, z: NDArray[Any], y: NDArray[Any], weight: NDArray[Any] | None = None) -> "NormalEquations":
        """Add a block of rows, in place.

        Parameters
        ----------
        z : (n, m) array
            Float32 or float64; float32 is multiplied in float32.
        y : (n,) or (n, t) array
        weight : (n,) array, optional
            Non-negative; 1 if absent.

        Returns
        -------
        NormalEquations
            ``self``
        """
        z, y1 = with_roots(z, y, weight)
        backend.add_products(self._gram, self._cross, z, gpu.array_module(z).asarray(y1.astype(z.dtype)))
        self._symmetric = False
        inner = y1.T @ y1
        self._inner += inner
        self._rounding += block_rounding(len(y1), float(inner[-1, -1]), z.dtype, self._tf32)
        return self

    def __iadd__(self, other: "NormalEquations") -> "NormalEquations":
        self._gram += other._gram
        self._cross += other._cross
        self._inner += other._inner
        self._symmetric = self._symmetric and other._symmetric
        self._rounding += other._rounding
        return self

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        both, rounding = self._symmetric and other._symmetric, self._rounding + other._rounding
        gram, cross, inner = self._gram + other._gram, self._cross + other._cross, self._inner + other._inner
        return NormalEquations(gram, cross, inner, both, rounding)

    def __sub__(self, other: "NormalEquations") -> "NormalEquations":
        both, rounding = self._symmetric and other._symmetric, self._rounding + other._rounding
        gram, cross, inner = self._gram - other._gram, self._cross - other._cross, self._inner - other._inner
        return NormalEquations(gram, cross, inner, both, rounding)

    def subset(self, columns: slice | NDArray[Any], scale: F8 | None = None) -> "NormalEquations":
        """The equations of some of the features, as if only those had been computed, multiplied by ``scale``."""
        pick = np.arange(self.m)[columns]
        gram, cross = self.gram[np.ix_(pick, pick)], self._cross[pick]
        if scale is not None:
            gram *= scale[:, None]
            gram *= scale
            cross *= scale[:, None]
        return NormalEquations(gram, cross, self._inner, rounding=self._rounding)

    def centred(self) -> tuple[F8, F8]:
        """Gram and right-hand side about the weighted means: what the ridge with a free intercept needs.

        Returns
        -------
        gram : (m, m) array
        rhs : (m, t) array
        """
        mean = self.z_sum / self.weight
        gram = self.gram - np.outer(mean, self.z_sum)
        return gram, self.rhs - np.outer(mean, self.y_sum)

    def loss(self, coef: F8, intercept: F8) -> F8:
        """Σ w (y − zᵀcoef − intercept)² of each target, (t,), from the sums alone."""
        return self.rounded_loss(coef, intercept).value

    def rounded_loss(self, coef: F8, intercept: F8) -> Loss:
        """Evaluate the same, with the bound of its rounding."""
        square = np.einsum("it,it->t", coef, self.gram @ coef)
        return self.loss_of(coef, intercept, square, self.squares, self.rounding)

    def trace(self) -> float:
        """Σ w ‖z − z̄‖²: the scale against which ``alpha`` is large or small."""
        return float(np.trace(self._gram) - self.z_sum @ self.z_sum / self.weight)

    def __sizeof__(self) -> int:
        return self._gram.nbytes + self._cross.nbytes + self._inner.nbytes


@dataclass(frozen=True)
class EquationsOf:
    """Normal equations of the features of scaled rows."""

    features: Features
    preprocessing: Preprocessing
    dtype: str

    def zero(self) -> NormalEquations:
        return NormalEquations.zeros(self.features.n_components, self.preprocessing.t)

    def update(self, total: NormalEquations, rows: Rows) -> NormalEquations:
        self.add(total, rows)
        check_finite(total.z_sum, rows, self.dtype)
        return total

    def add(self, total: NormalEquations, rows: Rows) -> NormalEquations:
        """Add some rows, whatever their features are."""
        assert rows.y is not None
        z = self.mapped(self.preprocessing.inputs(rows.x, self.dtype))
        return total.update(z, self.preprocessing.targets(rows.y), self.preprocessing.weights(rows))

    def mapped(self, x: Any) -> Any:
        """Features of scaled rows."""
        return self.features(x)


@dataclass(frozen=True)
class EquationsOnGpu(EquationsOf):
    """The same, with the features and the sum on the GPU of the process until the task is over."""

    tf32: bool = False

    def zero(self) -> NormalEquations:
        gpu.free()  # what a task that failed has left
        return NormalEquations.zeros(self.features.n_components, self.preprocessing.t, on_gpu=True, tf32=self.tf32)

    def update(self, total: NormalEquations, rows: Rows) -> NormalEquations:
        return self.add(total, rows)  # a look at the sum would wait for the GPU, at every block

    def mapped(self, x: Any) -> Any:
        return self.features.on_gpu(x)

    def taken(self, total: NormalEquations, shard: Shard) -> NormalEquations:
        total = total.taken()
        gpu.free()
        if not np.isfinite(total.z_sum).all():
            raise not_finite(shard.which, self.dtype)
        # No other product is larger than those on the diagonal are, and no library of a GPU says that one overflowed.
        if not np.isfinite(total.squares).all():
            raise DataError(
                f"Squares of features overflow in {self.dtype}; look for huge values in the data, or use dtype float64"
            )
        return total
