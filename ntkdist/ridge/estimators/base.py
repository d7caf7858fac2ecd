"""The base classes of the estimators: one maps rows block by block, the other fits a ridge to them."""

import abc
from collections.abc import Callable
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

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
from ntkdist.ridge.estimators.inputs import as_value_errors, dataset, is_dataset, is_lazy, is_outside, new_rows
from ntkdist.ridge.estimators.nested import BETWEEN, nested, replaced
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

    features: AnyFeatureMap | None
    inputs: Any
    clip: Any
    front: Any
    one_hot: Any
    nan: Any

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
        """The feature map that is used."""
        if self.features is None:
            return DEFAULT
        if not isinstance(self.features, FeatureMap):
            raise SpecError(f"features is {self.features!r}; expected a feature map, such as nd.ZonalFeatures(1024)")
        return self.features

    @property
    def preprocess(self) -> Preprocess:
        """The scaling, clipping and encoding of inputs."""
        if self.nan not in ("impute", "error"):
            raise SpecError(f'nan is {self.nan!r}; expected "impute" or "error"')
        front: Any = "standard" if self.front == "auto" else self.front
        return Preprocess(inputs=self.inputs, clip=self.clip, front=front, one_hot=self.one_hot)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = getattr(self.features, "takes_sparse", False)
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

    keep_equations: bool

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit to rows; the result of earlier calls is dropped.

        Parameters
        ----------
        X : (n, d) array or frame, or images (n, height, width, channels)
            NumPy, pandas, polars, SciPy sparse (if the map takes it), Dask, a Zarr array; or the place of a dataset in
            Zarr (str, path or `Dataset`), which holds its own targets, and is fitted by `ntkdist.fit`.
        y : (n,) or (n, t) array
            For a classifier (n,) labels: strings, integers or booleans.
        sample_weight : (n,) array, optional
            A row of weight k counts as k rows.
        """
        with as_value_errors():
            if is_dataset(X):
                data = dataset(X, y, sample_weight, self.nan)
                self._check_dataset(data)
                return self._store(fit_dataset(data, self._chosen_settings(data)), data, self.keep_equations)
            rows = self._training_arrays(X, y, sample_weight)
            settings = self._chosen_settings(rows)
            return self._store(choose_penalty(sum_equations(rows, settings), settings), rows, self.keep_equations)

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, **labels: Any) -> Self:
        """Add the sums of rows to those of earlier calls, and solve."""
        before = self._previous_equations(X)
        with as_value_errors():
            rows = self._training_arrays(X, y, sample_weight, reset=before is None, **labels)
            settings = self._chosen_settings(rows, before)
            equations = sum_equations(rows, settings, before)
            outcome = choose_penalty(equations if before is None else before + equations, settings)
            return self._store(outcome, rows, True)

    def _chosen_settings(self, rows: Arrays | Dataset, before: Equations | None = None) -> FitSettings:
        """Return the settings of a fit to rows; without a map, choose it, or take that of the rows before."""
        settings = self._settings()
        if self.features is not None or settings.folds == 1:
            return settings
        if before is not None:
            spec: Any = before.features.spec
            return settings._replace(features=spec)
        front = None if self.front == "auto" else self.front
        settings, self.choice_ = chosen(rows, settings, front, getattr(self, "metric", None))
        return settings

    @abc.abstractmethod
    def _settings(self) -> FitSettings:
        """Return the settings of the fit, or refuse the estimator's parameters."""

    @abc.abstractmethod
    def _check_dataset(self, rows: Dataset) -> None:
        """Refuse a dataset whose targets are of another kind."""

    @abc.abstractmethod
    def _training_arrays(self, X: Any, y: Any, weight: Any, *, reset: bool = True, **labels: Any) -> Arrays:
        """Return validated rows; ``reset`` is false for rows that are added to others."""

    @abc.abstractmethod
    def _set_results(self, outcome: FitOutcome, rows: Arrays | Dataset) -> None:
        """Set the attributes of a fit that are not of every ridge."""

    def _store(self, outcome: FitOutcome, rows: Arrays | Dataset, keep: bool) -> Self:
        """Set all attributes of a fit."""
        if isinstance(rows, Dataset):
            self._set_columns(outcome.model.preprocessing)
        self.model_, self.cv_ = outcome.model, outcome.cv
        self._fold_array = rows.fold_array if isinstance(rows, Dataset) and len(outcome.equations.folds) > 1 else ""
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
        before: Equations | None = getattr(self, "equations_", None)
        if before is None and hasattr(self, "model_"):
            raise InputError("fit did not keep its sums, so none can be added; set keep_equations=True and fit again")
        if before is None:
            return None
        if name := getattr(self, "_fold_array", ""):
            raise InputError(
                f"'{name}' of the dataset that was fitted to deals its rows to folds, and says nothing of rows of "
                "arrays; fit to a dataset that has them all"
            )
        if self.features is not None and before.features.spec != self.feature_map:
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
