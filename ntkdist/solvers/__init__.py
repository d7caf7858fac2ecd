"""Solvers: values that turn normal equations into ridge weights."""

from ntkdist.solvers.base import Solution, Solver, check_sums
from ntkdist.solvers.cg import PCG
from ntkdist.solvers.direct import Cholesky, Eigh
from ntkdist.solvers.tiled import TiledCholesky

AnySolver = Cholesky | Eigh | PCG | TiledCholesky


DENSE = 30_000  # columns from which a dense factor is not tried: LAPACK's integers have 32 bits


def choose(m: int, alphas: int) -> Cholesky | Eigh | TiledCholesky:
    """What solves a Gram of m columns for a number of penalties, the cheaper of the dense ones where they can.

    One eigendecomposition was measured to cost as much as 16 to 23 Cholesky factorisations at m = 512 to 2,048 on one
    thread.
    """
    if m > DENSE:
        return TiledCholesky()
    return Eigh() if alphas > 16 else Cholesky()


__all__ = ["PCG", "AnySolver", "Cholesky", "Eigh", "Solution", "Solver", "TiledCholesky", "check_sums", "choose"]
