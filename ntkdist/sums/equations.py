"""Normal equations: all that ridge regression needs from the data, and the summands that add them up.

Legend: z (n, m) features; y (n, t) targets; w (n,) weights; G = Σ w z zᵀ.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend, gpu
from ntkdist.data.dataset import Rows, Shard
from ntkdist.data.scaling import Preprocessing
from ntkdist.display import Described
from ntkdist.errors import DataError
from ntkdist.sums.mapped_rows import Features, OverMappedRows, check_finite, not_finite
from ntkdist.sums.rounding import UNKNOWN, Loss, block_rounding, relative_rounding

F8 = NDArray[np.float64]


class TargetSums:
    """The part of the sums beside the Gram, Σ w [z y 1]ᵀ[y 1], with its parts by name."""

    _cross: F8  # (m, t + 1)
    _inner: F8  # (t + 1, t + 1)

    @property
    def rhs(self) -> F8:
        """Σ w z yᵀ, (m, t)."""
        return self._cross[:, :-1]

    @property
    def z_sum(self) -> F8:
        """Σ w z, (m,)."""
        return self._cross[:, -1]

    @property
    def y_sum(self) -> F8:
        """Σ w y, (t,)."""
        return self._inner[:-1, -1]

    @property
    def yy(self) -> F8:
        """Σ w y yᵀ, (t, t)."""
        return self._inner[:-1, :-1]

    @property
    def weight(self) -> float:
        """Σ w."""
        return float(self._inner[-1, -1])

    @property
    def m(self) -> int:
        return len(self._cross)

    @property
    def t(self) -> int:
        return len(self._inner) - 1

    def loss_of(self, coef: F8, intercept: F8, square: F8, squares: F8, rounding: float) -> Loss:
        """Evaluate the squared error of a model over the rows of the sums, and bound its rounding.

        The value is vᵀAv for A = Σ w [z 1 y]ᵀ[z 1 y] and v = (coef, intercept, −1): numbers of the size of yy that
        cancel.  Centred sums round by the same bound: their entries are added before the means are known.

        ``square`` is coefᵀG coef (t,), ``squares`` the diagonal of G (m,), ``rounding`` that of A's entries.
        """
        yy = np.diagonal(self.yy)
        value = yy + square + 2 * intercept * (self.z_sum @ coef) + self.weight * intercept**2
        value -= 2 * (np.einsum("it,it->t", self.rhs, coef) + self.y_sum * intercept)
        root = np.sqrt(np.maximum(squares, 0.0))  # subtraction of rows may leave them negative
        x = np.vstack([root[:, None] * coef, np.sqrt(self.weight) * intercept, np.sqrt(np.maximum(yy, 0.0))])
        return Loss.of(value, x, rounding)


def with_roots(z: NDArray[Any], y: NDArray[Any], weight: NDArray[Any] | None) -> tuple[NDArray[Any], F8]:
    """Return √w z in z's precision and √w [y 1] in float64; their products are the sums."""
    y1 = np.column_stack([np.asarray(y, np.float64), np.ones(len(y))])
    if weight is None:
        return z, y1
    root = np.sqrt(np.asarray(weight, np.float64))[:, None]
    return z * gpu.array_module(z).asarray(root.astype(z.dtype)), y1 * root


