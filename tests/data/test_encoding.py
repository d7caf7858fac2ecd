"""Encodings of tables: sums that do not depend on the cut, and columns as plain programs make them at once."""

import functools
import itertools
import operator
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer
from sklearn.tree import DecisionTreeRegressor

from ntkdist.data import encoding
from ntkdist.data.category_tables import target_means
from ntkdist.data.column_sums import ColumnSums, ColumnSumsOf, periodic, split_of
from ntkdist.data.dataset import Layout, Rows
from ntkdist.data.encoding import Encoding, Limits
from ntkdist.data.knots import quantiles
from ntkdist.data.scaling import Preprocess
from ntkdist.errors import DataError

N = 400
RNG = np.random.default_rng(3)
FEW, MANY = ("", "p", "q", "never"), tuple(f"m{i:02d}" for i in range(30))
COLUMNS = ("a", "few", "day", "many", "b")
LAYOUT = Layout(
    rows=N,
    rows_per_partition=50,
    input_shape=(5,),
    x_dtype="float64",
    fingerprint="",
    columns=COLUMNS,
    categories=(("few", FEW), ("many", MANY)),
    dates=("day",),
)
FOLDS = np.arange(N) % 4


def table() -> np.ndarray:
    """Rows with missing numbers and dates, a name that never occurs, and few rows of some names."""
    days = pd.Timestamp("2023-05-01") + pd.to_timedelta(RNG.integers(0, 500 * 24, N), unit="h")
    x = np.column_stack(
        [
            RNG.lognormal(size=N),
            RNG.integers(0, 3, N),
            days.as_unit("s").astype(np.int64),
            np.minimum(RNG.geometric(0.1, N) - 1, 29),
            RNG.integers(0, 4, N),
        ]
    ).astype(np.float64)
    x[RNG.random(N) < 0.1, 0] = np.nan
    x[RNG.random(N) < 0.05, 2] = np.nan
    return x


X = table()
Y = np.where(np.isnan(X[:, 0]), 1.0, X[:, 0]) + np.sin(X[:, 3]) + RNG.normal(size=N)
W = RNG.integers(0, 3, N).astype(np.float64)


def rows(some: Any, weight: Any = None, fold: int = -1, y: Any = Y) -> Rows:
    return Rows(X[some], y[some], None if weight is None else weight[some], np.arange(N)[some], fold=fold)


def sums_of(summand: ColumnSumsOf, parts: list[Rows]) -> ColumnSums:
    total = summand.zero()
    for part in parts:
        total = summand.update(total, part)
    return total


def fitted(
    layout: Layout = LAYOUT, weight: Any = None, y: Any = Y, folds: int = 4, splits: int = 1, **settings: Any
) -> Encoding:
    """The encoding of all rows, with limits of their own."""
    summand = ColumnSumsOf("columns", layout, splits, targets=settings.get("front") == "target-bins")
    each = [sums_of(summand, [rows(FOLDS % folds == k, weight, k, y)]) for k in range(folds)]
    x = functools.reduce(operator.add, each).moments.split(len(layout.kinds))[0]
    limits = Limits(x.mean, np.where(x.constant(), 1.0, x.std), x.low, x.high)
    return Encoding.fit(Preprocess(**settings), layout, each, limits, impute=True)


def column(made: np.ndarray, found: Encoding, name: str) -> np.ndarray:
    return made[:, found.names.index(name)]


def block(made: np.ndarray, found: Encoding, source: str) -> np.ndarray:
    """All columns made of one."""
    return made[:, found.source_column == COLUMNS.index(source)]


def close(one: np.ndarray, other: np.ndarray, of: np.ndarray) -> bool:
    """Whether sums are equal but for the rounding of those that they are parts of."""
    return bool((np.abs(one - other) <= 1e-9 * (np.abs(of) + np.abs(other))).all())


def same(one: ColumnSums, other: ColumnSums, whole: ColumnSums) -> bool:
    """Whether sums agree but for the rounding of the whole; what is counted and sampled, to the bit."""
    names = ("weight", "mean", "deviation")
    pairs = [(getattr(one.moments, k), getattr(other.moments, k), getattr(whole.moments, k)) for k in names]
    pairs += [(one.periods.mean, other.periods.mean, np.ones(6)), (one.sums, other.sums, whole.sums + 1)]
    exact = [(one.missing, other.missing), (one.named, other.named)]
    exact += [(getattr(one.sample, k), getattr(other.sample, k)) for k in ("keys", "x", "y", "weight")]
    return all(close(*three) for three in pairs) and all(np.array_equal(a, b, equal_nan=True) for a, b in exact)


