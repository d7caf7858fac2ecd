"""Errors of an approximate kernel: the Gram of features against the exact kernel.

Legend: K (n, n) the exact kernel of some rows; K̂ = Z Zᵀ that of their features Z (n, m); α the penalty.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, eigvalsh, solve_triangular

F8 = NDArray[np.float64]


def gram_of(z: NDArray[Any]) -> F8:
    """Compute K̂ of features z (n, m) in float64."""
    z = np.asarray(z, np.float64)
    return z @ z.T


def frobenius_error(approximate: F8, exact: F8) -> float:
    """Compute ‖K̂ − K‖/‖K‖ in the Frobenius norm; 0 where both are zero."""
    size = float(np.linalg.norm(exact))
    apart = float(np.linalg.norm(approximate - exact))
    return apart / size if size > 0 else (0.0 if apart == 0 else np.inf)


class SpectralError:
    """The least ε with (1 − ε)(K + αI) ⪯ K̂ + αI ⪯ (1 + ε)(K + αI), for one K and α and any K̂.

    It is the largest |eigenvalue| of (K + αI)^{-½} (K̂ − K) (K + αI)^{-½}, which bounds the error of ridge regression
    with K̂ in place of K (Avron et al., "Random Fourier features for kernel ridge regression", ICML 2017, definition 1).
    """

    def __init__(self, exact: F8, alpha: float) -> None:
        self._exact = exact
        try:
            self._factor = cholesky(exact + alpha * np.eye(len(exact)), lower=True)
        except LinAlgError:
            self._factor = None

    def __call__(self, approximate: F8) -> float:
        """Compute ε of K̂ (n, n); infinite where K + αI is not positive definite in float64."""
        if self._factor is None:
            return np.inf
        half = solve_triangular(self._factor, approximate - self._exact, lower=True)
        both = solve_triangular(self._factor, half.T, lower=True)
        return float(np.abs(eigvalsh((both + both.T) / 2)).max())
