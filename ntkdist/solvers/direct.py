"""Dense solvers, for a Gram that fits one process.

Legend: G (m, m) the centred Gram, r (m, t) the centred right-hand side, G = Q diag(λ) Qᵀ.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.linalg import eigh
from scipy.linalg.lapack import dpotrs

from ntkdist.solvers.base import F8, Solver, cholesky


class Cholesky(Solver, frozen=True):
    """One Cholesky factorisation per penalty, m³/3 operations each; deterministic for given BLAS threads."""

    def weights(self, gram: F8, rhs: F8, alphas: Sequence[float]) -> Iterator[F8]:
        for alpha in alphas:
            factor = cholesky(gram.copy(), alpha, "; use a larger alpha, float64, or solver Eigh")
            yield dpotrs(factor, rhs, lower=1)[0]


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

    def weights(self, gram: F8, rhs: F8, alphas: Sequence[float]) -> Iterator[F8]:
        values, q = eigh(gram.T, driver="evd", overwrite_a=True, check_finite=False)
        keep = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
        values, q = values[keep], q[:, keep]
        projected = q.T @ rhs
        return (q @ (projected / (values + a)[:, None]) for a in alphas)
