"""The only mapper of the program: partitions in, one sum out, the same on any Dask scheduler.

A *shard* is a task that streams its spans of rows through one accumulator.  Shards are added in a tree whose shape is
fixed by their order, never by who finishes first, so that the same plan gives the same bits everywhere.
"""

import functools
import os
import pickle
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import dask
import msgspec
from dask.callbacks import Callback
from dask.delayed import delayed
from distributed import Client, Future, KilledWorker, as_completed

from ntkdist import backend
from ntkdist.cluster import local_scheduler
from ntkdist.data import Dataset, Layout, Rows
from ntkdist.errors import ClusterError
from ntkdist.places import absolute
from ntkdist.plan import evenly
from ntkdist.progress import Progress, Watch, default_watch
from ntkdist.sparse import concatenate
from ntkdist.sums import Tally

T = TypeVar("T")
EMBED_BYTES = 2**20  # of a summand; a larger one is a task's result, that tasks take from one another
MAP_TASKS, MAP_FAN_IN = 256, 8  # of a pass that makes one small sum


class Summand(Protocol):
    """What a pass computes: a picklable value that says where a sum starts and how rows enter it."""

    def zero(self) -> Any:
        """The empty sum."""

    def update(self, total: Any, rows: Rows) -> Any:
        """The sum with some rows added; may change ``total`` in place."""


@runtime_checkable
class Remembering(Protocol):
    """A summand of many passes that may have a shard's rows in the memory of the process that saw them before."""

    def blocks(self, shard: "Shard", read: Iterator[Rows]) -> Iterator[Rows]:
        """The blocks of a shard: from memory, or as read."""


class Keep(Protocol):
    """Where the sums of finished shards are kept, if anywhere."""

    def load(self, shard: "Shard") -> "Part | None":
        """A shard's sum, if it was finished before."""

    def save(self, shard: "Shard", part: "Part") -> None:
        """Keep a shard's sum."""


class Part(NamedTuple):
    """A sum, and what was done for it."""

    total: Any
    tally: Tally


class Shard(NamedTuple):
    """One task: spans of rows (start, stop), read in this order."""

    group: int
    spans: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> int:
        return sum(stop - start for start, stop in self.spans)


class Source(NamedTuple):
    """Where rows come from, and in what blocks they reach the summand: span by span if ``block_rows`` is 0.

    With ``folds``, rows are dealt to that many folds one by one, and a shard takes those of the fold that is its group.
    """

    dataset: Dataset
    layout: Layout
    block_rows: int
    threads: int
    labelled: bool = True
    folds: int = 0


def reduce(
    source: Source,
    summand: Summand,
    shards: Sequence[Shard],
    fan_in: int,
    client: Client | None,
    progress: Progress,
    keep: Keep | None = None,
) -> list[Part]:
    """The sum of every group of shards.

    Parameters
    ----------
    source : Source
    summand : Summand
    shards : sequence of Shard
        Ordered by group; groups are numbered from 0.
    fan_in : int
        Sums that one task adds.
    client : distributed.Client, optional
        Where to run; absent, in this process under `local_scheduler`.
    progress : callable
        Told the rows of each shard that is done.
    keep : Keep, optional
        Spares the shards that were finished before, and keeps the others.

    Raises
    ------
    DataError
        From reading.
    ClusterError
        If workers kept dying.
    """
    dataset = msgspec.structs.replace(source.dataset, store=absolute(source.dataset.store))
    source = source._replace(dataset=dataset)
    if client is None:
        with backend.own_threads():
            return _reduce_here(source, summand, shards, fan_in, progress, keep)
    return _reduce_there(source, summand, shards, fan_in, client, progress, keep)


def reduce_all(
    source: Source, summand: Summand, rows_per_span: int, client: Client | None, phase: str, watch: Watch | None
) -> Part:
    """One sum over all rows of a dataset, read in spans of a size, with progress shown."""
    rows = source.layout.rows
    spans = [(a, min(a + rows_per_span, rows)) for a in range(0, rows, rows_per_span)]
    shards = [Shard(0, tuple(some)) for some in evenly(spans, MAP_TASKS)]
    with (watch or default_watch())(phase, rows) as done:
        return reduce(source, summand, shards, MAP_FAN_IN, client, done)[0]


def run_shard(source: Source, summand: Summand, shard: Shard, keep: Keep | None = None) -> Part:
    """What one task does: read, map, add; a pure function of its arguments."""
    if keep is not None and (part := keep.load(shard)) is not None:
        return part
    backend.use_threads(source.threads)
    tally, total = Tally(), summand.zero()
    start = time.perf_counter()
    read = blocks(source, shard.spans, tally, shard.group)
    for rows in summand.blocks(shard, read) if isinstance(summand, Remembering) else read:
        total = summand.update(total, rows)
    tally.work_seconds = time.perf_counter() - start - tally.read_seconds
    tally.workers[f"{socket.gethostname()}:{os.getpid()}"] = backend.peak_memory_bytes()
    part = Part(total, tally)
    if keep is not None:
        keep.save(shard, part)
    return part


def add_parts(parts: Sequence[Part]) -> Part:
    """Add sums from left to right; the first addition makes memory of its own, which the others may reuse."""
    total, tally = parts[0].total + parts[1].total, parts[0].tally + parts[1].tally
    for part in parts[2:]:
        total += part.total
        tally += part.tally
    return Part(total, tally)


