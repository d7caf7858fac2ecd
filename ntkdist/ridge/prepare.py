"""Fit what the main pass needs: the scaling, and maps that need a sample of rows (landmarks, whitening)."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ntkdist import backend
from ntkdist.cluster import Client, phases
from ntkdist.cluster.connect import Resources
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import reduce_all
from ntkdist.cluster.shards import Source
from ntkdist.data import storage
from ntkdist.data.dataset import Dataset, Layout, Rows, Shard
from ntkdist.data.moments import Mode, Moments, MomentsOf
from ntkdist.data.scaling import Preprocess, Preprocessing, column_names
from ntkdist.data.zarr_groups import find
from ntkdist.errors import Damaged, DataError, SpecError
from ntkdist.features import AnyFeatureMap, AnyMap
from ntkdist.planning.plan import Plan, by_fold, source_of
from ntkdist.ridge import checkpoint, run_directory, store
from ntkdist.ridge.checkpoint import Kept
from ntkdist.ridge.model import Equations, added
from ntkdist.sums import NormalEquations
from ntkdist.sums.sample import WEIGHTED, SampleOf


class Prepared(NamedTuple):
    """Where the main pass of a fit starts from.

    Attributes
    ----------
    empty : Equations
        Scaling, feature map and moments; no fold yet.
    source : Source
    shards : list of Shard
        Their groups are the folds.
    resources : Resources
    client : distributed.Client, optional
    watch : callable, optional
    kept : Kept, optional
        Where finished shards are kept.
    seconds : float
        Taken to prepare.
    """

    empty: Equations
    source: Source
    shards: list[Shard]
    resources: Resources
    client: Client | None
    watch: Watch | None
    kept: Kept | None
    seconds: float


def prepare(
    p: Plan, machines: Resources, client: Client | None, watch: Watch | None, checkpoint_at: str = ""
) -> Prepared:
    """Fit scaling and map to the data of a plan, or take them from its checkpoint.

    Raises
    ------
    DataError
        If a fold gets no rows, or nothing can be learnt from those that are there.
    """
    start = time.perf_counter()
    source, shards = by_fold(p)
    check_folds(p)
    whole = source._replace(folds=0)
    empty, kept = checkpoint.prepared(checkpoint_at, p, lambda: _learn(p, whole, client, watch))
    if p.job.preprocess.reuse:  # else the range was learnt from these rows, and none is clipped
        source = source._replace(range=empty.preprocessing.range)
    return Prepared(empty, source, shards, machines, client, watch, kept, time.perf_counter() - start)


def _learn(p: Plan, source: Source, client: Client | None, watch: Watch | None) -> Equations:
    """Return scaling, map and the moments of the rows as equations without a fold."""
    job = p.job
    pre, moments = scaling(job.preprocess, source, client, watch, bool(job.class_weight))
    features = fitted(job.features, job.preprocess, source, pre, client, watch)
    return Equations([], features, pre, p.dtype, p.scored, moments, {p.layout.fingerprint: 1})


def scaling(
    preprocess: Preprocess, source: Source, client: Client | None, watch: Watch | None, balanced: bool | None = None
) -> tuple[Preprocessing, Moments]:
    """Fit or reuse the scaling of a dataset, and sum the moments of its own rows, which a later run may add to others'.

    Parameters
    ----------
    balanced : bool, optional
        Whether classes are weighted alike; None: as is reused.
    """
    mode, urls = preprocess.resolve(source.layout), preprocess.reuse.split(" + ")
    if len(urls) > 1:
        together = _moments_of_runs(urls, MomentsOf(mode, source.layout), source, balanced)
        own = _moments_in(source, mode, client, watch)
        return Preprocessing.fit(mode, source.layout, together, bool(balanced), preprocess.clip), own
    if not preprocess.reuse:
        own = _moments_in(source, mode, client, watch)
        return Preprocessing.fit(mode, source.layout, own, bool(balanced), preprocess.clip), own
    pre = _reused(preprocess.reuse, _before(preprocess.reuse).preprocessing, source, balanced)
    if pre.range.bounded and preprocess.clip == "none":
        raise DataError(f'clip is "none" but {preprocess.reuse} clips inputs; leave out clip, or reuse')
    return pre, moments_of(source, pre, client, watch)


def moments_of(source: Source, pre: Preprocessing, client: Client | None, watch: Watch | None) -> Moments:
    """Sum the moments of rows that others' scaling is for, in one pass."""
    return _moments_in(source, "channels" if pre.by_channel else "columns", client, watch)


