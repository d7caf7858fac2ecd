"""Solvers: values that turn normal equations into ridge weights."""

from ntkdist.solvers.base import Solution, Solver
from ntkdist.solvers.cg import PCG
from ntkdist.solvers.direct import Cholesky, Eigh
from ntkdist.solvers.tiled import TiledCholesky

AnySolver = Cholesky | Eigh | PCG | TiledCholesky


def choose(m: int, alphas: int) -> Cholesky | Eigh:
    """The cheaper of the two for a Gram of m columns and a number of penalties.

    One eigendecomposition was measured to cost as much as 16 to 23 Cholesky factorisations at m = 512 to 2,048 on one
    thread.
    """
    return Eigh() if alphas > 16 else Cholesky()


__all__ = ["PCG", "AnySolver", "Cholesky", "Eigh", "Solution", "Solver", "TiledCholesky", "choose"]
