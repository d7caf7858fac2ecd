"""Learning a metric: rounds of small fits, each to inputs that the gradients of the one before have stretched.

Legend: as in `ntkdist.sums.gradients`; A the average outer product of the gradients of a round's fit, in u; M = P A Pᵀ
that in scaled inputs x; the next P is the symmetric root of M, for a diagonal metric that of its diagonal, times a
number for which (x − x̄)P has a mean square length of 1.  A recursive feature machine: Radhakrishnan, Beaglehole,
Pandit, Belkin, Science 2024; here on a feature map, and as sums over partitions.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend, random
from ntkdist.cluster import Client
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import Pass, phase, reduce
from ntkdist.cluster.shards import AnySummand, Source
from ntkdist.data.dataset import Shard
from ntkdist.data.scaling import Preprocess, Preprocessing, Round
from ntkdist.features import AnyFeatureMap, AnyMap
from ntkdist.planning.job import Metric
from ntkdist.ridge.checkpoint import KeptRounds
from ntkdist.ridge.fitted_map import fitted
from ntkdist.ridge.solve import solve_at
from ntkdist.solvers import Cholesky
from ntkdist.solvers.cross_validation import check_folds, cross_validate, penalties
from ntkdist.sums import NormalEquations
from ntkdist.sums.equations import EquationsOf
from ntkdist.sums.gradients import GradientsOf, GradientSums

F8 = NDArray[np.float64]
CONSTANT = 1e-9  # of the mean square of gradients: a variance that rounding may make of a linear function
GAIN = 1e-3  # of the error: a round that gains less is the last
STEP, STEPS = 1.5, 4  # of the length, for the map of the fit


class Trial(NamedTuple):
    """A fit of a round, at one length of rows."""

    error: float  # mean square of the rows held out, of scaled targets
    round: Round
    preprocessing: Preprocessing
    features: AnyMap
    train: NormalEquations  # of the other folds
    alpha: F8  # (t,), absolute, for them
    held: int  # the fold whose rows are held out


class Small(NamedTuple):
    """A fit of the search: its features, and the rows that it takes."""

    features: AnyFeatureMap
    source: Source
    shards: Sequence[Shard]  # their groups are the folds, of which the last that has rows is held out

    @classmethod
    def of(cls, features: AnyFeatureMap, source: Source, shards: Sequence[Shard], share: float) -> "Small":
        """Make a fit that takes a share of the rows."""
        return cls(features, source._replace(share=share), shards)


@dataclass(frozen=True)
class MetricSearch:
    """The search for a metric on the rows of a source."""

    metric: Metric
    small: Small  # of the rounds
    last: Small  # of the length that is chosen once more, for as many features as the fit's
    fan_in: int
    dtype: str
    client: Client | None
    watch: Watch | None

    def learn(self, pre: Preprocessing, kept: KeptRounds | None = None) -> Preprocessing:
        """Return the scaling with the metric of least error on the rows held out; kept rounds are not done again.

        The best length of rows depends on the number of features, so it is chosen once more for the last fit.  Raises
        DataError if all rows are in one fold.
        """
        d = int(np.prod(pre.mapped_shape))
        metrics, errors, rounds, following = list[F8](), list[float](), list[Round](), np.full(d, d**-0.5)
        for number in range(self.metric.rounds + 1):
            here = replace(pre, metric=following)
            arrays = once(kept, str(number), functools.partial(self._round, here, number))
            scale, error, rmse, alpha = arrays["numbers"].tolist()
            gained = number == 0 or np.sqrt(error) < (1 - GAIN) * np.sqrt(min(errors))
            metrics.append(arrays["metric"])
            errors.append(error)
            rounds.append(Round(scale, rmse, alpha))
            if ended := self._end(number, gained, "following" in arrays):
                rounds[-1] = rounds[-1]._replace(ended=ended)
                break
            following = arrays["following"]
        best = int(np.argmin(errors))
        arrays = once(kept, "length", functools.partial(self._stretch, replace(pre, metric=metrics[best])))
        stretch, *rmse = arrays["numbers"].tolist()
        rounds[best] = rounds[best]._replace(kept=True, stretch=stretch, last_rmse=rmse[0] if rmse else None)
        return replace(pre, metric=stretch * metrics[best], rounds=tuple(rounds))

    def _end(self, number: int, gained: bool, goes_on: bool) -> str:
        """Return why a round is the last, as in `Round`; "" if another follows."""
        if not gained:
            return "gain"
        if number == self.metric.rounds:
            return "rounds"
        return "" if goes_on else "gradients"

    def _round(self, pre: Preprocessing, number: int) -> dict[str, F8]:
        """Fit at every length, and return numbers and metric of the best fit, and the metric that follows from it."""
        scales = self.metric.scales if depends_on_length(self.small.features, pre.mapped_shape) else (1.0,)
        trials = (self._trial(self.small, pre, scale, f"round {number}") for scale in scales)
        best = min(trials, key=lambda trial: trial.error)
        numbers = best.round.scale, best.error, best.round.rmse, best.round.alpha
        arrays = {"numbers": np.array(numbers), "metric": best.preprocessing.metric}
        if number < self.metric.rounds and (following := self._following(best, number)) is not None:
            arrays["following"] = following
        return arrays

    def _stretch(self, pre: Preprocessing) -> dict[str, F8]:
        """Return the factor of all rows with the least error, reached from 1 in steps that gain, and that error."""
        if not depends_on_length(self.last.features, pre.mapped_shape):
            return {"numbers": np.ones(1)}

        @functools.cache
        def errors(step: int) -> tuple[float, float]:
            trial = self._trial(self.last, pre, STEP**step, "length")
            return trial.error, trial.round.rmse

        def gains(step: int, before: int) -> bool:
            return np.sqrt(errors(step)[0]) < (1 - GAIN) * np.sqrt(errors(before)[0])

        best, way = 0, 1 if gains(1, 0) else -1
        while abs(best) < STEPS and gains(best + way, best):
            best += way
        return {"numbers": np.array([STEP**best, errors(best)[1]])}

    def _trial(self, small: Small, pre: Preprocessing, scale: float, name: str) -> Trial:
        pre = replace(pre, metric=scale * pre.metric)
        whole = small.source._replace(folds=0)
        features = fitted(small.features, Preprocess(), whole, pre, self.client, self.watch)
        folds = self._sums(small, EquationsOf(features, pre, self.dtype), small.shards, name)
        check_folds(folds, ())
        held = max(k for k, fold in enumerate(folds) if fold.weight > 0)
        train, test = functools.reduce(operator.add, folds[:held]), folds[held]
        grid, _ = penalties(train + test)  # decades are close enough to compare rounds by
        cv = cross_validate([train, test], Cholesky(), alphas_per_row=grid[::2], scored=(1,))
        round = Round(scale, cv.scaled(pre.y_scale).rmse, float(cv.alpha[0] / (train.weight + test.weight)))
        return Trial(float(cv.chosen.mean()), round, pre, features, train, cv.alphas[cv.best] * train.weight, held)

    def _following(self, trial: Trial, number: int) -> F8 | None:
        """Return the metric of the next round; None if the function of this one is constant or linear."""
        pre = trial.preprocessing
        with backend.one_thread():
            coef, _ = solve_at(Cholesky(), trial.train, trial.alpha)
        summand = GradientsOf(trial.features, pre, coef, self.dtype, self.metric.form == "full")
        shards = [shard for shard in self.small.shards if shard.group < trial.held]
        each = self._sums(self.small, summand, shards, f"gradients {number}")
        return next_metric(pre.metric, functools.reduce(operator.add, each))

    def _sums(self, small: Small, summand: AnySummand, shards: Sequence[Shard], name: str) -> list[Any]:
        rows = round(small.source.share * sum(shard.rows for shard in shards))
        with phase(name, rows, self.client, self.watch) as done:
            parts = reduce(Pass(small.source, summand, shards, self.fan_in, done), self.client)
        return [part.total for part in parts]


def once(kept: KeptRounds | None, name: str, make: Callable[[], dict[str, F8]]) -> dict[str, F8]:
    """Return what is kept under a name, or make and keep it."""
    arrays = kept.load(name) if kept else None
    if arrays is None:
        arrays = make()
        if kept:
            kept.save(name, arrays)
    return arrays


def next_metric(metric: F8, sums: GradientSums) -> F8 | None:
    """Return the metric that follows from the gradients of a fit with this one; None if they do not vary."""
    with backend.one_thread():  # the bits do not depend on the number of threads
        return _next_metric(metric, sums)


def _next_metric(metric: F8, sums: GradientSums) -> F8 | None:
    average, covariance = sums.average, sums.covariance
    vary, size = (float(a.sum() if a.ndim == 1 else np.trace(a)) for a in (average, sums.outer / sums.weight))
    if not vary > CONSTANT * size:
        return None
    if average.ndim == 1:
        root = np.abs(metric) * np.sqrt(np.maximum(average, 0.0))
        square = float(root**2 @ covariance)
    else:
        p = np.diag(metric) if metric.ndim == 1 else metric
        values, vectors = np.linalg.eigh(p @ average @ p.T)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        square = float(np.sum((root @ covariance) * root))
    return root / np.sqrt(square) if square > 0 else None


def depends_on_length(features: AnyFeatureMap, shape: tuple[int, ...]) -> bool:
    """Return whether the kernel of a map is other than homogeneous, so that the length of all rows matters."""
    x = random.normals((4, *shape), 0, 0, 0)
    return not np.allclose(features.kernel(2 * x), 4 * features.kernel(x), rtol=1e-9)
