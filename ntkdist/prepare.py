"""What a job learns from the data before its equations: the scaling, and what some maps look at, such as landmarks."""

import functools
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from distributed import Client
from scipy.sparse import csr_array

from ntkdist import backend, draws, phases, store
from ntkdist.data import Dataset, Layout, Rows
from ntkdist.errors import Damaged, DataError, SpecError
from ntkdist.features import AnyFeatureMap, AnyMap
from ntkdist.features.base import RowWeights
from ntkdist.groups import find
from ntkdist.job import Job
from ntkdist.model import Equations
from ntkdist.plan import Plan
from ntkdist.preprocess import MomentsOf, Preprocess, Preprocessing
from ntkdist.progress import Watch
from ntkdist.reduce import reduce_all
from ntkdist.shards import Shard, Source, source_of
from ntkdist.sums import Moments, RowSample

SAMPLE, WEIGHTED, PRECONDITIONER = 2000, 2001, 2002  # roles of the random streams, apart from those of any map


def prepare(job: Job, source: Source, client: Client | None, watch: Watch | None) -> tuple[Preprocessing, AnyMap]:
    """Scaling, and the map, fitted if it learns."""
    pre = scaling(job.preprocess, source, client, watch, bool(job.class_weight))
    return pre, learnt(job.features, job.preprocess, source, pre, client, watch)


def scaling(
    preprocess: Preprocess, source: Source, client: Client | None, watch: Watch | None, balanced: bool | None = None
) -> Preprocessing:
    """Fit or reuse the scaling of a dataset, with weights of classes if they shall be balanced; None: as is reused."""
    layout = source.layout
    mode = preprocess.resolve(layout)
    if len(urls := preprocess.reuse.split(" + ")) > 1:
        together = functools.reduce(operator.add, [_moments(url, source, balanced) for url in urls])
        return Preprocessing.fit(mode, layout, together, bool(balanced))
    if preprocess.reuse:
        return _reused(preprocess.reuse, _before(preprocess.reuse).preprocessing, source, balanced)
    part = reduce_all(source, MomentsOf(mode, layout), layout.rows_per_partition, client, "moments", watch)
    return Preprocessing.fit(mode, layout, part.total, bool(balanced))


def _reused(url: str, pre: Preprocessing, source: Source, balanced: bool | None) -> Preprocessing:
    """The scaling of an earlier run, if it can be that of a dataset."""
    layout = source.layout
    pre.match(layout, source.dataset.store)
    if pre.classes != layout.classes or pre.columns != layout.columns:
        raise DataError(f"{source.dataset.store}: classes or columns differ from those of {url}")
    if balanced is not None and balanced != bool(pre.class_weight):
        does, change = ("does not weigh", "leave out") if balanced else ("weighs", "set")
        raise DataError(
            f"{url} {does} classes, unlike this job, so their sums would not add; {change} "
            'class_weight = "balanced", or leave out [preprocess] reuse'
        )
    return pre


def _moments(url: str, source: Source, balanced: bool | None) -> Moments:
    """The moments of the data of an earlier run."""
    before = store.load(find(url, "equations.zarr"))
    if not isinstance(before, Equations):
        raise DataError(f"{url} holds a {type(before).__name__}; to add its scaling to another's it needs equations")
    return _reused(url, before.preprocessing, source, balanced).moments(source.layout, before.total)


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
    if " + " in preprocess.reuse:
        raise SpecError(f"what {type(features).__name__} learnt in several runs does not add; reuse one run")
    if preprocess.reuse:
        before: AnyMap = _before(preprocess.reuse).features
        if before.spec != features:
            raise DataError(
                f"{preprocess.reuse} holds another feature map, so what it learnt cannot be reused; use the same "
                "[features], or leave out [preprocess] reuse"
            )
        return before
    size, seed = features.sample_rows, getattr(features, "seed", 0)
    rows = sample(SampleOf(size, seed, pre), source, client, watch, "landmarks")
    if (weights := features.row_weights(rows)) is not None:
        rows = sample(SampleOf(size, seed, pre, weights, WEIGHTED), source, client, watch, "landmarks")
    with backend.own_threads():
        backend.use_threads(source.threads if client is None else backend.cores())
        return features.fit(rows)


