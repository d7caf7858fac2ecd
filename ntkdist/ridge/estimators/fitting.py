"""Fits to arrays, by the mapper's passes, and to datasets, by `ntkdist.fit`."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist.cluster import progress
from ntkdist.cluster.connect import connect, resources
from ntkdist.cluster.reduce import MAP_FAN_IN, Pass, phase, reduce
from ntkdist.cluster.shards import Source
from ntkdist.data.arrays import Arrays
from ntkdist.data.augment import Augment
from ntkdist.data.dataset import Dataset
from ntkdist.data.scaling import Preprocess, Preprocessing
from ntkdist.errors import DataError, InputError
from ntkdist.features import AnyFeatureMap, AnyMap
from ntkdist.planning.job import Job, Metric, PlanTable, check_augmented_metric
from ntkdist.planning.plan import by_fold, plan
from ntkdist.ridge import choose
from ntkdist.ridge.augmented import joined, with_copies
from ntkdist.ridge.choose import Choice
from ntkdist.ridge.encode import ByFold
from ntkdist.ridge.estimators.scoring import Scored, by_classes, by_error, solved
from ntkdist.ridge.fit import fit
from ntkdist.ridge.fitted_map import fitted
from ntkdist.ridge.in_memory import learn_metric, source_and_shards
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.ridge.prepare import moments_of, scaling, verified_source
from ntkdist.ridge.residuals import Rowwise, fold_models, left_out, out_of_fold
from ntkdist.ridge.solve import solve
from ntkdist.solvers import Cholesky
from ntkdist.solvers import choose as solver_of
from ntkdist.solvers.cross_validation import AUTO_GRID
from ntkdist.solvers.cv_result import CVResult
from ntkdist.solvers.uncertainty import Factor
from ntkdist.sums.equations import EquationsOf

F8 = NDArray[np.float64]


class FitSettings(NamedTuple):
    """An estimator's map, scaling, folds and penalties."""

    features: AnyFeatureMap
    preprocess: Preprocess
    alphas: Any = "auto"
    folds: int = 1
    per_target: bool = False
    balanced: bool = False
    metric: Metric = Metric()
    scored: tuple[int, ...] | None = None  # folds that a penalty is chosen by; all if absent
    scoring: str | None = None
    calibrated: bool = False
    augment: Augment = Augment()
    watch: Any = None  # shows progress; by default that of `ntkdist.fit` for a dataset, and nothing for arrays


class FitOutcome(NamedTuple):
    """A fitted model, and the sums that it solves."""

    model: RidgeModel
    cv: CVResult | None
    equations: Equations
    skip: tuple[int, ...] = ()  # damaged partitions
    scored: Scored | None = None  # with folds
    watch: Any = None

    @property
    def error(self) -> float:
        """The number that is least for the best of several maps."""
        assert self.cv is not None
        assert self.scored is not None
        if self.scored.by_classes:
            return -float(self.scored.mean.max())
        return float((self.cv.chosen / self.model.preprocessing.y_scale**2).sum())

    def with_scores(self, rows: Arrays | Dataset, settings: FitSettings) -> "FitOutcome":
        """Score the penalties, and choose one by them if it is not by the squared error."""
        self = self._replace(watch=_watch(rows, settings))
        if self.cv is None:
            return self
        if settings.scoring in (None, "neg_mean_squared_error"):
            return self._replace(scored=by_error(self.cv, self.equations.total.weight))
        with self._by_fold(rows) as (source, shards, client):
            scored = by_classes(settings.scoring, self.equations, self.cv, source, shards, settings.calibrated, client)
        model, cv = solved(self.equations, self.cv, scored)
        return self._replace(model=model, cv=cv, scored=scored)

    @contextmanager
    def _by_fold(self, rows: Arrays | Dataset) -> Iterator[tuple[Source, Any, Any]]:
        """Yield the source, the shards, whose groups are the folds, and the client of another pass."""
        folds, features = len(self.equations.folds), self.equations.features
        with _client(rows) as client:
            if isinstance(rows, Arrays):
                yield *source_and_shards(rows, features.n_components, folds, client), client
                return
            spec: Any = features.spec
            job = Job(rows, spec, plan=_plan_table(rows, folds, self.equations.dtype))
            p = msgspec.structs.replace(plan(job, threads=resources(client).threads), skip=self.skip)
            yield *by_fold(p), client

    def out_of_fold(self, rows: Arrays | Dataset) -> Rowwise:
        """Predict every training row by the model of the other folds, in one more pass."""
        assert self.cv is not None
        models = fold_models(Cholesky(), self.equations, self.cv)
        with self._by_fold(rows) as (source, shards, client):
            return out_of_fold(source, shards, models, client, self.watch)

    def with_factor(self, rows: Arrays | Dataset) -> tuple[RidgeModel, F8, F8]:
        """Return the model with its factor, residuals (n, t) by models without the row, and weights (n,).

        This takes one more pass.
        """
        model, total = self.model, self.equations.total
        if self.cv is not None:
            values = self.out_of_fold(rows).values
            residuals = values["y"].reshape(len(values["y"]), -1) - values["prediction"]
            return replace(model, factor=Factor.of(total, model.alpha, self.cv.chosen)), residuals, values["weight"]
        factor = Factor.of(total, model.alpha, np.zeros(total.t))
        with _client(rows) as client:
            source = Source(rows, rows.layout(), 0, 1, skip=self.skip)
            values = left_out(replace(model, factor=factor), source, client, self.watch).values
        residuals, weight = values["y"] - values["left_out"], values["weight"]
        factor = replace(factor, noise=weight @ residuals**2 / weight.sum())
        return replace(model, factor=factor), residuals, weight


