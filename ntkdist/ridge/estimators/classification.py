"""Classification by ridge regression of centred one-hot codes on kernel features, with scikit-learn's interface."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from ntkdist.data.arrays import Arrays
from ntkdist.data.augment import Augment
from ntkdist.data.dataset import Dataset
from ntkdist.errors import InputError
from ntkdist.features import AnyFeatureMap
from ntkdist.planning.job import Metric
from ntkdist.ridge.estimators.fitting import FitOutcome, FitSettings, as_grid
from ntkdist.ridge.estimators.inputs import as_indicators, dataset, is_dataset, is_outside, training_rows
from ntkdist.ridge.estimators.ridge import LearnsMetric, RidgeEstimator
from ntkdist.ridge.estimators.scoring import check, log_odds
from ntkdist.ridge.model import RidgeModel, class_labels, probabilities
from ntkdist.ridge.predict import evaluate
from ntkdist.ridge.residuals import calibration, temperature
from ntkdist.spec import nearest


class NTKRidgeClassifier(ClassifierMixin, LearnsMetric, RidgeEstimator):
    """A classifier that takes the largest score of a ridge on kernel features; cross-validation chooses the penalty.

    Parameters
    ----------
    features, alphas, folds, metric, augment, inputs, clip, front, one_hot, nan, keep_equations
    cv, random_state, n_jobs, verbose
        As in `NTKRidgeCV`.
    scoring : {"accuracy", "neg_log_loss", "neg_mean_squared_error"}, optional
        What the map, if several are given, and the penalty are chosen by, out of fold; by default the squared error of
        the scores, which needs no further pass.  The penalties are those that the squared error looks at.  Rows count
        by their weights, with those of ``class_weight``.  Not for `partial_fit`.
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
        With several labels a row, their columns.
    alpha_ : float
    coef_, intercept_ : (k, m) array and (k,) array; of two classes, (1, m) and (1,)
        `decision_function` is φ @ coef_.T + intercept_.  With a metric there is no ``coef_``, which scikit-learn's
        selection would take before ``feature_importances_``; the weights are those of ``model_``.
    model_, cv_, cv_results_, choice_, equations_, feature_importances_, metric_, metric_rounds_
        As in `NTKRidgeCV`.
    temperature_ : float
        Probabilities are softmax(temperature_ · scores); nan if not calibrated.  With several labels a row, one for
        each, (t,): the probability of a label is that of two classes.
    multilabel_ : bool
        A flag: rows have several labels.

    Examples
    --------
    >>> import ntkdist as nd
    >>> x = np.random.default_rng(0).standard_normal((300, 3))
    >>> names = np.where(np.abs(x[:, 0]) > 0.7, "far", "near")
    >>> classifier = nd.NTKRidgeClassifier(nd.ZonalFeatures(128), scoring="accuracy").fit(x, names)
    >>> classifier.predict([[2.0, 0.0, 0.0]]).tolist()
    ['far']
    >>> classifier.predict_proba(x).shape
    (300, 2)
    >>> several = nd.NTKRidgeClassifier(nd.ZonalFeatures(128)).fit(x, np.abs(x) > 0.7)
    >>> several.predict([[2.0, 0.0, 0.0]]).tolist()
    [[1, 0, 0]]
    """

    classes_: NDArray[Any]
    multilabel_: bool
    temperature_: Any
    takes_several = True

    def __init__(
        self,
        features: AnyFeatureMap | Sequence[AnyFeatureMap] | None = None,
        alphas: Any = "auto",
        folds: int = 5,
        *,
        class_weight: dict[Any, float] | str | None = None,
        calibrated: bool = True,
        metric: Metric | None = None,
        augment: Augment | None = None,
        inputs: str = "auto",
        clip: str = "range",
        front: str = "auto",
        one_hot: int = 16,
        nan: str = "impute",
        keep_equations: bool | str = "here",
        cv: Any = None,
        scoring: str | None = None,
        random_state: int | None = None,
        n_jobs: int | None = None,
        verbose: bool | None = None,
    ) -> None:
        self.features, self.alphas, self.folds, self.class_weight = features, alphas, folds, class_weight
        self.metric, self.cv, self.scoring, self.random_state = metric, cv, scoring, random_state
        self.n_jobs, self.verbose = n_jobs, verbose
        self.calibrated, self.inputs, self.clip, self.keep_equations = calibrated, inputs, clip, keep_equations
        self.front, self.one_hot, self.nan, self.augment = front, one_hot, nan, augment

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
        """Return rows with the codes of their labels, or with zeros and ones; set ``classes_``."""
        y = np.asarray(y) if is_outside(y) else y
        indicators = as_indicators(y)
        if not reset and (indicators is not None) != self.multilabel_:
            raise InputError("y is of one kind, but one class a row or several labels in the rows before; call fit")
        self.multilabel_ = indicators is not None
        if indicators is not None:
            return self._rows_of_labels(X, indicators, weight, reset)
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

    def _rows_of_labels(self, X: Any, y: NDArray[np.float64], weight: Any, reset: bool) -> Arrays:
        """Return rows with a number for each label, 0 or 1."""
        if self.class_weight is not None:
            raise InputError("class_weight is for one class a row, but y has several labels; give sample_weight")
        if not reset and y.shape[1] != len(self.classes_):
            raise InputError(f"y has {y.shape[1]} labels, but {len(self.classes_)} in the rows before; give all")
        self.classes_ = np.arange(y.shape[1])
        return training_rows(self, X, y, weight, reset=reset)

    def _check_weights(self, labels: list[Any]) -> None:
        """Refuse weights of unknown labels if known labels have none: a name may be misspelt."""
        assert isinstance(self.class_weight, dict)
        unknown, missing = self.class_weight.keys() - set(labels), set(labels) - self.class_weight.keys()
        if unknown and missing:
            wrong = min(unknown, key=repr)
            raise InputError(
                f"class_weight names {wrong!r}, which is no class, but not {min(map(repr, missing))}, which is; "
                f"give the labels as they are in y{nearest(str(wrong), [str(name) for name in labels])}"
            )

    def _settings(self, folds: int) -> FitSettings:
        check(self.scoring)
        if not (self.class_weight is None or self.class_weight == "balanced" or isinstance(self.class_weight, dict)):
            hint = nearest(self.class_weight, ("balanced",)) if isinstance(self.class_weight, str) else ""
            raise InputError(f'class_weight is {self.class_weight!r}; expected a dict, "balanced" or None{hint}')
        if self.calibrated and folds == 1:
            raise InputError(
                "calibrated is True, but folds is 1, which leaves no rows that a model has not seen to calibrate "
                "with; use more folds, or calibrated=False"
            )
        balanced = self.class_weight == "balanced"
        metric = self.metric or Metric()
        return FitSettings(
            self.feature_map,
            self.preprocess,
            as_grid(self.alphas),
            folds,
            balanced=balanced,
            metric=metric,
            scoring=self.scoring,
            calibrated=self.calibrated,
            augment=self.augment or Augment(),
        )

    def _set_results(self, outcome: FitOutcome, rows: Arrays | Dataset) -> None:
        if isinstance(rows, Dataset):
            self.classes_, self.multilabel_ = class_labels(outcome.model.classes), False
        self._set_weights(outcome.model)
        self.temperature_ = np.full(len(self.classes_), np.nan) if self.multilabel_ else float("nan")
        if self.calibrated:
            values = outcome.out_of_fold(rows).values
            if self.multilabel_:
                y, weight = values["y"].astype(np.int64), values["weight"]
                pairs = np.stack([1 - values["prediction"], values["prediction"]], axis=2)
                betas = [temperature(pairs[:, j], y[:, j], weight) for j in range(y.shape[1])]
                self.temperature_ = np.array(betas)
            else:
                self.model_ = replace(self.model_, calibration=calibration(self.model_, values))
                self.temperature_ = self.model_.temperature

    def _set_weights(self, model: RidgeModel) -> None:
        coef, intercept = model.coef.T, model.intercept
        if self.multilabel_:
            coef, intercept = 2 * coef, 2 * intercept - 1
        elif len(self.classes_) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        self.intercept_, self.alpha_ = intercept, float(model.alpha[0])
        if not model.preprocessing.metric.size:  # scikit-learn's selection would take it before feature_importances_
            self.coef_ = coef

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def decision_function(self, X: Any) -> Any:
        """Return scores, (n, k); for two classes, the second's less the first's, (n,); above 0 for a label, (n, t)."""
        check_is_fitted(self)
        columns = 0 if len(self.classes_) == 2 and not self.multilabel_ else len(self.classes_)
        call = functools.partial(_label_scores if self.multilabel_ else _scores, self.model_)
        return self._map_rows(X, call, columns, self.model_.preprocessing)

    def predict(self, X: Any) -> Any:
        """Return labels, (n,), or zeros and ones, (n, t); for a Dask array, lazily and block by block."""
        check_is_fitted(self)
        if self.multilabel_:
            several = functools.partial(_several_labels, self.model_)
            return self._map_rows(X, several, len(self.classes_), self.model_.preprocessing, np.int64)
        call = functools.partial(_labels, self.model_, self.classes_)
        return self._map_rows(X, call, 0, self.model_.preprocessing, self.classes_.dtype)

    def predict_proba(self, X: Any) -> Any:
        """Return probabilities of the classes, (n, k), in the order of ``classes_``; or of every label, (n, t)."""
        check_is_fitted(self)
        one = _label_probabilities if self.multilabel_ else _probabilities
        call = functools.partial(one, self.model_, self.temperature_)
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


def _label_scores(model: RidgeModel, x: Any) -> NDArray[np.float64]:
    return 2 * model.scores(x) - 1


def _several_labels(model: RidgeModel, x: Any) -> NDArray[np.int64]:
    return (_label_scores(model, x) > 0).astype(np.int64)


def _label_probabilities(model: RidgeModel, betas: NDArray[np.float64], x: Any) -> NDArray[np.float64]:
    return np.asarray(expit(log_odds(model.scores(x), betas)))
