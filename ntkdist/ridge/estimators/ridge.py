"""The base class of the ridges: a fit to rows, or to the sums of earlier rows and new ones."""

import abc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted

from ntkdist import backend
from ntkdist.cluster import progress
from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Dataset
from ntkdist.data.scaling import Preprocessing, Round
from ntkdist.errors import InputError
from ntkdist.ridge.estimators.base import KernelEstimator
from ntkdist.ridge.estimators.ensemble import ensemble
from ntkdist.ridge.estimators.fitting import (
    FitOutcome,
    FitSettings,
    choose_penalty,
    chosen,
    fit_dataset,
    sum_equations,
)
from ntkdist.ridge.estimators.folds import Dealt, dealt
from ntkdist.ridge.estimators.inputs import as_value_errors, dataset, is_dataset
from ntkdist.ridge.estimators.scoring import results
from ntkdist.ridge.importances import importances
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.solvers.cv_result import CVResult


class RidgeEstimator(KernelEstimator, abc.ABC):
    """A ridge on the features of a kernel, fitted to rows or to the sums of earlier rows and new ones."""

    keep_equations: bool | str
    n_jobs: int | None
    verbose: bool | None
    model_: RidgeModel
    cv_: CVResult | None
    _added = False  # whether `partial_fit` was called

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, groups: Any = None) -> Self:
        """Fit to rows; the result of earlier calls is dropped.

        Parameters
        ----------
        X : (n, d) array or frame, or images (n, height, width, channels)
            NumPy, pandas, polars, SciPy sparse (if the map takes it), Dask, a Zarr array; or the place of a dataset in
            Zarr (str, path or `Dataset`), which holds its own targets, and is fitted by `ntkdist.fit`.
        y : (n,) or (n, t) array
            For a classifier (n,) labels: strings, integers or booleans; or (n, t) zeros and ones, one column a label.
        sample_weight : (n,) array, optional
            A row of weight k counts as k rows.
        groups : (n,) array, optional
            Rows of one group are in one fold, by scikit-learn's `GroupKFold` or the ``cv`` that is given.
        """
        with self._anew(), as_value_errors(), backend.at_most(self._threads()):
            if is_dataset(X):
                data = dataset(X, y, sample_weight, self.nan)
                self._check_dataset(data)
                if groups is not None or getattr(self, "cv", None) is not None:
                    raise InputError(
                        "X is the place of a dataset, which has folds of its own; leave out cv and groups, or name "
                        "arrays of it by nd.Dataset(store, groups=..., holdout=...)"
                    )
                here = Dealt(data, getattr(self, "folds", 1))
            else:
                here = self._deal(self._training_arrays(X, y, sample_weight), X, groups)
            outcome = self._best(here.rows, self._candidates(here))
            return self._store(outcome, here)

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, **labels: Any) -> Self:
        """Add the sums of rows to those of earlier calls, and solve."""
        before = self._previous_equations(X)
        if (scoring := getattr(self, "scoring", None)) not in (None, "neg_mean_squared_error"):
            raise InputError(
                f"scoring is {scoring!r}, which needs all rows once more, and partial_fit has those of one call; leave "
                "it out, or fit to all rows"
            )
        with as_value_errors(), backend.at_most(self._threads()):
            rows = self._training_arrays(X, y, sample_weight, reset=before is None, **labels)
            here = Dealt(rows, getattr(self, "folds", 1))
            return self._store(self._best(rows, self._candidates(here, before), before), here, added=True)

    @contextmanager
    def _anew(self) -> Iterator[None]:
        """Forget an earlier fit; after an error, it is as before."""
        kept = dict(vars(self))
        for name in kept:
            if name.endswith("_"):
                delattr(self, name)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(kept)
            raise

    def __getstate__(self) -> Any:
        """Leave out sums that are kept here alone."""
        state = dict(super().__getstate__())
        if self.keep_equations == "here" and not self._added:
            state.pop("equations_", None)
        return state

    def _threads(self) -> int:
        """Return the threads that ``n_jobs`` asks for, 0 for all."""
        if self.n_jobs is None:
            return 0
        if not isinstance(self.n_jobs, int | np.integer) or self.n_jobs == 0:
            raise InputError(f"n_jobs is {self.n_jobs!r}; expected a number of threads, -1 for all, or None")
        return int(self.n_jobs) if self.n_jobs > 0 else max(1, backend.cores() + 1 + int(self.n_jobs))

    def _deal(self, rows: Arrays, x: Any, groups: Any) -> Dealt:
        """Deal rows to folds, if the estimator has any."""
        if not hasattr(self, "folds"):
            if groups is not None:
                raise InputError(
                    f"groups deal rows to folds, of which {type(self).__name__} has none; leave them out, or use "
                    "NTKRidgeCV"
                )
            return Dealt(rows, 1)
        return dealt(rows, x, self.cv, self.folds, groups, is_classifier(self))

    def _candidates(self, here: Dealt, before: Equations | None = None) -> list[FitSettings]:
        """Return the settings of a fit to rows with each map; without a map, choose it; or take that of rows before."""
        watch = None if self.verbose is None else progress.default_watch() if self.verbose else progress.silent
        if self.keep_equations not in ("here", True, False):
            raise InputError(f'keep_equations is {self.keep_equations!r}; expected "here", True or False')
        settings = self._settings(here.folds)._replace(scored=here.scored, watch=watch)
        if before is not None:
            spec: Any = before.features.spec
            return [settings._replace(features=spec)]
        if self.features is None and settings.folds > 1:
            front = None if self.front == "auto" else self.front
            settings, choice = chosen(here.rows, settings, front, getattr(self, "metric", None))
            self.choice_ = choice._replace(features=self._seeded(choice.features))
            return [settings._replace(features=self.choice_.features)]
        maps = self.feature_maps
        if len(maps) > 1 and settings.folds == 1:
            raise InputError(f"folds is 1, which leaves nothing to choose among {len(maps)} maps by; use more folds")
        return [settings._replace(features=each) for each in maps]

    def _best(
        self, rows: Arrays | Dataset, candidates: Sequence[FitSettings], before: Equations | None = None
    ) -> FitOutcome:
        """Fit each candidate, and return the one of the least error out of fold; set ``cv_results_``."""
        best, tried = None, []
        for settings in candidates:
            if isinstance(rows, Dataset):
                outcome = fit_dataset(rows, settings)
            else:
                equations = sum_equations(rows, settings, before)
                outcome = choose_penalty(equations if before is None else before + equations, settings)
            outcome = outcome.with_scores(rows, settings)
            if outcome.scored is not None:
                tried.append((settings.features, outcome.scored))
            if best is None or outcome.error < best.error:
                best = outcome
        assert best is not None
        if tried:
            self.cv_results_ = results(tried)
        return best

    @abc.abstractmethod
    def _settings(self, folds: int) -> FitSettings:
        """Return the settings of a fit with so many folds, or refuse the estimator's parameters."""

    @abc.abstractmethod
    def _check_dataset(self, rows: Dataset) -> None:
        """Refuse a dataset whose targets are of another kind."""

    @abc.abstractmethod
    def _training_arrays(self, X: Any, y: Any, weight: Any, *, reset: bool = True, **labels: Any) -> Arrays:
        """Return validated rows; ``reset`` is false for rows that are added to others."""

    @abc.abstractmethod
    def _set_results(self, outcome: FitOutcome, rows: Arrays | Dataset) -> None:
        """Set the attributes of a fit that are not of every ridge."""

    @abc.abstractmethod
    def _set_weights(self, model: RidgeModel) -> None:
        """Set ``coef_``, ``intercept_`` and ``alpha_``."""

    def _store(self, outcome: FitOutcome, here: Dealt, added: bool = False) -> Self:
        """Set all attributes of a fit; of sums that were ``added``, more is to be expected."""
        rows, self._dealt_by, self._added = here.rows, here.dealt_by, added
        if isinstance(rows, Dataset):
            self._set_columns(outcome.model.preprocessing)
            if rows.fold_array and len(outcome.equations.folds) > 1:
                self._dealt_by = f"'{rows.fold_array}' of the dataset that was fitted to"
        self.model_, self.cv_ = outcome.model, outcome.cv
        self._set_results(outcome, rows)
        if added or self.keep_equations:
            self.equations_ = outcome.equations
        return self

    def _previous_equations(self, x: Any) -> Equations | None:
        """Return the sums of earlier calls, None before the first; refuse where those of x cannot be added."""
        if is_dataset(x):
            raise InputError(
                "X is the place of a dataset, but partial_fit adds rows of arrays; use fit, or add the sums of two "
                "datasets that ntkdist.fit leaves"
            )
        if getattr(self, "cv", None) is not None:
            raise InputError(
                "cv deals the rows of one call to folds, and partial_fit adds rows of others; use folds, or fit"
            )
        before: Equations | None = getattr(self, "equations_", None)
        if before is None and hasattr(self, "model_"):
            raise InputError(
                "the sums of fit were not kept, or not in the pickle or copy that this is, so none can be added; set "
                "keep_equations=True and fit again"
            )
        if before is None:
            return None
        if self._dealt_by:
            raise InputError(
                f"{self._dealt_by} deals its rows to folds, and says nothing of rows of later calls; fit to all rows"
            )
        if self.features is not None and before.features.spec not in self.feature_maps:
            raise InputError("features is not the map of the rows learnt before, so sums do not add; call fit instead")
        if len(before.folds) != (folds := getattr(self, "folds", 1)):
            raise InputError(
                f"folds is {folds}, but the rows learnt before are in {len(before.folds)}; set folds back, or call fit"
            )
        return before


