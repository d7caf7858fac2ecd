"""Predictions of rows by models that were not fitted to them, for residuals, calibration and intervals.

A row's model is that of the other folds, or that of all other rows.  Each takes one more pass over the data; no sum is
formed again.

Legend: w weight, h as in `ntkdist.solvers.uncertainty`, so that wh is the leverage, ŷ the prediction; the prediction of
the model without the row is y − (y − ŷ)/(1 − wh).
"""

import functools
import operator
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ntkdist import random
from ntkdist.cluster import Client
from ntkdist.cluster.connect import connect, resources
from ntkdist.cluster.progress import Watch, default_watch
from ntkdist.cluster.reduce import MAP_FAN_IN, Pass, reduce, reduce_all
from ntkdist.cluster.shards import Source
from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Dataset, Rows, Shard
from ntkdist.data.scaling import Matching
from ntkdist.display import Described
from ntkdist.errors import DataError, SpecError
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.ridge.prepare import verified_source
from ntkdist.ridge.solve import solve_at
from ntkdist.solvers import AnySolver
from ntkdist.solvers.cv_result import CVResult
from ntkdist.solvers.uncertainty import Calibration

F8 = NDArray[np.float64]
STEEPEST = 1e6  # largest factor of the scores; beyond it, all probabilities are 0 or 1
CALIBRATION_ROWS, CALIBRATION = 2**16, 1003  # of the sample that a model keeps; key of the stream that draws it
FULL = 1 - 1e-9  # largest leverage: the prediction rests on the row alone
Block = tuple[NDArray[np.int64], dict[str, NDArray[Any]]]


@dataclass(frozen=True, eq=False, repr=False)
class Rowwise(Described):
    """Arrays with one entry a row, and the rows' positions: a value with ``+``, kept in blocks until it is read."""

    blocks: tuple[Block, ...]  # positions (n,) of rows, and arrays (n, ...) by name

    @classmethod
    def of(cls, places: NDArray[np.int64], values: dict[str, NDArray[Any]]) -> "Rowwise":
        """Wrap one block of rows."""
        return cls(((places, values),))

    def facts(self) -> dict[str, Any]:
        """Return what is shown of the rows, by name."""
        return {"rows": sum(len(places) for places, _ in self.blocks), "arrays": ", ".join(self.blocks[0][1])}

    def __add__(self, other: "Rowwise") -> "Rowwise":
        return Rowwise(self.blocks + other.blocks)

    def in_order(self) -> "Rowwise":
        """Return all rows as one block, by ascending position."""
        order = np.argsort(places := self.places, kind="stable")
        return Rowwise.of(places[order], {k: v[order] for k, v in self.values.items()})

    @property
    def places(self) -> NDArray[np.int64]:
        """Positions of the rows in the data, (n,)."""
        return np.concatenate([places for places, _ in self.blocks])

    @property
    def values(self) -> dict[str, NDArray[Any]]:
        """Arrays (n, ...) by name."""
        return {name: np.concatenate([values[name] for _, values in self.blocks]) for name in self.blocks[0][1]}

    def __sizeof__(self) -> int:
        return sum(places.nbytes + sum(v.nbytes for v in values.values()) for places, values in self.blocks)


def fold_models(solver: AnySolver, equations: Equations, cv: CVResult) -> dict[int, RidgeModel]:
    """Solve a model for each scored fold from the sums of the other folds; each takes one factorisation."""
    total, models = equations.total, {}
    for k in cv.scored:
        train = total - equations.folds[k]
        alpha = cv.alphas[cv.best] * (train.weight if cv.per_row else 1.0)
        coef, intercept = solve_at(solver, train, alpha)
        pre = equations.preprocessing.for_fold(k)
        models[k] = RidgeModel.of_scaled(pre, equations.features, coef, intercept, alpha, equations.dtype)
    return models


def out_of_fold(
    source: Source,
    shards: Sequence[Shard],
    models: dict[int, RidgeModel],
    client: Client | None = None,
    watch: Watch | None = None,
) -> Rowwise:
    """Predict every row by its fold's model, in one pass: ``y``, ``weight`` and ``prediction`` (n, t).

    The groups of the shards are the folds, as in `by_fold`.  Rows of folds without a model are left out.
    """
    with (watch or default_watch())("out of fold", sum(shard.rows for shard in shards)) as done:
        parts = reduce(Pass(source, OutOfFold(models), shards, MAP_FAN_IN, done), client)
    rowwise: Rowwise = functools.reduce(operator.add, (part.total for part in parts))
    return rowwise.in_order()


def calibration(model: RidgeModel, values: dict[str, NDArray[Any]]) -> Calibration:
    """Return the calibration of a model by the arrays of `out_of_fold`: of classes a temperature, else residuals."""
    if model.classes:
        beta = temperature(values["prediction"], values["y"].astype(np.int64), values["weight"])
        return Calibration(np.zeros((0, len(model.intercept))), np.zeros(0), beta)
    return sampled(values["y"].reshape(values["prediction"].shape) - values["prediction"], values["weight"])


def sampled(residuals: F8, weight: F8) -> Calibration:
    """Return a calibration by residuals (n, t) with weights (n,), of which a seeded sample is kept."""
    keys = random.uniforms_of(np.arange(len(residuals)), 0, CALIBRATION, 0)
    some = np.sort(np.argsort(keys, kind="stable")[:CALIBRATION_ROWS])
    return Calibration(residuals[some], weight[some])


