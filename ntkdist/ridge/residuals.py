"""Predictions for every row by the model of the other folds: what residuals, calibration and intervals are made from.

The models are solved from sums that exist; the predictions take one more pass over the data.
"""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ntkdist.cluster import Client
from ntkdist.cluster.progress import Watch, default_watch
from ntkdist.cluster.reduce import MAP_FAN_IN, Pass, reduce
from ntkdist.cluster.shards import Source
from ntkdist.data.dataset import Rows, Shard
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.ridge.rowwise import Rowwise
from ntkdist.ridge.solve import solve_at
from ntkdist.solvers import AnySolver
from ntkdist.solvers.cv_result import CVResult

F8 = NDArray[np.float64]
STEEPEST = 1e6  # of what scores are multiplied by; beyond, all probabilities are 0 or 1


def fold_models(solver: AnySolver, equations: Equations, cv: CVResult) -> dict[int, RidgeModel]:
    """The model of each scored fold, which has seen all rows but those of its fold: one factorisation each.

    Parameters
    ----------
    solver : Solver
    equations : Equations
    cv : CVResult
        As a fit returns it.
    """
    total, models = equations.total, {}
    for k in cv.scored:
        train = total - equations.folds[k]
        alpha = cv.alphas[cv.best] * (train.weight if cv.per_row else 1.0)
        coef, intercept = solve_at(solver, train, alpha)
        pre = equations.preprocessing
        models[k] = RidgeModel.of_scaled(pre, equations.features, coef, intercept, alpha, equations.dtype)
    return models


def out_of_fold(
    source: Source,
    shards: Sequence[Shard],
    models: dict[int, RidgeModel],
    client: Client | None = None,
    watch: Watch | None = None,
) -> Rowwise:
    """One pass: for every row, by its place, ``y``, its ``weight`` and the ``prediction`` (n, t) of its fold's model.

    Parameters
    ----------
    source : Source
    shards : sequence of Shard
        The tasks that the equations came from, their groups the folds; see `by_fold`.
    models : dict of int to RidgeModel
        Of `fold_models`; rows of other folds are left out.
    """
    with (watch or default_watch())("out of fold", sum(shard.rows for shard in shards)) as done:
        parts = reduce(Pass(source, OutOfFold(models), shards, MAP_FAN_IN, done), client)
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

    models: dict[int, RidgeModel]

    def of(self, group: int) -> "PredictionsOf":
        return PredictionsOf(self.models.get(group, next(iter(self.models.values()))), group in self.models)


@dataclass(frozen=True)
class PredictionsOf:
    """Predictions of one model beside the targets; of no row unless ``wanted``."""

    model: RidgeModel
    wanted: bool = True

    def zero(self) -> Rowwise:
        pre = self.model.preprocessing
        y = np.empty(0, np.uint8) if pre.classes else np.empty((0, pre.t) if pre.vector_target else 0)
        return Rowwise.of(np.empty(0, np.int64), {"y": y, "weight": np.empty(0), "prediction": np.empty((0, pre.t))})

    def update(self, total: Rowwise, rows: Rows) -> Rowwise:
        if not self.wanted:
            return total
        assert rows.y is not None
        weight = np.ones(rows.n) if rows.weight is None else rows.weight
        return total + Rowwise.of(rows.places, {"y": rows.y, "weight": weight, "prediction": self.model.scores(rows.x)})
