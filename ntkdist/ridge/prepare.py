"""Preparation of the main pass: the scaling, and maps that are fitted to a sample of rows (landmarks, whitening)."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from ntkdist.cluster import Client, phases
from ntkdist.cluster.connect import Resources
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import reduce_all
from ntkdist.cluster.shards import Source
from ntkdist.data.dataset import Dataset, Layout, Rows, Shard
from ntkdist.data.moments import Mode, Moments, MomentsOf
from ntkdist.data.scaling import Preprocess, Preprocessing
from ntkdist.errors import Damaged, DataError
from ntkdist.planning.plan import Plan, by_fold, of_metric, source_of
from ntkdist.ridge import checkpoint, earlier, encode
from ntkdist.ridge.checkpoint import Kept, KeptRounds
from ntkdist.ridge.encode import ByFold
from ntkdist.ridge.fitted_map import fitted
from ntkdist.ridge.metric import MetricSearch, Small
from ntkdist.ridge.model import Equations


class Prepared(NamedTuple):
    """The start of a fit's main pass."""

    empty: Equations  # scaling, feature map and moments; no fold yet
    source: Source
    shards: list[Shard]  # their groups are the folds
    resources: Resources
    client: Client | None
    watch: Watch | None
    kept: Kept | None
    seconds: float  # taken to prepare


def prepare(
    p: Plan, machines: Resources, client: Client | None, watch: Watch | None, checkpoint_at: str = ""
) -> Prepared:
    """Fit scaling and map to the data of a plan, or load them from its checkpoint; raise DataError if that fails."""
    start = time.perf_counter()
    source, shards = by_fold(p)
    check_folds(p)
    by_folds, search = ByFold(source, shards), metric_search(p, client, watch)
    rounds = KeptRounds(checkpoint_at) if checkpoint_at else None

    def fit() -> Equations:
        learn = (lambda pre: search.learn(pre, rounds)) if search else (lambda pre: pre)
        return _fit_scaling_and_map(p, by_folds, client, watch, learn)

    empty, kept = checkpoint.prepared(checkpoint_at, p, fit)
    if p.job.preprocess.reuse:
        source = earlier.matched(source, empty.preprocessing)
    if p.job.preprocess.reuse or p.job.preprocess.quantiles:  # otherwise none is outside the range of these rows
        source = source._replace(range=empty.preprocessing.range)
    return Prepared(empty, source, shards, machines, client, watch, kept, time.perf_counter() - start)


def metric_search(p: Plan, client: Client | None, watch: Watch | None) -> MetricSearch | None:
    """Return the search for a metric that a plan asks for; None if it learns none, or reuses that of another run."""
    metric, count = p.job.metric, p.layout.rows
    if (plans := of_metric(p)) is None:
        return None
    rounds, lengths = plans
    small = Small.of(rounds.features, *by_fold(rounds), metric.share(count))
    last = Small.of(lengths.features, *by_fold(lengths), metric.last_share(count, lengths.m))
    return MetricSearch(metric, small, last, p.fan_in, p.dtype, client, watch)


def _fit_scaling_and_map(
    p: Plan,
    by_folds: ByFold,
    client: Client | None,
    watch: Watch | None,
    learn: Callable[[Preprocessing], Preprocessing],
) -> Equations:
    """Fit scaling, metric and map; return them, and the moments of the rows, as equations without a fold."""
    job, source = p.job, by_folds.source._replace(folds=0)
    pre, moments = scaling(job.preprocess, source, client, watch, bool(job.class_weight), by_folds)
    pre = learn(pre)
    if job.metric.rounds and not pre.metric.size:
        raise DataError(
            f"{job.preprocess.reuse} holds no metric, but this job has metric.rounds = {job.metric.rounds}; reuse a "
            "run that has learned one, or leave out [metric]"
        )
    features = fitted(p.features, job.preprocess, source, pre, client, watch)
    counts = {p.layout.fingerprint: 1}
    return Equations([], features, pre, p.dtype, p.scored, moments, counts, augment=job.augment)


def scaling(
    preprocess: Preprocess,
    source: Source,
    client: Client | None,
    watch: Watch | None,
    balanced: bool | None = None,
    by_folds: ByFold | None = None,
) -> tuple[Preprocessing, Moments]:
    """Fit or reuse the scaling of a dataset, and sum the moments of its own rows, which a later run may add to others'.

    ``balanced`` asks for classes of equal weight; None takes the weights that are reused.  ``by_folds`` reads the same
    rows by fold, for means of targets by category.
    """
    mode, reuse = preprocess.resolve(source.layout), preprocess.reuse
    needed = encode.is_needed(preprocess, source)
    if reuse and " + " not in reuse:
        pre = earlier.scaling(reuse, source, balanced)
        if pre.range.bounded and preprocess.clip == "none":
            raise DataError(f'clip is "none" but {reuse} clips inputs; leave out clip, or reuse')
        return pre, moments_of(earlier.matched(source, pre), pre, client, watch)
    if needed:
        return encode.fit(preprocess, source, by_folds, client, watch, bool(balanced))
    together = earlier.moments(reuse.split(" + "), MomentsOf(mode, source.layout), source, balanced) if reuse else None
    own = _moments_in(source, mode, client, watch)
    return Preprocessing.fit(
        mode, source.layout, own if together is None else together, bool(balanced), preprocess.clip
    ), own


def moments_of(source: Source, pre: Preprocessing, client: Client | None, watch: Watch | None) -> Moments:
    """Sum the moments of rows in one pass, in the columns of a scaling that was fitted to others."""
    return _moments_in(source, "channels" if pre.by_channel else "columns", client, watch)


def _moments_in(source: Source, mode: Mode, client: Client | None, watch: Watch | None) -> Moments:
    summand, size = MomentsOf(mode, source.layout), source.layout.rows_per_partition
    moments: Moments = reduce_all(source, summand, size, client, "moments", watch).total
    return moments


def verified(p: Plan, *, client: Client | None, watch: Watch | None) -> Plan:
    """Return the plan with the partitions that `verified_source` skips.

    They are found once, before all else, so that every pass, and a run that continues this one, skips the same.
    """
    if p.dataset.damaged == "error" or p.skip is not None:
        return p
    return msgspec.structs.replace(p, skip=verified_source(source_of(p), client, watch).skip)


def verified_source(source: Source, client: Client | None, watch: Watch | None) -> Source:
    """Return a source that skips damaged partitions, if the dataset asks for that; this reads everything once.

    All passes over a dataset begin here, except those with a result for every row: predict and featurize.  Raises
    DataError if all partitions are damaged.
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
    """A summand that lists the damaged partitions, one a span; a sum is a tuple."""

    dataset: Dataset
    layout: Layout
    labelled: bool

    def zero(self) -> tuple[int, ...]:
        return ()

    def blocks(self, shard: Shard, read: Iterator[Rows]) -> Iterator[Any]:
        """Yield the spans of damaged partitions instead of rows, which end at the first that is damaged."""
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
    """Read the fold of each row until all folds are seen; raise DataError if one gets no rows."""
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