def as_grid(alphas: Any) -> str | tuple[float, ...]:
    """Return penalties as floats, or their keyword."""
    return alphas if isinstance(alphas, str) else tuple(float(a) for a in alphas)


def chosen(
    rows: Arrays | Dataset, settings: FitSettings, front: Any, metric: Metric | None
) -> tuple[FitSettings, Choice]:
    """Choose the map, and the columns and the metric unless they are given; return the settings and the choice."""
    if isinstance(rows, Dataset):
        preprocess = msgspec.structs.replace(settings.preprocess, front=front or "standard")
        job = _job(rows, settings._replace(preprocess=preprocess, metric=metric or Metric()), None)
        with connect() as client:
            full, trials = choose.complete(job, client, settings.watch)
        choice = Choice(full.map, full.preprocess, full.metric, trials)
    else:
        sample = rows.sample(choose.SAMPLE_ROWS)
        count = int(rows.x.shape[0])
        choice = choose.choose(sample, count, settings.preprocess, settings.balanced, front, metric)
    return settings._replace(features=choice.features, preprocess=choice.preprocess, metric=choice.metric), choice


def sum_equations(rows: Arrays, settings: FitSettings, before: Equations | None = None) -> Equations:
    """Sum the equations of every fold, with the scaling and the map of ``before``, so that the sums add.

    Warns of rows that are clipped to the range of earlier rows.
    """
    folds, watch = _plan_table(rows, settings.folds, rows.dtype).folds or 1, _watch(rows, settings)
    with _client(rows) as client:
        source, shards = source_and_shards(rows, settings.features.n_components, folds, client)
        settings.features.check_shape(source.layout.input_shape, rows.store)
        settings.augment.check(source.layout, rows.store)
        check_augmented_metric(settings.metric, settings.augment)
        plain = source._replace(folds=0)
        if before is None:
            by_folds = ByFold(source, shards)
            pre, moments = scaling(settings.preprocess, plain, client, watch, settings.balanced, by_folds)
            if settings.metric.rounds:
                pre = learn_metric(rows, settings.metric, settings.features, settings.folds, pre, client)
            features = fitted(settings.features, settings.preprocess, plain, pre, client, watch)
        else:
            pre, features = before.preprocessing, before.features
            moments = moments_of(plain, pre, client, watch)
            source = source._replace(range=pre.range)
        summand = EquationsOf(features, pre, rows.dtype if before is None else before.dtype)
        apart = _apart(settings, folds)
        source, shards = with_copies(source, shards, settings.augment, apart)
        with phase("equations", settings.augment.copies * source.layout.rows, client, watch) as done:
            parts = reduce(Pass(source, summand, shards, MAP_FAN_IN, done), client)
    if clipped := sum(part.tally.clipped for part in parts):
        warnings.warn(
            f"{clipped:,} of {source.layout.rows:,} new rows have values outside the range of the first rows and were "
            'clipped to it; fit all rows at once, or set clip="none"',
            stacklevel=5,  # the caller of partial_fit
        )
    sums, originals = joined([part.total for part in parts], apart)
    empty = Equations([], features, pre, summand.dtype, moments=moments, augment=settings.augment)
    return replace(empty, folds=sums, originals=originals)


