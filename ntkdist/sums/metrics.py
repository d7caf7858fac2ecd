"""Errors of predictions, summed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist.sums.moments import Moments


class Metrics:
    """What evaluating on some rows gives: a value with ``+``.

    For regression over all targets alike: squared and absolute error, and the spread of the targets.  For
    classification: the number of right answers and the log loss of clipped, renormalised scores.
    """

    def __init__(self, rows: int, weight: float, sums: dict[str, float], targets: Moments | None) -> None:
        self.rows, self.weight, self.sums, self.targets = rows, weight, sums, targets

    @classmethod
    def of_regression(cls, y: NDArray[Any], predicted: NDArray[Any], weight: NDArray[Any] | None) -> "Metrics":
        """Metrics of one block of predictions (n, t) of targets (n, t)."""
        w = np.ones(len(y)) if weight is None else weight
        error = np.asarray(y, np.float64) - predicted
        sums = {"squared": float(w @ np.square(error).mean(axis=1)), "absolute": float(w @ np.abs(error).mean(axis=1))}
        return cls(len(y), float(w.sum()), sums, Moments.of(np.asarray(y, np.float64), weight, None, 0))

    @classmethod
    def of_classes(cls, codes: NDArray[Any], scores: NDArray[Any], weight: NDArray[Any] | None) -> "Metrics":
        """Metrics of one block of scores (n, k) for class codes (n,)."""
        w = np.ones(len(codes)) if weight is None else weight
        p = np.clip(scores, 1e-6, 1.0)
        p /= p.sum(axis=1, keepdims=True)
        right = (scores.argmax(axis=1) == codes).astype(np.float64)
        log_loss = -np.log(p[np.arange(len(codes)), codes])
        return cls(len(codes), float(w.sum()), {"right": float(w @ right), "log_loss": float(w @ log_loss)}, None)

    def __add__(self, other: "Metrics") -> "Metrics":
        targets = None if self.targets is None or other.targets is None else self.targets + other.targets
        sums = {k: v + other.sums[k] for k, v in self.sums.items()}
        return Metrics(self.rows + other.rows, self.weight + other.weight, sums, targets)

    def summary(self) -> dict[str, float]:
        """``rmse``, ``mae`` and ``r2``, or ``accuracy`` and ``log_loss``; with ``rows``."""
        mean = {k: v / self.weight for k, v in self.sums.items()}
        if self.targets is None:
            return {"accuracy": mean["right"], "log_loss": mean["log_loss"], "rows": self.rows}
        spread = float(np.mean(self.targets.deviation)) / self.weight
        r2 = 1 - mean["squared"] / spread if spread > 0 else float("nan")
        return {"rmse": mean["squared"] ** 0.5, "mae": mean["absolute"], "r2": r2, "rows": self.rows}
