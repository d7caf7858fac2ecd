"""Prediction errors, summed over rows."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ntkdist.data.dataset import Rows
from ntkdist.data.moments import Moments
from ntkdist.data.scaling import Matching

F8 = NDArray[np.float64]


class Metrics:
    """Errors of a model over some rows: a value with ``+``.

    For regression the squared and absolute error of each target, and the targets' moments; for classification the
    number of correct predictions and the log loss of clipped, renormalised scores.
    """

    def __init__(self, rows: int, weight: float, sums: dict[str, F8], targets: Moments | None) -> None:
        self.rows, self.weight, self.sums, self.targets = rows, weight, sums, targets

    @classmethod
    def of_regression(cls, y: NDArray[Any], predicted: NDArray[Any], weight: NDArray[Any] | None) -> "Metrics":
        """Compute the metrics of a block of predictions (n, t) for targets (n, t)."""
        w = np.ones(len(y)) if weight is None else weight
        y = np.asarray(y, np.float64)
        error = np.abs(y - predicted)
        return cls(len(y), float(w.sum()), {"squared": w @ error**2, "absolute": w @ error}, Moments.of(y, w, None, 0))

    @classmethod
    def of_classes(cls, codes: NDArray[Any], scores: NDArray[Any], weight: NDArray[Any] | None) -> "Metrics":
        """Compute the metrics of a block of scores (n, k) for class codes (n,)."""
        w = np.ones(len(codes)) if weight is None else weight
        p = np.clip(scores, 1e-6, 1.0)
        p /= p.sum(axis=1, keepdims=True)
        right = (scores.argmax(axis=1) == codes).astype(np.float64)
        log_loss = -np.log(p[np.arange(len(codes)), codes])
        return cls(len(codes), float(w.sum()), {"right": w @ right, "log_loss": w @ log_loss}, None)

    def __add__(self, other: "Metrics") -> "Metrics":
        targets = None if self.targets is None or other.targets is None else self.targets + other.targets
        sums = {k: v + other.sums[k] for k, v in self.sums.items()}
        return Metrics(self.rows + other.rows, self.weight + other.weight, sums, targets)

    def summary(self) -> dict[str, float]:
        """Return ``rmse``, ``mae`` and ``r2``, averaged over targets, or ``accuracy`` and ``log_loss``."""
        mean = {k: v / self.weight for k, v in self.sums.items()}
        if self.targets is None:
            return {"accuracy": float(mean["right"]), "log_loss": float(mean["log_loss"]), "rows": self.rows}
        spread = self.targets.std**2
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = np.where(spread > 0, 1 - mean["squared"] / spread, np.nan)
        rmse, mae = np.sqrt(mean["squared"]), mean["absolute"]
        return {"rmse": float(rmse.mean()), "mae": float(mae.mean()), "r2": float(r2.mean()), "rows": self.rows}


class Model(Protocol):
    """A model, as `MetricsOf` calls it."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def intercept(self) -> F8: ...
    def scores(self, x: Any, /) -> F8: ...


@dataclass(frozen=True)
class MetricsOf:
    """A summand: the `Metrics` of a model."""

    model: Model
    matching: Matching

    def zero(self) -> Metrics:
        t = len(self.model.intercept)
        y = np.empty(0, np.int64) if self.model.classes else np.empty((0, t))
        return self._metrics(y, np.empty((0, t)), None)

    def update(self, total: Metrics, rows: Rows) -> Metrics:
        rows = self.matching(rows)
        assert rows.y is not None
        new = self._metrics(rows.y, self.model.scores(rows.x), rows.weight)
        return total + new if total.rows else new

    def _metrics(self, y: NDArray[Any], scores: NDArray[Any], weight: NDArray[Any] | None) -> Metrics:
        if self.model.classes:
            return Metrics.of_classes(y, scores, weight)
        return Metrics.of_regression(y.reshape(scores.shape), scores, weight)
