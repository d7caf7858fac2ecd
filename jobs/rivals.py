"""Models for tables with categories and missing values: boosted trees of three makers, xRFM, scikit-learn's, and ours.

Every model gets the training rows of a split and chooses all that it has to choose from them alone.  A tuned one tries
candidates, the first of which is its default, on rows held out, until the processor seconds of the budget are used;
then the best three are fitted to all training rows, with the rounds at which boosting was best, and their predictions
are averaged.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import ntkdist as nd

THREADS = int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1
FEW_ROWS = 2_000  # up to which candidates are scored on three folds, not on one fifth
AVERAGED = 3  # candidates
ROUNDS, PATIENCE = 5_000, 50  # of boosting with early stopping
LEVELS = 100  # columns of a one-hot code, at most: rarer levels share one
LANDMARKS = 1024  # of scikit-learn's Nyström features
CODES = "onehotencoder__"  # before the names of columns of `encoder` that are codes
LEAF_ROWS = 10_000  # of xRFM, which is quadratic in them
Params = dict[str, Any]


class Part(NamedTuple):
    """Rows to fit to."""

    x: pd.DataFrame
    y: Any
    classes: int  # 0: a regression
    budget: float = 0.0  # processor seconds of a search

    def take(self, rows: Any) -> "Part":
        """Take some of the rows."""
        return self._replace(x=self.x.iloc[rows], y=self.y[rows])


class Held(NamedTuple):
    """Rows that stop a boosting early, which also ends at a reading of the processor's clock."""

    part: Part
    deadline: float


class Fitted(NamedTuple):
    """A fitted model: numbers (n,) or probabilities (n, classes) of new rows, and the best number of rounds, if any."""

    predict: Callable[[pd.DataFrame], Any]
    rounds: int = 0


Fit = Callable[[Part, Params, Held | None, int], Fitted]  # the number is of rounds; 0: by the rows held, or the default
Candidates = Callable[[np.random.Generator], Iterable[Params]]


class Model(NamedTuple):
    """A model by name: how it is fitted, its candidates if it is tuned, and the module that it needs."""

    fit: Fit
    candidates: Candidates | None = None
    needs: str = "sklearn"


def fitted(model: Model, part: Part) -> tuple[Fitted, str]:
    """Fit a model, after a search if it is tuned, and describe its choice."""
    if model.candidates is None:
        return model.fit(part, {}, None, 0), "defaults"
    tried = sorted(search(model.fit, part, model.candidates(np.random.default_rng(0))), key=lambda one: one.loss)
    best = tried[:AVERAGED]
    fits = [model.fit(part, one.params, None, one.rounds) for one in best]
    chosen = "; ".join(one.described() for one in best)
    return Fitted(lambda x: np.mean([fit.predict(x) for fit in fits], axis=0)), f"{chosen} (of {len(tried)})"


class Candidate(NamedTuple):
    """A candidate with its loss on rows held out, and the rounds at which boosting was best."""

    loss: float
    params: Params
    rounds: int

    def described(self) -> str:
        """Write the values."""
        values = [
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.params.items()
        ]
        return ", ".join(values + [f"{self.rounds} rounds"] * (self.rounds > 0)) or "defaults"


def search(fit: Fit, part: Part, candidates: Iterable[Params]) -> list[Candidate]:
    """Try candidates, and end before one that would pass the budget if it took as long as the longest so far."""
    start = time.process_time()
    inner, tried, longest = list(inner_splits(part)), list[Candidate](), 0.0
    for params in candidates:
        begin = time.process_time()
        if tried and begin - start + longest > part.budget:
            break
        trials = []
        for fold, (train, held) in enumerate(inner):
            now = time.process_time()
            share = (start + part.budget - now) / (len(inner) - fold)  # so that no fold uses the time of the others
            trial = fit(train, params, Held(held, now + share), 0)
            trials.append((loss(held, trial.predict(held.x)), trial.rounds))
        mean, rounds = np.mean(trials, axis=0)
        tried.append(Candidate(float(mean), params, round(rounds)))
        longest = max(longest, time.process_time() - begin)
    return tried