def temperature(scores: F8, codes: NDArray[np.int64], weight: F8 | None = None) -> float:
    """Return the β > 0 for which softmax(β·scores) has the least log loss of the true classes; ranks stay.

    ``scores`` (n, k) are out of fold, ``codes`` (n,) number the true classes, ``weight`` is (n,).  Guo, Pleiss, Sun,
    Weinberger, "On calibration of modern neural networks", ICML 2017.
    """
    w = np.ones(len(codes)) if weight is None else weight
    rows = np.arange(len(codes))

    def loss(log_beta: float) -> float:
        return float(-(w @ log_softmax(np.exp(log_beta) * scores, axis=1)[rows, codes]) / w.sum())

    bound = np.log(STEEPEST)
    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))


def leave_one_out(
    model: RidgeModel,
    rows: Dataset | Arrays | str,
    *,
    client: Client | None = None,
    scheduler: str = "",
    watch: Watch | None = None,
) -> Rowwise:
    """Compute the leverage of each row that a model was fitted to, and the model's error without it, in one pass.

    The error is exact for the ridge at its alpha and scaling, as if the other rows were solved again.

    Parameters
    ----------
    model : RidgeModel
        With its factor; see ``keep_factor`` of `solve`.
    rows : Dataset or str
        The rows that the model was fitted to; with ``damaged="skip"``, damaged partitions are skipped.
    client, scheduler, watch
        As in `fit`.

    Returns
    -------
    Rowwise
        By position: ``y`` (n, t), for classes one-hot; ``weight``; ``prediction`` (n, t); ``leverage`` (n,), between 0
        and 1; and ``left_out`` (n, t), the prediction of the model without the row.  Residuals are ``y`` less either.

    Raises
    ------
    SpecError
        If the model has no factor, or was fitted to copies of rows.
    DataError
        If rows cannot be read, or columns or classes do not match the model's.
    """
    dataset = Dataset(rows) if isinstance(rows, str) else rows
    if model.factor is None:
        raise SpecError("the model has no factor; solve its equations again with keep_factor=True")
    in_memory = isinstance(dataset, Arrays) and not dataset.lazy  # other processes do not have these rows
    with nullcontext() if in_memory else connect(None, scheduler, client) as client:
        source = verified_source(Source(dataset, dataset.layout(), 0, 1), client, watch)
        return left_out(model, source, client, watch)


def left_out(model: RidgeModel, source: Source, client: Client | None, watch: Watch | None) -> Rowwise:
    """Compute `leave_one_out` over the rows of a source, without those that it skips."""
    if model.augment.copies > 1:
        raise SpecError(
            "the model was fitted to copies of each row, too, without which a row cannot be left out alone; use the "
            "residuals out of fold"
        )
    layout, encoded = source.layout, model.preprocessing.encoding
    if encoded is not None and encoded.parts not in (0, encoded.splits):
        raise DataError(
            f"{source.dataset.store}: categories became means of the targets of other folds, so that a row cannot be "
            f"left out alone; use the residuals out of fold, or one_hot = {max(map(len, encoded.categories))}"
        )
    source = source._replace(block_rows=max(1024, model.features.n_components), threads=resources(client).threads)
    summand = LeftOut(model, model.preprocessing.match(layout, source.dataset.store))
    rowwise: Rowwise = reduce_all(source, summand, layout.rows_per_partition, client, "leave one out", watch).total
    return rowwise.in_order()


@dataclass(frozen=True)
class OutOfFold:
    """A summand that differs by fold: predictions by the fold's model."""

    models: dict[int, RidgeModel]

    def of(self, group: int) -> "PredictionsOf":
        return PredictionsOf(self.models.get(group, next(iter(self.models.values()))), group in self.models)


@dataclass(frozen=True)
class PredictionsOf:
    """A summand of targets and predictions by one model; it holds no rows unless they are ``wanted``."""

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


@dataclass(frozen=True)
class LeftOut:
    """A summand of predictions by the model with and without each row."""

    model: RidgeModel
    matching: Matching

    def zero(self) -> Rowwise:
        t = len(self.model.intercept)
        values = {name: np.empty((0, t)) for name in ("y", "prediction", "left_out")}
        return Rowwise.of(np.empty(0, np.int64), values | {name: np.empty(0) for name in ("weight", "leverage")})

    def update(self, total: Rowwise, rows: Rows) -> Rowwise:
        model, rows = self.model, self.matching(rows)
        assert rows.y is not None
        pre, weight = model.preprocessing, model.preprocessing.weights(rows)
        y = pre.targets(rows.y) * pre.y_scale + pre.y_mean
        w = np.ones(rows.n) if weight is None else weight
        of = rows.x, 0, rows.places  # training rows, all of one fold
        prediction, leverage = model.scores(*of), w * model.spread(*of)
        left_out = y - (y - prediction) / (1 - np.minimum(leverage, FULL))[:, None]
        values = {"y": y, "weight": w, "prediction": prediction, "leverage": leverage, "left_out": left_out}
        return total + Rowwise.of(rows.places, values)