class NormalEquations(Described, TargetSums):
    """Σ w [z y 1]ᵀ[z y 1] over rows, in float64: a value with ``+``, ``-`` and a size.

    Sums over disjoint rows add; rows that were added can be subtracted.  Float32 blocks are multiplied in float32 and
    added in float64.
    """

    def __init__(self, gram: F8, cross: F8, inner: F8, symmetric: bool = True, rounding: float = 0.0) -> None:
        self._gram, self._cross, self._inner = gram, cross, inner
        self._symmetric = symmetric  # else only the lower triangle of the Gram is valid
        self._rounding = rounding  # Σ of `block_rounding` over blocks; nan if unknown
        self._tf32 = False

    @classmethod
    def zeros(cls, m: int, t: int, on_gpu: bool = False, tf32: bool = False) -> "NormalEquations":
        """Return the empty sum for m features and t targets; one on a GPU needs `to_host` before it leaves its task."""
        xp = gpu.cupy() if on_gpu else np
        empty = cls(xp.zeros((m, m)), xp.zeros((m, t + 1)), np.zeros((t + 1, t + 1)))
        empty._tf32 = tf32
        return empty

    def facts(self) -> dict[str, Any]:
        """Return what is shown of the sums, by name."""
        return {"m": self.m, "t": self.t, "weight": self.weight}

    def to_host(self) -> "NormalEquations":
        """Move the sums to the host, in place; nothing of them stays on the GPU."""
        self._gram, self._cross = gpu.to_host(self._gram), gpu.to_host(self._cross)
        return self

    @classmethod
    def of_arrays(cls, arrays: dict[str, F8]) -> "NormalEquations":
        gram, rounding = backend.unpack(arrays["triangle"]), arrays.get("rounding", UNKNOWN)
        return cls(gram, arrays["cross"], arrays["inner"], symmetric=False, rounding=float(rounding[0]))

    def arrays(self) -> dict[str, F8]:
        """Return the arrays to store: every number once."""
        rounding = np.array([self._rounding])
        return {"triangle": backend.pack(self._gram), "cross": self._cross, "inner": self._inner, "rounding": rounding}

    @property
    def gram(self) -> F8:
        """Σ w z zᵀ, (m, m)."""
        if not self._symmetric:
            backend.mirror(self._gram)
            self._symmetric = True
        return self._gram

    @property
    def lower(self) -> F8:
        """The Gram, of which only the lower triangle is valid: a caller may write above the diagonal."""
        self._symmetric = False
        return self._gram

    @property
    def squares(self) -> F8:
        """The diagonal of the Gram, Σ w z² of each feature, (m,)."""
        return np.diagonal(self._gram)

    @property
    def rounding(self) -> float:
        """The rounding of the sums, relative to √(G_ii G_jj) of an entry: a bound if blocks are alike."""
        return relative_rounding(self._rounding, self.weight)

    def update(self, z: NDArray[Any], y: NDArray[Any], weight: NDArray[Any] | None = None) -> "NormalEquations":
        """Add a block of rows, in place: features (n, m), targets (n,) or (n, t), weights (n,) if not all are 1."""
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
        return self._combine(operator.add, other)

    def __sub__(self, other: "NormalEquations") -> "NormalEquations":
        return self._combine(operator.sub, other)

    def _combine(self, add: Callable[[F8, F8], F8], other: "NormalEquations") -> "NormalEquations":
        gram, cross = add(self._gram, other._gram), add(self._cross, other._cross)
        both, rounding = self._symmetric and other._symmetric, self._rounding + other._rounding
        return NormalEquations(gram, cross, add(self._inner, other._inner), both, rounding)

    def in_tiles(self, tile: int) -> dict[tuple[int, int], F8]:
        """Return views of the sums by place as in `ntkdist.sums.tiles`, which can be read, and filled before a sum."""
        runs = [slice(i, i + tile) for i in range(0, self.m, tile)]
        gram = {(i, j): self.lower[a, b] for i, a in enumerate(runs) for j, b in enumerate(runs[: i + 1])}
        cross = {(len(runs), j): self._cross[b].T for j, b in enumerate(runs)}
        return gram | cross | {(len(runs), len(runs)): self._inner}

    def fill(self, tiles: dict[tuple[int, int], F8], tile: int, rounding: float) -> None:
        """Replace the sums by tiles that were read from others' `in_tiles`, with their sum of `block_rounding`."""
        for place, view in self.in_tiles(tile).items():
            view[...] = tiles[place]
        self._rounding = rounding

    @property
    def squared_rounding(self) -> float:
        """The sum of `block_rounding` over blocks; nan if unknown."""
        return self._rounding

    def subset(self, columns: slice | NDArray[Any], scale: F8 | None = None) -> "NormalEquations":
        """Return the equations of some of the features, multiplied by ``scale``, as if only those had been mapped."""
        pick = np.arange(self.m)[columns]
        gram, cross = self.gram[np.ix_(pick, pick)], self._cross[pick]
        if scale is not None:
            gram *= scale[:, None]
            gram *= scale
            cross *= scale[:, None]
        return NormalEquations(gram, cross, self._inner, rounding=self._rounding)

    def centred(self) -> tuple[F8, F8]:
        """Return the Gram and the right-hand side about the weighted means, for a ridge with a free intercept."""
        mean = self.z_sum / self.weight
        gram = self.gram - np.outer(mean, self.z_sum)
        return gram, self.rhs - np.outer(mean, self.y_sum)

    def loss(self, coef: F8, intercept: F8) -> F8:
        """Compute Σ w (y − zᵀcoef − intercept)² of each target, (t,), from the sums alone."""
        return self.rounded_loss(coef, intercept).value

    def rounded_loss(self, coef: F8, intercept: F8) -> Loss:
        """Compute `loss` with the bound of its rounding."""
        square = np.einsum("it,it->t", coef, self.gram @ coef)
        return self.loss_of(coef, intercept, square, self.squares, self.rounding)

    def trace(self) -> float:
        """Return the trace of the centred Gram, Σ w ‖z − z̄‖²: the scale of ``alpha``."""
        return float(np.trace(self._gram) - self.z_sum @ self.z_sum / self.weight)

    def __sizeof__(self) -> int:
        return self._gram.nbytes + self._cross.nbytes + self._inner.nbytes


