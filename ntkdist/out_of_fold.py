"""Predictions for every row by the model of the other folds: what residuals, calibration and intervals are made from.

The models are solved from sums that exist; the predictions take one more pass over the data.
"""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from distributed import Client
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ntkdist.data import Rows
from ntkdist.model import Equations, RidgeModel
from ntkdist.progress import Watch, default_watch
from ntkdist.reduce import MAP_FAN_IN, reduce
from ntkdist.select import CVResult
from ntkdist.shards import Shard, Source
from ntkdist.solvers import Cholesky, Solver
from ntkdist.sums import NormalEquations, Rowwise

F8 = NDArray[np.float64]
STEEPEST = 1e6  # of what scores are multiplied by; beyond, all probabilities are 0 or 1


def solve_at(equations: Equations, sums: NormalEquations, alpha: F8, solver: Solver) -> RidgeModel:
    """The model of some of the rows, ``sums``, with a penalty for every target."""
    each = sorted(set(alpha.tolist()))
    solutions = dict(zip(each, solver.solve(sums, each), strict=True))
    coef = np.stack([solutions[a].coef[:, j] for j, a in enumerate(alpha.tolist())], axis=1)
    intercept = np.array([solutions[a].intercept[j] for j, a in enumerate(alpha.tolist())])
    return RidgeModel.of_scaled(equations.preprocessing, equations.features, coef, intercept, alpha, equations.dtype)


def fold_models(equations: Equations, cv: CVResult, solver: Solver | None = None) -> list[RidgeModel]:
    """For every fold the model of all others, at the penalty that was chosen: one factorisation each.

    Parameters
    ----------
    equations : Equations
    cv : CVResult
        As `solve` gave it for these equations.
    solver : Solver, optional
    """
    total, chosen, models = equations.total, cv.alphas[cv.best], []
    for fold in equations.folds:
        train = total - fold
        alpha = chosen * (train.weight if cv.per_row else 1.0)
        models.append(solve_at(equations, train, alpha, solver or Cholesky()))
    return models


def out_of_fold(
    source: Source,
    shards: Sequence[Shard],
    models: Sequence[RidgeModel],
    client: Client | None = None,
    watch: Watch | None = None,
) -> Rowwise:
    """One pass: for every row, by its place, ``y``, its ``weight`` and the ``prediction`` (n, t) of its fold's model.

    Parameters
    ----------
    source : Source
    shards : sequence of Shard
        The tasks that the equations came from, their groups the folds; see `by_fold`.
    models : sequence of RidgeModel
        Of `fold_models`.
    """
    with (watch or default_watch())("out of fold", sum(shard.rows for shard in shards)) as done:
        parts = reduce(source, OutOfFold(tuple(models)), shards, MAP_FAN_IN, client, done)
    found: Rowwise = functools.reduce(operator.add, (part.total for part in parts))
    return found.in_order()


def temperature(scores: F8, codes: NDArray[np.int64], weight: F8 | None = None) -> float:
    """β > 0 for which softmax(β·scores) has the least log loss of the true classes: one number, so no rank changes.

    Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks", ICML 2017.

    Parameters
    ----------
    scores : (n, k) array
        Out of fold.
    codes : (n,) integer array
    weight : (n,) array, optional
    """
    w = np.ones(len(codes)) if weight is None else weight
    rows = np.arange(len(codes))

    def loss(log_beta: float) -> float:
        return float(-(w @ log_softmax(np.exp(log_beta) * scores, axis=1)[rows, codes]) / w.sum())

    bound = np.log(STEEPEST)
    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))


@dataclass(frozen=True)
class OutOfFold:
    """Predictions by the model of each group's own."""

    models: tuple[RidgeModel, ...]

    def of(self, group: int) -> "PredictionsOf":
        return PredictionsOf(self.models[group])


@dataclass(frozen=True)
class PredictionsOf:
    """Predictions of one model beside the targets."""

    model: RidgeModel

    def zero(self) -> Rowwise:
        pre = self.model.preprocessing
        y = np.empty(0, np.uint8) if pre.classes else np.empty((0, pre.t) if pre.vector_target else 0)
        return Rowwise(np.empty(0, np.int64), {"y": y, "weight": np.empty(0), "prediction": np.empty((0, pre.t))})

    def update(self, total: Rowwise, rows: Rows) -> Rowwise:
        assert rows.y is not None
        weight = np.ones(rows.n) if rows.weight is None else rows.weight
        return total + Rowwise(rows.places, {"y": rows.y, "weight": weight, "prediction": self.model.scores(rows.x)})
