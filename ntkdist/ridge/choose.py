"""The choice of features, columns and metric where a job or an estimator names none, by small fits to a sample.

A recipe is a kernel with the form of its metric and the columns that are made of numbers.  Each recipe learns a metric
on the rows of some folds, and its error on another fold decides; then the map is made as large as the number of rows
suggests.  All that is chosen is written into a job, which can be run again.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist import memory
from ntkdist.cluster import Client, progress
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import MAP_FAN_IN, Pass, phase, reduce
from ntkdist.data.arrays import Arrays
from ntkdist.data.scaling import Front, Preprocess, Preprocessing
from ntkdist.display import line, table, text
from ntkdist.features import AnyFeatureMap, Nystrom
from ntkdist.kernels import NTK, AnyKernel, Gaussian, Laplace, ProductLaplace
from ntkdist.planning.job import ROUNDS, Job, Metric, components, rounds_components
from ntkdist.planning.plan import by_fold, check_choice, plan
from ntkdist.ridge import earlier
from ntkdist.ridge.encode import ByFold
from ntkdist.ridge.fit_report import ChoiceReport
from ntkdist.ridge.in_memory import learn_metric, source_and_shards
from ntkdist.ridge.prepare import scaling
from ntkdist.spec import encode
from ntkdist.sums.sample import TrainingSampleOf

FOLDS, TURNS = 5, 3  # of the rows of the sample, and how many of them are held out in turn where rows are few
FEW_ROWS = 3000
CLOSE = 0.05  # over the turns so far, of the least error: recipes further above it are not tried on other folds
NEAR, WEIGHING = 1.1, 8  # what is averaged: up to so many times the least error, by weights of this inverse power of it
FEWEST_ROWS = 150  # below, the rows held out are too few to choose by
SAMPLE_ROWS = 2**14
FEW_COMPONENTS, TRIAL_COMPONENTS = 384, 512  # of few rows, and of others
TRIAL_ROUNDS = 2
GRAMS = 12  # that a fit holds at once: of the folds, and in solving
WIDEST = 500  # columns of rows, of which a full metric is learned


class Recipe(NamedTuple):
    """A kernel, the columns made of numbers, and the metric."""

    kernel: AnyKernel
    front: Front
    metric: Metric


SMOOTH = Metric(rounds=ROUNDS, form="full", scales=(0.3, 1.0, 3.0))
ALONG_COLUMNS = Metric(rounds=ROUNDS, form="diagonal", scales=(0.1, 0.3, 1.0, 3.0))
SMOOTH_ALONG_COLUMNS = msgspec.structs.replace(SMOOTH, form="diagonal")
RECIPES = (
    Recipe(Gaussian(1.0), "both", SMOOTH),
    Recipe(ProductLaplace(1.0), "quantile", ALONG_COLUMNS),
    Recipe(NTK(2, 1.0), "both", SMOOTH),
    Recipe(Laplace(1.0), "both", SMOOTH),
    Recipe(ProductLaplace(1.0), "both", ALONG_COLUMNS),
    Recipe(Gaussian(1.0), "standard", SMOOTH_ALONG_COLUMNS),
    Recipe(NTK(2, 1.0), "standard", SMOOTH_ALONG_COLUMNS),
)
PLAIN = Recipe(NTK(2, 1.0), "standard", Metric())  # of few rows


class Trial(NamedTuple):
    """A recipe with its error: the root of the mean square on rows held out, in units of the targets."""

    recipe: Recipe
    rmse: float
    turns: int  # folds that were held out, one after the other
    kept: tuple[int, ...]  # the best round of each turn
    scales: tuple[float, ...]  # best lengths of rows, in any round
    stretch: float  # factor of the length that the best rounds were left with
    width: int  # columns that the map takes


class Choice(NamedTuple):
    """A map, the front columns and the metric, with the trials that decided."""

    features: AnyFeatureMap
    preprocess: Preprocess
    metric: Metric
    trials: tuple[Trial, ...] = ()

    def near(self) -> "list[tuple[float, Choice]]":
        """Return the choices by all trials of nearly the least error, the best first, with weights that fall with it.

        Means of predictions with these weights have smaller errors than the best alone where targets are noisy.
        """
        trials = sorted(self.trials, key=_order)
        excess = [max(1.0, trial.rmse / trials[0].rmse) for trial in trials]
        pairs = [(ratio**-WEIGHING, trial) for ratio, trial in zip(excess, trials, strict=True) if ratio <= NEAR]
        m = self.features.n_components
        return [(weight, _of_trial(trial, m, self.preprocess)) for weight, trial in pairs] or [(1.0, self)]

    def facts(self) -> dict[str, Any]:
        """Return what was chosen, and the errors of the recipes, by name."""
        trials = {
            f"{one.recipe.kernel}, {one.recipe.front}, {one.recipe.metric.form}": f"rmse {text(one.rmse)}"
            for one in self.trials
        }
        return {"features": self.features, "front": self.preprocess.front, "metric": self.metric} | trials

    def __repr__(self) -> str:
        return line("Choice", {"features": self.features, "front": self.preprocess.front, "metric": self.metric})

    def _repr_html_(self) -> str:
        return table("Choice", self.facts())


def choose(
    rows: Arrays,
    count: int,
    preprocess: Preprocess,
    balanced: bool = False,
    front: Front | None = None,
    metric: Metric | None = None,
) -> Choice:
    """Choose features, columns and metric by the rows of a sample, for a fit to ``count`` rows.

    ``front`` and ``metric`` are those of all recipes, if given.
    """
    if len(rows.x) < FEWEST_ROWS or rows.x.ndim > 2 or not _folds(rows).any():
        preprocess = msgspec.structs.replace(preprocess, front=front or PLAIN.front)
        return Choice(Nystrom(_fitting(count), PLAIN.kernel), preprocess, metric or PLAIN.metric)
    given = (Recipe(one.kernel, front or one.front, metric or _metric(one, rows.x.shape[1])) for one in RECIPES)
    trials = _raced(dict.fromkeys(given), functools.partial(_learned, rows, preprocess, balanced), len(rows.x))
    chosen = _of_trial(min(trials, key=_order), _fitting(count), preprocess)
    return chosen._replace(trials=trials)


def complete(job: Job, client: Client | None, watch: Watch | None) -> tuple[Job, tuple[Trial, ...]]:
    """Choose what a job without features leaves open, by a sample of its rows; return the job that will run.

    With ``preprocess.reuse``, map and metric are those of the run that is reused.  The map of images is chosen by their
    number and size, without trials.
    """
    layout, dataset = job.dataset.layout(), job.dataset
    check_choice(job, layout)
    if job.preprocess.reuse:
        spec, learned = earlier.map_and_rounds(job.preprocess.reuse)
        metric = job.metric if job.metric.rounds or not learned else Metric(rounds=learned)
        return msgspec.structs.replace(job, features=spec, metric=metric), ()
    if len(layout.input_shape) > 1:
        return job.provisional(layout.rows, layout.input_shape), ()
    source, shards = by_fold(plan(job))
    summand = TrainingSampleOf(SAMPLE_ROWS, layout)
    with phase("choice", layout.rows, client, watch) as done:
        parts = reduce(Pass(source._replace(block_rows=0), summand, shards, MAP_FAN_IN, done), client)
    x, y, weight, fold = functools.reduce(operator.add, (part.total for part in parts)).columns
    names = {name: getattr(layout, name) for name in ("classes", "columns", "target_names", "categories", "dates")}
    nan: Any = "impute" if dataset.nan == "impute" else "error"
    rows = Arrays(x, y, weight, job.plan.dtype, nan=nan, deal=fold, **names)
    front = None if job.preprocess.front == "standard" else job.preprocess.front
    asked = job.metric if job.metric != Metric() else None
    choice = choose(rows, layout.rows, job.preprocess, bool(job.class_weight), front, asked)
    chosen = {"features": choice.features, "preprocess": choice.preprocess, "metric": choice.metric}
    return msgspec.structs.replace(job, **chosen), choice.trials


def described(trials: Sequence[Trial]) -> list[ChoiceReport]:
    """Describe the trials for a report."""
    return [
        ChoiceReport(encode(one.recipe.kernel), one.recipe.front, one.recipe.metric.form, one.rmse, one.turns)
        for one in trials
    ]


def of_length(kernel: AnyKernel, scale: float) -> AnyKernel:
    """Return the kernel of rows that are ``scale`` times as long, up to a factor."""
    if isinstance(kernel, NTK):
        return msgspec.structs.replace(kernel, bias=kernel.bias / scale)
    assert isinstance(kernel, Gaussian | Laplace | ProductLaplace)
    return msgspec.structs.replace(kernel, lengthscale=kernel.lengthscale / scale)


def _fitting(rows: int) -> int:
    """Return the features for so many rows, halved until the sums of the folds fit half of the free memory."""
    m, free = components(rows), memory.free_memory_bytes()
    while free is not None and m > TRIAL_COMPONENTS and 2 * GRAMS * 8 * m**2 > free:
        m //= 2
    return m


def _metric(recipe: Recipe, columns: int) -> Metric:
    """Return the metric of a recipe, with a diagonal for rows of many columns."""
    return recipe.metric if columns <= WIDEST else msgspec.structs.replace(recipe.metric, form="diagonal")


def _raced(recipes: Iterable[Recipe], learned: Callable[[Recipe, int], Preprocessing], rows: int) -> tuple[Trial, ...]:
    """Learn metrics with some folds held out in turn, each turn by the recipes with errors close to the least."""
    found = {recipe: list[Preprocessing]() for recipe in recipes}
    close = list(found)
    for turn in range(TURNS if rows < FEW_ROWS else 1):
        for recipe in close:
            found[recipe].append(learned(recipe, turn))
        errors = {recipe: _trial(recipe, found[recipe]).rmse for recipe in close}
        close = [recipe for recipe in close if errors[recipe] <= (1 + CLOSE / (turn + 1)) * min(errors.values())]
        if len(close) == 1:
            break
    return tuple(_trial(recipe, each) for recipe, each in found.items())


def _trial(recipe: Recipe, each: Sequence[Preprocessing]) -> Trial:
    """Return a trial with the mean of the errors of some turns."""
    kept = [next(i for i, one in enumerate(pre.rounds) if one.kept) for pre in each]
    best = [pre.rounds[i] for i, pre in zip(kept, each, strict=True)]
    rmse = float(np.sqrt(np.mean([(one.last_rmse or one.rmse) ** 2 for one in best])))
    scales = _by_count([one.scale for pre in each for one in (pre.rounds if any(kept) else pre.rounds[:1])])
    stretch = float(np.exp(np.mean([np.log(one.stretch) for one in best])))
    return Trial(recipe, rmse, len(each), tuple(kept), scales, stretch, int(np.prod(each[0].mapped_shape)))


def _learned(rows: Arrays, preprocess: Preprocess, balanced: bool, recipe: Recipe, turn: int) -> Preprocessing:
    preprocess = msgspec.structs.replace(preprocess, front=recipe.front)
    source, shards = source_and_shards(rows, TRIAL_COMPONENTS, FOLDS, None)
    layout = source.layout
    folds = _folds(rows)
    turned = replace(rows, deal=(folds + turn) % (folds.max() + 1))  # the last fold is held out
    source, quiet = source._replace(dataset=turned), progress.silent
    pre, _ = scaling(preprocess, source._replace(folds=0), None, quiet, balanced, ByFold(source, shards))
    m = min(TRIAL_COMPONENTS, max(layout.rows // 4, FEW_COMPONENTS), layout.rows // 2)
    metric = msgspec.structs.replace(recipe.metric, rounds=min(TRIAL_ROUNDS, recipe.metric.rounds))
    return learn_metric(turned, metric, Nystrom(m, recipe.kernel), FOLDS, pre, None)


def _order(trial: Trial) -> tuple[int, float]:
    """Return what the best trial is least in: it was never left out of the race."""
    return -trial.turns, trial.rmse


def _of_trial(trial: Trial, m: int, preprocess: Preprocess) -> Choice:
    """Return the choice of m features by a trial."""
    kernel, metric = trial.recipe.kernel, msgspec.structs.replace(trial.recipe.metric, scales=trial.scales)
    if not any(trial.kept):  # no round gained: the length is the kernel's
        kernel, metric = of_length(kernel, trial.stretch * trial.scales[0] / trial.width**0.5), Metric()
    if metric.rounds and metric.n_components is None:
        metric = msgspec.structs.replace(metric, n_components=rounds_components(m))
    return Choice(Nystrom(m, kernel), msgspec.structs.replace(preprocess, front=trial.recipe.front), metric)


def _folds(rows: Arrays) -> NDArray[np.int64]:
    """Return the fold of each row, numbered from 0 without gaps; all are 0 where rows are all equal."""
    dealt = rows.folds(rows.layout(), 0, len(rows.x), FOLDS) if rows.deal is None else np.asarray(rows.deal)
    return np.unique(dealt, return_inverse=True)[1]


def _by_count(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return the distinct values, the most frequent first."""
    return tuple(sorted(set(values), key=lambda value: (-values.count(value), value)))
