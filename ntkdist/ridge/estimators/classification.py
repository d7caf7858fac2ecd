"""Classification by ridge regression of centred one-hot codes on kernel features, as scikit-learn has it."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Dataset
from ntkdist.errors import InputError
from ntkdist.features import AnyFeatureMap
from ntkdist.ridge.estimators.base import KernelEstimator
from ntkdist.ridge.estimators.fitting import FitOutcome, FitSettings, choose, dealt, learn, sums
from ntkdist.ridge.estimators.inputs import as_value_errors, dataset, is_dataset, is_outside, training_rows
from ntkdist.ridge.model import RidgeModel, class_labels
from ntkdist.ridge.predict import evaluate
from ntkdist.ridge.residuals import temperature


class NTKRidgeClassifier(ClassifierMixin, KernelEstimator):
    """The class of the largest score of a ridge on the features of a kernel, whose penalty cross-validation chooses.

    Parameters
    ----------
    features, alphas, folds, inputs, clip, keep_equations
        As of `NTKRidgeCV`.
    class_weight : dict or "balanced", optional
        What rows of a label weigh, beside weights of their own, 1 if it is not in the dict; balanced, all labels weigh
        alike in the sum.
    calibrated : bool
        Learn, by one more pass over X, how sharp probabilities have to be for the rows of a fold that the others
        predict, which needs two folds or more, or of a dataset with a holdout for the rows held out; else
        `predict_proba` gives scores that are clipped and made to sum to one.

    Attributes
    ----------
    classes_ : (k,) array
    model_, cv_, equations_
        As of `NTKRidgeCV`.
    temperature_ : float
        Probabilities are softmax(temperature_ · scores); nan if not calibrated.
    """

    def __init__(
        self,
        features: AnyFeatureMap | None = None,
        alphas: Any = "auto",
        folds: int = 5,
        *,
        class_weight: dict[Any, float] | str | None = None,
        calibrated: bool = True,
        inputs: str = "auto",
        clip: str = "range",
        keep_equations: bool = True,
    ) -> None:
        self.features, self.alphas, self.folds, self.class_weight = features, alphas, folds, class_weight
        self.calibrated, self.inputs, self.clip, self.keep_equations = calibrated, inputs, clip, keep_equations

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "NTKRidgeClassifier":
        """Fit to rows; what was learnt before is forgotten.

        Parameters
        ----------
        X, sample_weight : as of `NTKRidge.fit`
        y : (n,) array
            Labels: strings, integers or booleans.
        """
        with as_value_errors():
            rows: Arrays | Dataset
            if is_dataset(X):
                rows = dataset(X, y, sample_weight)
                if not rows.layout().classes:
                    raise InputError(f"{rows.store}: targets are no class labels; convert with classes=True")
                if isinstance(self.class_weight, dict):
                    raise InputError('class_weight is a dict; of a dataset by its place, it can be "balanced" or None')
            else:
                rows, self.classes_ = self._labelled(X, y, sample_weight, None)
            found = learn(rows, self._task())
            if isinstance(rows, Dataset):
                self.classes_ = class_labels(found.model.classes)
                self._know(found.model.preprocessing)
            return self._take(found, rows, self.keep_equations)

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None
    ) -> "NTKRidgeClassifier":
        """Add rows to those learnt from: their sums are added, and the solution is that of all rows.

        The scaling, the range that X is clipped to, the class means and weights, and what the map learns if it does
        are those of the first rows, and the temperature that of the last; warns if later rows lie outside that range.

        Parameters
        ----------
        X, y, sample_weight : as of `fit`
            But no dataset; refused after one whose groups or holdout deal its rows to folds.
        classes : (k,) array, optional
            All labels that will come, at the first call; by default those of its rows.  Later the same, or absent.
        """
        before = self._before(X)
        if before is not None and classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise InputError(
                f"classes are {np.unique(classes)}, but {self.classes_} in the rows before; leave them out"
            )
        with as_value_errors():
            known = classes if before is None else self.classes_
            rows, self.classes_ = self._labelled(X, y, sample_weight, known, reset=before is None)
            new = sums(rows, self._task(), before)
            found = choose(new if before is None else before + new, self._task())
            return self._take(found, rows, True)

    def _labelled(self, X: Any, y: Any, weight: Any, classes: Any, reset: bool = True) -> tuple[Arrays, NDArray[Any]]:
        """Rows with the codes of their labels, and the labels."""
        found = training_rows(self, X, y, weight, reset=reset, labels=True)
        given = np.asarray(found.y)
        labels = np.unique(given if classes is None else np.asarray(classes))
        codes = np.minimum(np.searchsorted(labels, given), len(labels) - 1)
        if (unknown := labels[codes] != given).any():
            raise InputError(f"y holds the class {given[unknown][0]!r}, which is not among the classes {labels}")
        if len(labels) < 2:
            raise InputError(f"y holds one class, {labels[0]!r}; a classifier needs two or more")
        if isinstance(self.class_weight, dict):
            self._check_weights(labels.tolist())
            each = np.array([float(self.class_weight.get(label, 1)) for label in labels.tolist()])[codes]
            found = replace(found, weight=each if found.weight is None else found.weight * each)
        names = tuple(str(label) for label in labels)
        return replace(found, y=codes.astype(np.min_scalar_type(len(labels))), classes=names), labels

    def _check_weights(self, labels: list[Any]) -> None:
        """Refuse weights of labels that there are not where others have none: a name may be misspelt."""
        assert isinstance(self.class_weight, dict)
        unknown, missing = self.class_weight.keys() - set(labels), set(labels) - self.class_weight.keys()
        if unknown and missing:
            raise InputError(
                f"class_weight names {min(map(repr, unknown))}, which is no class, but not "
                f"{min(map(repr, missing))}, which is; give the labels as they are in y"
            )

    def _task(self) -> FitSettings:
        if not (self.class_weight is None or self.class_weight == "balanced" or isinstance(self.class_weight, dict)):
            raise InputError(f'class_weight is {self.class_weight!r}; expected a dict, "balanced" or None')
        if self.calibrated and self.folds == 1:
            raise InputError(
                "calibrated is True, but folds is 1, which leaves no rows that a model has not seen to calibrate "
                "with; use more folds, or calibrated=False"
            )
        alphas = self.alphas if isinstance(self.alphas, str) else tuple(float(a) for a in self.alphas)
        return FitSettings(
            self.feature_map, self.preprocess, alphas, self.folds, balanced=self.class_weight == "balanced"
        )

    def _take(self, found: FitOutcome, rows: Arrays | Dataset, keep: bool) -> "NTKRidgeClassifier":
        self.model_, self.cv_, self._dealt = found.model, found.cv, dealt(rows, found)
        self.temperature_ = float("nan")
        if self.calibrated:
            seen = found.out_of_fold(rows, self.folds).values
            self.temperature_ = temperature(seen["prediction"], seen["y"].astype(np.int64), seen["weight"])
        if keep:
            self.equations_ = found.equations
        elif hasattr(self, "equations_"):
            del self.equations_
        return self

    def decision_function(self, X: Any) -> Any:
        """Scores, (n, k); of two classes, that of the second over that of the first, (n,)."""
        check_is_fitted(self)
        columns = 0 if len(self.classes_) == 2 else len(self.classes_)
        return self._each(X, functools.partial(_scores, self.model_), columns, self.model_.preprocessing)

    def predict(self, X: Any) -> Any:
        """Labels, (n,); of a Dask array, lazily and block by block."""
        check_is_fitted(self)
        call = functools.partial(_labels, self.model_, self.classes_)
        return self._each(X, call, 0, self.model_.preprocessing, self.classes_.dtype)

    def predict_proba(self, X: Any) -> Any:
        """Probabilities of the classes, (n, k), in the order of ``classes_``."""
        check_is_fitted(self)
        call = functools.partial(_probabilities, self.model_, self.temperature_)
        return self._each(X, call, len(self.classes_), self.model_.preprocessing)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Share of right labels; of a dataset by its place, with one pass of `ntkdist.evaluate`."""
        if is_dataset(X):
            return evaluate(self.model_, dataset(X, y, sample_weight))["accuracy"]
        found: float = super().score(X, np.asarray(y) if is_outside(y) else y, sample_weight)
        return found


def _scores(model: RidgeModel, x: Any) -> NDArray[np.float64]:
    scores = model.scores(x)
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores


def _labels(model: RidgeModel, classes: NDArray[Any], x: Any) -> NDArray[Any]:
    scores = model.scores(x)
    return classes[scores.argmax(axis=1)]


def _probabilities(model: RidgeModel, beta: float, x: Any) -> NDArray[np.float64]:
    scores = model.scores(x)
    if np.isfinite(beta):
        return np.asarray(softmax(beta * scores, axis=1))
    clipped = np.clip(scores, 1e-6, 1.0)
    return clipped / clipped.sum(axis=1, keepdims=True)
