"""The interface of solvers: normal equations and penalties in, solutions out; no data, no features."""

import abc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf

from ntkdist.errors import NotPositiveDefinite, SpecError
from ntkdist.spec import Spec
from ntkdist.sums import CrossSums, NormalEquations
from ntkdist.sums.rounding import SKETCH

F8 = NDArray[np.float64]
Sums = Literal["gram", "single", "tiles", "products"]


@dataclass(frozen=True)
class Solution:
    """Ridge weights for one penalty of ‖y − Zw − b‖² + alpha‖w‖²: prediction is ``z @ coef + intercept``."""

    alpha: float
    coef: F8  # (m, t)
    intercept: F8  # (t,)


class Sizes(NamedTuple):
    """The sizes in a plan that decide what a solver needs."""

    m: int  # columns of the features
    t: int  # targets
    rows: int
    folds: int
    sets: int  # training sets that a penalty is chosen by, and that of all rows
    penalties: int  # of the grid, before it grows
    threads: int  # of a task
    itemsize: int  # of the features
    tile: int
    panels: int


class Solver(Spec, frozen=True):
    """Base of the solvers of ridge regression from its normal equations.

    ``sums`` declares what a fit sums over the data: the Gram of every fold, a single Gram, the tiles of every fold, or
    products with vectors.  The methods up to `driver_bytes` declare what the plan must know; here they are those of a
    solver of Grams.
    """

    sums: ClassVar[Sums] = "gram"
    scores_one_fold: ClassVar[bool] = False  # the last, of however many
    takes_row_folds: ClassVar[bool] = True  # or only folds of whole partitions

    def tile_size(self, m: int, wanted: int | None) -> int:
        """Return the columns of a tile, if the plan wants so many; 0 if the Gram is not cut into tiles."""
        if wanted:
            raise SpecError(f"tile is for solver TiledCholesky, not {type(self).__name__}; leave out one of them")
        return 0

    def block_rows(self, m: int) -> int:
        """Return the rows to map and multiply at once; m or more, so that adding costs less than multiplying."""
        return max(m, 1024)

    def shard_rows(self, m: int) -> int:
        """Return the rows of a shard whose sum is cheap to handle beside making it, at least."""
        return 4 * m

    def sampled_rows(self, rows: int) -> int:
        """Return the rows of the data that a preconditioner samples."""
        return 0

    def columns(self, sizes: Sizes) -> int:
        """Return the most columns that the Gram is multiplied with at once; 0 if it is formed."""
        return 0

    def most_panels(self, sizes: Sizes) -> int:
        """Return into how many panels the sums can be cut, each of which takes a pass over the data."""
        return 1

    def sum_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of a shard's sum."""
        return 8 * (sizes.m**2 + sizes.m * (sizes.t + 1))

    def worker_bytes(self, summing: dict[str, int], sizes: Sizes, workers: int, tasks_at_once: int) -> dict[str, int]:
        """Return the peak bytes of a worker by part, given those of summing."""
        return summing

    def driver_bytes(self, sizes: Sizes) -> dict[str, int]:
        """Return the peak bytes, by part, of the process that selects and solves; of one penalty at a time."""
        gram = 8 * sizes.m**2
        return {
            "folds": sizes.folds * gram,
            "solver": self.work_bytes(sizes.m) + gram,
            "signs": 8 * SKETCH * sizes.m,
        }

    @property
    def whole_path(self) -> bool:
        """A flag: further penalties cost next to nothing once one is solved."""
        return False

    def work_bytes(self, m: int) -> int:
        """Return the peak memory of `solve` for a Gram of m columns, beside its arguments, in bytes."""
        return 3 * 8 * m**2

    def solve(self, equations: NormalEquations, alphas: Sequence[float]) -> list[Solution]:
        """Solve for every penalty; the intercept is not penalised.

        Parameters
        ----------
        equations : NormalEquations
        alphas : sequence of float
            Non-negative, in scikit-learn's sense: ‖y − Zw − b‖² + alpha‖w‖².

        Returns
        -------
        list of Solution
            In the order of ``alphas``.

        Raises
        ------
        NotPositiveDefinite
            If the Gram plus alpha cannot be factored, or the sums are not finite.
        NotConverged
            If an iterative solver has not converged for a penalty and its ``unconverged`` is "error".
        """
        check_sums(equations)
        weights = self.weights(*equations.centred(), alphas)
        return [
            Solution(alpha, coef, (equations.y_sum - equations.z_sum @ coef) / equations.weight)
            for alpha, coef in zip(alphas, weights, strict=True)
        ]

    @abc.abstractmethod
    def weights(self, gram: F8, rhs: F8, alphas: Sequence[float]) -> Iterable[F8]:
        """Solve (G + alpha) w = r for every penalty; the centred Gram (m, m) may be overwritten, r is (m, t)."""


def check_sums(sums: NormalEquations | CrossSums) -> None:
    """Refuse sums in which a product has overflowed: the largest are on the diagonal of [z y 1]ᵀ[z y 1]."""
    if not (np.isfinite(sums.trace()) and np.isfinite(sums.rhs).all() and np.isfinite(sums.yy).all()):
        raise NotPositiveDefinite(
            "Gram has values that are not finite, as where squares of features overflow; look for huge values in the "
            "data, or use dtype float64"
        )


def cholesky(gram: F8, alpha: float, remedy: str, first: int = 0, m: int | None = None) -> F8:
    """Factor G + alpha = LLᵀ in the memory of G; with ``first`` and ``m``, of a tile that begins there in a Gram of m.

    ``remedy`` ends the sentence of the error for a Gram that is not positive definite.
    """
    a = gram.T  # LAPACK's order; the matrix is symmetric
    a[np.diag_indices_from(a)] += alpha
    lower, info = dpotrf(a, lower=1, overwrite_a=1)
    if info != 0:
        raise NotPositiveDefinite(
            f"Gram is not positive definite at alpha={alpha:g} (pivot {first + info} of {m or len(a)}){remedy}"
        )
    return lower
