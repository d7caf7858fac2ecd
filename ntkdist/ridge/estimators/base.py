"""The base classes of the estimators: one maps rows block by block, the other fits a ridge to them."""

import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, is_classifier
from sklearn.utils.validation import check_is_fitted

from ntkdist import backend
from ntkdist.cluster import progress
from ntkdist.cluster.connect import as_delayed, resources
from ntkdist.cluster.shards import Source, blocks
from ntkdist.cluster.tally import Tally
from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Dataset
from ntkdist.data.scaling import Preprocess, Preprocessing, Round
from ntkdist.errors import InputError, SpecError
from ntkdist.features import AnyFeatureMap, FeatureMap, ZonalFeatures
from ntkdist.kernels import NTK
from ntkdist.ridge.estimators.fitting import (
    FitOutcome,
    FitSettings,
    choose_penalty,
    chosen,
    fit_dataset,
    sum_equations,
)
from ntkdist.ridge.estimators.folds import Dealt, dealt
from ntkdist.ridge.estimators.inputs import as_value_errors, dataset, is_dataset, is_lazy, is_outside, new_rows
from ntkdist.ridge.estimators.nested import BETWEEN, nested, replaced
from ntkdist.ridge.estimators.scoring import results
from ntkdist.ridge.importances import importances
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.ridge.predict import as_fitted
from ntkdist.ridge.source_order import column, order_of
from ntkdist.spec import nearest

DEFAULT = ZonalFeatures(512, NTK(depth=2, bias=1.0))
BLOCK_ROWS = 4096  # of a Zarr array
BlockFunction = Callable[[Any], NDArray[Any]]  # (n, *input_shape) → (n, ...)


