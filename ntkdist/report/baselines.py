"""Baseline models for a comparison: ridge regression with the exact kernel, and gradient-boosted trees.

They hold all rows in this process and predict scores (n, t) in target units, t targets or classes.

Legend: K (n, n) exact kernel; w weights; f = Σ a_i k(x_i, ·) + b the ridge model of penalty α.
"""

import functools
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.spatial.distance import pdist

from ntkdist import backend, random
from ntkdist.data.scaling import Preprocessing
from ntkdist.solvers.cross_validation import AUTO_GRID, CVResult

F8 = NDArray[np.float64]
Indices = NDArray[np.int64]
KernelOf = Callable[[NDArray[Any], NDArray[Any]], F8]
PredictFold = Callable[[Indices, Indices], F8]  # scores of the test rows by a model of the train rows
SUBSET, SUBSET_FOLDS, SUBSET_ROLE = 2000, 5, 2002
BLOCK = 500  # rows of a kernel matrix per call of the kernel, which bounds its temporary arrays
TREE_NAMES = 255  # names of a column that scikit-learn's trees take; of more, codes are numbers
TREES: dict[str, Any] = {"max_iter": 2000, "learning_rate": 0.05, "early_stopping": True, "random_state": 0}


@contextmanager
def one_thread() -> Iterator[None]:
    """Run these models on one thread.

    On a shared machine, OpenMP and BLAS wait for each other's threads; small fits were measured ten times slower.
    """
    import sklearn.ensemble  # noqa: F401  loads OpenMP now, so that the limit reaches it

    with backend.own_threads():
        backend.use_threads(1)
        yield