def blocks(source: Source, spans: Iterable[tuple[int, int]], tally: Tally, fold: int = 0) -> Iterator[Rows]:
    """The rows of some spans, cut into blocks of equal size (the last may be shorter) whatever the spans are."""
    held: list[Rows] = []
    for start, stop in spans:
        began = time.perf_counter()
        keep = source.dataset.folds(source.layout, start, stop, source.folds) == fold if source.folds else None
        if keep is not None and not keep.any():
            continue
        rows = source.dataset.read(source.layout, start, stop, labelled=source.labelled, keep=keep)
        tally.read_seconds += time.perf_counter() - began
        tally.rows += rows.n
        tally.dropped += rows.dropped
        tally.nbytes += rows.nbytes
        if not source.block_rows:
            yield rows
            continue
        at = 0
        while at < rows.n:
            size = source.block_rows - sum(h.n for h in held)
            held.append(rows.take(slice(at, at + size)))
            at += held[-1].n
            if sum(h.n for h in held) == source.block_rows:
                yield _join(held)
                held = []
    if held:
        yield _join(held)


def _join(held: list[Rows]) -> Rows:
    if len(held) == 1:
        return held[0]
    pick = [None if a is None else concatenate([h[i] for h in held]) for i, a in enumerate(held[0][:4])]
    assert pick[0] is not None
    assert pick[3] is not None
    return held[0]._replace(x=pick[0], y=pick[1], weight=pick[2], places=pick[3])


def tree(leaves: Iterable[T], fan_in: int, add: Callable[[list[T]], T]) -> T:
    """Add leaves in a tree whose shape depends on their number alone, keeping fewer than fan_in of any level.

    The leaves may be sums, or promises of them.
    """
    levels: list[list[T]] = []
    for leaf in leaves:
        height, carry = 0, leaf
        while True:
            if height == len(levels):
                levels.append([])
            levels[height].append(carry)
            if len(levels[height]) < fan_in:
                break
            carry, levels[height] = add(levels[height]), []
            height += 1
    rest = [part for level in reversed(levels) for part in level]  # the tallest hold the first leaves
    while len(rest) > 1:
        rest = [add(rest[:fan_in]), *rest[fan_in:]]
    return rest[0]


def _groups(shards: Sequence[Shard]) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in range(1 + max(s.group for s in shards))]
    for i, shard in enumerate(shards):
        groups[shard.group].append(i)
    return groups


def _reduce_here(
    source: Source, summand: Summand, shards: Sequence[Shard], fan_in: int, progress: Progress, keep: Keep | None
) -> list[Part]:
    # Arguments that are bound here are not searched for tasks, which would take longer than a small shard does.
    run = delayed(functools.partial(run_shard, source, summand, keep=keep), traverse=False)
    add = delayed(add_parts)
    keys = {f"ntkdist-shard-{i}": shard.rows for i, shard in enumerate(shards)}
    leaves = [run(shard, dask_key_name=key) for key, shard in zip(keys, shards, strict=True)]
    totals = [tree((leaves[i] for i in group), fan_in, add) for group in _groups(shards)]

    def done(key: str, *_: Any) -> None:
        if key in keys:
            progress(keys[key])

    with Callback(posttask=done):
        return list(dask.compute(*totals, scheduler=local_scheduler(), optimize_graph=False))


def _reduce_there(
    source: Source,
    summand: Summand,
    shards: Sequence[Shard],
    fan_in: int,
    client: Client,
    progress: Progress,
    keep: Keep | None,
) -> list[Part]:
    run_id = uuid.uuid4().hex[:8]  # keys of one run never meet those of another
    held: Any = summand
    if len(pickle.dumps(summand)) > EMBED_BYTES:
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 GB"}):  # once a run
            held = client.submit(_itself, summand, key=f"ntkdist-summand-{run_id}")
    at_once = 2 * max(1, sum(client.nthreads().values()))
    running = as_completed(loop=client.loop)  # the default would be the default client's
    homes = sorted(client.scheduler_info(n_workers=-1)["workers"]) if isinstance(summand, Remembering) else []
    rows: dict[str, int] = {}

    def finish_one() -> None:
        future = next(running)
        if future.status != "finished":
            future.result()
        progress(rows[future.key])

    def leaves(group: list[int]) -> Iterator[Future[Any]]:
        for i in group:
            if running.count() >= at_once:  # never more sums in flight than the workers can use
                finish_one()
            key = f"ntkdist-shard-{run_id}-{i}"
            rows[key] = shards[i].rows
            home = {"workers": homes[i % len(homes)], "allow_other_workers": True} if homes else {}
            future = client.submit(run_shard, source, held, shards[i], keep, key=key, **home)
            running.add(future)
            yield future

    def add(parts: list[Future[Any]]) -> Future[Any]:
        return client.submit(add_parts, parts, key=f"ntkdist-add-{uuid.uuid4().hex}", priority=10)

    try:
        totals = [tree(leaves(group), fan_in, add) for group in _groups(shards)]
        while running.count():
            finish_one()
        return list(client.gather(totals))
    except KilledWorker as error:
        raise ClusterError(
            f"Task {error.task} was tried on several workers and each died ({error.last_worker} last); "
            "look at their logs, give them more memory, or lower block_rows"
        ) from error


def _itself(summand: T) -> T:
    """A summand as a task's result: it goes to the scheduler once, and from worker to worker from then on."""
    return summand


def on_each_worker(client: Client | None, call: Callable[[], T]) -> list[T]:
    """Call a function in every process that takes part, all at once."""
    return [call()] if client is None else list(client.run(call).values())
