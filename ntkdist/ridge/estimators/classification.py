"""Classification by ridge regression of centred one-hot codes on kernel features, with scikit-learn's interface."""

import functools
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Dataset
from ntkdist.errors import InputError
from ntkdist.features import AnyFeatureMap
from ntkdist.planning.job import Metric
from ntkdist.ridge.estimators.base import LearnsMetric, RidgeEstimator
from ntkdist.ridge.estimators.fitting import FitOutcome, FitSettings, as_grid
from ntkdist.ridge.estimators.inputs import dataset, is_dataset, is_outside, training_rows
from ntkdist.ridge.model import RidgeModel, class_labels, probabilities
from ntkdist.ridge.predict import evaluate
from ntkdist.ridge.residuals import calibration


class NTKRidgeClassifier(ClassifierMixin, LearnsMetric, RidgeEstimator):
    """A classifier that takes the largest score of a ridge on kernel features; cross-validation chooses the penalty.

    Parameters
    ----------
    features, alphas, folds, metric, inputs, clip, front, one_hot, nan, keep_equations
        As in `NTKRidgeCV`.
    class_weight : dict or "balanced", optional
        Factor of the weights of each label's rows; 1 for labels not in the dict.  With "balanced", the rows of each
        label have the same total weight.
    calibrated : bool
        Fit the temperature of probabilities to predictions out of fold (of the rows held out, for a dataset with a
        holdout), by one more pass over X; needs two folds or more.  Otherwise `predict_proba` clips the scores and
        scales them to sum to one.

    Attributes
    ----------
    classes_ : (k,) array
    model_, cv_, equations_, feature_importances_, metric_, metric_rounds_
        As in `NTKRidgeCV`.
    temperature_ : float
        Probabilities are softmax(temperature_ · scores); nan if not calibrated.
    """

    classes_: NDArray[Any]

    def __init__(
        self,
        features: AnyFeatureMap | None = None,
        alphas: Any = "auto",
        folds: int = 5,
        *,
        class_weight: dict[Any, float] | str | None = None,
        calibrated: bool = True,
        metric: Metric | None = None,
        inputs: str = "auto",
        clip: str = "range",
        front: str = "auto",
        one_hot: int = 16,
        nan: str = "impute",
        keep_equations: bool = True,
    ) -> None:
        self.features, self.alphas, self.folds, self.class_weight = features, alphas, folds, class_weight
        self.metric = metric
        self.calibrated, self.inputs, self.clip, self.keep_equations = calibrated, inputs, clip, keep_equations
        self.front, self.one_hot, self.nan = front, one_hot, nan

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None) -> Self:
        """Add rows to those of earlier calls: the sums are added, and the solution is that of all rows.

        The scaling, the range that X is clipped to, the class means and weights, and the fit of the map, if it needs
        one, are those of the first rows, the temperature that of the last.  Warns if later rows lie outside the range.

        Parameters
        ----------
        X, y, sample_weight : as in `fit`
            X cannot be a dataset; refused after a dataset whose groups or holdout assign its rows to folds.
        classes : (k,) array, optional
            In the first call, the labels of this and all later calls, by default those of its rows; later the same, or
            absent.
        """
        return self._partial_fit(X, y, sample_weight, classes=classes)

    def _check_dataset(self, rows: Dataset) -> None:
        if not rows.layout().classes:
            raise InputError(f"{rows.store}: targets are no class labels; convert with classes=True")
        if isinstance(self.class_weight, dict):
            raise InputError('class_weight is a dict; of a dataset by its place, it can be "balanced" or None')

    def _training_arrays(
        self, X: Any, y: Any, weight: Any, *, reset: bool = True, classes: Any = None, **labels: Any
    ) -> Arrays:
        """Return rows with the codes of their labels, and set ``classes_``."""
        if not reset and classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise InputError(
                f"classes are {np.unique(classes)}, but {self.classes_} in the rows before; leave them out"
            )
        rows = training_rows(self, X, y, weight, reset=reset, labels=True)
        y = np.asarray(rows.y)
        known = classes if reset else self.classes_
        names = np.unique(y if known is None else np.asarray(known))
        codes = np.minimum(np.searchsorted(names, y), len(names) - 1)
        if (unknown := names[codes] != y).any():
            raise InputError(f"y holds the class {y[unknown][0]!r}, which is not among the classes {names}")
        if len(names) < 2:
            raise InputError(f"y holds one class, {names[0]!r}; a classifier needs two or more")
        if isinstance(self.class_weight, dict):
            self._check_weights(names.tolist())
            weights = np.array([float(self.class_weight.get(name, 1)) for name in names.tolist()])[codes]
            rows = replace(rows, weight=weights if rows.weight is None else rows.weight * weights)
        self.classes_ = names
        return replace(rows, y=codes.astype(np.min_scalar_type(len(names))), classes=tuple(str(name) for name in names))

    def _check_weights(self, labels: list[Any]) -> None:
        """Refuse weights of unknown labels if known labels have none: a name may be misspelt."""
        assert isinstance(self.class_weight, dict)
        unknown, missing = self.class_weight.keys() - set(labels), set(labels) - self.class_weight.keys()
        if unknown and missing:
            raise InputError(
                f"class_weight names {min(map(repr, unknown))}, which is no class, but not "
                f"{min(map(repr, missing))}, which is; give the labels as they are in y"
            )

    def _settings(self) -> FitSettings:
        if not (self.class_weight is None or self.class_weight == "balanced" or isinstance(self.class_weight, dict)):
            raise InputError(f'class_weight is {self.class_weight!r}; expected a dict, "balanced" or None')
        if self.calibrated and self.folds == 1:
            raise InputError(
                "calibrated is True, but folds is 1, which leaves no rows that a model has not seen to calibrate "
                "with; use more folds, or calibrated=False"
            )
        balanced = self.class_weight == "balanced"
        metric = self.metric or Metric()
        return FitSettings(
            self.feature_map, self.preprocess, as_grid(self.alphas), self.folds, balanced=balanced, metric=metric
        )

    def _set_results(self, outcome: FitOutcome, rows: Arrays | Dataset) -> None:
        if isinstance(rows, Dataset):
            self.classes_ = class_labels(outcome.model.classes)
        self.temperature_ = float("nan")
        if self.calibrated:
            values = outcome.out_of_fold(rows, self.folds).values
            self.model_ = replace(self.model_, calibration=calibration(self.model_, values))
            self.temperature_ = self.model_.temperature

    def decision_function(self, X: Any) -> Any:
        """Return scores, (n, k); for two classes, the second's less the first's, (n,)."""
        check_is_fitted(self)
        columns = 0 if len(self.classes_) == 2 else len(self.classes_)
        return self._map_rows(X, functools.partial(_scores, self.model_), columns, self.model_.preprocessing)

    def predict(self, X: Any) -> Any:
        """Return labels, (n,); for a Dask array, lazily and block by block."""
        check_is_fitted(self)
        call = functools.partial(_labels, self.model_, self.classes_)
        return self._map_rows(X, call, 0, self.model_.preprocessing, self.classes_.dtype)

    def predict_proba(self, X: Any) -> Any:
        """Return probabilities of the classes, (n, k), in the order of ``classes_``."""
        check_is_fitted(self)
        call = functools.partial(_probabilities, self.model_, self.temperature_)
        return self._map_rows(X, call, len(self.classes_), self.model_.preprocessing)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the share of right labels; for the place of a dataset, with one pass of `ntkdist.evaluate`."""
        if is_dataset(X):
            return evaluate(self.model_, dataset(X, y, sample_weight))["accuracy"]
        return float(super().score(X, np.asarray(y) if is_outside(y) else y, sample_weight))


def _scores(model: RidgeModel, x: Any) -> NDArray[np.float64]:
    scores = model.scores(x)
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores


def _labels(model: RidgeModel, classes: NDArray[Any], x: Any) -> NDArray[Any]:
    return classes[model.scores(x).argmax(axis=1)]


def _probabilities(model: RidgeModel, beta: float, x: Any) -> NDArray[np.float64]:
    return probabilities(model.scores(x), beta)
