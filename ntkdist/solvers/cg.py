"""Conjugate gradients for ridge regression by products of the Gram with vectors; no Gram is formed.

All columns (targets, penalties, training sets) advance together, so that an iteration is one product.  A column that
has converged leaves.

Legend: A = G + alpha the matrix of a column, b its right-hand side; x, r, p (m, c) solutions, residuals, directions;
M ≈ A the preconditioner, y = M⁻¹r, ρ = rᵀy; S (s, m) the sample of rows that M is made of, S Sᵀ = Q diag(λ) Qᵀ.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.linalg import eigh

from ntkdist.errors import NotConverged
from ntkdist.solvers.base import Sizes, Solver, Sums

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Precondition = Callable[[F8, I8], F8]  # (residuals r (m, k), their columns (k,)) → M⁻¹r
Positive = Annotated[int, Meta(ge=1)]
KEPT_EVERY = 5  # iterations: a pass over the data costs far more than saving a state
TYPICAL = 72  # mean iterations of the "auto" grid: 69, 72 and 75 at m = 1,024, 2,048 and 4,096 (bench_solvers.py)
GROWTH = 6  # penalties that a grid may grow by at once
FLOOR = 1e-12  # relative to the trace: the least shift of a preconditioner, for alpha = 0


class GramOperator(Protocol):
    """The centred Gram of every column, by its products."""

    @property
    def rhs(self) -> F8:
        """The right-hand sides, (m, c)."""

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """The precision of products; directions are rounded to it before use, so that x and r agree."""

    def matmul(self, v: NDArray[np.floating], columns: I8) -> F8:
        """Compute G v, (m, k), for some columns (k,), each with its own G."""


class State(NamedTuple):
    """The state of the iterations: x and the progress of all columns; r, p and ρ of those that have not left."""

    x: F8
    r: F8
    p: NDArray[np.floating]
    rho: F8
    columns: I8
    iterations: I8
    first: F8
    last: F8


class KeepsState(Protocol):
    """A store of states that survives the process."""

    def load(self) -> dict[str, NDArray[Any]] | None:
        """Return the arrays that were saved last, if any."""

    def save(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Save arrays in place of those before."""


class Solved(NamedTuple):
    """Solutions (m, c), with the iterations (c,) and the relative residual (c,) of each column."""

    x: F8
    iterations: I8
    residual: F8


class PCG(Solver, frozen=True):
    """Preconditioned conjugate gradients on the data itself: no Gram is formed, no m×m array exists.

    Every iteration is one pass over the data, for all targets, penalties and training sets at once.  The preconditioner
    is the Gram of a sample of rows.  The state is saved every five iterations: an interrupted run resumes to the same
    bits, and so does one that did not converge, given its checkpoint and a larger ``max_iterations``.  Folds are of
    whole partitions: folds by groups and holdouts of single rows are refused.

    Parameters
    ----------
    sample_rows : int
        Rows s of the preconditioner, which takes about 16·s·m + 32·s² bytes of the process that solves.  More rows mean
        fewer iterations, until s exceeds the number of eigenvalues of the Gram above alpha.
    tol : float
        A column has converged when its residual in the norm of the preconditioner, √(rᵀM⁻¹r), is at most this times
        that of its right-hand side.  With M = A this is the relative error of the fitted values.
    max_iterations : int
    cache : float
        Share of a worker's memory limit that mapped rows may fill, within what the plan leaves free; rows that do not
        fit are mapped again in every pass.  It changes the speed, not the bits.
    unconverged : {"error", "keep"}
        What to do if the chosen penalty has not converged for all rows after ``max_iterations``.
    seed : int
        Seed of the sample.
    """

    sums: ClassVar[Sums] = "products"
    takes_row_folds: ClassVar[bool] = False
    sample_rows: Positive = 1024
    tol: Annotated[float, Meta(gt=0, lt=1)] = 1e-5
    max_iterations: Positive = 200
    cache: Annotated[float, Meta(ge=0, le=1)] = 0.5
    unconverged: Literal["error", "keep"] = "error"
    seed: int = 0

    def block_rows(self, m: int) -> int:
        return 1024

    def shard_rows(self, m: int) -> int:
        return 4096

    def sampled_rows(self, rows: int) -> int:
        return min(self.sample_rows, rows)

    def columns(self, sizes: Sizes) -> int:
        """Return the right-hand sides that are iterated on at once, at most: training sets, penalties and targets."""
        return sizes.sets * (max(sizes.penalties, GROWTH) if sizes.penalties > 1 else 1) * sizes.t

    def sum_bytes(self, sizes: Sizes) -> int:
        return 8 * (sizes.m + 1) * max(self.columns(sizes), sizes.t + 1)

    def worker_bytes(self, summing: dict[str, int], sizes: Sizes, workers: int, tasks_at_once: int) -> dict[str, int]:
        return summing | {"directions": (2 + tasks_at_once) * sizes.m * self.columns(sizes) * sizes.itemsize}

    def driver_bytes(self, sizes: Sizes) -> dict[str, int]:
        m, s = sizes.m, self.sampled_rows(sizes.rows)
        return {
            "sums": 8 * (2 * sizes.folds + 2) * m * (sizes.t + 1),
            "columns": 8 * 8 * m * self.columns(sizes) + 8 * m * sizes.t * (sizes.penalties + GROWTH),
            "preconditioner": 16 * s * m + 32 * s**2,
        }

    def expected(self, penalties: int) -> tuple[int, int]:
        """Return the expected iterations until the last of some penalties has converged, and the mean of one.

        Of the "auto" grid the smallest penalties reach ``max_iterations``, the largest take five: measured on real data
        (protein, 8,192 rows, ZonalFeatures of depth 2) with the defaults.
        """
        mean = min(TYPICAL, self.max_iterations)
        return (self.max_iterations if penalties > 1 else mean), mean

    def weights(self, gram: F8, rhs: F8, alphas: Sequence[float]) -> list[F8]:
        """Solve from a whole Gram, preconditioned by its diagonal; see `Solver.weights`."""
        shifts = np.repeat(np.asarray(alphas, np.float64), rhs.shape[1])
        diagonal = np.diagonal(gram) + FLOOR * np.trace(gram)

        def precondition(r: F8, columns: I8) -> F8:
            return r / (diagonal[:, None] + shifts[columns])

        solved = conjugate_gradients(
            _Dense(gram, np.tile(rhs, len(alphas))), shifts, precondition, self.tol, self.max_iterations
        )
        if self.unconverged == "error" and (solved.residual > self.tol).any():
            worst = int(solved.residual.argmax())
            raise NotConverged(not_converged(self, [shifts[worst]], solved.residual[worst]))
        return np.split(solved.x, len(alphas), axis=1)


