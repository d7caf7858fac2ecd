"""Solvers, which turn normal equations into ridge weights, and the choice of the penalty; no data, no cluster."""

from ntkdist.solvers.base import Solution, Solver, check_sums
from ntkdist.solvers.cg import PCG
from ntkdist.solvers.direct import Cholesky, Eigh
from ntkdist.solvers.in_place import InPlaceCholesky
from ntkdist.solvers.tiled import TiledCholesky

AnySolver = Cholesky | Eigh | InPlaceCholesky | PCG | TiledCholesky
DENSE = 30_000  # most columns of a dense factor: LAPACK's integers have 32 bits


def choose(m: int, alphas: int) -> Cholesky | Eigh | TiledCholesky:
    """Choose the solver of a Gram of m columns for some penalties: the cheaper dense one, or tiles above `DENSE`.

    One eigendecomposition costs as much as 16 to 23 Cholesky factorisations (measured at m = 512–2,048, one thread).
    """
    if m > DENSE:
        return TiledCholesky()
    return Eigh() if alphas > 16 else Cholesky()


__all__ = [
    "PCG",
    "AnySolver",
    "Cholesky",
    "Eigh",
    "InPlaceCholesky",
    "Solution",
    "Solver",
    "TiledCholesky",
    "check_sums",
    "choose",
]