def _moments_in(source: Source, mode: Mode, client: Client | None, watch: Watch | None) -> Moments:
    summand, size = MomentsOf(mode, source.layout), source.layout.rows_per_partition
    moments: Moments = reduce_all(source, summand, size, client, "moments", watch).total
    return moments


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


def _moments_of_runs(urls: Sequence[str], summand: MomentsOf, source: Source, balanced: bool | None) -> Moments:
    """Add the moments of the rows of earlier runs.

    Raises
    ------
    DataError
        If runs hold the same rows, or moments of other columns than these.
    """
    total, datasets = summand.zero(), dict[str, int]()
    for url in urls:
        moments, theirs = _moments(url, source, balanced)
        if len(moments.mean) != len(total.mean):
            raise DataError(
                f"{url} holds moments of {len(moments.mean)} input and target columns, expected {len(total.mean)}; "
                "fit it with the same [preprocess] inputs"
            )
        total, datasets = total + moments, added(datasets, theirs)
    return total


def _moments(url: str, source: Source, balanced: bool | None) -> tuple[Moments, dict[str, int]]:
    """Load the moments of an earlier run's rows, and whose rows these are.

    Equations saved without moments tell them if the run scaled by its own rows, as only its report says.
    """
    before = store.load(find(url, "equations.zarr"))
    if not isinstance(before, Equations):
        raise DataError(f"{url} holds a {type(before).__name__}; to add its scaling to another's it needs equations")
    pre = _reused(url, before.preprocessing, source, balanced)
    if before.moments is not None:
        return before.moments, before.datasets
    asked = run_directory.read_report(url).plan if storage.exists(storage.join(url, "report.json")) else None
    how = asked["job"]["preprocess"] if asked else {"inputs": "none"}
    if how["inputs"] == "none" or how["reuse"] or source.layout.sparse:
        raise DataError(
            f"{url} was saved without the moments of its rows, and its scaling does not tell them; fit that run again"
        )
    assert asked is not None
    return _recovered_moments(pre, source.layout, before.total), {asked["layout"]["fingerprint"]: 1}


def _recovered_moments(pre: Preprocessing, layout: Layout, sums: NormalEquations) -> Moments:
    """Recover the moments that a scaling was fitted to from the sums of the scaled rows; their range stays unknown.

    For equations saved without it; right only if means and deviations are those of the same rows.
    """
    weight, pixels = sums.weight, int(np.prod(layout.input_shape)) // len(pre.x_mean)
    constant = np.isin(column_names(layout, len(pre.x_mean)), pre.constant)
    x = np.full(len(pre.x_mean), weight * pixels)
    deviation, counts, mean = np.where(constant, 0.0, x * pre.x_scale**2), np.zeros(0), pre.x_mean
    if pre.classes:
        counts = pre.y_mean * weight
    else:
        x, mean = np.append(x, np.full(pre.t, weight)), np.append(mean, pre.y_mean)
        y_deviation = np.diagonal(sums.yy) - sums.y_sum**2 / weight
        deviation = np.append(deviation, pre.y_scale**2 * y_deviation)
    return Moments(0, x, mean, deviation, np.full(len(x), -np.inf), np.full(len(x), np.inf), counts)


def fitted(
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
                if self.dataset.fold_array:
                    self.dataset.column(self.layout, self.dataset.fold_array, start, stop)
            except Damaged:
                yield start, stop

    def update(self, total: tuple[int, ...], span: Any) -> tuple[int, ...]:
        return (*total, span[0] // self.layout.rows_per_partition)


def check_folds(p: Plan) -> None:
    """Read which fold each row is in, up to where all folds have been seen, and refuse a fold without rows.

    Raises
    ------
    DataError
        If one gets none.
    """
    if not (name := p.dataset.fold_array):
        return
    seen: set[int] = set()
    for i in sorted(set(range(p.layout.partitions)) - set(p.skip or ())):
        seen |= set(p.folds_of(i).tolist())
        if len(seen) == p.folds:
            return
    if p.dataset.holdout:
        found = "no row is" if seen == {0} else "all rows are"
        raise DataError(f"{p.dataset.store}: {found} held out by '{name}'; expected 1 for some rows and 0 for others")
    raise DataError(
        f"{p.dataset.store}: only {len(seen)} of {p.folds} folds get rows from the groups of '{name}', which are fewer "
        "than folds or too few to be dealt to all; lower folds"
    )