def not_converged(solver: PCG, alphas: Sequence[float], residual: float) -> str:
    which = f"alpha {alphas[0]:.3g}"
    if len(alphas) > 1:
        which = f"{len(alphas)} alphas of {min(alphas):.3g}–{max(alphas):.3g}"
    return (
        f"{which} did not converge in {solver.max_iterations} iterations (relative residual {residual:.1e}, "
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

    ``alphas`` is (c,); ``precondition`` must be symmetric and positive definite for every column.  A column leaves at a
    relative residual √ρ of ``tol``; one that did not converge has a larger residual.  The iterations resume from the
    state in ``keep``, which saves every fifth state and the last.
    """
    kept = keep.load() if keep is not None else None
    x, r, p, rho, columns, iterations, first, last = State(**kept) if kept else _first_state(operator, precondition)
    for i in range(int(iterations.max(initial=0)), max_iterations):
        if not len(columns):
            break
        r, p = np.asfortranarray(r), np.asfortranarray(p)  # a product's rounding may depend on the memory order
        q = operator.matmul(p, columns) + alphas[columns] * p
        curvature = _dots(p, q)
        sound = curvature > 0  # else only rounding is left of the column
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


def _first_state(operator: GramOperator, precondition: Precondition) -> State:
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
    """The preconditioner M = scale·SᵀS + max(alpha, scale·median λ), inverted by Woodbury's identity.

    One s×s decomposition serves all columns.  The lower half of a sample's eigenvalues estimates those of the Gram
    badly: with their median in place of all of them, alphas below it took 2 to 4 times fewer iterations (measured at
    m = 1,024, s = 256–1,024 of 6,000 rows, two data sets).

    ``sample`` (s, m), centred features in float64, is overwritten; ``whole`` if it has all rows, so that every
    eigenvalue is exact.
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
        return len(self.values)

    def solve(self, r: F8, alpha: F8, scale: F8) -> F8:
        """Compute M⁻¹r, (m, c), for columns with their own penalties and scales (c,)."""
        shift = np.maximum(alpha, scale * self.least)
        inner = self.rotated @ r
        inner /= self.values + shift / scale
        out = self.rotated.T @ inner
        np.subtract(r, out, out=out)
        out /= shift
        return out


class _Dense(NamedTuple):
    """An operator of a whole Gram."""

    gram: F8
    rhs: F8
    dtype: np.dtype[np.floating] = np.dtype(np.float64)

    def matmul(self, v: NDArray[np.floating], columns: I8) -> F8:
        return self.gram @ v


def _dots(a: NDArray[np.floating], b: F8) -> F8:
    return np.einsum("ij,ij->j", a, b)