@dataclass(frozen=True)
class EquationsOf:
    """A summand: the normal equations of the features of scaled rows."""

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
        """Add a block of rows without a check of their features."""
        assert rows.y is not None
        z = self.mapped(self.preprocessing.of_rows(rows, self.dtype))
        return total.update(z, self.preprocessing.targets(rows.y), self.preprocessing.weights(rows))

    def mapped(self, x: Any) -> Any:
        return self.features(x)


@dataclass(frozen=True)
class TargetSumsOf(OverMappedRows):
    """Base of the summands whose sums are updated with features, targets and weights of mapped rows."""

    sums: ClassVar[Any]  # the class of the sums

    def zero(self) -> Any:
        return self.sums.zeros(self.mapped.features.n_components, self.mapped.preprocessing.t)

    def update(self, total: Any, rows: Rows) -> Any:
        assert rows.y is not None
        total.update(rows.x, rows.y, rows.weight)
        check_finite(total.z_sum, rows, self.mapped.dtype)
        return total


@dataclass(frozen=True)
class EquationsOfMapped(TargetSumsOf):
    """A summand: the normal equations of mapped rows."""

    sums: ClassVar[Any] = NormalEquations


@dataclass(frozen=True)
class EquationsOnGpu(EquationsOf):
    """A summand as `EquationsOf`, whose features and sum stay on the process's GPU until the task is over."""

    tf32: bool = False

    def zero(self) -> NormalEquations:
        gpu.free()  # memory left by a task that failed
        return NormalEquations.zeros(self.features.n_components, self.preprocessing.t, on_gpu=True, tf32=self.tf32)

    def update(self, total: NormalEquations, rows: Rows) -> NormalEquations:
        return self.add(total, rows)  # a check here would wait for the GPU at every block

    def mapped(self, x: Any) -> Any:
        return self.features.on_gpu(x)

    def to_host(self, total: NormalEquations, shard: Shard) -> NormalEquations:
        total = total.to_host()
        gpu.free()
        if not np.isfinite(total.z_sum).all():
            raise not_finite(shard.which, self.dtype)
        # No product is larger than those on the diagonal, and GPU libraries do not report overflow.
        if not np.isfinite(total.squares).all():
            raise DataError(
                f"Squares of features overflow in {self.dtype}; look for huge values in the data, or use dtype float64"
            )
        return total
