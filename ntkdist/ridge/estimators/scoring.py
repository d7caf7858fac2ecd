"""The choice of a penalty by accuracy or log loss out of fold, and the scores of all penalties as scikit-learn's.

Legend: n rows, a penalties, t targets or classes, β factors of the scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit, log_softmax, logit

from ntkdist.cluster.reduce import MAP_FAN_IN, Pass, reduce
from ntkdist.cluster.shards import Source
from ntkdist.data.dataset import Rows, Shard
from ntkdist.errors import InputError
from ntkdist.ridge.model import LEAST, Equations, RidgeModel, probabilities
from ntkdist.ridge.solve import solve_chosen
from ntkdist.solvers import Cholesky
from ntkdist.solvers.cross_validation import solve_some
from ntkdist.solvers.cv_result import CVResult
from ntkdist.spec import nearest

F8 = NDArray[np.float64]
SCORINGS = ("accuracy", "neg_log_loss", "neg_mean_squared_error")
BETAS = np.geomspace(0.5, 500, 25)  # factors of the scores that log loss is tried with


class Scored(NamedTuple):
    """The scores of every penalty, (a,), on every fold, (k,): the larger, the better."""

    alphas: F8  # (a,), absolute, for all rows
    scores: F8  # (a, k); −inf where it could not be solved
    weights: F8  # (k,)
    by_classes: bool = False  # or by the squared error

    @property
    def mean(self) -> F8:
        """The mean over folds by their weights, (a,)."""
        return self.scores @ self.weights / self.weights.sum()

    @property
    def std(self) -> F8:
        """The standard deviation over folds by their weights, (a,); nan where a score is not finite."""
        with np.errstate(invalid="ignore"):
            return np.sqrt((self.scores - self.mean[:, None]) ** 2 @ self.weights / self.weights.sum())


def check(scoring: str | None) -> None:
    """Refuse a name of no scoring."""
    if scoring is not None and scoring not in SCORINGS:
        raise InputError(f"scoring is {scoring!r}{nearest(str(scoring), SCORINGS)}")


def by_error(cv: CVResult, weight: float) -> Scored:
    """Return negative mean squared errors, averaged over targets, of a fit to rows of some total weight."""
    return Scored(cv.alphas * (weight if cv.per_row else 1.0), -cv.mse.mean(axis=2), cv.weights)


def by_classes(
    scoring: str,
    equations: Equations,
    cv: CVResult,
    source: Source,
    shards: Sequence[Shard],
    calibrated: bool,
    client: Any,
) -> Scored:
    """Score the classes that every penalty of a cross-validation gives the rows of each fold, in one more pass.

    Log loss is that of the best of some factors of the scores, if probabilities are calibrated.
    """
    betas = BETAS if scoring == "neg_log_loss" and calibrated else np.full(1, np.nan)
    models = {k: _path_model(equations, cv, k) for k in cv.scored}
    summand = _ByFold(models, len(cv.alphas), scoring, betas)
    parts = reduce(Pass(source, summand, shards, MAP_FAN_IN), client)
    sums = np.stack([parts[k].total for k in cv.scored], axis=1)  # (a, k, β)
    best = np.argmax(sums.sum(axis=1), axis=1)
    scores = np.take_along_axis(sums, best[:, None, None], axis=2)[:, :, 0] / cv.weights
    scores[~np.isfinite(cv.mse).all(axis=2)] = -np.inf
    return by_error(cv, equations.total.weight)._replace(scores=scores, by_classes=True)


def solved(equations: Equations, cv: CVResult, scored: Scored) -> tuple[RidgeModel, CVResult]:
    """Solve at the penalty of the best score, of equal ones the largest."""
    total = equations.total
    best = np.full(total.t, np.flatnonzero(scored.mean == scored.mean.max())[-1])
    cv, coef, intercept = solve_chosen(Cholesky(), total, replace(cv, best=best, alpha=scored.alphas[best]))
    pre = equations.preprocessing
    return RidgeModel.of_scaled(pre, equations.features, coef, intercept, cv.alpha, equations.dtype), cv


def results(tried: Sequence[tuple[Any, Scored]]) -> dict[str, Any]:
    """Return the scores of maps and penalties as scikit-learn's searches do, for a frame."""
    maps = [spec for spec, one in tried for _ in one.alphas]
    alphas, scores = (np.concatenate([getattr(one, name) for _, one in tried]) for name in ("alphas", "scores"))
    mean = np.concatenate([one.mean for _, one in tried])
    params = [{"features": spec, "alpha": float(alpha)} for spec, alpha in zip(maps, alphas, strict=True)]
    of_maps = np.empty(len(maps), object)
    of_maps[:] = maps
    return {
        "params": params,
        "param_features": of_maps,
        "param_alpha": alphas,
        **{f"split{k}_test_score": scores[:, k] for k in range(scores.shape[1])},
        "mean_test_score": mean,
        "std_test_score": np.concatenate([one.std for _, one in tried]),
        "rank_test_score": 1 + (mean[None, :] > mean[:, None]).sum(axis=1).astype(np.int32),
    }


