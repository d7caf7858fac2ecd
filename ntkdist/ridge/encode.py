"""The preprocessing of tables with more than numbers: fitted to one pass of sums, by fold where targets enter."""

import functools
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ntkdist.cluster import Client
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import MAP_FAN_IN, Pass, phase, reduce, reduce_all
from ntkdist.cluster.shards import Source
from ntkdist.data import encoding
from ntkdist.data.column_sums import ColumnSums, ColumnSumsOf, TableSample
from ntkdist.data.dataset import Dataset, Layout, Shard
from ntkdist.data.encoding import SPLITS, Encoding, Limits
from ntkdist.data.knots import quantiles
from ntkdist.data.moments import Mode, Moments
from ntkdist.data.scaling import Preprocess, Preprocessing
from ntkdist.errors import DataError


class ByFold(NamedTuple):
    """The source and the shards of a pass whose groups are the folds."""

    source: Source
    shards: Sequence[Shard]


def is_needed(preprocess: Preprocess, source: Source) -> bool:
    """Return whether rows of a source may have to be encoded; refuse what cannot be."""
    layout = source.layout
    if not encoding.needed(layout, preprocess, source.dataset.nan):
        return False
    if " + " in preprocess.reuse:
        raise DataError(
            f"{source.dataset.store}: what is learnt of categories, dates and missing values does not add, so that "
            f"{preprocess.reuse} cannot be reused together; reuse one run"
        )
    return True


def fit(
    preprocess: Preprocess,
    source: Source,
    by_fold: ByFold | None,
    client: Client | None,
    watch: Watch | None,
    balanced: bool,
) -> tuple[Preprocessing, Moments]:
    """Fit scaling and encoding to the rows of a source; return them, and the moments of the raw columns.

    ``by_fold`` reads the same rows fold by fold; without, they are all of one.
    """
    layout, mode = source.layout, preprocess.resolve(source.layout)
    folds = _sums(preprocess, source, by_fold, client, watch)
    total = functools.reduce(operator.add, folds)
    pre = Preprocessing.fit(mode, layout, total.moments, balanced, preprocess.clip)
    if preprocess.quantiles:
        pre = within_quantiles(pre, total.sample, preprocess.quantiles, mode)
    if preprocess.front == "standard" and not (layout.categories or layout.dates or total.missing.any()):
        return pre, total.moments
    d = len(layout.kinds)
    low, high = (np.broadcast_to(limit, d) for limit in (pre.x_low, pre.x_high))
    impute = source.dataset.nan == "impute"
    limits = Limits(pre.x_mean, pre.x_scale, low, high)
    encoded = Encoding.fit(preprocess, layout, folds, limits, impute)
    pre = replace(pre, encoding=encoded, x_mean=encoded.mean, x_scale=encoded.scale)
    if preprocess.clip != "none":
        pre = replace(pre, x_low=encoded.low, x_high=encoded.high)
    return replace(pre, constant=_constant(layout, encoded, total)), total.moments


def within_quantiles(pre: Preprocessing, sample: TableSample, shares: tuple[float, float], mode: Mode) -> Preprocessing:
    """Return a preprocessing with two quantiles of a sample as limits, and the scale of the values clipped to them."""
    arrays = [np.array(values) for values in (pre.x_low, pre.x_high, pre.x_mean, pre.x_scale)]
    low, high, mean, scale = arrays
    for j in range(sample.x.shape[1]):
        some = ~np.isnan(sample.x[:, j])
        x, weight = sample.x[some, j], sample.weight[some]
        least, most = quantiles(x, weight, np.array(shares))
        if least == most:
            continue
        low[j], high[j] = least, most
        if mode != "none":
            x = x.clip(least, most)
            mean[j] = weight @ x / weight.sum()
            scale[j] = np.sqrt(weight @ (x - mean[j]) ** 2 / weight.sum())
    return replace(pre, x_low=low, x_high=high, x_mean=mean, x_scale=scale)


def _sums(
    preprocess: Preprocess, source: Source, by_fold: ByFold | None, client: Client | None, watch: Watch | None
) -> list[ColumnSums]:
    """Sum the columns of every fold; of all rows at once where no target enters the encoding."""
    layout, targets = source.layout, preprocess.front == "target-bins"
    few = len({shard.group for shard in by_fold.shards}) < 2 if by_fold else True
    holdout = isinstance(source.dataset, Dataset) and bool(source.dataset.holdout)
    parts = encoding.by_parts(layout, preprocess)
    summand = ColumnSumsOf(
        preprocess.resolve(layout), layout, SPLITS if parts and (few or holdout) else 1, targets=targets
    )
    if by_fold is None or not parts:
        return [reduce_all(source, summand, layout.rows_per_partition, client, "moments", watch).total]
    with phase("moments", sum(shard.rows for shard in by_fold.shards), client, watch) as done:
        one = Pass(by_fold.source._replace(block_rows=0), summand, by_fold.shards, MAP_FAN_IN, done)
        return [part.total for part in reduce(one, client)]


def _constant(layout: Layout, encoded: Encoding, total: ColumnSums) -> tuple[str, ...]:
    """Return the names of the columns that are the same in all rows with weight, or have no values."""
    numbers = total.moments.split(len(layout.kinds))[0].constant()
    seen: Any = encoded.seen_range.seen
    each = zip(encoded.columns, layout.kinds, numbers, seen, strict=True)
    return tuple(n for n, kind, same, names in each if (names.sum() < 2 if kind == "category" else same))
