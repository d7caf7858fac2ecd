"""Solving from equations: no pass over the data."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ntkdist.errors import NotPositiveDefinite, SpecError
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.solvers import AnySolver, choose
from ntkdist.solvers.cross_validation import CVResult, cross_validate, penalties
from ntkdist.solvers.uncertainty import Factor
from ntkdist.sums import NormalEquations

F8 = NDArray[np.float64]


def solve(
    equations: Equations,
    *,
    solver: AnySolver | None = None,
    alphas: Sequence[float] | str = "auto",
    alphas_per_row: Sequence[float] | None = None,
    per_target: bool = False,
    keep_factor: bool = False,
) -> tuple[RidgeModel, CVResult | None]:
    """Choose a penalty and solve equations for a model, without a pass over the data.

    Parameters
    ----------
    equations : Equations
    solver, alphas, alphas_per_row, per_target
        As in `cross_validate`.  With a single fold there must be a single penalty.
    keep_factor : bool
        Keep the factor that `RidgeModel.std` needs: m² numbers, saved with the model.

    Returns
    -------
    model : RidgeModel
    cv : CVResult, optional
        In target units; None with a single fold.

    Raises
    ------
    SpecError
        If a single fold has several penalties, or is to keep the factor.
    NotPositiveDefinite
        If no penalty can be solved.
    """
    pre, several = equations.preprocessing, len(equations.folds) > 1
    one = max(equations.folds, key=lambda fold: fold.weight)  # of several folds, any gives the number of penalties
    grid, per_row = penalties(one, alphas, alphas_per_row)
    solver = solver or choose(equations.folds[0].m, len(grid))
    if several:
        cv = cross_validate(
            equations.folds,
            solver,
            alphas,
            alphas_per_row=alphas_per_row,
            per_target=per_target,
            scored=equations.scored,
            originals=equations.originals,
        )
        cv, alpha = cv.scaled(pre.y_scale), cv.alpha
    elif len(grid) == 1:
        (total,) = equations.folds
        cv, alpha = None, np.full(total.t, grid[0] * (total.weight if per_row else 1.0))
    else:
        raise SpecError(f"a single fold leaves nothing to choose among {len(grid)} alphas by; give one alpha")
    total = equations.total  # after cross-validation, which holds a sum of its own: memory may not hold two
    if cv is None:
        coef, intercept = solve_at(solver, total, alpha)
    else:
        cv, coef, intercept = solve_chosen(solver, total, cv)
        alpha = cv.alpha
    model = RidgeModel.of_scaled(pre, equations.features, coef, intercept, alpha, equations.dtype)
    model = replace(model, augment=equations.augment)
    if keep_factor:
        if cv is None:
            raise SpecError("a single fold has no error out of fold, which standard deviations need; use more folds")
        model = replace(model, factor=Factor.of(total, alpha, cv.chosen))
    return model, cv


def solve_chosen(solver: AnySolver, total: NormalEquations, cv: CVResult) -> tuple[CVResult, F8, F8]:
    """Solve at the penalties that were chosen; where all rows cannot be solved, as those without a fold can, at larger.

    The sums of all rows may round to a matrix that is not positive definite where those of a training set do not.
    """
    asked = cv.alpha
    while True:
        try:
            coef, intercept = solve_at(solver, total, cv.alpha)
            break
        except NotPositiveDefinite:
            least = int(cv.best.min())
            if least + 1 == len(cv.alphas):
                raise
            best = np.maximum(cv.best, least + 1)
            cv = replace(cv, best=best, alpha=cv.alphas[best] * (total.weight if cv.per_row else 1.0))
    if not np.array_equal(asked, cv.alpha):
        said = f"alpha {asked.min():.3g} could not be solved for all rows, and {cv.alpha.min():.3g} was taken"
        cv = replace(cv, note="; ".join(filter(None, (cv.note, said))))
    return cv, coef, intercept


def solve_at(solver: AnySolver, equations: NormalEquations, alpha: F8) -> tuple[F8, F8]:
    """Solve for weights (m, t) and intercepts (t,), with one penalty for each target, (t,)."""
    each = sorted(set(alpha.tolist()))
    solutions = dict(zip(each, solver.solve(equations, each), strict=True))
    coef = np.stack([solutions[a].coef[:, j] for j, a in enumerate(alpha.tolist())], axis=1)
    return coef, np.array([solutions[a].intercept[j] for j, a in enumerate(alpha.tolist())])