class LearnsMetric:
    """Methods and attributes of a ridge that may have chosen its features and learned a metric."""

    model_: RidgeModel

    def ensemble(self) -> Any:
        """Return an average, not yet fitted, of estimators of the recipes with nearly the least error in ``choice_``.

        It is scikit-learn's VotingRegressor or VotingClassifier.  Their predictions, or probabilities, are
        averaged with weights that fall with that error: closer than the best alone where targets are noisy, and slower
        by the number of recipes.  For one target.  Raises InputError unless `fit` has chosen the features.
        """
        return ensemble(self)

    @property
    def feature_importances_(self) -> NDArray[np.float64]:
        """The share of each column of X in the metric, (n_features_in_,)."""
        return importances(self._learned())

    @property
    def metric_(self) -> NDArray[np.float64]:
        """The metric P, (d, d) or its diagonal, (d,)."""
        return self._learned().metric

    @property
    def metric_rounds_(self) -> tuple[Round, ...]:
        """The rounds in which the metric was learned."""
        return self._learned().rounds

    def _learned(self) -> Preprocessing:
        """Return the scaling with its metric; raise AttributeError without one, as scikit-learn's tools expect."""
        check_is_fitted(self)
        pre = self.model_.preprocessing
        if not pre.metric.size:
            raise AttributeError(
                f"{type(self).__name__} has learned no metric, so it has no importances; give "
                "metric=nd.Metric(rounds=3) and fit again"
            )
        return pre