# sums

CUTS = st.lists(st.integers(1, N - 1), max_size=5, unique=True).map(sorted)


@given(cuts=CUTS, size=st.sampled_from([20, 10**6]), weighted=st.booleans(), order=st.randoms())
def test_sums_do_not_depend_on_the_cut_or_the_order(cuts: list[int], size: int, weighted: bool, order: Any) -> None:
    weight = W if weighted else None
    summand = ColumnSumsOf("columns", LAYOUT, targets=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ntkdist.data.column_sums.SAMPLE_ROWS", size)
        whole = sums_of(summand, [rows(slice(None), weight)])
        parts = [sums_of(summand, [rows(slice(a, b), weight)]) for a, b in zip([0, *cuts], [*cuts, N], strict=True)]
        order.shuffle(parts)
        assert same(functools.reduce(operator.add, parts), whole, whole)
        assert len(whole.sample.keys) == min(size, N if weight is None else int((W > 0).sum()))


@given(cut=st.integers(1, N - 1), weighted=st.booleans())
def test_a_difference_undoes_a_sum(cut: int, weighted: bool) -> None:
    weight = W if weighted else None
    summand = ColumnSumsOf("columns", LAYOUT, targets=True)
    first, second = (sums_of(summand, [rows(some, weight)]) for some in (slice(cut), slice(cut, N)))
    assert same(first + second - second, first, first + second)


@pytest.mark.parametrize("splits", [1, 5])
def test_the_bytes_of_a_sum_are_known(splits: int) -> None:
    summand = ColumnSumsOf("columns", LAYOUT, splits, targets=True)
    total = sums_of(summand, [rows(slice(None), fold=0)])
    held = total.sums.nbytes + total.named.nbytes + total.sample.__sizeof__()
    assert held <= summand.nbytes <= 1.05 * held


def test_a_difference_of_samples_is_of_rows_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a full sample, it holds those of the smallest keys, and adding gives the sample of all rows again."""
    monkeypatch.setattr("ntkdist.data.column_sums.SAMPLE_ROWS", 50)
    summand = ColumnSumsOf("columns", LAYOUT)
    first, second = (sums_of(summand, [rows(some)]).sample for some in (slice(250), slice(250, N)))
    left = first + second - second
    assert 0 < len(left.keys) < 50
    np.testing.assert_array_equal(left.keys, first.keys[: len(left.keys)])
    np.testing.assert_array_equal((left + second).keys, (first + second).keys)


def test_missing_values_are_left_out_of_moments() -> None:
    found = sums_of(ColumnSumsOf("columns", LAYOUT), [rows(slice(0, 150), W), rows(slice(150, N), W)])
    x = found.moments.split(5)[0]
    for j in (0, 2, 4):
        known = ~np.isnan(X[:, j])
        np.testing.assert_allclose(x.mean[j], np.average(X[known, j], weights=W[known]), rtol=1e-12)
        seen = X[known & (W > 0), j]
        assert (x.low[j], x.high[j]) == (seen.min(), seen.max())
    np.testing.assert_array_equal(found.missing, [np.isnan(X[some]).sum(axis=0) for some in (W == 0, W > 0)])


# numbers


def test_numbers_are_imputed_clipped_and_standardised() -> None:
    found = fitted()
    a = pd.Series(X[:, 0])
    filled = a.fillna(a.median())
    np.testing.assert_allclose(column(found(X), found, "a"), (filled - a.mean()) / a.std(ddof=0), rtol=1e-12)
    marks = column(found(X), found, "a missing")
    np.testing.assert_allclose(marks, a.isna() - a.isna().mean(), rtol=0, atol=1e-12)
    beyond = found(np.where(np.arange(5) == 0, 1e9, X[:1]))
    assert column(beyond, found, "a") == pytest.approx((a.max() - a.mean()) / a.std(ddof=0))
    assert "b missing" not in found.names
    np.testing.assert_allclose(column(found(X), found, "b").std(), 1.0, rtol=1e-12)


def test_quantiles_are_those_of_scikit_learn() -> None:
    found = fitted(front="quantile")
    filled = pd.Series(X[:, 0]).fillna(pd.Series(X[:, 0]).median()).to_numpy()
    known = X[~np.isnan(X[:, 0]), :1]
    theirs = QuantileTransformer(n_quantiles=len(known), output_distribution="normal").fit(known)
    expected = theirs.transform(filled[:, None])[:, 0].clip(-3, 3)
    np.testing.assert_allclose(column(found(X), found, "a quantile"), expected, rtol=1e-7, atol=1e-7)
    assert "a" not in found.names
    both = fitted(front="both")
    np.testing.assert_array_equal(column(both(X), both, "a quantile"), column(found(X), found, "a quantile"))
    assert "a" in both.names


@pytest.mark.parametrize("front", ["bins", "target-bins"])
def test_bins_are_piecewise_linear(front: Any) -> None:
    """By quantiles, or the thresholds of scikit-learn's tree of as many leaves; centred, of total variance 1."""
    found = fitted(front=front, bins=8)
    known = ~np.isnan(X[:, 0])
    a, y = X[known, 0], Y[known]
    if front == "bins":
        edges = np.unique(np.quantile(a, np.linspace(0, 1, 9)))
    else:
        tree: Any = DecisionTreeRegressor(max_leaf_nodes=8, min_weight_fraction_leaf=1 / 32).fit(a[:, None], y).tree_
        edges = np.array([a.min(), *np.sort(tree.threshold[tree.children_left >= 0]), a.max()])
    assert len(edges) == 9
    share = np.stack([np.clip((a - low) / (high - low), 0, 1) for low, high in itertools.pairwise(edges)], 1)
    share -= share.mean(axis=0)
    share /= np.sqrt(share.var(axis=0).sum())
    made = block(found(X), found, "a")[known, :8]
    tolerance = 1e-9 if front == "bins" else 1e-6  # scikit-learn's thresholds are of float32
    np.testing.assert_allclose(made, share, rtol=0, atol=tolerance)


def test_weights_count_as_copies_in_quantiles() -> None:
    x = np.array([3.0, 1.0, 2.0, 10.0])
    shares = np.linspace(0, 1, 7)
    weight = np.array([3, 1, 2, 5])
    np.testing.assert_allclose(quantiles(x, weight / 7, shares), np.quantile(np.repeat(x, weight), shares), rtol=1e-12)
    np.testing.assert_allclose(quantiles(x, np.full(4, 2.0), shares), np.quantile(x, shares), rtol=1e-12)


# dates


def test_dates_turn_with_the_day_the_week_and_the_year() -> None:
    found = fitted()
    made, day = block(found(X), found, "day"), pd.to_datetime(pd.Series(X[:, 2]), unit="s")
    known = day.notna().to_numpy()
    seconds = X[:, 2]
    expected = [(seconds - np.nanmean(seconds)) / np.nanstd(seconds)]
    hour, weekday, of_year = day.dt.hour / 24, (day.dt.day_of_week + 4) % 7 / 7, (day.dt.day_of_year - 1) / 365.2425
    for turn in (hour, weekday, of_year):
        expected += [np.sqrt(2) * f(2 * np.pi * turn) for f in (np.sin, np.cos)]
    waves = np.stack([np.asarray(e) for e in expected], axis=1)[known]
    waves[:, 1:] -= waves[:, 1:].mean(axis=0)
    marked = [i for i, n in enumerate(found.names) if n.startswith("day") and n != "day missing"]
    np.testing.assert_allclose(found(X)[known][:, marked], waves, rtol=1e-8, atol=1e-8)
    assert not found(X)[~known][:, marked[1:]].any()
    assert made.shape[1] == len(marked) + 1


def test_only_periods_that_vary_are_made() -> None:
    """Of whole days in one week, those of the week and the year; of one time, none."""
    days = np.arange(4) * 86400.0 + 1e6 // 86400 * 86400
    layout = msgspec.structs.replace(LAYOUT, rows=4, input_shape=(1,), columns=("day",), categories=())
    for x, kept in ((days, 2), (np.full(4, 1e6), 0)):
        summand = ColumnSumsOf("columns", layout)
        total = summand.update(summand.zero(), Rows(x[:, None], np.arange(4.0), None, np.arange(4)))
        m = total.moments.split(1)[0]
        limits = Limits(m.mean, np.where(m.constant(), 1.0, m.std), m.low, m.high)
        found = Encoding.fit(Preprocess(), layout, [total], limits, impute=False)
        assert found.width == 1 + 2 * kept
    assert np.isnan(periodic(np.array([np.nan]))).all()


# categories


@pytest.mark.parametrize("weight", [None, W], ids=["plain", "weighted"])
def test_few_names_are_one_hot(weight: Any) -> None:
    """Less their mean and of total variance 1; a name without rows has no column, and a new one is all zero before."""
    found = fitted(weight=weight)
    w = np.ones(N) if weight is None else weight
    coder = OneHotEncoder(sparse_output=False, handle_unknown="ignore").fit(X[w > 0, 1:2])
    mean = np.average(coder.transform(X[:, 1:2]), weights=w, axis=0)
    factor = 1 / np.sqrt((mean * (1 - mean)).sum())
    new = X.copy()
    new[:3, 1] = [3, -1, 99]
    for x in (X, new):
        np.testing.assert_allclose(
            block(found(x), found, "few"), factor * (coder.transform(x[:, 1:2]) - mean), rtol=1e-12
        )
    assert [n for n in found.names if n.startswith("few")] == ["few=", "few=p", "few=q"]
    made = block(found(X), found, "few")
    np.testing.assert_allclose(np.average((made**2).sum(axis=1), weights=w), 1.0, rtol=1e-12)


def means_by_loops(y: np.ndarray, weight: np.ndarray, part: np.ndarray, codes: np.ndarray, of: int) -> np.ndarray:
    """The smoothed mean and log count of each row's name, from the rows of other parts than ``of``."""
    others = part != of
    prior, out = np.average(y[others], weights=weight[others], axis=0), []
    for code in codes:
        mine = others & (X[:, 3] == code)
        total = weight[mine].sum()
        mean = (weight[mine] @ y[mine] + 10 * prior) / (total + 10)
        out.append([*mean, np.log1p(total * weight.sum() / weight[others].sum())])
    return np.array(out)


@pytest.mark.parametrize("weight", [None, W], ids=["plain", "weighted"])
@pytest.mark.parametrize("classes", [0, 2, 3])
@pytest.mark.parametrize("folds", [1, 4])
def test_many_names_are_means_of_the_other_parts(weight: Any, classes: int, folds: int) -> None:
    """Parts are folds, or of a single fold five shares of it; new rows get the means of all rows."""
    k = np.digitize(Y, np.quantile(Y, [0.5] if classes == 2 else [0.3, 0.6])) if classes else Y
    y = Y[:, None] if not classes else np.eye(classes)[k][:, 1:] if classes == 2 else np.eye(3)[k]
    layout = msgspec.structs.replace(LAYOUT, classes=tuple("abc"[:classes]))
    splits = 5 if folds == 1 else 1
    found = fitted(layout, weight, k, folds, splits)
    w = np.ones(N) if weight is None else weight
    part = FOLDS if folds > 1 else split_of(np.arange(N), 5)
    assert len(np.unique(part)) == max(folds, splits)
    expected = np.empty((N, y.shape[1] + 1))
    for p in np.unique(part):
        expected[part == p] = means_by_loops(y, w, part, X[part == p, 3], p)
    centre = np.average(expected, weights=w, axis=0)
    spread = np.sqrt(np.average((expected - centre) ** 2, weights=w, axis=0)) * [*[y.shape[1] ** 0.5] * y.shape[1], 1]
    made = np.empty((N, found.width))
    for fold in range(folds):
        mine = FOLDS % folds == fold
        made[mine] = found(X[mine], fold, np.arange(N)[mine])
    np.testing.assert_allclose(block(made, found, "many"), (expected - centre) / spread, rtol=1e-9, atol=1e-9)
    for_new = (means_by_loops(y, w, part, [*range(30), -1], -1) - centre) / spread
    for_new[:, -1] = for_new[:, -1].clip(((expected - centre) / spread)[w > 0, -1].min())
    new = np.repeat(X[:1], 31, axis=0)
    new[:, 3] = [*range(30), -1]
    np.testing.assert_allclose(block(found(new), found, "many"), for_new, rtol=1e-9, atol=1e-9)
    if folds > 1:
        of_fold = found.for_fold(2)
        np.testing.assert_array_equal(of_fold(X[FOLDS == 2]), made[FOLDS == 2])


def test_a_new_name_has_the_least_count_of_a_row() -> None:
    """Names of a thousand rows each: zero would be hundreds of standard deviations away."""
    parts = np.stack([np.column_stack([np.full(20, 1000.0) + np.arange(20), np.zeros(20)])] * 4)
    counts = target_means(parts)[-1, :, -1]
    assert counts[-1] == pytest.approx(target_means(parts)[:-1, :-1, -1].min())
    assert np.abs(counts).max() < 3


def test_a_rows_own_target_does_not_enter() -> None:
    """What becomes of the rows of a fold does not change with their targets."""
    other = Y.copy()
    other[FOLDS == 1] += 100 * RNG.normal(size=(FOLDS == 1).sum())
    one, two = fitted(), fitted(y=other)
    table, changed = one.tables[1], two.tables[1]
    scale = np.ptp(table[1, :, 0]) / np.ptp(changed[1, :, 0])  # the scaling is of all folds
    np.testing.assert_allclose(np.diff(table[1, :, 0]), scale * np.diff(changed[1, :, 0]), rtol=1e-6, atol=1e-9)
    assert not np.allclose(np.diff(table[2, :, 0]), scale * np.diff(changed[2, :, 0]), rtol=1e-3)


# bounds, names, saving


@pytest.mark.parametrize("front", ["standard", "quantile", "both", "bins", "target-bins"])
@pytest.mark.parametrize("one_hot", [0, 2, 16, 64])
def test_the_width_is_bounded_before(front: Any, one_hot: int) -> None:
    settings = Preprocess(front=front, one_hot=one_hot, bins=4)
    found = fitted(front=front, one_hot=one_hot, bins=4)
    assert found(X).shape == (N, found.width) == (N, len(found.names)) == (N, len(found.source_column))
    assert found.width <= encoding.widest(LAYOUT, settings, "impute")
    assert encoding.widest(LAYOUT, settings, "impute") - found.width <= 3 + 1 + 1  # marks of two dates, a name
    assert np.isfinite(found(X)).all()
    assert len(set(found.names)) == found.width


def test_an_encoding_is_saved_whole() -> None:
    found = fitted(front="both")
    again = Encoding.of_saved(
        msgspec.json.decode(msgspec.json.encode(found.plain())), {k: a for k, a in found.arrays().items() if a.size}
    )
    assert again.digest() == found.digest() != fitted().digest()
    np.testing.assert_array_equal(again(X, 1), found(X, 1))


def test_what_is_new_is_counted() -> None:
    found = fitted()
    new = X[:4].copy()
    new[0, 1], new[1, 0], new[2, 1], new[2, 3] = 3, 1e9, -1, -1
    count, by_column = found.seen_range.rows_outside(new)
    assert (count, by_column.tolist()) == (3, [1, 2, 0, 1, 0])
    assert found.seen_range.rows_outside(X)[0] == 0


def test_infinite_numbers_and_unexpected_gaps_are_refused() -> None:
    found = fitted()
    x = X[:3].copy()
    x[1, 4] = np.inf
    with pytest.raises(DataError, match="'b' is infinite in row 1"):
        found(x)
    whole = msgspec.structs.replace(LAYOUT, input_shape=(1,), columns=("b",), categories=(), dates=())
    summand = ColumnSumsOf("columns", whole)
    total = summand.update(summand.zero(), Rows(X[:, 4:], Y, None, np.arange(N)))
    one = np.ones(1)
    strict = Encoding.fit(Preprocess(front="quantile"), whole, [total], Limits(0 * one, one, -one, one), impute=False)
    with pytest.raises(DataError, match="'b' has no value in row 0, and the model was fitted to rows without missing"):
        strict(np.array([[np.nan]]))


@pytest.mark.parametrize("front", ["standard", "quantile", "both", "bins", "target-bins"])
def test_columns_without_values_or_variance_become_zero(front: Any) -> None:
    layout = msgspec.structs.replace(
        LAYOUT, input_shape=(3,), columns=("void", "same", "name"), categories=(("name", ("x",)),), dates=()
    )
    x = np.column_stack([np.full(N, np.nan), np.full(N, 7.0), np.zeros(N)])
    summand = ColumnSumsOf("columns", layout, targets=True)
    total = summand.update(summand.zero(), Rows(x, Y, None, np.arange(N)))
    m = total.moments.split(3)[0]
    limits = Limits(m.mean, np.where(m.constant(), 1.0, m.std), m.low, m.high)
    found = Encoding.fit(Preprocess(front=front), layout, [total], limits, impute=True)
    assert found.width == (5 if front == "both" else 3)
    assert not found(x).any()
    assert not found(np.array([[1.0, 8.0, -1.0]]))[:, -1].any()
