"""Ridge regression on kernel features, as scikit-learn has it."""

import functools
from typing import Any

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Dataset
from ntkdist.errors import InputError
from ntkdist.features import AnyFeatureMap
from ntkdist.ridge.estimators.base import KernelEstimator
from ntkdist.ridge.estimators.fitting import FitOutcome, FitSettings, choose, dealt, learn, sums
from ntkdist.ridge.estimators.inputs import as_value_errors, dataset, is_dataset, training_rows
from ntkdist.ridge.predict import evaluate
from ntkdist.solvers.uncertainty import conformal_radius


class _Ridge(MultiOutputMixin, RegressorMixin, KernelEstimator):
    """What both regressors share: all but how alpha is chosen."""

    def _task(self) -> FitSettings:
        raise NotImplementedError

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "_Ridge":
        """Fit to rows; what was learnt before is forgotten.

        Parameters
        ----------
        X : (n, d) array or frame, or images (n, height, width, channels)
            NumPy, pandas, polars, SciPy sparse (if the map takes it), Dask, a Zarr array; or the place of a dataset in
            Zarr (str, path or `Dataset`), which holds its own targets, and is fitted as `ntkdist.fit` does.
        y : (n,) or (n, t) array
        sample_weight : (n,) array, optional
            A row of weight k counts as k rows.
        """
        with as_value_errors():
            rows: Arrays | Dataset
            rows = dataset(X, y, sample_weight) if is_dataset(X) else training_rows(self, X, y, sample_weight)
            if isinstance(rows, Dataset) and rows.layout().classes:
                raise InputError(f"{rows.store}: targets are class labels; use NTKRidgeClassifier, or convert numbers")
            found = learn(rows, self._task())
            if isinstance(rows, Dataset):
                self._know(found.model.preprocessing)
            return self._take(found, rows, self.keep_equations)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "_Ridge":
        """Add rows to those learnt from: their sums are added, and the solution is that of all rows.

        The scaling, the range that X is clipped to, and what the map learns if it does, are those of the first rows;
        warns if later rows lie outside that range.  Arguments as of `fit`, but no dataset; refused after a dataset
        whose groups or holdout deal its rows to folds.
        """
        before = self._before(X)
        with as_value_errors():
            rows = training_rows(self, X, y, sample_weight, reset=before is None)
            new = sums(rows, self._task(), before)
            found = choose(new if before is None else before + new, self._task())
            return self._take(found, rows, True)

    def _take(self, found: FitOutcome, rows: Arrays | Dataset, keep: bool) -> "_Ridge":
        self.model_, self.cv_, self._dealt = found.model, found.cv, dealt(rows, found)
        if self.keep_factor:
            self.model_, self.residuals_, self._weights = found.unsure(rows, self._task().folds)
        single = not found.model.preprocessing.vector_target
        self.coef_ = found.model.coef[:, 0] if single else found.model.coef.T
        self.intercept_ = float(found.model.intercept[0]) if single else found.model.intercept
        self.alpha_ = float(found.model.alpha[0]) if np.ptp(found.model.alpha) == 0 else found.model.alpha
        if keep:
            self.equations_ = found.equations
        elif hasattr(self, "equations_"):
            del self.equations_
        return self

    def predict(self, X: Any, return_std: bool = False, noise: bool = False) -> Any:
        """Predictions, (n,) or (n, t), and with ``return_std`` their standard deviations of the same shape.

        Parameters
        ----------
        X : as of `fit`
            Of a dataset by its place, rows are in the order of its source, as `ntkdist.predict` has them.  Of Dask, the
            result is a lazy Dask array of the same blocks; where a client is active, a model beyond a
            megabyte goes to its cluster at once, and the array is to be computed there.
        return_std : bool
            Needs ``keep_factor``.
        noise : bool
            Whether the deviation is that of a target, instead of the function's.
        """
        check_is_fitted(self)
        if noise and not return_std:
            raise InputError("noise is part of the standard deviation, which is not asked for; set return_std=True")
        pre = self.model_.preprocessing
        columns = pre.t if pre.vector_target else 0
        mean = self._each(X, self.model_, columns, pre)
        if not return_std:
            return mean
        self._check_factor("return_std")
        return mean, self._each(X, functools.partial(self.model_.std, noise=noise), columns, pre)

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[Any, Any]:
        """Ends of intervals that hold a target as often as asked: predictions ± `conformal_radius`; see `predict`.

        From the residuals of rows by models that have not seen them, so whatever the law of the errors, but of one
        width everywhere.  Needs ``keep_factor``.
        """
        mean = self.predict(X)
        self._check_factor("predict_interval")
        radius = conformal_radius(self.residuals_, coverage, self._weights)
        if not self.model_.preprocessing.vector_target:
            radius = radius[0]
        return mean - radius, mean + radius

    def _check_factor(self, what: str) -> None:
        if self.model_.factor is None:
            raise InputError(f"{what} needs what fit did not keep; set keep_factor=True and fit again")

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """R² of predictions; of a dataset by its place, with one pass of `ntkdist.evaluate`."""
        if is_dataset(X):
            return evaluate(self.model_, dataset(X, y, sample_weight))["r2"]
        found: float = super().score(X, np.asarray(y), sample_weight)
        return found


