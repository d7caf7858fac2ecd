"""What predictions of rows look like that a model has not seen, summed to what a reader looks at."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ntkdist.sums.metrics import Metrics

F8 = NDArray[np.float64]
BINS = 48  # of the truth and of predictions, over SPAN standard deviations of the targets to either side
SPAN = 3.5
ERROR_BINS, ERROR_SPAN = 100, 5.0  # of an absolute error, over so many times the root mean squared error
SURE_BINS = 20  # of a probability
WORST = 20  # rows that are furthest off, kept


class Off(NamedTuple):
    """The rows that are furthest off, worst first: how far, their places, the truth and the prediction of each."""

    error: F8
    places: NDArray[np.int64]
    truth: F8
    predicted: F8

    def take(self, rows: NDArray[Any]) -> "Off":
        """Some of them."""
        return Off(self.error[rows], self.places[rows], self.truth[rows], self.predicted[rows])

    def worst(self) -> "Off":
        """The first WORST of them; of equal errors the first rows."""
        order = np.lexsort((self.places, -self.error))[:WORST]
        return self.take(order)


class HeldOut:
    """Predictions beside the truth: a value with ``+``, of a size that does not grow with the rows.

    Of several targets, the first is counted.

    Attributes
    ----------
    metrics : Metrics
    counts : (b, b) float64 array
        Weight of rows by the bin, or class, of the truth and of the prediction.
    spread : array
        Of numbers, (ERROR_BINS + 1,): weight of rows by their absolute error, the last holding all larger ones.  Of
        classes, (SURE_BINS, 3): by the probability of the predicted class, weight of rows, and weighted sums of that
        probability and of the rows that are right.
    off : Off
    """

    def __init__(self, metrics: Metrics, counts: F8, spread: F8, off: Off) -> None:
        self.metrics, self.counts, self.spread, self.off = metrics, counts, spread, off.worst()

    @classmethod
    def of_numbers(
        cls, y: NDArray[Any], predicted: F8, weight: F8 | None, places: NDArray[np.int64], edges: F8, unit: float
    ) -> "HeldOut":
        """Of targets (n, t) and predictions (n, t); ``edges`` (b + 1,) of bins, ``unit`` of errors."""
        y = np.asarray(y, np.float64)
        truth, guess, w = y[:, 0], predicted[:, 0], np.ones(len(y)) if weight is None else weight
        binned = (np.clip(np.searchsorted(edges, v, "right") - 1, 0, len(edges) - 2) for v in (truth, guess))
        counts = np.zeros((len(edges) - 1,) * 2)
        np.add.at(counts, tuple(binned), w)
        error = np.abs(truth - guess)
        place = np.minimum(error / unit * (ERROR_BINS / ERROR_SPAN), ERROR_BINS).astype(np.int64)
        spread = np.bincount(place, w, ERROR_BINS + 1).astype(np.float64)
        return cls(Metrics.of_regression(y, predicted, weight), counts, spread, Off(error, places, truth, guess))

    @classmethod
    def of_classes(cls, codes: NDArray[Any], scores: F8, weight: F8 | None, places: NDArray[np.int64]) -> "HeldOut":
        """Of class codes (n,) and scores (n, k); how far off a row is, is by how much a wrong class leads."""
        w, guess = np.ones(len(codes)) if weight is None else weight, scores.argmax(axis=1)
        counts = np.zeros((scores.shape[1],) * 2)
        np.add.at(counts, (codes, guess), w)
        p = np.clip(scores, 1e-6, 1.0)
        sure, right = p.max(axis=1) / p.sum(axis=1), guess == codes
        place = np.minimum((sure * SURE_BINS).astype(np.int64), SURE_BINS - 1)
        spread = np.stack([np.bincount(place, w * v, SURE_BINS) for v in (1.0, sure, right)], axis=1).astype(np.float64)
        lead = scores.max(axis=1) - scores[np.arange(len(codes)), codes]
        off = Off(lead, places, codes.astype(np.float64), guess.astype(np.float64))
        return cls(Metrics.of_classes(codes, scores, weight), counts, spread, off.take(~right))

    def __add__(self, other: "HeldOut") -> "HeldOut":
        off = Off(*(np.concatenate(pair) for pair in zip(self.off, other.off, strict=True)))
        return HeldOut(self.metrics + other.metrics, self.counts + other.counts, self.spread + other.spread, off)
