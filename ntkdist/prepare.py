"""What a job learns from the data before its equations: the scaling, and what some maps look at, such as landmarks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client

from ntkdist import draws, store
from ntkdist.data import Rows
from ntkdist.errors import DataError
from ntkdist.features import AnyFeatureMap, AnyMap
from ntkdist.features.base import RowWeights
from ntkdist.groups import find
from ntkdist.preprocess import MomentsOf, Preprocess, Preprocessing
from ntkdist.progress import Watch
from ntkdist.reduce import Source, reduce_all
from ntkdist.sums import RowSample

SAMPLE, WEIGHTED = 2000, 2001  # roles of the random streams, apart from those of any map


def scaling(
    preprocess: Preprocess, source: Source, client: Client | None, watch: Watch | None, balanced: bool | None = None
) -> Preprocessing:
    """Fit or reuse the scaling of a dataset, with weights of classes if they shall be balanced; None: as is reused."""
    layout = source.layout
    if preprocess.reuse:
        pre: Preprocessing = _before(preprocess).preprocessing
        pre.match(layout, source.dataset.store)
        if pre.classes != layout.classes or pre.columns != layout.columns:
            raise DataError(f"{source.dataset.store}: classes or columns differ from those of {preprocess.reuse}")
        if balanced is not None and balanced != bool(pre.class_weight):
            does, change = ("does not weigh", "leave out") if balanced else ("weighs", "set")
            raise DataError(
                f"{preprocess.reuse} {does} classes, unlike this job, so their sums would not add; {change} "
                'class_weight = "balanced", or leave out [preprocess] reuse'
            )
        return pre
    mode = preprocess.resolve(layout)
    part = reduce_all(source, MomentsOf(mode, layout), layout.rows_per_partition, client, "moments", watch)
    return Preprocessing.fit(mode, layout, part.total, bool(balanced))


def learnt(
    features: AnyFeatureMap,
    preprocess: Preprocess,
    source: Source,
    pre: Preprocessing,
    client: Client | None,
    watch: Watch | None,
) -> AnyMap:
    """A map that is ready to use: itself, or fitted to a sample of the scaled rows, or as an earlier run left it."""
    if not features.sample_rows:
        return features
    if preprocess.reuse:
        before: AnyMap = _before(preprocess).features
        if before.spec != features:
            raise DataError(
                f"{preprocess.reuse} holds another feature map, so what it learnt cannot be reused; use the same "
                "[features], or leave out [preprocess] reuse"
            )
        return before
    sample = _sample(features, pre, None, source, client, watch)
    if (weights := features.row_weights(sample)) is not None:
        sample = _sample(features, pre, weights, source, client, watch)
    return features.fit(sample)


def _sample(
    features: AnyFeatureMap,
    pre: Preprocessing,
    weights: RowWeights | None,
    source: Source,
    client: Client | None,
    watch: Watch | None,
) -> Any:
    summand = SampleOf(features.sample_rows, getattr(features, "seed", 0), pre, weights)
    return reduce_all(source, summand, source.layout.rows_per_partition, client, "landmarks", watch).total.x


def _before(preprocess: Preprocess) -> Any:
    """The earlier run that is reused."""
    return store.load(find(preprocess.reuse, "model.zarr"))


@dataclass(frozen=True)
class SampleOf:
    """A seeded sample of scaled rows, in proportion to weights if there are any; rows without weight never enter."""

    size: int
    seed: int
    preprocessing: Preprocessing
    weights: RowWeights | None

    def zero(self) -> RowSample:
        return RowSample(self.size, np.empty(0), np.empty((0, *self.preprocessing.input_shape)))

    def update(self, total: RowSample, rows: Rows) -> RowSample:
        role = SAMPLE if self.weights is None else WEIGHTED
        keys = draws.uniforms_of(rows.places, self.seed, 0, role)
        scale = np.ones(len(keys)) if rows.weight is None else (rows.weight > 0).astype(np.float64)
        x = self.preprocessing.inputs(rows.x, np.float64)
        if self.weights is not None:
            scale = scale * self.weights(x)
        with np.errstate(divide="ignore"):
            keys = -np.log(keys) / scale
        return total + RowSample(self.size, keys, x)
