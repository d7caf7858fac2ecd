"""Ridge regression from a kernel's entries or from features, with one choice of the penalty, and what it costs.

Both are centred by the means of the training rows, so that the intercept has no penalty.  The penalty is in units of
the mean over training rows of the centred kernel of a row with itself, which is the same number for features.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

PENALTIES = tuple(10.0**k for k in range(-7, 2))
ROWS = 4096  # of features that are multiplied at a time


class Equations(NamedTuple):
    """The system (A + penalty·scale·I) w = b of a fit, and what predictions are: outputs @ w + mean."""

    matrix: Any
    right: Any
    outputs: Any
    scale: float
    mean: Any

    def predict(self, penalty: float) -> Any:
        """Solve the system for a penalty and predict."""
        shifted = self.matrix.copy(order="F")
        shifted.flat[:: len(shifted) + 1] += penalty * self.scale
        factor = cho_factor(shifted, overwrite_a=True, check_finite=False)
        return self.outputs @ cho_solve(factor, self.right) + self.mean


Form = Callable[[slice, slice | None], Equations]  # of the rows to train on and those to predict, None: the test rows


def of_kernel(k: Any, cross: Any, y: Any) -> Equations:
    """Make the equations of kernel ridge: entries among training rows (n, n), of those to predict (t, n), targets."""
    means, mean = k.mean(0), y.mean(0)
    centred = k - means
    centred -= (means - means.mean())[:, None]
    outputs = cross - cross.mean(1)[:, None]
    outputs -= means - means.mean()
    return Equations(centred, y - mean, outputs, centred.trace() / len(k), mean)


def of_features(z: Any, others: Any, y: Any) -> Equations:
    """Make the equations of ridge on features (n, m): of m unknowns, or of n where these are fewer."""
    centre, mean = z.mean(0, dtype=np.float64), y.mean(0)
    if len(z) <= z.shape[1]:
        z, others = (each.astype(np.float64) - centre for each in (z, others))
        k = z @ z.T
        return Equations(k, y - mean, others @ z.T, k.trace() / len(z), mean)
    gram, right = np.zeros((z.shape[1], z.shape[1])), np.zeros((z.shape[1], y.shape[1]))
    for start in range(0, len(z), ROWS):
        block = z[start : start + ROWS].astype(np.float64) - centre
        gram += block.T @ block
        right += block.T @ (y[start : start + ROWS] - mean)
    return Equations(gram, right, others.astype(np.float64) - centre, gram.trace() / len(z), mean)


def fitted(form: Form, y: Any) -> tuple[float, Any]:
    """Choose the penalty by the squared error on the last fifth of the rows, fit all, and predict the test rows."""
    kept = held(len(y))
    equations = form(slice(kept), slice(kept, len(y)))
    errors = [np.square(equations.predict(penalty) - y[kept:]).mean() for penalty in PENALTIES]
    penalty = PENALTIES[int(np.argmin(errors))]
    return penalty, form(slice(len(y)), None).predict(penalty)


def held(n: int) -> int:
    """Count the rows that are fitted while the penalty is chosen; the others are predicted."""
    return n - n // 5


def pairs(n: int, tests: int) -> int:
    """Count the entries that kernel ridge needs: each pair of training rows once, and those with test rows."""
    return n * (n + 1) // 2 + n * tests


def operations(n: int, m: int = 0) -> float:
    """Count the multiplications of `fitted` with m features, or with a kernel's entries if m is 0."""
    parts = [(held(n), len(PENALTIES)), (n, 1)]
    factors = sum(count * (min(rows, m) if m else rows) ** 3 / 3 for rows, count in parts)
    return factors + sum(rows * m * min(rows, m) for rows, _ in parts)


def rate(amounts: Sequence[float], seconds: Sequence[float]) -> float:
    """Fit seconds in proportion to amounts, by least squares."""
    a = np.asarray(amounts, float)
    return float(a @ np.asarray(seconds, float) / (a @ a))
