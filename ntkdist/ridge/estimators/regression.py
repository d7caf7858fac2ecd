"""Ridge regression on kernel features, with the interface of scikit-learn."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from ntkdist.data.arrays import Arrays
from ntkdist.data.augment import Augment
from ntkdist.data.dataset import Dataset
from ntkdist.errors import InputError
from ntkdist.features import AnyFeatureMap
from ntkdist.planning.job import Metric
from ntkdist.ridge.estimators.fitting import FitOutcome, FitSettings, as_grid
from ntkdist.ridge.estimators.inputs import dataset, is_dataset, training_rows
from ntkdist.ridge.estimators.ridge import LearnsMetric, RidgeEstimator
from ntkdist.ridge.model import RidgeModel
from ntkdist.ridge.predict import evaluate
from ntkdist.ridge.residuals import sampled
from ntkdist.solvers.uncertainty import conformal_radius


class _Regressor(MultiOutputMixin, RegressorMixin, RidgeEstimator):
    """A ridge on numbers; subclasses choose alpha."""

    keep_factor: bool

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Add rows to those of earlier calls: the sums are added, and the solution is that of all rows.

        The scaling, the range that X is clipped to, and the fit of the map, if it needs one, are those of the first
        rows.  Warns if later rows lie outside the range.

        Parameters
        ----------
        X, y, sample_weight : as in `fit`
            X cannot be a dataset; refused after a dataset whose groups or holdout assign its rows to folds.
        """
        return self._partial_fit(X, y, sample_weight)

    def _check_dataset(self, rows: Dataset) -> None:
        if rows.layout().classes:
            raise InputError(f"{rows.store}: targets are class labels; use NTKRidgeClassifier, or convert numbers")

    def _training_arrays(self, X: Any, y: Any, weight: Any, *, reset: bool = True, **labels: Any) -> Arrays:
        return training_rows(self, X, y, weight, reset=reset)

    def _set_results(self, outcome: FitOutcome, rows: Arrays | Dataset) -> None:
        if self.keep_factor:
            model, self.residuals_, self._weights = outcome.with_factor(rows)
            self.model_ = replace(model, calibration=sampled(self.residuals_, self._weights))
        self._set_weights(outcome.model)

    def _set_weights(self, model: RidgeModel) -> None:
        single = not model.preprocessing.vector_target
        self.coef_ = model.coef[:, 0] if single else model.coef.T
        self.intercept_ = float(model.intercept[0]) if single else model.intercept
        self.alpha_ = float(model.alpha[0]) if np.ptp(model.alpha) == 0 else model.alpha

    def predict(self, X: Any, return_std: bool = False, noise: bool = False) -> Any:
        """Return predictions, (n,) or (n, t), and with ``return_std`` their standard deviations of the same shape.

        Parameters
        ----------
        X : as in `fit`
            For the place of a dataset, results are in the order of its source, as in `ntkdist.predict`.  For Dask, the
            result is a lazy array of the same blocks.  If a client is active, a model above a megabyte is sent to its
            cluster at once, and the array must be computed there.
        return_std : bool
            Needs ``keep_factor``.
        noise : bool
            Return deviations of targets instead of the function.
        """
        check_is_fitted(self)
        if noise and not return_std:
            raise InputError("noise is part of the standard deviation, which is not asked for; set return_std=True")
        pre = self.model_.preprocessing
        columns = pre.t if pre.vector_target else 0
        mean = self._map_rows(X, self.model_, columns, pre)
        if not return_std:
            return mean
        self._check_factor("return_std")
        return mean, self._map_rows(X, functools.partial(self.model_.std, noise=noise), columns, pre)

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[Any, Any]:
        """Return the ends of intervals that hold a share ``coverage`` of targets: predictions ± `conformal_radius`.

        The radius comes from residuals by models that were not fitted to the row: it is valid for any distribution of
        errors, and the same everywhere.  Needs ``keep_factor``.  X is as in `predict`.
        """
        mean = self.predict(X)
        self._check_factor("predict_interval")
        radius = conformal_radius(self.residuals_, coverage, self._weights)
        if not self.model_.preprocessing.vector_target:
            radius = radius[0]
        return mean - radius, mean + radius

    def _check_factor(self, what: str) -> None:
        """Refuse a method or an option that needs the factor, if it was not kept."""
        if self.model_.factor is None:
            raise InputError(f"{what} needs what fit did not keep; set keep_factor=True and fit again")

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return R² of predictions; for the place of a dataset, with one pass of `ntkdist.evaluate`."""
        if is_dataset(X):
            return evaluate(self.model_, dataset(X, y, sample_weight))["r2"]
        return float(super().score(X, np.asarray(y), sample_weight))


class NTKRidge(_Regressor):
    """Ridge regression on the features of a kernel, with a given penalty.

    X and y are scaled first (`ntkdist.Preprocess`), as in `ntkdist.fit`.  Features are float32 for X of float32, else
    float64.

    Parameters
    ----------
    features : FeatureMap or kernel, optional
        By default ``ZonalFeatures(512, NTK(depth=2, bias=1.0))``; for a kernel, its `Nystrom` map of 1,024 landmarks.
    alpha : float
        The penalty in ‖y − Zw − b‖² + alpha‖w‖², as in `sklearn.linear_model.Ridge`, for scaled X; the intercept is not
        penalised.
    inputs : {"auto", "columns", "channels", "none"}
        Scaling of X, see `ntkdist.Preprocess`.
    clip : {"range", "none"} or pair of float
        Clip new values to the range of every column of the X that was fitted to, which bounds the error that an outlier
        can cause; or all values to two quantiles, such as (0.001, 0.999), see `ntkdist.Preprocess`.
    front : {"standard", "quantile", "both", "bins", "target-bins"}
    one_hot : int
        Columns that are made of each number, and of categories; see `ntkdist.Preprocess`.
    nan : {"impute", "error"}
        Treatment of missing values: fill them with the median and mark them by a column of their own, or refuse them.
        Columns of strings, categories and dates of pandas and polars frames are taken as they are.
    augment : Augment, optional
        Copies of images, mirrored and shifted, that are fitted to, too, such as ``nd.Augment(flips=True, crops=2)``;
        they weigh as one row with their image.  Not with ``keep_factor``, whose errors are without the row.
    keep_equations : {"here", True, False}
        Keep the sums, m² numbers for a map of m columns, which `partial_fit` needs after `fit`: by default in this
        object, but not in pickles and copies of it, which so stay small; True: in them, too.  `partial_fit` always
        keeps its sums.
    keep_factor : bool
        Compute m² numbers and, by one more pass over X, the error of every row by a model without it, for
        ``predict(return_std=True)`` and `predict_interval`.
    random_state : int, optional
        Seed of the feature map, in place of its own.  Nothing else is drawn: fits to equal rows are equal.
    n_jobs : int, optional
        Threads of this process that passes over arrays and the cross-validation use, −1 for all, as is the default.
        They change the speed, not the bits.
    verbose : bool, optional
        Show progress in a terminal or a notebook, or none; by default for datasets alone.

    Attributes
    ----------
    model_ : RidgeModel
        As `ntkdist.fit` returns it; `ntkdist.save` writes it, without pickle.
    coef_ : (m,) or (t, m) array
    intercept_ : float or (t,) array
    alpha_ : float
    equations_ : Equations
        If kept.
    residuals_ : (n, t) array
        Errors of the rows of the last call by models that were not fitted to them, if the factor is kept; for a dataset
        with a holdout, of the rows held out.

    Examples
    --------
    >>> import ntkdist as nd
    >>> x = np.random.default_rng(0).standard_normal((300, 3))
    >>> ridge = nd.NTKRidge(nd.ZonalFeatures(256), alpha=0.1).fit(x, np.abs(x[:, 0]))
    >>> ridge.predict(x[:5]).shape
    (5,)
    >>> ridge.set_params(features__kernel__depth=3).features.kernel
    NTK(depth=3, bias=1.0)
    """

    def __init__(
        self,
        features: AnyFeatureMap | None = None,
        alpha: float = 1.0,
        *,
        inputs: str = "auto",
        clip: str = "range",
        front: str = "standard",
        one_hot: int = 16,
        nan: str = "impute",
        augment: Augment | None = None,
        keep_equations: bool | str = "here",
        keep_factor: bool = False,
        random_state: int | None = None,
        n_jobs: int | None = None,
        verbose: bool | None = None,
    ) -> None:
        self.features, self.alpha, self.inputs, self.clip = features, alpha, inputs, clip
        self.front, self.one_hot, self.nan = front, one_hot, nan
        self.augment, self.keep_equations, self.keep_factor = augment, keep_equations, keep_factor
        self.random_state, self.n_jobs, self.verbose = random_state, n_jobs, verbose

    def _settings(self, folds: int) -> FitSettings:
        augment = self.augment or Augment()
        if self.keep_factor and augment.copies > 1:
            raise InputError(
                "keep_factor needs the error of each row by a model without it, and augment leaves its copies in; use "
                "NTKRidgeCV, whose errors are out of fold"
            )
        return FitSettings(self.feature_map, self.preprocess, as_grid([self.alpha]), augment=augment)


class NTKRidgeCV(LearnsMetric, _Regressor):
    """`NTKRidge` with a penalty chosen by cross-validation from the sums of the folds, without another pass.

    A row's fold is a hash of its values, so that copies of a row are in one fold, and a row of weight k is the same as
    k rows; the folds of a dataset are of partitions, or by its groups or holdout.  With a holdout, ``folds`` is not
    used: the rows held out are scored once, by the model of the others, and residuals are theirs.

    Parameters
    ----------
    features : FeatureMap or kernel, or list of them, optional
        For a kernel, its `Nystrom` map of 1,024 landmarks.  Each of a list is fitted, and that of the least
        cross-validated error is kept.  If absent, the map is chosen with columns and metric by small fits to a sample
        of the rows: see ``choice_``.
    alphas : sequence of float, or "auto"
        As in `ntkdist.cross_validate`.
    folds : int
    alpha_per_target : bool
        Choose a penalty for each target instead of one for all.
    metric : Metric, optional
        Learn a linear map of scaled X from the gradients of small fits in rounds, such as ``nd.Metric(rounds=3)``.  The
        last fold is kept out of it, and then alone chooses the penalty.  `partial_fit` keeps the metric of the first
        rows.  Without ``features`` it is chosen with them, unless it is given.
    augment : Augment, optional
        As in `NTKRidge`; copies are in the fold of their image, and errors out of fold are of images as they are.
    front : {"auto", "standard", "quantile", "both", "bins", "target-bins"}
        As in `NTKRidge`; "auto" is the choice that goes with the features, "standard" for those given.
    cv : int, splitter or iterable of splits, optional
        Folds in scikit-learn's sense, in place of ``folds`` that a hash makes: an int is `KFold` (for classes
        `StratifiedKFold`, with ``groups`` in `fit` `GroupKFold`).  No two splits may test one row, and each trains on
        all rows that it does not test; rows that no split tests are always trained on.  Not for `partial_fit`.
    inputs, clip, one_hot, nan, keep_equations, keep_factor, random_state, n_jobs, verbose
        As in `NTKRidge`; the sums are m² numbers a fold, and residuals are out of fold.

    Attributes
    ----------
    model_, coef_, intercept_, equations_, residuals_
        As in `NTKRidge`.
    alpha_ : float, or (t,) array
    choice_ : Choice
        Without ``features``: the map, the columns and the metric that were chosen, and the error of each trial.
    cv_ : CVResult
        Errors of every penalty on every fold, with a metric on the last; ``cv_.rmse`` in units of y.
    cv_results_ : dict of arrays
        The score of every map and penalty on every fold, as of `sklearn.model_selection.GridSearchCV`: negative mean
        squared errors, averaged over targets.
    feature_importances_ : (n_features_in_,) array
        The share of each column in the metric, for steps of a standard deviation; they sum to 1.  Absent without a
        metric, as are the next two.  scikit-learn's selection takes them with
        ``importance_getter="feature_importances_"``; by default it looks at ``coef_``, which is of features.
    metric_ : (d, d) or (d,) array
        The map P, or its diagonal; the kernel is that of scaled X times P.
    metric_rounds_ : tuple of Round
        Of each round the length ``scale``, the error ``rmse`` on the last fold in units of y, the penalty ``alpha``,
        and whether its metric was ``kept``; the first is without a metric.

    Examples
    --------
    >>> import ntkdist as nd
    >>> x = np.random.default_rng(0).standard_normal((300, 3))
    >>> y = np.sin(2 * x[:, 0])
    >>> ridge = nd.NTKRidgeCV([nd.Nystrom(100, nd.Gaussian(2.0)), nd.Linear(3)], keep_factor=True).fit(x, y)
    >>> ridge.model_.features.spec.kernel
    Gaussian(lengthscale=2.0, homogeneous=False)
    >>> mean, std = ridge.predict(x, return_std=True)
    >>> low, high = ridge.predict_interval(x, coverage=0.9)
    >>> bool(((low < y) & (y < high)).mean() > 0.85)
    True
    """

    takes_several = True

    def __init__(
        self,
        features: AnyFeatureMap | Sequence[AnyFeatureMap] | None = None,
        alphas: Any = "auto",
        folds: int = 5,
        *,
        alpha_per_target: bool = False,
        metric: Metric | None = None,
        augment: Augment | None = None,
        inputs: str = "auto",
        clip: str = "range",
        front: str = "auto",
        one_hot: int = 16,
        nan: str = "impute",
        keep_equations: bool | str = "here",
        keep_factor: bool = False,
        cv: Any = None,
        random_state: int | None = None,
        n_jobs: int | None = None,
        verbose: bool | None = None,
    ) -> None:
        self.features, self.alphas, self.folds, self.alpha_per_target = features, alphas, folds, alpha_per_target
        self.metric, self.cv, self.random_state = metric, cv, random_state
        self.n_jobs, self.verbose = n_jobs, verbose
        self.inputs, self.clip, self.keep_equations, self.keep_factor = inputs, clip, keep_equations, keep_factor
        self.front, self.one_hot, self.nan, self.augment = front, one_hot, nan, augment

    def _settings(self, folds: int) -> FitSettings:
        return FitSettings(
            self.feature_map,
            self.preprocess,
            as_grid(self.alphas),
            folds,
            per_target=self.alpha_per_target,
            metric=self.metric or Metric(),
            augment=self.augment or Augment(),
        )