class KernelEstimator(BaseEstimator):
    """An estimator that scales rows and maps them to features."""

    features: Any  # a map or None; with `takes_several`, also a list of maps
    random_state: int | None
    inputs: Any
    clip: Any
    front: Any
    one_hot: Any
    nan: Any
    takes_several: ClassVar[bool] = False  # maps to choose from

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; ``deep`` adds the fields of specs, such as ``features__n_components``."""
        params: dict[str, Any] = super().get_params(deep)
        return params | {path: one for name in params if deep for path, one in nested(name, params[name]).items()}

    def set_params(self, **params: Any) -> Self:
        """Set parameters; a spec, which is never changed, is replaced where its fields are given by their paths.

        Raises
        ------
        InputError
            If there is no such parameter, or no such field of its value.
        """
        super().set_params(**{name: value for name, value in params.items() if BETWEEN not in name})
        inside: dict[str, dict[str, Any]] = {}
        for path, value in params.items():
            name, between, rest = path.partition(BETWEEN)
            if between:
                inside.setdefault(name, {})[rest] = value
        known = self.get_params(deep=False)
        for name, changes in inside.items():
            if name not in known:
                raise InputError(f"{type(self).__name__} has no parameter '{name}'{nearest(name, tuple(known))}")
            setattr(self, name, replaced(name, known[name], changes))
        return self

    @property
    def feature_map(self) -> AnyFeatureMap:
        """The feature map that is used, of several the first."""
        return self.feature_maps[0]

    @property
    def feature_maps(self) -> tuple[AnyFeatureMap, ...]:
        """The feature maps to choose from."""
        several = self.takes_several and isinstance(self.features, list | tuple) and len(self.features) > 0
        maps: Any = self.features if several else [DEFAULT if self.features is None else self.features]
        if wrong := [each for each in maps if not isinstance(each, FeatureMap)]:
            list_of = " or a list of them" if self.takes_several else ""
            raise SpecError(
                f"features is {wrong[0]!r}; expected a feature map, such as nd.ZonalFeatures(1024){list_of}"
            )
        return tuple(self._seeded(each) for each in maps)

    def _seeded(self, features: AnyFeatureMap) -> AnyFeatureMap:
        """Return a map with the seed of ``random_state``, if that is given and the map draws."""
        if self.random_state is None or not hasattr(features, "seed"):
            return features
        if not isinstance(self.random_state, int | np.integer) or isinstance(self.random_state, bool):
            raise InputError(
                f"random_state is {self.random_state!r}; expected an integer, the seed of the feature map, or None for "
                "the map's own"
            )
        return msgspec.structs.replace(features, seed=self.random_state)

    @property
    def preprocess(self) -> Preprocess:
        """The scaling, clipping and encoding of inputs."""
        if self.nan not in ("impute", "error"):
            raise SpecError(f'nan is {self.nan!r}; expected "impute" or "error"')
        front: Any = "standard" if self.front == "auto" else self.front
        return Preprocess(inputs=self.inputs, clip=self.clip, front=front, one_hot=self.one_hot)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        maps = self.features if isinstance(self.features, list | tuple) else [self.features]
        tags.input_tags.sparse = all(getattr(each, "takes_sparse", False) for each in maps)
        tags.input_tags.allow_nan = self.nan == "impute"
        return tags

    def _set_columns(self, pre: Preprocessing) -> None:
        """Set scikit-learn's attributes of the columns, from a dataset's."""
        self.n_features_in_ = pre.input_shape[0]
        if pre.columns:
            self.feature_names_in_ = np.array(pre.columns, object)

    def _map_rows(
        self, x: Any, function: BlockFunction, columns: int, pre: Preprocessing, dtype: Any = np.float64
    ) -> Any:
        """Apply a function to blocks of rows; it returns (n, columns), or (n,) if ``columns`` is 0.

        For Dask's rows the result is lazy; for a dataset it is in the order of its source.
        """
        check_is_fitted(self)
        if is_dataset(x):
            return _map_dataset(dataset(x, None), function, pre)
        x = new_rows(self, x, pre.encoding)
        if is_lazy(x):
            x = x.rechunk(dict.fromkeys(range(1, x.ndim), -1))
            wide = (columns,) if columns else ()
            return x.map_blocks(
                _apply,
                as_delayed(function),
                dtype=dtype,
                token="ntkdist",
                chunks=(x.chunks[0], *((n,) for n in wide)),
                drop_axis=list(range(1 + len(wide), x.ndim)),
                meta=np.empty((0,) * (1 + len(wide)), dtype),
            )
        if is_outside(x):
            starts = range(0, max(x.shape[0], 1), BLOCK_ROWS)
            return np.concatenate([function(np.asarray(x[i : i + BLOCK_ROWS])) for i in starts])
        return function(x)


class RidgeEstimator(KernelEstimator, abc.ABC):
    """A ridge on the features of a kernel, fitted to rows or to the sums of earlier rows and new ones."""

    keep_equations: bool | str
    n_jobs: int | None
    verbose: bool | None

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
            return self._store(outcome, here, bool(self.keep_equations))

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, **labels: Any) -> Self:
        """Add the sums of rows to those of earlier calls, and solve."""
        before = self._previous_equations(X)
        with as_value_errors(), backend.at_most(self._threads()):
            rows = self._training_arrays(X, y, sample_weight, reset=before is None, **labels)
            here = Dealt(rows, getattr(self, "folds", 1))
            return self._store(self._best(rows, self._candidates(here, before), before), here, True)

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
            vars(self).clear()
            vars(self).update(kept)
            raise

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
        watch = {None: None, False: progress.silent, True: progress.default_watch()}[
            None if self.verbose is None else bool(self.verbose)
        ]
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
            raise InputError(f"folds is 1, which leaves nothing to choose among {len(maps)} features by; use more folds")
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

    def _store(self, outcome: FitOutcome, here: Dealt, keep: bool) -> Self:
        """Set all attributes of a fit."""
        rows, self._dealt_by = here.rows, here.dealt_by
        if isinstance(rows, Dataset):
            self._set_columns(outcome.model.preprocessing)
            if rows.fold_array and len(outcome.equations.folds) > 1:
                self._dealt_by = f"'{rows.fold_array}' of the dataset that was fitted to"
        self.model_, self.cv_ = outcome.model, outcome.cv
        self._set_results(outcome, rows)
        if keep:
            self.equations_ = outcome.equations
        elif hasattr(self, "equations_"):
            del self.equations_
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
            raise InputError("fit did not keep its sums, so none can be added; set keep_equations=True and fit again")
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
    """The attributes of a ridge that may have learned a metric."""

    model_: RidgeModel

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


def _apply(x: Any, function: BlockFunction) -> NDArray[Any]:
    """Call a function that is an argument, because Dask computes arguments first."""
    return function(x)


def _map_dataset(data: Dataset, function: BlockFunction, pre: Preprocessing) -> NDArray[Any]:
    """Apply a function to every row of a dataset, in the order of its source; refuse rows with NaN."""
    data = as_fitted(msgspec.structs.replace(data, nan="error"), pre)
    layout = data.layout(labelled=False)
    matching = pre.match(layout, data.store)
    source = Source(data, layout, 0, resources(None).threads, labelled=False)
    spans = [layout.span(i) for i in range(layout.partitions)]
    out = np.concatenate([function(matching(rows).x) for rows in blocks(source, spans, Tally())])
    if order_of(source, None, progress.silent) != "shuffled":
        return out
    return out[np.argsort(column(source, "row", 0, layout.rows))]
