"""Solvers: values that turn normal equations into ridge weights."""

from ntkdist.solvers.base import Solution, Solver
from ntkdist.solvers.cg import PCG
from ntkdist.solvers.direct import Cholesky, Eigh

AnySolver = Cholesky | Eigh | PCG


def choose(m: int, alphas: int) -> Cholesky | Eigh:
    """The cheaper of the two for a Gram of m columns and a number of penalties.

    One eigendecomposition was measured to cost as much as 3.5, 5, 7 and 14 Cholesky solves at m = 512, 1,024, 2,048 and
    4,096 on one core.
    """
    return Eigh() if alphas > 3 + m / 350 else Cholesky()


__all__ = ["PCG", "AnySolver", "Cholesky", "Eigh", "Solution", "Solver", "choose"]
