"""Ridge regression on kernel features, as scikit-learn has it."""

from typing import Any

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from ntkdist.apply import evaluate
from ntkdist.errors import InputError
from ntkdist.estimators.fitting import Learnt, Task, choose, learn, sums
from ntkdist.estimators.inputs import as_value_errors, dataset, is_dataset, training_rows
from ntkdist.estimators.mapped import Mapped
from ntkdist.features import AnyFeatureMap
from ntkdist.model import Equations


class _Ridge(MultiOutputMixin, RegressorMixin, Mapped):
    """What both regressors share: all but how alpha is chosen."""

    def _task(self) -> Task:
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
            if is_dataset(X):
                found = learn(dataset(X, y, sample_weight), self._task())
                self._know(found.model.preprocessing)
            else:
                found = learn(training_rows(self, X, y, sample_weight), self._task())
        return self._take(found, self.keep_equations)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "_Ridge":
        """Add rows to those learnt from: their sums are added, and the solution is that of all rows.

        The scaling, and what the map learns if it does, are those of the first rows.  Arguments as of `fit`.
        """
        before: Equations | None = getattr(self, "equations_", None)
        if before is None and hasattr(self, "model_"):
            raise InputError("fit did not keep its sums, so none can be added; set keep_equations=True and fit again")
        with as_value_errors():
            rows = training_rows(self, X, y, sample_weight, reset=before is None)
            new = sums(rows, self._task(), before)
            found = choose(new if before is None else before + new, self._task())
        return self._take(found, True)

    def _take(self, found: Learnt, keep: bool) -> "_Ridge":
        self.model_, self.cv_ = found.model, found.cv
        single = not found.model.preprocessing.vector_target
        self.coef_ = found.model.coef[:, 0] if single else found.model.coef.T
        self.intercept_ = float(found.model.intercept[0]) if single else found.model.intercept
        self.alpha_ = float(found.model.alpha[0]) if np.ptp(found.model.alpha) == 0 else found.model.alpha
        if keep:
            self.equations_ = found.equations
        elif hasattr(self, "equations_"):
            del self.equations_
        return self

    def predict(self, X: Any) -> Any:
        """Predictions, (n,) or (n, t).

        Parameters
        ----------
        X : as of `fit`
            Of Dask, the result is a lazy Dask array of the same blocks.
        """
        check_is_fitted(self)
        pre = self.model_.preprocessing
        return self._each(X, self.model_, pre.t if pre.vector_target else 0, pre)

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
    keep_equations : bool
        Keep the sums, m² numbers for a map of m columns, so that `partial_fit` can go on after `fit`; without, the
        estimator is small to pickle.

    Attributes
    ----------
    model_ : RidgeModel
        The same as `ntkdist.fit` leaves; `ntkdist.save` writes it, without pickle.
    coef_ : (m,) or (t, m) array
    intercept_ : float or (t,) array
    alpha_ : float
    equations_ : Equations
        If kept.
    """

    def __init__(
        self,
        features: AnyFeatureMap | None = None,
        alpha: float = 1.0,
        *,
        inputs: str = "auto",
        keep_equations: bool = True,
    ) -> None:
        self.features, self.alpha, self.inputs, self.keep_equations = features, alpha, inputs, keep_equations

    def _task(self) -> Task:
        return Task(self.feature_map, self.inputs, (self.alpha,))


class NTKRidgeCV(_Ridge):
    """`NTKRidge` with a penalty chosen by cross-validation from the sums of the folds: no row is read again.

    A row's fold is a hash of its values, so that copies of a row are never in two folds, and a row of weight k is the
    same as k rows; of a dataset by its place, folds are of partitions, or as its groups or holdout say.

    Parameters
    ----------
    features : FeatureMap, optional
        As of `NTKRidge`.
    alphas : sequence of float, or "auto"
        As of `ntkdist.cross_validate`.
    folds : int
    alpha_per_target : bool
        Choose a penalty for every target instead of one for all.
    inputs, keep_equations
        As of `NTKRidge`; m² numbers a fold.

    Attributes
    ----------
    model_, coef_, intercept_, equations_
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
        keep_equations: bool = True,
    ) -> None:
        self.features, self.alphas, self.folds, self.alpha_per_target = features, alphas, folds, alpha_per_target
        self.inputs, self.keep_equations = inputs, keep_equations

    def _task(self) -> Task:
        alphas = self.alphas if isinstance(self.alphas, str) else tuple(float(a) for a in self.alphas)
        return Task(self.feature_map, self.inputs, alphas, self.folds, self.alpha_per_target)