def inner_splits(part: Part) -> Iterator[tuple[Part, Part]]:
    """Split training rows into those of a candidate and those that score it: three folds, or one fifth of many rows."""
    order = np.random.default_rng(1).permutation(len(part.y))
    folds = np.array_split(order, 3) if len(order) < FEW_ROWS else [order[: len(order) // 5]]
    for fold in folds:
        yield part.take(np.setdiff1d(order, fold)), part.take(np.sort(fold))


def loss(part: Part, predicted: Any) -> float:
    """Compute the mean squared error, or the log loss."""
    if part.classes:
        return float(log_loss(part.y, predicted, labels=np.arange(part.classes)))
    return float(mean_squared_error(part.y, predicted))


def predictor(model: Any, part: Part) -> Callable[[pd.DataFrame], Any]:
    """Return what predicts numbers, or probabilities of all classes, also of those that no row was of."""
    if not part.classes:
        return lambda x: np.ravel(model.predict(x))

    def probabilities(x: pd.DataFrame) -> Any:
        out = np.zeros((len(x), part.classes))
        out[:, np.ravel(model.classes_).astype(int)] = model.predict_proba(x)
        return out

    return probabilities


def lightgbm(part: Part, params: Params, held: Held | None, rounds: int) -> Fitted:
    """Boost LightGBM's trees; it takes categories and missing values as they are."""
    import lightgbm as lgb

    def over(env: Any) -> None:
        if held and time.process_time() > held.deadline:
            raise lgb.callback.EarlyStopException(env.iteration, env.evaluation_result_list)

    settings = {
        "n_estimators": ROUNDS if held else rounds or 100,
        "n_jobs": THREADS,
        "verbosity": -1,
        "random_state": 0,
    }
    model = (lgb.LGBMClassifier if part.classes else lgb.LGBMRegressor)(**settings | params)
    stops = {}
    if held:
        callbacks = [lgb.early_stopping(PATIENCE, verbose=False), over]
        stops = {"eval_set": [(held.part.x, held.part.y)], "callbacks": callbacks}
    model.fit(part.x, part.y, **stops)
    return Fitted(predictor(model, part), model.best_iteration_ if held else 0)


def of_lightgbm(rng: np.random.Generator) -> Iterator[Params]:
    """Draw candidates of LightGBM, after its default."""
    yield {}
    while True:
        yield {
            "learning_rate": between(rng, 0.01, 0.3),
            "num_leaves": round(between(rng, 4, 256)),
            "min_child_samples": round(between(rng, 2, 100)),
            "subsample": float(rng.uniform(0.5, 1)),
            "subsample_freq": 1,
            "colsample_bytree": float(rng.uniform(0.4, 1)),
            "reg_lambda": between(rng, 1e-3, 30),
            "min_split_gain": between(rng, 1e-6, 0.1),
        }


def catboost(part: Part, params: Params, held: Held | None, rounds: int) -> Fitted:
    """Boost CatBoost's trees; it takes categories as they are, and a missing one as a level."""
    import catboost as cb

    text = list(part.x.select_dtypes("category").columns)

    def levels(x: pd.DataFrame) -> pd.DataFrame:
        return x.assign(**{name: x[name].astype("object").fillna("missing").astype(str) for name in text})

    class Deadline:
        """A callback that ends the rounds."""

        def after_iteration(self, _: Any) -> bool:
            return not held or time.process_time() < held.deadline

    settings = {"iterations": ROUNDS if held else rounds or 1000, "thread_count": THREADS, "random_seed": 0}
    settings |= {"cat_features": text, "allow_writing_files": False, "verbose": False}
    model = (cb.CatBoostClassifier if part.classes else cb.CatBoostRegressor)(**settings | params)
    stops = {}
    if held:
        stops = {"eval_set": (levels(held.part.x), held.part.y), "early_stopping_rounds": PATIENCE}
        stops |= {"callbacks": [Deadline()]}
    model.fit(levels(part.x), part.y, **stops)
    predict = predictor(model, part)
    return Fitted(lambda x: predict(levels(x)), model.get_best_iteration() + 1 if held else 0)


def of_catboost(rng: np.random.Generator) -> Iterator[Params]:
    """Draw candidates of CatBoost, after its default but for the rate, which it would derive from the rounds."""
    yield {"learning_rate": 0.06}
    while True:
        yield {
            "learning_rate": between(rng, 0.02, 0.3),
            "depth": int(rng.integers(4, 9)),
            "l2_leaf_reg": between(rng, 0.5, 30),
            "random_strength": between(rng, 0.1, 10),
            "bagging_temperature": float(rng.uniform(0, 1)),
            "one_hot_max_size": int(rng.choice([2, 8, 32])),
        }


def histogram_trees(part: Part, params: Params, held: Held | None, rounds: int) -> Fitted:
    """Boost scikit-learn's trees, which take categories and missing values as they are."""
    kind = HistGradientBoostingClassifier if part.classes else HistGradientBoostingRegressor
    model = kind(categorical_features="from_dtype", random_state=0, **params).fit(part.x, part.y)
    return Fitted(predictor(model, part))


def encoder() -> Any:
    """Make a transformer of frames to numbers: standardised, with medians where they were missing, and one-hot codes.

    Numbers come first; a number that was missing has a column that says so, a missing category is a level.
    """
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    codes = OneHotEncoder(
        handle_unknown="infrequent_if_exist",
        max_categories=LEVELS,
        sparse_output=False,
        feature_name_combiner=lambda column, _: column,
    )
    return make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")),
        (codes, make_column_selector(dtype_include="category")),
    )


def ridge(part: Part, penalty: float, *steps: Any) -> Fitted:
    """Fit scikit-learn's ridge, or its logistic regression, after some steps; the penalty is per row."""
    if part.classes:
        last: Any = LogisticRegression(C=1 / (penalty * len(part.y)), max_iter=1000)
    else:
        last = Ridge(alpha=penalty * len(part.y))
    return Fitted(predictor(make_pipeline(encoder(), *steps, last).fit(part.x, part.y), part))


def linear(part: Part, params: Params, held: Held | None, rounds: int) -> Fitted:
    """Fit a linear model of the encoded columns."""
    return ridge(part, **{"penalty": 1e-3} | params)


def of_linear(_: np.random.Generator) -> Iterator[Params]:
    """List penalties, after the default."""
    yield {}
    yield from ({"penalty": 10.0**exponent} for exponent in (-4, -2, -5, -1, -6, 0))


def nystroem(part: Part, params: Params, held: Held | None, rounds: int) -> Fitted:
    """Fit a linear model of scikit-learn's Nyström features of the Gaussian kernel, on encoded columns."""
    values = {"penalty": 1e-4, "lengthscale": 1.0} | params
    columns = len(encoder().fit(part.x).get_feature_names_out())
    gamma = 0.5 / (values["lengthscale"] ** 2 * columns)
    features = Nystroem(n_components=min(LANDMARKS, len(part.y)), gamma=gamma, random_state=0)
    return ridge(part, values["penalty"], features)


def of_nystroem(rng: np.random.Generator) -> Iterator[Params]:
    """Draw penalties and lengthscales, in units of the root of the number of columns, after the default."""
    yield {}
    while True:
        yield {"penalty": between(rng, 1e-7, 1e-1), "lengthscale": between(rng, 0.2, 5)}


def xrfm(part: Part, params: Params, held: Held | None, rounds: int) -> Fitted:
    """Fit xRFM, trees of kernel machines that learn their metric.

    It needs rows to check on: those held, or the first of `inner_splits`.
    """
    import torch
    from xrfm import xRFM

    fit_to, check = (part, held.part) if held else next(inner_splits(part))
    encode = encoder().fit(fit_to.x)
    shift, scale = (0.0, 1.0) if part.classes else (fit_to.y.mean(), fit_to.y.std())

    def rows(x: pd.DataFrame) -> Any:
        return torch.tensor(encode.transform(x), dtype=torch.float32)

    def targets(y: Any) -> Any:
        return torch.tensor(y) if part.classes else torch.tensor((y - shift) / scale, dtype=torch.float32)[:, None]

    values = {"bandwidth": 10.0, "exponent": 1.0, "reg": 1e-3, "diag": False} | params
    fit_params = {"reg": values.pop("reg"), "iters": 5, "verbose": False, "early_stop_rfm": True}
    model = xRFM(
        {"model": {"kernel": "l2", **values}, "fit": fit_params},
        LEAF_ROWS,
        device=torch.device("cpu"),
        tuning_metric="logloss" if part.classes else "mse",
        categorical_info=blocks(encode),
        n_threads=THREADS,
        random_state=0,
        verbose=False,
    )
    model.fit(rows(fit_to.x), targets(fit_to.y), rows(check.x), targets(check.y))
    if part.classes:
        return Fitted(lambda x: np.asarray(model.predict_proba(rows(x)), dtype=np.float64))
    return Fitted(lambda x: np.ravel(model.predict(rows(x))) * scale + shift)


def blocks(encode: Any) -> Params:
    """Describe the encoded columns as xRFM has it: the numbers, and the one-hot code of each category."""
    import torch

    sources = [name.removeprefix(CODES) if name.startswith(CODES) else "" for name in encode.get_feature_names_out()]
    names = [name for name in dict.fromkeys(sources) if name]
    widths = [sources.count(name) for name in names]
    ends = np.cumsum([sources.count(""), *widths])
    return {
        "numerical_indices": torch.arange(int(ends[0])),
        "categorical_indices": [torch.arange(int(a), int(b)) for a, b in pairwise(ends)],
        "categorical_vectors": [torch.eye(width) for width in widths],
    }


def of_xrfm(rng: np.random.Generator) -> Iterator[Params]:
    """Draw candidates of xRFM, after its default."""
    yield {}
    while True:
        yield {
            "bandwidth": between(rng, 1, 100),
            "exponent": float(rng.uniform(0.7, 1.4)),
            "reg": between(rng, 1e-5, 1),
            "diag": bool(rng.integers(2)),
        }


def ours(part: Part, params: Params, held: Held | None, rounds: int) -> Fitted:
    """Fit an estimator of ntkdist to the frame as it is; it chooses features, columns and metric itself."""
    return Fitted(predictor(estimator(part).fit(part.x, part.y), part))


def ours_averaged(part: Part, params: Params, held: Held | None, rounds: int) -> Fitted:
    """Average the recipes that came near the default in its choice.

    The search is that of the default: it takes what it takes, and not the budget.
    """
    chosen = estimator(part).fit(part.x, part.y)
    return Fitted(predictor(chosen.ensemble().fit(part.x, part.y), part))


def estimator(part: Part, features: Any = None, front: str = "auto", metric: Any = None) -> Any:
    """Make an estimator of ntkdist."""
    kind = nd.NTKRidgeClassifier if part.classes else nd.NTKRidgeCV
    return kind(features, front=front, metric=metric)


def with_columns(kernel: Any, form: str, front: str) -> Fit:
    """Return a fit of ours with a kernel, a form of the metric and columns that are given, of a moderate size."""

    def fit(part: Part, params: Params, held: Held | None, rounds: int) -> Fitted:
        m = min(768, len(part.y) // 2)
        metric = nd.Metric(2, form, m, scales=(0.1, 0.3, 1.0, 3.0))
        model = estimator(part, nd.Nystrom(m, kernel), front, metric)
        return Fitted(predictor(model.fit(part.x, part.y), part))

    return fit


KINDS = {
    "NTK, full": (nd.NTK(2, bias=1.0), "full"),
    "NTK, diagonal": (nd.NTK(2, bias=1.0), "diagonal"),
    "product, diagonal": (nd.ProductLaplace(1.0), "diagonal"),
}
FRONTS = ("standard", "quantile", "both", "bins", "target-bins")
COLUMNS = {
    f"{name}, {front}": Model(with_columns(kernel, form, front))
    for name, (kernel, form) in KINDS.items()
    for front in FRONTS
}


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


MODELS = {
    "ours": Model(ours),
    "ours, averaged": Model(ours_averaged),
    "LightGBM": Model(lightgbm, needs="lightgbm"),
    "LightGBM, tuned": Model(lightgbm, of_lightgbm, "lightgbm"),
    "CatBoost": Model(catboost, needs="catboost"),
    "CatBoost, tuned": Model(catboost, of_catboost, "catboost"),
    "xRFM": Model(xrfm, needs="xrfm"),
    "xRFM, tuned": Model(xrfm, of_xrfm, "xrfm"),
    "scikit-learn trees": Model(histogram_trees),
    "scikit-learn Nystroem": Model(nystroem, of_nystroem),
    "linear": Model(linear, of_linear),
}
