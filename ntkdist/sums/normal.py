"""The summand: all that ridge regression needs to know of the data.

Legend: z (n, m) features; y (n, t) targets; w (n,) weights; G = Σ w z zᵀ.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend, devices

F8 = NDArray[np.float64]


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


def with_roots(z: NDArray[Any], y: NDArray[Any], weight: NDArray[Any] | None) -> tuple[NDArray[Any], F8]:
    """√w z in z's precision and √w [y 1] in float64: their products are the sums."""
    y1 = np.column_stack([np.asarray(y, np.float64), np.ones(len(y))])
    if weight is None:
        return z, y1
    root = np.sqrt(np.asarray(weight, np.float64))[:, None]
    return z * devices.of(z).asarray(root.astype(z.dtype)), y1 * root


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

    def __init__(self, gram: F8, cross: F8, inner: F8, symmetric: bool = True) -> None:
        self._gram, self._cross, self._inner = gram, cross, inner
        self._symmetric = symmetric  # else only the lower triangle of the Gram is valid

    @classmethod
    def zeros(cls, m: int, t: int, on_gpu: bool = False) -> "NormalEquations":
        """The empty sum for m features and t targets; on the GPU of a task, it has to be `taken` to leave that."""
        xp = devices.cupy() if on_gpu else np
        return cls(xp.zeros((m, m)), xp.zeros((m, t + 1)), np.zeros((t + 1, t + 1)))

    def taken(self) -> "NormalEquations":
        """The same, on the host; nothing is left of it on the GPU."""
        self._gram, self._cross = devices.taken(self._gram), devices.taken(self._cross)
        return self

    @classmethod
    def of_arrays(cls, arrays: dict[str, F8]) -> "NormalEquations":
        """The sum whose `arrays` these are."""
        return cls(backend.unpack(arrays["triangle"]), arrays["cross"], arrays["inner"], symmetric=False)

    def arrays(self) -> dict[str, F8]:
        """What is kept of it: every number once."""
        return {"triangle": backend.pack(self._gram), "cross": self._cross, "inner": self._inner}

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
        backend.add_products(self._gram, self._cross, z, devices.of(z).asarray(y1.astype(z.dtype)))
        self._symmetric = False
        self._inner += y1.T @ y1
        return self

    def __iadd__(self, other: "NormalEquations") -> "NormalEquations":
        self._gram += other._gram
        self._cross += other._cross
        self._inner += other._inner
        self._symmetric = self._symmetric and other._symmetric
        return self

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        both = self._symmetric and other._symmetric
        return NormalEquations(self._gram + other._gram, self._cross + other._cross, self._inner + other._inner, both)

    def __sub__(self, other: "NormalEquations") -> "NormalEquations":
        both = self._symmetric and other._symmetric
        return NormalEquations(self._gram - other._gram, self._cross - other._cross, self._inner - other._inner, both)

    def subset(self, columns: slice | NDArray[Any], scale: F8 | None = None) -> "NormalEquations":
        """The equations of some of the features, as if only those had been computed, multiplied by ``scale``."""
        pick = np.arange(self.m)[columns]
        gram, cross = self.gram[np.ix_(pick, pick)], self._cross[pick]
        if scale is not None:
            gram *= scale[:, None]
            gram *= scale
            cross *= scale[:, None]
        return NormalEquations(gram, cross, self._inner)

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
        full = np.vstack([coef, intercept])  # coefficients of [z 1]
        gram_coef = np.vstack(
            [self.gram @ coef + np.outer(self.z_sum, intercept), self.z_sum @ coef + self.weight * intercept]
        )
        rhs = np.vstack([self.rhs, self.y_sum])
        loss: F8 = np.diagonal(self.yy) + np.einsum("it,it->t", full, gram_coef - 2 * rhs)
        return loss

    def trace(self) -> float:
        """Σ w ‖z − z̄‖²: the scale against which ``alpha`` is large or small."""
        return float(np.trace(self._gram) - self.z_sum @ self.z_sum / self.weight)

    def __sizeof__(self) -> int:
        return self._gram.nbytes + self._cross.nbytes + self._inner.nbytes