def _path_model(equations: Equations, cv: CVResult, k: int) -> RidgeModel:
    """Return a model of the folds but k, with all penalties of the cross-validation side by side, (m, a·t)."""
    train, pre = equations.total - equations.folds[k], equations.preprocessing.for_fold(k)
    coef, intercept = np.zeros((train.m, len(cv.alphas), train.t)), np.zeros((len(cv.alphas), train.t))
    alphas = cv.alphas * (train.weight if cv.per_row else 1.0)
    for i, some, shift in solve_some(Cholesky(), train, alphas.tolist()):
        coef[:, i], intercept[i] = some * pre.y_scale, shift * pre.y_scale + pre.y_mean
    flat = intercept.ravel()
    return RidgeModel(pre, equations.features, coef.reshape(train.m, -1), flat, flat, equations.dtype)


@dataclass(frozen=True)
class _ByFold:
    """A summand that differs by fold: the scores of a fold's rows by the models of the others."""

    models: dict[int, RidgeModel]
    count: int
    scoring: str
    betas: F8

    def of(self, group: int) -> "_ScoresOf":
        return _ScoresOf(self.models.get(group), self.count, self.scoring, self.betas)


@dataclass(frozen=True)
class _ScoresOf:
    """A summand: Σ w score of every penalty at every β, (a, β); zero without a model."""

    model: RidgeModel | None
    count: int
    scoring: str
    betas: F8

    def zero(self) -> F8:
        return np.zeros((self.count, len(self.betas)))

    def update(self, total: F8, rows: Rows) -> F8:
        if self.model is None:
            return total
        assert rows.y is not None
        weight = self.model.preprocessing.weights(rows)
        w = np.ones(rows.n) if weight is None else weight
        scores = self.model.scores(rows.x).reshape(rows.n, self.count, -1)
        one = _right if self.scoring == "accuracy" else _log_likelihood
        return total + np.stack([w @ one(scores, rows.y, beta) for beta in self.betas], axis=1)


def _right(scores: F8, y: NDArray[Any], beta: float) -> NDArray[np.bool_]:
    """Mark the rows, (n, a), whose class, or all of whose labels, are right."""
    if y.ndim == 1:
        return scores.argmax(axis=2) == y[:, None]
    return ((scores > 0.5) == (y[:, None] > 0.5)).all(axis=2)


def _log_likelihood(scores: F8, y: NDArray[Any], beta: float) -> F8:
    """Return the logarithms of the probabilities, (n, a), of the true classes, or their mean over labels."""
    if y.ndim == 1:
        return np.take_along_axis(_log_probabilities(scores, beta), y.astype(np.int64)[:, None, None], axis=2)[:, :, 0]
    sign = 2 * y[:, None] - 1
    return np.asarray(log_expit(sign * log_odds(scores, beta)).mean(axis=2))


def _log_probabilities(scores: F8, beta: float) -> F8:
    """Return the logarithms of the probabilities of classes along the last axis."""
    return np.asarray(log_softmax(beta * scores, axis=-1)) if np.isfinite(beta) else np.log(probabilities(scores, beta))


def log_odds(scores: F8, beta: F8 | float) -> F8:
    """Return the logarithms of the odds of labels with some scores, which are clipped if β is nan."""
    clipped = logit(np.clip(scores, LEAST, 1 - LEAST))
    return np.asarray(np.where(np.isfinite(beta), np.multiply(beta, 2 * scores - 1), clipped))