def _apart(settings: FitSettings, folds: int) -> tuple[int, ...]:
    """Return the folds that are scored, if their rows are summed apart from copies of them."""
    if settings.augment.copies == 1 or folds == 1:
        return ()
    return tuple(range(folds) if settings.scored is None else settings.scored)


def fit_map(rows: Arrays | Dataset, features: AnyFeatureMap, preprocess: Preprocess) -> tuple[Preprocessing, AnyMap]:
    """Fit the scaling, and the map if it needs a sample of rows."""
    with _client(rows) as client:
        if isinstance(rows, Arrays):
            source = source_and_shards(rows, features.n_components, 1, client)[0]
        else:
            layout = rows.layout(labelled=False)
            source = Source(rows, layout, max(1024, features.n_components), resources(client).threads)
            source = verified_source(source, client, _watch(rows))
        features.check_shape(source.layout.input_shape, rows.store)
        pre, _ = scaling(preprocess, source, client, _watch(rows))
        return pre, fitted(features, preprocess, source, pre, client, _watch(rows))


def choose_penalty(equations: Equations, settings: FitSettings) -> FitOutcome:
    """Choose a penalty by cross-validation if there are folds, and solve; folds without rows are not scored."""
    scored = range(settings.folds) if settings.scored is None else settings.scored
    present = tuple(k for k in scored if equations.folds[k].weight > 0)
    if equations.preprocessing.rounds:  # the metric has seen the targets of all other folds
        present = present[-1:]
    if settings.folds > 1 and sum(fold.weight > 0 for fold in equations.folds) < 2:
        raise DataError(
            f"All rows are in one of {settings.folds} folds, for they are few or equal: of one sample there is nothing "
            "to choose alpha by; give more rows, or use NTKRidge with an alpha"
        )
    model, cv = solve(replace(equations, scored=present), alphas=settings.alphas, per_target=settings.per_target)
    return FitOutcome(model, cv, equations)


def fit_dataset(dataset: Dataset, settings: FitSettings) -> FitOutcome:
    """Fit to a dataset by `ntkdist.fit`, with a solver that forms equations."""
    grid = AUTO_GRID if isinstance(settings.alphas, str) else settings.alphas
    solver = solver_of(settings.features.n_components, len(grid))
    if solver.sums != "gram":
        raise InputError(
            f"n_components is {settings.features.n_components}, of which sums are too large for an estimator to keep; "
            "use ntkdist.fit with solver TiledCholesky or PCG, or fewer"
        )
    # The solver is given, because a job without one may resolve to InPlaceCholesky or PCG, which keep no equations.
    job = msgspec.structs.replace(_job(dataset, settings, settings.features), solver=solver)
    result = fit(job, watch=settings.watch)
    assert result.equations is not None
    return FitOutcome(result.model, result.cv, result.equations, tuple(result.report["data"]["skipped_partitions"]))


def _job(dataset: Dataset, settings: FitSettings, features: AnyFeatureMap | None) -> Job:
    """Return the job of an estimator's fit to a dataset."""
    dtype = "float32" if dataset.layout().x_dtype == "float32" else "float64"
    return Job(
        dataset,
        features,
        alphas=settings.alphas,
        alpha_per_target=settings.per_target,
        class_weight="balanced" if settings.balanced else None,
        plan=_plan_table(dataset, settings.folds, dtype),
        preprocess=settings.preprocess,
        metric=settings.metric,
        augment=settings.augment,
    )


def _plan_table(rows: Arrays | Dataset, folds: int, dtype: Any) -> PlanTable:
    """Return the folds and the type of a fit; with a holdout, ``folds`` is not used."""
    return PlanTable(folds=None if isinstance(rows, Dataset) and rows.holdout else folds, dtype=dtype)


def _client(rows: Arrays | Dataset) -> Any:
    """Return a context of the active client, or of None where only this process holds the rows."""
    return connect() if isinstance(rows, Dataset) or rows.lazy else nullcontext()


def _watch(rows: Arrays | Dataset, settings: FitSettings | None = None) -> Any:
    """Return the watch of the settings, else the default one for a dataset, and a silent one for arrays."""
    if settings is not None and settings.watch is not None:
        return settings.watch
    return None if isinstance(rows, Dataset) else progress.silent
