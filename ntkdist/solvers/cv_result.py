"""The result of cross-validation: the error of every penalty on every fold, and the choice."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist.display import Described, text

F8 = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class CVResult(Described):
    """Scores of a grid of penalties, and the choice.

    Attributes
    ----------
    alphas : (a,) array
        The grid, ascending, in the unit given: absolute, or per unit of weight of a training set if ``per_row``.
    per_row : bool
    mse : (a, k, t) array
        Mean squared error of every penalty on every fold for every target; infinite where it could not be solved.
    weights : (k,) array
        Σ w of each fold.
    spread : (t,) array
        Weighted variance of the targets, so that ``r2`` is 1 − mse/spread.
    best : (t,) integer array
        Chosen row of the grid for every target; all equal unless chosen per target.
    alpha : (t,) array
        The chosen penalties for the whole data, absolute.
    note : str
        Remark on the choice, or "".
    scored : tuple of int
        Numbers of the k folds.
    rounding : (a, k, t) array, optional
        Bound of the rounding of ``mse``, which may be negative by as much: numbers of the size of the targets' variance
        cancel in an error that is computed from sums.  Absent if errors were computed row by row; nan if the sums were
        saved by a version that did not count their rounding.
    """

    alphas: F8
    per_row: bool
    mse: F8
    weights: F8
    spread: F8
    best: NDArray[np.int64]
    alpha: F8
    note: str = ""
    scored: tuple[int, ...] = ()
    rounding: F8 | None = None

    @property
    def path(self) -> F8:
        """The mean squared error of every penalty over all folds, (a, t)."""
        with np.errstate(invalid="ignore"):
            return np.einsum("k,akt->at", self.weights, self.mse) / self.weights.sum()

    @property
    def path_rounding(self) -> F8:
        """The bound of the rounding of ``path``, (a, t); roundings of folds are independent."""
        if self.rounding is None:
            return np.zeros(self.mse.shape[::2])
        return over_folds(self.rounding, self.weights)

    @property
    def chosen(self) -> F8:
        """The cross-validated mean squared error of each target at its chosen penalty, (t,).

        Where rounding makes it negative it is replaced by the bound of the rounding; ``note`` says so, and `path` keeps
        the computed value.
        """
        chosen = self.best, np.arange(len(self.best))
        return np.where(self.path[chosen] < 0, np.nan_to_num(self.path_rounding[chosen]), self.path[chosen])

    @property
    def rounded(self) -> NDArray[np.bool_]:
        """Flags of the targets, (t,), whose chosen error is less than the bound of its rounding."""
        chosen = self.best, np.arange(len(self.best))
        error, rounding = self.path[chosen], self.path_rounding[chosen]
        return (error < 0) | (error < rounding)

    @property
    def rmse(self) -> float:
        """The root of the mean squared error, averaged over targets."""
        return float(np.sqrt(self.chosen).mean())

    @property
    def r2(self) -> float:
        """The share of a target's variance explained out of fold, averaged over targets; nan if a target has none."""
        with np.errstate(divide="ignore", invalid="ignore"):
            share = 1 - self.chosen / self.spread
        return float(np.where(self.spread > 0, share, np.nan).mean())

    @property
    def standard_error(self) -> float:
        """The standard error of the mean squared error, from its spread over folds; nan if only one fold was scored."""
        if len(self.weights) == 1:
            return float("nan")
        folds = self.mse[self.best, :, np.arange(len(self.best))].mean(axis=0)
        return float(np.std(folds, ddof=1) / np.sqrt(len(folds)))

    @property
    def rmse_standard_error(self) -> float:
        """The standard error of ``rmse``, to first order; nan if only one fold was scored."""
        if len(self.weights) == 1:
            return float("nan")
        roots = np.sqrt(self.chosen)
        slopes = np.divide(0.5, roots, out=np.zeros_like(roots), where=roots > 0) / len(roots)
        folds = self.mse[self.best, :, np.arange(len(self.best))].T @ slopes
        return float(np.std(folds, ddof=1) / np.sqrt(len(folds)))

    @property
    def at_edge(self) -> bool:
        """A flag: a chosen penalty is the smallest or the largest of the grid."""
        return len(self.alphas) > 1 and bool(np.isin(self.best, (0, len(self.alphas) - 1)).any())

    def scaled(self, scale: F8) -> "CVResult":
        """Return the result in the units of targets before they were divided by ``scale`` (t,)."""
        rounding = None if self.rounding is None else self.rounding * scale**2
        return replace(self, mse=self.mse * scale**2, spread=self.spread * scale**2, rounding=rounding)

    def facts(self) -> dict[str, Any]:
        """Return what is shown of the scores, by name."""
        return {
            "rmse": self.rmse,
            "r2": self.r2,
            "alpha": self.alpha,
            "alphas_per_row" if self.per_row else "alphas": f"{len(self.alphas)} from {text(self.alphas)}",
            "folds": len(self.weights),
            "note": self.note or None,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain objects, for a report."""
        unit = "alphas_per_row" if self.per_row else "alphas"
        return {
            unit: self.alphas.tolist(),
            "mse": _or_none(self.path),
            "fold_mse": _or_none(self.mse),
            "fold_mse_rounding": None if self.rounding is None else _or_none(self.rounding),
            "scored_folds": list(self.scored),
            "best": self.best.tolist(),
            "rmse": self.rmse,
            "r2": self.r2,
            "mse_standard_error": self.standard_error,
            "at_edge": self.at_edge,
            "note": self.note,
            "weights": self.weights.tolist(),
            "spread": self.spread.tolist(),
            "alpha": self.alpha.tolist(),
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "CVResult":
        """Rebuild a result from its `to_dict`, also after JSON."""
        per_row = "alphas_per_row" in plain
        mse = np.array(plain["fold_mse"], np.float64)  # None becomes nan
        mse[np.isnan(mse)] = np.inf
        rounding = plain.get("fold_mse_rounding")  # absent from older reports
        return cls(
            np.array(plain["alphas_per_row" if per_row else "alphas"], np.float64),
            per_row,
            mse,
            np.array(plain["weights"], np.float64),
            np.array(plain["spread"], np.float64),
            np.array(plain["best"], np.int64),
            np.array(plain["alpha"], np.float64),
            plain["note"],
            tuple(plain["scored_folds"]),
            None if rounding is None else np.array(rounding, np.float64),
        )


def over_folds(rounding: F8, weights: F8) -> F8:
    """Combine roundings of the folds' errors, (a, k, t), which are independent, to that of their mean, (a, t)."""
    return np.asarray(np.sqrt(np.einsum("k,akt->at", weights**2, rounding**2)) / weights.sum())


def _or_none(values: F8) -> Any:
    """Return nested lists, with None for numbers that are not finite: JSON has none."""
    plain = values.astype(object)
    plain[~np.isfinite(values)] = None
    return plain.tolist()
