"""Passes over arrays of the caller: their source and shards, and the search for a metric on them."""

import math
from typing import Any

import msgspec

from ntkdist.cluster import progress
from ntkdist.cluster.connect import resources
from ntkdist.cluster.reduce import MAP_FAN_IN
from ntkdist.cluster.shards import Source
from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Shard
from ntkdist.data.partitions import evenly
from ntkdist.data.scaling import Preprocessing
from ntkdist.features import AnyFeatureMap
from ntkdist.planning.job import Metric
from ntkdist.ridge.metric import MetricSearch, Small

SHARD_BYTES = 64 * 2**20  # fewest bytes of Dask rows that one task sums


def source_and_shards(rows: Arrays, m: int, folds: int, client: Any) -> tuple[Source, list[Shard]]:
    """Cut arrays into shards, whose groups are the folds: one shard a fold, several for Dask's rows."""
    layout = rows.layout()
    block_rows = max(1024, m)
    # Starting threads would take longer than a single block.
    threads = 1 if layout.rows <= block_rows else resources(client).threads
    source = Source(rows, layout, block_rows, threads, folds=folds if folds > 1 else 0)
    spans = [layout.span(i) for i in range(layout.partitions)]
    count = math.ceil(layout.rows * layout.row_bytes / max(SHARD_BYTES, 8 * m**2)) if rows.lazy else 1
    return source, [Shard(k, tuple(some), k) for k in range(folds) for some in evenly(spans, count)]


def learn_metric(
    rows: Arrays, metric: Metric, features: AnyFeatureMap, folds: int, pre: Preprocessing, client: Any
) -> Preprocessing:
    """Learn a metric for a fit of some features, or, with no rounds, the length of rows."""

    def small(m: int, share: float) -> Small:
        fewer = msgspec.structs.replace(features, n_components=m)
        return Small.of(fewer, *source_and_shards(rows, m, folds, client), share)

    m, count = features.n_components, rows.layout().rows
    rounds, last = small(metric.components(m), metric.share(count)), small(m, metric.last_share(count, m))
    return MetricSearch(metric, rounds, last, MAP_FAN_IN, rows.dtype, client, progress.silent).learn(pre)
