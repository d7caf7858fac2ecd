"""Dense solvers, for a Gram that fits one process.

Legend: G (m, m) the centred Gram, r (m, t) the centred right-hand side, G = Q diag(λ) Qᵀ.
"""

from collections.abc import Sequence

import numpy as np
from scipy.linalg import eigh
from scipy.linalg.lapack import dpotrf, dpotrs

from ntkdist.errors import NotPositiveDefinite
from ntkdist.solvers.base import Solution, Solver, check_sums
from ntkdist.sums import NormalEquations


class Cholesky(Solver, frozen=True):
    """One Cholesky factorisation per penalty, m³/3 operations each; deterministic for given BLAS threads."""

    def solve(self, equations: NormalEquations, alphas: Sequence[float]) -> list[Solution]:
        check_sums(equations)
        gram, rhs = equations.centred()
        solutions = []
        for alpha in alphas:
            a = gram.copy().T  # LAPACK's order; the matrix is symmetric
            a[np.diag_indices_from(a)] += alpha
            factor, info = dpotrf(a, lower=1, overwrite_a=1, clean=0)
            if info != 0:
                raise NotPositiveDefinite(
                    f"Gram is not positive definite at alpha={alpha:g} (pivot {info} of {len(gram)}); "
                    "use a larger alpha, float64, or solver Eigh"
                )
            coef, _ = dpotrs(factor, rhs, lower=1)
            solutions.append(self._solution(equations, alpha, coef))
        return solutions


class Eigh(Solver, frozen=True):
    """One eigendecomposition for all penalties, about 9m³ operations, then 2m²t per penalty.

    Directions whose eigenvalue is below m·2⁻⁵²·λ_max are rounding errors and are left out, so that alpha = 0 gives the
    solution of least norm.
    """

    @property
    def whole_path(self) -> bool:
        return True

    def work_bytes(self, m: int) -> int:
        return 5 * 8 * m**2

    def solve(self, equations: NormalEquations, alphas: Sequence[float]) -> list[Solution]:
        check_sums(equations)
        gram, rhs = equations.centred()
        values, q = eigh(gram.T, driver="evd", overwrite_a=True, check_finite=False)
        keep = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
        values, q = values[keep], q[:, keep]
        projected = q.T @ rhs
        return [self._solution(equations, a, q @ (projected / (values + a)[:, None])) for a in alphas]
