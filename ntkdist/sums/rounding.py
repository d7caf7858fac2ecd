"""Rounding of losses that are evaluated from sums, and its bounds.

Legend: ρ relative rounding of the sums; u the unit roundoff of products; A = Σ w [z 1 y]ᵀ[z 1 y]; v = (coef, intercept,
−1), so that a loss is vᵀAv; t targets.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ntkdist import random

F8 = NDArray[np.float64]
UNIT = 2.0**-53  # of float64
TF32 = 2.0**-11  # unit roundoff of factors that a GPU rounds to TF32 first
SKETCH, ROLE = 32, 1001  # rows of a sketch; role of its random stream
UNKNOWN = np.array([np.nan])  # rounding of sums saved by versions that did not count it


class Loss(NamedTuple):
    """Σ w (y − ŷ)² of each target of a model, evaluated from sums."""

    value: F8  # (t,), may be negative by as much as its rounding
    rounding: F8  # (t,), its bound
    sketch: F8  # (SKETCH, t), input of `difference_rounding` for two losses over the same rows

    @classmethod
    def of(cls, value: F8, x: F8, rho: float) -> "Loss":
        """Bound the rounding of a loss vᵀAv, for x_i = v_i √A_ii (m + 2, t).

        An entry of A rounds by the order of ρ√(A_ii A_jj), independently of others, so that vᵀAv rounds by the order of
        ρ Σ v_i² A_ii = ρ‖x‖², not by the far larger ρ(Σ |x_i|)².  Evaluation in float64 adds to it.
        """
        size = np.einsum("it,it->t", x, x)
        return cls(value, (rho + evaluation_rounding(len(x) - 2)) * size, np.sqrt(rho) * (_projection(len(x)) @ x))

    def times(self, factor: float) -> "Loss":
        """Return the loss of rows of so many times the weight."""
        return self if factor == 1 else Loss(factor * self.value, factor * self.rounding, factor**0.5 * self.sketch)


def evaluation_rounding(m: int) -> float:
    """Bound the rounding of evaluating vᵀAv in float64 for m features, relative to Σ v_i² A_ii."""
    return float(2 * UNIT * np.sqrt(m))


def difference_rounding(one: F8, other: F8) -> F8:
    """Bound the rounding of the difference of losses, given their sketches (..., SKETCH, t).

    For a symmetric E, vᵀEv − uᵀEu = (v − u)ᵀE(v + u), of the order of ρ‖x_v − x_u‖·‖x_v + x_u‖: far less than that of
    either loss if the models are alike.
    """
    return np.asarray(np.linalg.norm(one - other, axis=-2) * np.linalg.norm(one + other, axis=-2))


def block_rounding(rows: int, weight: float, dtype: Any, tf32: bool = False) -> float:
    """Bound the rounding of a block's sum of n squares of total weight W, squared so that blocks add: (u√n W)².

    Adding the squares one after another, the order that rounds most, has a standard deviation of 0.29 u√n W.
    """
    unit = float(np.finfo(dtype).eps) / 2
    return (max(unit * rows**0.5, TF32 if tf32 and np.dtype(dtype) == np.float32 else 0.0) * weight) ** 2


def relative_rounding(squared: float, weight: float) -> float:
    """Return ρ: the root of the sum of `block_rounding`, relative to the weight of all rows."""
    return squared**0.5 / weight if weight > 0 else 0.0


@functools.lru_cache(4)
def _projection(count: int) -> F8:
    """Draw random signs, (SKETCH, count), whose products keep lengths to an eighth (Johnson, Lindenstrauss 1984)."""
    return random.signs(SKETCH * count, 0, 0, ROLE).reshape(SKETCH, count) / np.sqrt(SKETCH)
