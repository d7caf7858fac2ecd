"""Conjugate gradients for ridge regression on a Gram that need not exist: only its products with vectors are asked for.

All columns (targets, penalties, training sets) advance together, so that an iteration asks for one product, and a
column that has converged leaves.

Legend: A = G + alpha the matrix of a column, b its right-hand side; x, r, p (m, c) solutions, residuals, directions;
M ≈ A the preconditioner, y = M⁻¹r, ρ = rᵀy; s rows of the sample S (s, m) that M is made of, S Sᵀ = Q diag(λ) Qᵀ.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.linalg import eigh

from ntkdist.errors import NotConverged
from ntkdist.solvers.base import Solution, Solver, check_sums
from ntkdist.sums import NormalEquations

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Precondition = Callable[[F8, I8], F8]  # M⁻¹r for residuals (m, k) of the k columns named
Positive = Annotated[int, Meta(ge=1)]
KEPT_EVERY = 5  # iterations: a pass over the data costs far more than to keep a state
TYPICAL = 72  # mean iterations of the "auto" grid: 69, 72 and 75 at m = 1,024, 2,048 and 4,096, see bench_solvers.py
FLOOR = 1e-12  # of the trace: the least shift of a preconditioner, so that alpha = 0 has one


class GramOperator(Protocol):
    """The centred Gram of every column, known by its products."""

    @property
    def rhs(self) -> F8:
        """(m, c)"""

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """That products are taken in; directions are rounded to it first, so that no rounding of theirs is missed."""

    def matmul(self, v: NDArray[np.floating], columns: I8) -> F8:
        """G v, (m, k), for the k columns named, each with its own G."""


class State(NamedTuple):
    """What the iterations go on from: of all columns x, and how far each came; of those that stay r, p and ρ."""

    x: F8
    r: F8
    p: NDArray[np.floating]
    rho: F8
    columns: I8
    iterations: I8
    first: F8
    last: F8


class KeepsState(Protocol):
    """Where a state survives the process."""

    def load(self) -> dict[str, NDArray[Any]] | None:
        """The arrays that were saved last, if any were."""

    def save(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Keep arrays in place of those before."""


class Solved(NamedTuple):
    """Solutions (m, c), and how far each column came: iterations (c,) and relative residual (c,)."""

    x: F8
    iterations: I8
    residual: F8


class PCG(Solver, frozen=True):
    """Preconditioned conjugate gradients on the data itself: no Gram is formed, no m×m array exists.

    Every iteration is one pass over the data, for all targets, penalties and training sets at once.  The preconditioner
    is the Gram of a sample of rows.  A run that was cut off goes on from the last of its iterations that was kept, one
    in five, to the same bits; also one that did not converge, given its checkpoint and a larger ``max_iterations``.
    Folds are of whole partitions: rows that groups or a holdout deal one by one are refused.

    Parameters
    ----------
    sample_rows : int
        Rows s of the preconditioner: about 16·s·m + 32·s² bytes of the process that solves.  More rows mean fewer
        iterations, until s passes the number of eigenvalues of the Gram above alpha.
    tol : float
        A column has converged when its residual in the norm of the preconditioner, √(rᵀM⁻¹r), is this times that of
        its right-hand side.  With M = A it would be the relative error of the fitted values.
    max_iterations : int
    cache : float
        Share of a worker's memory limit that mapped rows may fill, within what the plan leaves over; those that do not
        fit are mapped anew in every pass.  Changes the speed, not the bits.
    unconverged : {"error", "keep"}
        What to do if the chosen penalty has not converged for all rows after ``max_iterations``.
    seed : int
        Of the sample.
    """

    sample_rows: Positive = 1024
    tol: Annotated[float, Meta(gt=0, lt=1)] = 1e-5
    max_iterations: Positive = 200
    cache: Annotated[float, Meta(ge=0, le=1)] = 0.5
    unconverged: Literal["error", "keep"] = "error"
    seed: int = 0

    def expected(self, penalties: int) -> tuple[int, int]:
        """Iterations until the last of some penalties is done, and those of one of them in the mean.

        Of the "auto" grid the smallest go on to the end, the largest take five: measured on real data (protein, 8,192
        rows, ZonalFeatures of depth 2) with the defaults.
        """
        mean = min(TYPICAL, self.max_iterations)
        return (self.max_iterations if penalties > 1 else mean), mean

    def solve(self, equations: NormalEquations, alphas: Sequence[float]) -> list[Solution]:
        """The path from a Gram that exists, preconditioned by its diagonal; see `Solver.solve`.

        Raises
        ------
        NotConverged
            If a penalty has not converged, and that is an error.
        """
        check_sums(equations)
        gram, rhs = equations.centred()
        t, shifts = equations.t, np.repeat(np.asarray(alphas, np.float64), equations.t)
        diagonal = np.diagonal(gram) + FLOOR * np.trace(gram)

        def precondition(r: F8, columns: I8) -> F8:
            return r / (diagonal[:, None] + shifts[columns])

        solved = conjugate_gradients(
            _Dense(gram, np.tile(rhs, len(alphas))), shifts, precondition, self.tol, self.max_iterations
        )
        if self.unconverged == "error" and (solved.residual > self.tol).any():
            worst = int(solved.residual.argmax())
            raise NotConverged(not_converged(self, [shifts[worst]], solved.residual[worst]))
        parts = np.split(solved.x, len(alphas), axis=1) if t else []
        return [self._solution(equations, a, x) for a, x in zip(alphas, parts, strict=True)]