class Table(NamedTuple):
    """All rows of a dataset: raw x (n, *shape), y (n,) or (n, t), weight (n,) all positive, fold (n,).

    Rows that are only trained on, and never scored, have fold −1.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    weight: F8
    fold: NDArray[np.int64]

    @property
    def scored(self) -> NDArray[np.int64]:
        """The scored folds, in ascending order."""
        return np.unique(self.fold[self.fold >= 0])


class ExactRidge:
    """Ridge regression with the exact kernel and a free intercept: the limit of its features as m grows.

    The penalty is per unit of weight: the best of the "auto" grid of `cross_validate`, by five folds of at most 2,000
    random rows.  At most three (n, n) matrices are held at once: K, a copy of a submatrix, and its factor.
    """

    def __init__(self, kernel: KernelOf, table: Table, pre: Preprocessing) -> None:
        self.table, self._kernel, self._pre, self.classes, self.intercept = table, kernel, pre, pre.classes, pre.y_mean
        self._x, self._y = _inputs(table, pre), pre.targets(table.y)
        self._k = self._against(self._x)
        self.alpha_per_row = self._choose()
        self._a, self._b = self._solve(np.arange(len(self._x)), self.alpha_per_row)

    @property
    def nbytes(self) -> int:
        """The bytes that prediction needs: all rows, and a coefficient for each."""
        return self._x.nbytes + self._a.nbytes

    def scores(self, x: NDArray[Any]) -> F8:
        """Predict the scores of raw rows, (n, t)."""
        return self._scores(self._against(self._pre.inputs(x, np.float64)), self._a, self._b)

    def out_of_fold(self) -> CVResult:
        """Score out of fold at the chosen penalty."""
        predict = functools.partial(self._predict, alpha=self.alpha_per_row)
        return cv_result(predict, self.table, self._pre, self.alpha_per_row)

    def _choose(self) -> float:
        """Choose the penalty per unit of weight; a penalty too small for the precision loses."""
        w = self.table.weight
        rows = np.argsort(random.uniforms_of(np.arange(len(w)), 0, 0, SUBSET_ROLE))[:SUBSET]
        mean = w @ self._k @ w / w.sum() ** 2
        scale = float(w @ np.diagonal(self._k) / w.sum() - mean)  # the features' variance, as for the jobs
        grid = [a * scale if scale > 0 else a for a in AUTO_GRID]
        truth, loss = _in_units(self._y, self._pre), np.zeros(len(grid))
        for k in range(SUBSET_FOLDS):
            tested = np.arange(len(rows)) % SUBSET_FOLDS == k
            train, test = rows[~tested], rows[tested]
            for i, alpha in enumerate(grid):
                try:
                    loss[i] += np.sum(w[test] @ (self._predict(train, test, alpha) - truth[test]) ** 2)
                except LinAlgError:
                    loss[i] = np.inf
        return float(grid[int(loss.argmin())])

    def _predict(self, train: Indices, test: Indices, alpha: float) -> F8:
        return self._scores(self._k[np.ix_(test, train)], *self._solve(train, alpha))

    def _solve(self, rows: NDArray[Any], alpha: float) -> tuple[F8, F8]:
        w = self.table.weight[rows]
        return dual_ridge(self._k[np.ix_(rows, rows)], self._y[rows], w, alpha * float(w.sum()))

    def _scores(self, k: F8, a: F8, b: F8) -> F8:
        return _in_units(k @ a + b, self._pre)

    def _against(self, x: NDArray[Any]) -> F8:
        out = np.empty((len(x), len(self._x)))
        for i in range(0, len(x), BLOCK):
            out[i : i + BLOCK] = self._kernel(x[i : i + BLOCK], self._x)
        return out


def dual_ridge(k: F8, y: F8, weight: F8, alpha: float) -> tuple[F8, F8]:
    """Return a (n, t) and b (t,) that minimise Σ w (y − Ka − b)² + α aᵀKa; overwrites K (n, n).

    They solve (K + αW⁻¹)a + b = y with Σa = 0.
    """
    k[np.diag_indices_from(k)] += alpha / weight
    solved = cho_solve(cho_factor(k, lower=True, overwrite_a=True), np.column_stack([y, np.ones(len(y))]))
    b = solved[:, :-1].sum(axis=0) / solved[:, -1].sum()
    return solved[:, :-1] - solved[:, -1:] * b, b


class BoostedTrees:
    """scikit-learn's histogram gradient boosting: at most 2,000 rounds at rate 0.05, stopped early.

    There is one regressor per target, or one classifier, whose probabilities are the scores.
    """

    def __init__(self, table: Table, pre: Preprocessing) -> None:
        self.table, self._pre, self.classes, self.intercept = table, pre, pre.classes, pre.y_mean
        self._models = self._fitted(slice(None))

    @property
    def nbytes(self) -> int:
        """The size of the pickled models."""
        return len(pickle.dumps(self._models))

    def scores(self, x: NDArray[Any]) -> F8:
        """Predict the scores of raw rows, (n, t)."""
        return self._scores(self._models, x)

    def out_of_fold(self) -> CVResult:
        """Score out of fold trees grown on the other folds."""
        return cv_result(
            lambda train, test: self._scores(self._fitted(train), self.table.x[test]), self.table, self._pre, 0.0
        )

    def accuracy_out_of_fold(self) -> tuple[float, int]:
        """Return the share of rows whose class is right, by trees grown on the other folds, and the rows scored."""
        table, right, weight, rows = self.table, 0.0, 0.0, 0
        for fold in table.scored:
            test = np.flatnonzero(table.fold == fold)
            scores = self._scores(self._fitted(np.flatnonzero(table.fold != fold)), table.x[test])
            right += float(table.weight[test] @ (scores.argmax(axis=1) == table.y[test]))
            weight, rows = weight + float(table.weight[test].sum()), rows + len(test)
        return right / weight, rows

    def _fitted(self, rows: Indices | slice) -> list[Any]:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        x, y, w = _flat(self.table.x[rows]), self.table.y[rows], self.table.weight[rows]
        names = self._pre.encoding.categories if self._pre.encoding else ()
        coded = [j for j, each in enumerate(names) if 0 < len(each) < TREE_NAMES]
        options = TREES | {"categorical_features": coded or None}
        if self._pre.classes:
            return [HistGradientBoostingClassifier(**options).fit(x, y, w)]
        return [HistGradientBoostingRegressor(**options).fit(x, target, w) for target in y.reshape(len(y), -1).T]

    def _scores(self, models: list[Any], x: NDArray[Any]) -> F8:
        if not self._pre.classes:
            return np.stack([model.predict(_flat(x)) for model in models], axis=1)
        scores = np.zeros((len(x), self._pre.t))
        scores[:, models[0].classes_] = models[0].predict_proba(_flat(x))
        return scores


def _inputs(table: Table, pre: Preprocessing) -> Any:
    """Scale the rows of a table; those of each fold are encoded by what the others say, as in the sums."""
    if pre.encoding is None or not pre.encoding.parts:
        return pre.inputs(table.x, np.float64)
    x = np.empty((len(table.x), *pre.mapped_shape))
    for fold in np.unique(table.fold).tolist():
        mine = table.fold == fold
        x[mine] = pre.inputs(table.x[mine], np.float64, fold)
    return x


def cv_result(predict: PredictFold, table: Table, pre: Preprocessing, alpha_per_row: float) -> CVResult:
    """Score one penalty over the scored folds; classes are one-hot codes."""
    truth, w, mse, weights = _in_units(pre.targets(table.y), pre), table.weight, [], []
    for fold in table.scored:
        train, test = np.flatnonzero(table.fold != fold), np.flatnonzero(table.fold == fold)
        mse.append(np.average((predict(train, test) - truth[test]) ** 2, axis=0, weights=w[test]))
        weights.append(w[test].sum())
    mean = np.average(truth, axis=0, weights=w)
    return CVResult(
        alphas=np.array([alpha_per_row]),
        per_row=True,
        mse=np.array(mse)[None],
        weights=np.array(weights),
        spread=np.average((truth - mean) ** 2, axis=0, weights=w),
        best=np.zeros(pre.t, np.int64),
        alpha=np.full(pre.t, alpha_per_row * w.sum()),
        scored=tuple(table.scored.tolist()),
    )


def median_distance(x: NDArray[Any]) -> float:
    """Return the median distance of pairs of rows x (n, *shape), the start for a Gaussian's length scale."""
    return float(np.median(pdist(_flat(x))))


def _in_units(scaled: F8, pre: Preprocessing) -> F8:
    return scaled * pre.y_scale + pre.y_mean


def _flat(x: NDArray[Any]) -> NDArray[Any]:
    return x.reshape(len(x), int(np.prod(x.shape[1:])))
