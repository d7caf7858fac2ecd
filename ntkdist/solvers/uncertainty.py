"""Predictive variance of a ridge (the Bayesian linear model in feature space) and conformal intervals.

Legend: z features, z̄ their weighted mean, W = Σw; A = G_c + alpha the centred Gram with its penalty, A = LLᵀ;
h(z) = 1/W + (z − z̄)ᵀA⁻¹(z − z̄), so that w·h(z) is the leverage of a training row of weight w.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from ntkdist.display import Described
from ntkdist.errors import SpecError
from ntkdist.solvers.base import cholesky
from ntkdist.sums import NormalEquations

F8 = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Factor(Described):
    """The factor that predictive variances are computed from, for m features and t targets.

    Attributes
    ----------
    lower : (m, m) float64 array
        L
    z_mean : (m,) float64 array
        z̄
    weight : float
        W
    noise : (t,) float64 array
        Mean squared error of each target, out of fold or leave-one-out.
    """

    lower: F8
    z_mean: F8
    weight: float
    noise: F8

    def facts(self) -> dict[str, Any]:
        """Return what is shown of the factor, by name."""
        return {"m": len(self.z_mean), "weight": self.weight, "noise": self.noise}

    @classmethod
    def of(cls, equations: NormalEquations, alpha: F8, noise: F8) -> "Factor":
        """Factor the sum over all rows, by m³/3 operations.

        Raises
        ------
        SpecError
            If penalties differ between targets.
        NotPositiveDefinite
            If the Gram plus alpha cannot be factored.
        """
        if np.ptp(alpha) != 0:
            raise SpecError("targets have penalties of their own, and one factor is of one; choose one alpha for all")
        gram, _ = equations.centred()
        remedy = ", so that it has no factor to keep; use a larger alpha or float64"
        lower = cholesky(gram, float(alpha[0]), remedy)
        return cls(lower, equations.z_sum / equations.weight, equations.weight, noise)

    def spread(self, z: NDArray[Any]) -> F8:
        """Compute h(z) of features (n, m), (n,)."""
        centred = np.subtract(z, self.z_mean, dtype=np.float64)
        half = solve_triangular(self.lower, centred.T, lower=True, overwrite_b=True, check_finite=False)
        return np.asarray(1 / self.weight + np.einsum("ij,ij->j", half, half))


@dataclass(frozen=True)
class Calibration:
    """Errors of rows by models that were not fitted to them, from which intervals and probabilities are computed.

    Attributes
    ----------
    residuals : (n, t) float64 array
        Of a sample of the training rows, in target units; (0, t) for classes.
    weight : (n,) float64 array
        Of the same rows.
    temperature : float
        Factor of class scores, of which softmax makes probabilities; nan for numbers.
    """

    residuals: F8
    weight: F8
    temperature: float = float("nan")

    def radius(self, coverage: float) -> F8:
        """Return `conformal_radius`, (t,)."""
        return conformal_radius(self.residuals, coverage, self.weight)


def conformal_radius(residuals: F8, coverage: float, weight: F8 | None = None) -> F8:
    """Return half the width of intervals that hold a new row's target with probability ``coverage``, (t,).

    It is the ⌈(n + 1)·coverage⌉-th smallest absolute residual of n rows, each predicted by a model that was not trained
    on it, as in split conformal prediction (Vovk, Gammerman, Shafer 2005), for any distribution of the targets.  Here
    residuals are of the folds' models and intervals are about the model of all rows (cross-conformal), which is exact
    as n grows.  Infinite if there are too few rows.

    Parameters
    ----------
    residuals : (n,) or (n, t) array
        Out of fold.
    coverage : float
        Strictly between 0 and 1.
    weight : (n,) array, optional
        A row of weight k counts as k rows.

    Raises
    ------
    SpecError
        If ``coverage`` is not between 0 and 1.

    Examples
    --------
    >>> import ntkdist as nd
    >>> nd.conformal_radius(np.arange(1.0, 100.0), 0.9).tolist()
    [90.0]
    """
    if not 0 < coverage < 1:
        raise SpecError(f"coverage is {coverage}; expected a number between 0 and 1")
    r = np.abs(residuals.reshape(len(residuals), -1))
    w = np.ones(len(r)) if weight is None else weight
    radius = np.full(r.shape[1], np.inf)
    for j in range(r.shape[1]):
        order = np.argsort(r[:, j])
        reached = np.cumsum(w[order])
        rank = np.searchsorted(reached, (1 + reached[-1]) * coverage * (1 - 1e-12))
        if rank < len(order):
            radius[j] = r[order[rank], j]
    return radius