def not_converged(solver: PCG, alphas: Sequence[float], residual: float) -> str:
    """The sentence that says so."""
    said = (
        f"alpha {alphas[0]:.3g}" if len(alphas) == 1 else f"{len(alphas)} alphas of {min(alphas):.3g}–{max(alphas):.3g}"
    )
    return (
        f"{said} did not converge in {solver.max_iterations} iterations (relative residual {residual:.1e}, "
        f"{solver.tol:.1e} asked); use larger alphas, or raise sample_rows, max_iterations or tol of solver PCG"
    )


def conjugate_gradients(
    operator: GramOperator,
    alphas: F8,
    precondition: Precondition,
    tol: float,
    max_iterations: int,
    keep: KeepsState | None = None,
) -> Solved:
    """Solve (G + alpha) x = b for every column from x = 0 (Hestenes, Stiefel 1952, preconditioned).

    Parameters
    ----------
    operator : GramOperator
    alphas : (c,) array
    precondition : callable
        Symmetric and positive definite for every column.
    tol : float
        Relative residual √ρ at which a column leaves; see `PCG`.
    max_iterations : int
    keep : Keep, optional
        Where to go on from, and to keep every fifth state and the last.

    Returns
    -------
    Solved
        A column that did not converge has a residual above ``tol``.
    """
    kept = keep.load() if keep is not None else None
    x, r, p, rho, columns, iterations, first, last = State(**kept) if kept else _begun(operator, precondition)
    for i in range(int(iterations.max(initial=0)), max_iterations):
        if not len(columns):
            break
        r, p = np.asfortranarray(r), np.asfortranarray(p)  # products may round otherwise where they lie otherwise
        q = operator.matmul(p, columns) + alphas[columns] * p
        curvature = _dots(p, q)
        sound = curvature > 0  # else rounding is all that is left of the column
        step = np.where(sound, rho / np.where(sound, curvature, 1.0), 0.0)
        x[:, columns] += step * p
        r -= step * q
        y = precondition(r, columns)
        before, rho = rho, np.maximum(_dots(r, y), 0.0)
        iterations[columns] += 1
        last[columns] = rho
        stay = sound & (rho > tol**2 * first[columns])
        columns, r, beta, rho = columns[stay], r[:, stay], (rho / before)[stay], rho[stay]
        p = (y[:, stay] + beta * p[:, stay]).astype(operator.dtype)
        if keep is not None and (i % KEPT_EVERY == KEPT_EVERY - 1 or not len(columns)):
            keep.save(State(x, r, p, rho, columns, iterations, first, last)._asdict())
    return Solved(x, iterations, np.sqrt(last / np.where(first > 0, first, 1.0)))


def _begun(operator: GramOperator, precondition: Precondition) -> State:
    b = operator.rhs
    x, iterations, columns = np.zeros(b.shape), np.zeros(b.shape[1], np.int64), np.arange(b.shape[1])
    y = precondition(b, columns)
    rho = _dots(b, y)
    columns = np.flatnonzero(rho > 0)
    return State(
        *(x, b[:, columns], y[:, columns].astype(operator.dtype), rho[columns]),
        *(columns, iterations, rho, rho.copy()),
    )


class LowRank:
    """M = scale·SᵀS + max(alpha, scale·median λ), inverted by Woodbury's identity; one s×s decomposition serves all.

    The lower half of a sample's eigenvalues says little of the Gram's: to count all as their median was measured to
    need 2 to 4 times fewer iterations than to count them as they are, where alpha lies below (m = 1,024, s = 256–1,024
    of 6,000 rows, two data sets).

    Parameters
    ----------
    sample : (s, m) float64 array
        Centred features of s rows; it is overwritten.
    whole : bool
        Whether these are all rows there are, and every eigenvalue is right.
    """

    def __init__(self, sample: F8, whole: bool = False) -> None:
        values, q = eigh(sample @ sample.T, driver="evd", overwrite_a=True, check_finite=False)
        self.values = np.maximum(values, 0.0)[:, None]
        self.least = 0.0 if whole else float(self.values[(len(values) - 1) // 2, 0])
        for i in range(0, sample.shape[1], len(sample)):  # s columns at a time: never two samples in memory
            sample[:, i : i + len(sample)] = q.T @ sample[:, i : i + len(sample)]
        self.rotated = sample  # QᵀS

    @property
    def s(self) -> int:
        """Rows of the sample."""
        return len(self.values)

    def solve(self, r: F8, alpha: F8, scale: F8) -> F8:
        """M⁻¹r, (m, c), of columns with their own penalties and scales (c,)."""
        shift = np.maximum(alpha, scale * self.least)
        inner = self.rotated @ r
        inner /= self.values + shift / scale
        out = self.rotated.T @ inner
        np.subtract(r, out, out=out)
        out /= shift
        return out


class _Dense(NamedTuple):
    """A Gram that exists."""

    gram: F8
    rhs: F8
    dtype: np.dtype[np.floating] = np.dtype(np.float64)

    def matmul(self, v: NDArray[np.floating], columns: I8) -> F8:
        return self.gram @ v


def _dots(a: NDArray[np.floating], b: F8) -> F8:
    return np.einsum("ij,ij->j", a, b)
