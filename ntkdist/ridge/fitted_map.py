"""Feature maps made ready for a pass: as they are, or fitted to a sample of the scaled rows, such as landmarks."""

from typing import Any

from ntkdist import backend
from ntkdist.cluster import Client
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import reduce_all
from ntkdist.cluster.shards import Source
from ntkdist.data.scaling import Preprocess, Preprocessing
from ntkdist.features import AnyFeatureMap, AnyMap
from ntkdist.ridge import earlier
from ntkdist.sums.sample import WEIGHTED, SampleOf


def fitted(
    features: AnyFeatureMap,
    preprocess: Preprocess,
    source: Source,
    pre: Preprocessing,
    client: Client | None,
    watch: Watch | None,
) -> AnyMap:
    """Return a map ready to use: itself, or fitted to a sample of the scaled rows, or as an earlier run fitted it."""
    if not features.sample_rows:
        return features
    if preprocess.reuse:
        return earlier.fitted_map(preprocess.reuse, features)
    size, seed = features.sample_rows, getattr(features, "seed", 0)
    rows = sample(SampleOf(size, seed, pre), source, client, watch, "landmarks")
    if (weights := features.row_weights(rows)) is not None:
        rows = sample(SampleOf(size, seed, pre, weights, WEIGHTED), source, client, watch, "landmarks")
    with backend.own_threads():
        backend.use_threads(source.threads if client is None else backend.cores())
        return features.fit(rows)


def sample(summand: SampleOf, source: Source, client: Client | None, watch: Watch | None, phase: str) -> Any:
    """Draw a seeded sample of the scaled rows, (k, *input_shape)."""
    return reduce_all(source, summand, source.layout.rows_per_partition, client, phase, watch).total.x
