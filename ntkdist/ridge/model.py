"""The results of a fit: a model that maps raw rows to predictions, and the equations that it solves.

Legend: z features, m their number, t targets (or classes).
"""

import functools
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse
from scipy.special import softmax

from ntkdist.data import frames
from ntkdist.data.augment import Augment
from ntkdist.data.moments import Moments
from ntkdist.data.scaling import Preprocessing
from ntkdist.display import Described
from ntkdist.errors import DataError, SpecError
from ntkdist.features import AnyMap
from ntkdist.solvers.uncertainty import Calibration, Factor
from ntkdist.sums import NormalEquations

F8 = NDArray[np.float64]
BLOCK_BYTES = 64 * 2**20
PIECES = 8  # fewest in a block, to occupy all threads
ROUNDING = 1e-5  # relative error of a difference of sums, as where all rows are subtracted
LEAST = 1e-6  # of a score that is taken for a probability


@dataclass(frozen=True, repr=False)
class RidgeModel(Described):
    """A fitted ridge on features: prediction is φ(scaled x) @ coef + intercept.

    Attributes
    ----------
    preprocessing : Preprocessing
    features : FeatureMap
    coef : (m, t) float64 array
        In target units.
    intercept : (t,) float64 array
    alpha : (t,) float64 array
        The penalty of each target.
    dtype : str
        Of the features.
    factor : Factor, optional
        Needed by `std`: m² numbers.
    calibration : Calibration, optional
        Needed by `interval`, and makes `probabilities` those of rows out of fold; see `ntkdist.calibrate`.
    augment : Augment
        The copies of rows that it was fitted to, beside the rows.
    """

    preprocessing: Preprocessing
    features: AnyMap
    coef: F8
    intercept: F8
    alpha: F8
    dtype: str = "float32"
    factor: Factor | None = None
    calibration: Calibration | None = None
    augment: Augment = field(default_factory=Augment)

    @classmethod
    def of_scaled(
        cls, preprocessing: Preprocessing, features: AnyMap, coef: F8, intercept: F8, alpha: F8, dtype: str
    ) -> "RidgeModel":
        """Return the model from weights for scaled targets."""
        scale, mean = preprocessing.y_scale, preprocessing.y_mean
        return cls(preprocessing, features, coef * scale, intercept * scale + mean, alpha, dtype)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the scores; empty for regression."""
        return self.preprocessing.classes

    def facts(self) -> dict[str, Any]:
        """Return what is shown of the model, by name."""
        augment = {"augment": self.augment if self.augment.copies > 1 else None}
        of_fit = {"alpha": self.alpha, "dtype": self.dtype}
        return {"features": self.features.spec, **self.preprocessing.facts(), **augment, **of_fit}

    def __call__(self, x: Any) -> F8:
        """Predict for raw rows.

        Parameters
        ----------
        x : (n, *input_shape) array
            Or a SciPy sparse array, if the features take sparse rows; or a frame of pandas or polars, whose columns and
            categories are taken by name.

        Returns
        -------
        (n,) or (n, t) array in target units, or (n, k) scores of k classes

        Raises
        ------
        DataError
            If a prediction is not finite.
        """
        return self._without_axis(self.scores(self._rows(x)))

    def _rows(self, x: Any) -> NDArray[Any] | csr_array:
        """Return rows as an array."""
        if issparse(x):
            return csr_array(x)
        if frames.is_frame(x):
            return frames.as_trained(x, self.preprocessing.columns, self.preprocessing.encoding)
        return np.asarray(x)

    def scores(self, x: NDArray[Any] | csr_array, fold: int = -1, places: NDArray[np.int64] | None = None) -> F8:
        """Predict as in calling, but always (n, t), block by block in bounded memory.

        ``fold`` and ``places`` are those of training rows, as `Preprocessing.inputs` takes them.
        """
        out = np.empty((x.shape[0], len(self.intercept)))
        for block, z in self._mapped(x, fold, places):
            out[block] = z @ self.coef.astype(z.dtype)
        out += self.intercept
        if not np.isfinite(out).all():
            bad = int(np.flatnonzero(~np.isfinite(out).all(axis=1))[0])
            raise DataError(f"Row {bad} gives a prediction that is not finite; look for NaN or huge values in it")
        return out

    def std(self, x: NDArray[Any] | csr_array, noise: bool = False) -> F8:
        """Return standard deviations of predictions, of the shape of the predictions and in target units.

        Their squares are those of the Bayesian linear model in feature space,
        s²·[1/Σw + (φ − z̄)ᵀ(G_c + alpha)⁻¹(φ − z̄)], with s² the mean squared error out of fold.

        Parameters
        ----------
        x : as in calling
        noise : bool
            Add s², for the deviation of a target instead of the function's.

        Raises
        ------
        SpecError
            If the model has no factor.
        """
        spread = self.spread(x)
        assert self.factor is not None
        return self._without_axis(np.sqrt(np.multiply.outer(spread + noise, self.factor.noise)))

    def spread(self, x: NDArray[Any] | csr_array, fold: int = -1, places: NDArray[np.int64] | None = None) -> F8:
        """Return the variance of predictions in units of s², (n,); times a row's weight, its leverage."""
        self.check_factor()
        assert self.factor is not None
        x = self._rows(x)
        out = np.empty(x.shape[0])
        for block, z in self._mapped(x, fold, places):
            out[block] = self.factor.spread(z)
        return out

    def check_factor(self) -> None:
        """Raise a SpecError if the model has no factor."""
        if self.factor is None:
            raise SpecError(
                "the model has no factor, which std needs; make one that has by `ntkdist solve RUN --keep-factor --out "
                "MODEL.zarr`, or with keep_factor=True of `ntkdist.solve` or an estimator"
            )

    def interval(self, x: Any, coverage: float = 0.9) -> tuple[F8, F8]:
        """Return the ends of intervals that hold a share ``coverage`` of targets: predictions ± `conformal_radius`.

        The radius is from residuals of rows that the models that predicted them were not fitted to.  It is valid for
        any distribution of errors, and the same everywhere.

        Parameters
        ----------
        x : as in calling
        coverage : float
            Strictly between 0 and 1.

        Returns
        -------
        low, high : arrays of the shape of the predictions, in target units
            Infinite if there are too few residuals for so large a coverage.

        Raises
        ------
        SpecError
            If the model has no residuals, predicts classes, or ``coverage`` cannot be.
        """
        radius = self.radius(coverage)
        mean = self.scores(self._rows(x))
        return self._without_axis(mean - radius), self._without_axis(mean + radius)

    def radius(self, coverage: float) -> F8:
        """Return half the width of `interval`, (t,)."""
        if self.classes:
            raise SpecError("the model predicts classes, which have no intervals; ask for probabilities")
        if self.calibration is None:
            raise SpecError(
                "the model has no residuals out of fold, which intervals need; make one that has, by one pass over the "
                "training rows, with `ntkdist calibrate RUN MODEL.zarr` or `ntkdist.calibrate`, and predict by that"
            )
        return self.calibration.radius(coverage)

    def probabilities(self, x: Any) -> F8:
        """Return probabilities of the classes, (n, k): of a calibrated model softmax(temperature · scores).

        Otherwise scores are clipped to [1e-6, 1] and divided by their sum.

        Raises
        ------
        SpecError
            If the model predicts numbers.
        """
        if not self.classes:
            raise SpecError("the model predicts numbers, which have no probabilities; ask for intervals")
        return self.probabilities_of(self.scores(self._rows(x)))

    def probabilities_of(self, scores: F8) -> F8:
        """Return `probabilities` by scores, (n, k)."""
        return probabilities(scores, self.temperature)

    @property
    def temperature(self) -> float:
        """The temperature of `Calibration`; nan without."""
        return self.calibration.temperature if self.calibration else float("nan")

    def _without_axis(self, out: F8) -> F8:
        """Drop the axis of targets if the data have none."""
        return out if self.classes or self.preprocessing.vector_target else out[:, 0]

    def _mapped(
        self, x: NDArray[Any] | csr_array, fold: int, places: NDArray[np.int64] | None
    ) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield the features of rows, block by block in bounded memory."""
        shape, n = self.preprocessing.mapped_shape, x.shape[0]
        if isinstance(x, csr_array):
            row_bytes = self.features.spec.sparse_row_bytes(shape, self.dtype, -(-x.nnz // max(n, 1)))
        else:
            row_bytes = self.features.spec.row_bytes(shape, self.dtype)
        rows = max(PIECES * self.features.spec.piece_rows, BLOCK_BYTES // row_bytes)
        for i in range(0, n, rows):
            block = slice(i, i + rows)
            of = fold, None if places is None else places[block]
            yield block, self.features(self.preprocessing.inputs(x[block], self.dtype, *of))

    def predict(self, x: Any) -> NDArray[Any]:
        """Return class names of raw rows, (n,), as integers if all names spell one; for numbers, predict as in calling.

        Parameters
        ----------
        x : as in calling
        """
        if not self.classes:
            return self(x)
        return class_labels(self.classes)[self(x).argmax(axis=1)]


def probabilities(scores: F8, temperature: float) -> F8:
    """Return softmax(temperature · scores) along the last axis; clipped scores over their sum if it is nan."""
    if np.isfinite(temperature):
        return np.asarray(softmax(temperature * scores, axis=-1))
    clipped = np.clip(scores, LEAST, 1.0)
    return clipped / clipped.sum(axis=-1, keepdims=True)


def class_labels(classes: tuple[str, ...]) -> NDArray[Any]:
    """Return class names as an array, of integers if all names spell one."""
    plain = all(name.lstrip("-").isdigit() and str(int(name)) == name for name in classes)
    return np.array([int(name) for name in classes] if plain else classes)


@dataclass(frozen=True, repr=False)
class Equations(Described):
    """The sums of every fold, with their map and scaling: enough to choose a penalty and solve, without the data.

    ``+`` and ``-`` work fold by fold.  They raise DataError if features, scaling or folds differ, or if a dataset is
    added or subtracted twice.

    Attributes
    ----------
    folds : list of NormalEquations
    features : FeatureMap
    preprocessing : Preprocessing
    dtype : str
    scored : tuple of int, optional
        The folds whose error a penalty is chosen by; all if absent.
    moments : Moments, optional
        Of the raw rows: inputs, then targets; absent in equations of older versions.
    datasets : dict of str to int
        How often the rows of each dataset, by its fingerprint, are in the sums: 1, or −1 if they were only subtracted.
    augment : Augment
        The copies of rows that are in the sums of the folds.
    originals : dict of int to NormalEquations
        With copies, the part of the sums of each scored fold that is of the rows themselves, by which it is scored.
    """

    folds: list[NormalEquations]
    features: AnyMap
    preprocessing: Preprocessing
    dtype: str
    scored: tuple[int, ...] | None = None
    moments: Moments | None = None
    datasets: dict[str, int] = field(default_factory=dict)
    augment: Augment = field(default_factory=Augment)
    originals: dict[int, NormalEquations] = field(default_factory=dict)

    @property
    def total(self) -> NormalEquations:
        """The sum over all folds."""
        return functools.reduce(operator.add, self.folds)

    def facts(self) -> dict[str, Any]:
        """Return what is shown of the sums, by name."""
        weight = sum(fold.weight for fold in self.folds)
        return {
            "features": self.features.spec,
            **self.preprocessing.facts(),
            "folds": len(self.folds),
            "weight": weight,
        }

    def __add__(self, other: "Equations") -> "Equations":
        return self._combine(other, 1)

    def __sub__(self, other: "Equations") -> "Equations":
        left = self._combine(other, -1)
        for k, (mine, fold) in enumerate(zip(self.folds, left.folds, strict=True)):
            before, after = (np.append(np.diagonal(each._gram), each.weight) for each in (mine, fold))
            if (after < -ROUNDING * before).any():
                raise DataError(
                    f"Fold {k} does not hold the rows that are subtracted from it (of weight "
                    f"{other.folds[k].weight:g}, from {mine.weight:g}); subtract rows that were added, in the folds "
                    "that they had: by groups, or partition by partition"
                )
        return left

    def _combine(self, other: "Equations", sign: int) -> "Equations":
        """Add or subtract; refuse sums of another kind."""
        for what, mine, theirs in (
            ("features", self.features.digest(), other.features.digest()),
            ("scaling", self.preprocessing.digest(), other.preprocessing.digest()),
            ("dtype", self.dtype, other.dtype),
            ("number of folds", len(self.folds), len(other.folds)),
            ("scored folds", self.scored or "all", other.scored or "all"),
            ("augmentation", self.augment, other.augment),
        ):
            if mine != theirs:
                raise DataError(
                    f"Equations of different {what} do not add ({mine} and {theirs}); fit the second with "
                    "the same job and [preprocess] reuse = the first"
                )
        datasets = added(self.datasets, other.datasets, sign)
        op = operator.add if sign > 0 else operator.sub
        folds = [op(a, b) for a, b in zip(self.folds, other.folds, strict=True)]
        originals = {k: op(one, other.originals[k]) for k, one in self.originals.items()}
        moments = None if self.moments is None or other.moments is None else op(self.moments, other.moments)
        return replace(self, folds=folds, moments=moments, datasets=datasets, originals=originals)


def added(mine: dict[str, int], theirs: dict[str, int], sign: int = 1) -> dict[str, int]:
    """Add or subtract the counts of datasets in two sums, see `Equations`; refuse the same rows twice."""
    both = {name: mine.get(name, 0) + sign * theirs.get(name, 0) for name in mine | theirs}
    if twice := [name for name, count in both.items() if abs(count) > 1]:
        do = "add" if sign > 0 else "subtract"
        raise DataError(
            f"Both sums hold the rows of one dataset (fingerprint {twice[0]}), which would be {do}ed twice; "
            f"{do} each run once"
        )
    return {name: count for name, count in both.items() if count}