def sample(summand: "SampleOf", source: Source, client: Client | None, watch: Watch | None, phase: str) -> Any:
    """The rows of a seeded sample, scaled, (k, *input_shape)."""
    return reduce_all(source, summand, source.layout.rows_per_partition, client, phase, watch).total.x


def _before(url: str) -> Any:
    """The earlier run that is reused."""
    return store.load(find(url, "model.zarr"))


def verified(p: Plan, *, client: Client | None, watch: Watch | None) -> Plan:
    """The plan with the damaged partitions to skip, if that is what the dataset says; then everything is read once.

    Found once and before all else, so that every pass, and a run that goes on from this one, skips the same.

    Raises
    ------
    DataError
        If all are damaged.
    """
    if p.dataset.damaged == "error" or p.skip is not None:
        return p
    return msgspec.structs.replace(p, skip=verified_source(source_of(p), client, watch).skip)


def verified_source(source: Source, client: Client | None, watch: Watch | None) -> Source:
    """The source that skips the damaged partitions, if that is what its dataset says; then everything is read once.

    Every pass over the rows of a dataset begins here, but those that owe every row something: predict and featurize.

    Raises
    ------
    DataError
        If all are damaged.
    """
    dataset, layout = source.dataset, source.layout
    if not isinstance(dataset, Dataset) or dataset.damaged == "error":
        return source
    summand, whole = DamagedOf(dataset.absolute(), layout, source.labelled), source._replace(folds=0)
    skip = reduce_all(whole, summand, layout.rows_per_partition, client, "verify", watch).total
    if len(skip) == layout.partitions:
        raise DataError(f"{dataset.store}: all partitions are damaged; restore the files or convert again")
    if skip:
        said = "%s: %d rows of the damaged partitions %s are skipped"
        phases.LOG.warning(said, dataset.store, layout.rows_of(skip), ", ".join(map(str, skip)))
    return source._replace(skip=skip)


@dataclass(frozen=True)
class DamagedOf:
    """The partitions, one a span, that cannot be read as they were written: a sum of tuples."""

    dataset: Dataset
    layout: Layout
    labelled: bool

    def zero(self) -> tuple[int, ...]:
        return ()

    def blocks(self, shard: Shard, read: Iterator[Rows]) -> Iterator[Any]:
        """In place of what would be read up to the first that is damaged: the spans of all that are."""
        for start, stop in shard.spans:
            try:
                self.dataset.read(self.layout, start, stop, labelled=self.labelled)
                if self.dataset.dealt:
                    self.dataset.column(self.layout, self.dataset.dealt, start, stop)
            except Damaged:
                yield start, stop

    def update(self, total: tuple[int, ...], span: Any) -> tuple[int, ...]:
        return (*total, span[0] // self.layout.rows_per_partition)


@dataclass(frozen=True)
class SampleOf:
    """A seeded sample of scaled rows; rows without weight never enter.

    Attributes
    ----------
    size, seed : int
    preprocessing : Preprocessing
    weights : callable, optional
        Rows enter in proportion to it.
    role : int
        Of the random stream.
    by_weight : bool
        Rows enter in proportion to what they weigh in the equations, too.
    sparse : bool
        Whether the rows are.
    """

    size: int
    seed: int
    preprocessing: Preprocessing
    weights: RowWeights | None = None
    role: int = SAMPLE
    by_weight: bool = False
    sparse: bool = False

    def zero(self) -> RowSample:
        shape = (0, *self.preprocessing.input_shape)
        return RowSample(self.size, np.empty(0), csr_array(shape) if self.sparse else np.empty(shape))

    def update(self, total: RowSample, rows: Rows) -> RowSample:
        keys = draws.uniforms_of(rows.places, self.seed, 0, self.role)
        weight = self.preprocessing.weights(rows) if self.by_weight else rows.weight
        scale = np.ones(len(keys)) if weight is None else weight
        if not self.by_weight:
            scale = (scale > 0).astype(np.float64)
        x = self.preprocessing.inputs(rows.x, np.float64)
        if self.weights is not None:
            scale = scale * self.weights(x)
        with np.errstate(divide="ignore"):
            keys = -np.log(keys) / scale
        return total + RowSample(self.size, keys, x)