class NTKRidge(_Ridge):
    """Ridge regression on the features of a kernel, with a penalty that is given.

    X and y are scaled first (`ntkdist.Preprocess`), as `ntkdist.fit` does.  Computes in float32 for X of float32, else
    in float64.

    Parameters
    ----------
    features : FeatureMap, optional
        By default ``ZonalFeatures(512, NTK(depth=2, bias=1.0))``.
    alpha : float
        Of ‖y − Zw − b‖² + alpha‖w‖², as of `sklearn.linear_model.Ridge`, for scaled X; the intercept is not penalised.
    inputs : {"auto", "columns", "channels", "none"}
        How X is scaled.
    clip : {"range", "none"}
        Clip new values to the range of every column of the X that was fitted to, so that one far outside does not throw
        a prediction as far.
    keep_equations : bool
        Keep the sums, m² numbers for a map of m columns, so that `partial_fit` can go on after `fit`; without, the
        estimator is small to pickle.
    keep_factor : bool
        Keep what ``predict(return_std=True)`` and `predict_interval` need: m² numbers, and by one more pass over X the
        errors of every row when it is left out.

    Attributes
    ----------
    model_ : RidgeModel
        The same as `ntkdist.fit` leaves; `ntkdist.save` writes it, without pickle.
    coef_ : (m,) or (t, m) array
    intercept_ : float or (t,) array
    alpha_ : float
    equations_ : Equations
        If kept.
    residuals_ : (n, t) array
        Of the rows that were learnt from last by models that have not seen them, if the factor is kept; of a dataset
        with a holdout, of the rows held out.
    """

    def __init__(
        self,
        features: AnyFeatureMap | None = None,
        alpha: float = 1.0,
        *,
        inputs: str = "auto",
        clip: str = "range",
        keep_equations: bool = True,
        keep_factor: bool = False,
    ) -> None:
        self.features, self.alpha, self.inputs, self.clip = features, alpha, inputs, clip
        self.keep_equations, self.keep_factor = keep_equations, keep_factor

    def _task(self) -> FitSettings:
        return FitSettings(self.feature_map, self.preprocess, (self.alpha,))


class NTKRidgeCV(_Ridge):
    """`NTKRidge` with a penalty chosen by cross-validation from the sums of the folds: no row is read again.

    A row's fold is a hash of its values, so that copies of a row are never in two folds, and a row of weight k is the
    same as k rows; of a dataset by its place, folds are of partitions, or as its groups or holdout say.  Beside a
    holdout `folds` gives way: the rows held out are scored once, by the model of the others, and residuals are theirs.

    Parameters
    ----------
    features : FeatureMap, optional
        As of `NTKRidge`.
    alphas : sequence of float, or "auto"
        As of `ntkdist.cross_validate`.
    folds : int
    alpha_per_target : bool
        Choose a penalty for every target instead of one for all.
    inputs, clip, keep_equations, keep_factor
        As of `NTKRidge`; the sums are m² numbers a fold, and residuals are out of fold.

    Attributes
    ----------
    model_, coef_, intercept_, equations_, residuals_
        As of `NTKRidge`.
    alpha_ : float, or (t,) array
    cv_ : CVResult
        Errors of every penalty on every fold; ``cv_.rmse`` in units of y.
    """

    def __init__(
        self,
        features: AnyFeatureMap | None = None,
        alphas: Any = "auto",
        folds: int = 5,
        *,
        alpha_per_target: bool = False,
        inputs: str = "auto",
        clip: str = "range",
        keep_equations: bool = True,
        keep_factor: bool = False,
    ) -> None:
        self.features, self.alphas, self.folds, self.alpha_per_target = features, alphas, folds, alpha_per_target
        self.inputs, self.clip, self.keep_equations, self.keep_factor = inputs, clip, keep_equations, keep_factor

    def _task(self) -> FitSettings:
        alphas = self.alphas if isinstance(self.alphas, str) else tuple(float(a) for a in self.alphas)
        return FitSettings(self.feature_map, self.preprocess, alphas, self.folds, self.alpha_per_target)
