"""Out-of-fold predictions of a run: each row is predicted by the model of the other folds, in one more pass.

The model of fold k is solved from the saved equations: the total minus fold k.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ntkdist.cluster import Client
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import reduce_all
from ntkdist.data.dataset import Rows
from ntkdist.planning.plan import Plan, source_of
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.ridge.residuals import fold_models
from ntkdist.solvers.cv_result import CVResult
from ntkdist.sums.metrics import Metrics

F8 = NDArray[np.float64]
BINS, SPAN = 48, 3.5  # bins of true and predicted values, and standard deviations of the target to either side
ERROR_BINS, ERROR_SPAN = 100, 5.0  # bins of the absolute error, and their range in root mean squared errors
PROBABILITY_BINS = 20
WORST = 20  # rows with the largest errors that are kept


class LargestErrors(NamedTuple):
    """The rows with the largest errors, in descending order."""

    error: F8
    places: NDArray[np.int64]
    truth: F8
    predicted: F8

    def take(self, rows: NDArray[Any]) -> "LargestErrors":
        """Return the given rows."""
        return LargestErrors(*(values[rows] for values in self))


class OutOfFold:
    """A summary of predictions and true values: a value with ``+``, whose size does not grow with the rows.

    Of several targets, only the first is counted.  ``counts`` (b, b) is the weight of rows by the bin, or class, of the
    true and of the predicted value.  For numbers, ``spread`` (ERROR_BINS + 1,) is the weight of rows by absolute error;
    the last bin holds all larger errors.  For classes, ``spread`` (PROBABILITY_BINS, 3) is, by the probability of the
    predicted class, the weight of rows, and weighted sums of that probability and of the correct rows.
    """

    def __init__(self, metrics: Metrics, counts: F8, spread: F8, largest: LargestErrors) -> None:
        self.metrics, self.counts, self.spread = metrics, counts, spread
        self.largest = largest.take(np.lexsort((largest.places, -largest.error))[:WORST])  # equal errors by place

    @classmethod
    def of_numbers(
        cls, y: NDArray[Any], predicted: F8, weight: F8 | None, places: NDArray[np.int64], edges: F8, unit: float
    ) -> "OutOfFold":
        """Summarise targets (n, t) and predictions (n, t), with bin edges (b + 1,) and the unit of errors."""
        y = np.asarray(y, np.float64)
        truth, guess, w = y[:, 0], predicted[:, 0], np.ones(len(y)) if weight is None else weight
        low, high = edges[0], edges[-1]
        counts = np.histogram2d(truth.clip(low, high), guess.clip(low, high), bins=[edges, edges], weights=w)[0]
        error = np.abs(truth - guess)
        bin_of = np.minimum(error / unit * (ERROR_BINS / ERROR_SPAN), ERROR_BINS).astype(np.int64)
        spread = np.bincount(bin_of, w, ERROR_BINS + 1).astype(np.float64)
        largest = LargestErrors(error, places, truth, guess)
        return cls(Metrics.of_regression(y, predicted, weight), counts, spread, largest)

    @classmethod
    def of_classes(cls, codes: NDArray[Any], scores: F8, weight: F8 | None, places: NDArray[np.int64]) -> "OutOfFold":
        """Summarise class codes (n,) and scores (n, k); a row's error is the lead of the wrong class's score."""
        w, guess = np.ones(len(codes)) if weight is None else weight, scores.argmax(axis=1)
        counts = np.zeros((scores.shape[1],) * 2)
        np.add.at(counts, (codes, guess), w)
        p = np.clip(scores, 1e-6, 1.0)
        top, correct = p.max(axis=1) / p.sum(axis=1), guess == codes
        bin_of = np.minimum((top * PROBABILITY_BINS).astype(np.int64), PROBABILITY_BINS - 1)
        sums = [np.bincount(bin_of, w * v, PROBABILITY_BINS) for v in (1.0, top, correct)]
        lead = scores.max(axis=1) - scores[np.arange(len(codes)), codes]
        errors = LargestErrors(lead, places, codes.astype(np.float64), guess.astype(np.float64)).take(~correct)
        spread = np.stack(sums, axis=1).astype(np.float64)
        return cls(Metrics.of_classes(codes, scores, weight), counts, spread, errors)

    def __add__(self, other: "OutOfFold") -> "OutOfFold":
        largest = LargestErrors(*(np.concatenate(pair) for pair in zip(self.largest, other.largest, strict=True)))
        return OutOfFold(self.metrics + other.metrics, self.counts + other.counts, self.spread + other.spread, largest)


@dataclass(frozen=True)
class OutOfFoldOf:
    """A summand: rows of whole partitions, predicted by the models of the other folds."""

    plan: Plan
    models: dict[int, RidgeModel]
    edges: F8
    unit: float

    def zero(self) -> OutOfFold:
        """Return the sum of no rows."""
        return self._summary(np.empty((0, self.plan.t)), np.empty(0, np.int64), None, np.empty(0, np.int64))

    def update(self, total: OutOfFold, rows: Rows) -> OutOfFold:
        """Add rows to a sum."""
        size = self.plan.layout.rows_per_partition
        partition = rows.start // size
        folds = self.plan.folds_of(partition)[rows.places - partition * size]
        for k, model in self.models.items():
            if (mine := folds == k).any():
                part = rows.take(mine)
                assert part.y is not None
                total = total + self._summary(model.scores(part.x), part.y, part.weight, part.places)
        return total

    def _summary(self, scores: F8, y: NDArray[Any], weight: F8 | None, places: NDArray[np.int64]) -> OutOfFold:
        if self.plan.layout.classes:
            return OutOfFold.of_classes(y, scores, weight, places)
        return OutOfFold.of_numbers(y.reshape(scores.shape), scores, weight, places, self.edges, self.unit)


def predict_out_of_fold(
    p: Plan, equations: Equations, cv: CVResult, *, client: Client | None = None, watch: Watch | None = None
) -> OutOfFold:
    """Predict all rows by the models of the other folds, at the chosen penalties (``cv`` in target units).

    Rows that the fit skipped, and rows of folds that were not scored, such as those outside a holdout, are left out.
    """
    p.check_data()
    unit = float(np.sqrt(cv.chosen[0])) or 1.0
    summand = OutOfFoldOf(p, fold_models(p.solver, equations, cv), bin_edges(equations), unit)
    source = source_of(p)._replace(block_rows=0)
    total: OutOfFold = reduce_all(source, summand, p.layout.rows_per_partition, client, "out of fold", watch).total
    return total


def bin_edges(equations: Equations) -> F8:
    """Return the bin edges of the first target, (BINS + 1,), in its units."""
    pre = equations.preprocessing
    return np.asarray(pre.y_mean[0] + pre.y_scale[0] * np.linspace(-SPAN, SPAN, BINS + 1))
