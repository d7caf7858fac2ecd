"""The only mapper of the program: partitions in, one sum out, the same on any Dask scheduler.

Sums of shards are added in a tree whose shape is fixed by their order, never by who finishes first, so that the same
plan gives the same bits everywhere.
"""

import functools
import itertools
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import dask
from dask.callbacks import Callback
from dask.delayed import delayed
from distributed import CancelledError, Client, Future, KilledWorker, as_completed, wait
from distributed.protocol import register_generic

from ntkdist import backend
from ntkdist.cluster import phases
from ntkdist.cluster.connect import as_delayed, is_large, local_scheduler, upload_once
from ntkdist.cluster.progress import Progress, RowsDone, Watch, default_watch, ignore
from ntkdist.cluster.rows_told import RowsTold, listening
from ntkdist.cluster.shards import (
    AnySummand,
    KeepsShards,
    Part,
    PerFold,
    ServesRows,
    Source,
    add_parts,
    add_shard,
    run_shard,
)
from ntkdist.cluster.tally import Tally
from ntkdist.cluster.tree import Tree, tree
from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Dataset, Shard
from ntkdist.data.partitions import evenly
from ntkdist.errors import ClusterError
from ntkdist.sums import CrossSums, NormalEquations

T = TypeVar("T")
MAP_TASKS, MAP_FAN_IN = 256, 8  # of a pass that makes one small sum
for _sum in (Part, NormalEquations, CrossSums):  # sent as their arrays: pickled for the scheduler they would be copied
    register_generic(_sum)


class Pass(NamedTuple):
    """One pass over rows: what is read, what is summed, and how it is cut.

    Shards are ordered by group, and groups are numbered from 0.  ``progress`` is called with rows that are done, of
    shards that run or have ended; ``keep`` spares the shards that were finished before, and saves the others.
    """

    source: Source
    summand: AnySummand
    shards: Sequence[Shard]
    fan_in: int
    progress: Progress = ignore
    keep: KeepsShards | None = None

    @property
    def groups(self) -> list[list[int]]:
        """The shards of every group, by their numbers."""
        groups: list[list[int]] = [[] for _ in range(1 + max(shard.group for shard in self.shards))]
        for i, shard in enumerate(self.shards):
            groups[shard.group].append(i)
        return groups


def reduce(one: Pass, client: Client | None) -> list[Part]:
    """Return the sum of every group of shards; errors are those of `sums_in_place`."""
    return fetch(client, sums_in_place(one, client))


def sums_in_place(one: Pass, client: Client | None) -> list[Any]:
    """Sum every group of shards and leave each sum where it was added up.

    Returns futures of a `Part`; without a client, the parts, summed in this process under `local_scheduler`.

    Raises
    ------
    DataError
        From reading.
    ClusterError
        If workers kept dying, a task kept failing, or the scheduler is gone.
    """
    if isinstance(one.source.dataset, Dataset):
        one = one._replace(source=one.source._replace(dataset=one.source.dataset.absolute()))
    elif one.source.dataset.lazy:
        return _reduce_lazy(one, client)
    if client is not None:
        return _reduce_on_cluster(one, client)
    with backend.own_threads():
        backend.use_threads(one.source.threads)
        return _reduce_in_order(one) if local_scheduler() == "synchronous" else _reduce_on_threads(one)


def reduce_into(one: Pass, total: Any) -> Part:
    """Add all shards to one sum, in place, shard by shard in this process: no second sum is made.

    Errors are those of `add_shard`.
    """
    tally, rows = Tally(), RowsDone(one.progress)
    assert not isinstance(one.summand, PerFold)
    with backend.own_threads():
        backend.use_threads(one.source.threads)
        for i, shard in enumerate(one.shards):
            part = add_shard(one.source, one.summand, shard, total, functools.partial(rows.within, i))
            total, tally = part.total, tally + part.tally
            rows.reach(i, shard.rows)
    return Part(total, tally)


def fetch(client: Client | None, promised: Sequence[Any]) -> list[Any]:
    """Return the values of some futures; without a client, what is given."""
    if client is None:
        return list(promised)
    with _said_in_a_sentence(client):
        return list(client.gather(promised))


def settle(client: Client | None, promised: Sequence[Any]) -> None:
    """Wait until some futures are there, or have failed."""
    if client is not None:
        with _said_in_a_sentence(client), client.as_current():  # Dask's wait knows no other way
            wait(promised)


def reduce_all(
    source: Source, summand: AnySummand, rows_per_span: int, client: Client | None, name: str, watch: Watch | None
) -> Part:
    """Return one sum over all rows of a dataset, read in spans of a size, with progress shown."""
    rows = source.layout.rows
    spans = [(a, min(a + rows_per_span, rows)) for a in range(0, rows, rows_per_span)]
    shards = [Shard(0, tuple(some)) for some in evenly(spans, MAP_TASKS)]
    with phase(name, rows, client, watch) as done:
        return reduce(Pass(source, summand, shards, MAP_FAN_IN, done), client)[0]


def _reduce_in_order(one: Pass) -> list[Part]:
    """Sum shard by shard: in their order, not Dask's, which breaks ties by random keys."""
    totals, rows = [], RowsDone(one.progress)
    for group in one.groups:
        sums = Tree(one.fan_in, add_parts)
        for i in group:
            shard = one.shards[i]
            sums.push(run_shard(one.source, one.summand, shard, one.keep, functools.partial(rows.within, i)))
            rows.reach(i, shard.rows)
        totals.append(sums.total())
    return totals


def _reduce_on_threads(one: Pass) -> list[Part]:
    """Sum under Dask's threads in this process."""
    # Arguments that are bound here are not searched for tasks, which would take longer than a small shard does.
    rows = RowsDone(one.progress)
    keys = {f"ntkdist-shard-{i}": i for i in range(len(one.shards))}
    leaves = []
    for key, i in keys.items():
        told = functools.partial(rows.within, i)
        run = functools.partial(run_shard, one.source, one.summand, one.shards[i], one.keep, told)
        leaves.append(delayed(run, traverse=False)(dask_key_name=key))
    totals = _trees(one, leaves)

    def done(key: str, *_: Any) -> None:
        if key in keys:
            rows.reach(keys[key], one.shards[keys[key]].rows)

    with Callback(posttask=done):
        return list(dask.compute(*totals, scheduler=local_scheduler(), optimize_graph=False))


def _reduce_lazy(one: Pass, client: Client | None) -> list[Part]:
    """Sum rows that Dask computes: a task gets them as an argument, from its first span to its last."""
    arrays = one.source.dataset
    assert isinstance(arrays, Arrays)
    bare, summand = one.source._replace(dataset=arrays.without_rows()), as_delayed(one.summand, client)
    leaves = []
    for shard in one.shards:
        start, stop = shard.spans[0][0], shard.spans[-1][1]
        run = delayed(functools.partial(_run_held, bare, shard._replace(spans=((start, stop),))), traverse=False)
        leaves.append(run(summand, *arrays.between(start, stop)))
    totals = _trees(one, leaves)
    if client is None:
        with backend.own_threads():
            backend.use_threads(one.source.threads)
            parts = list(dask.compute(*totals, scheduler=local_scheduler()))
    else:
        parts = list(client.compute(totals, sync=True))
    one.progress(sum(shard.rows for shard in one.shards))
    return parts


def _trees(one: Pass, leaves: Sequence[Any]) -> list[Any]:
    """Build the delayed sum of every group."""
    return [tree((leaves[i] for i in group), one.fan_in, delayed(add_parts)) for group in one.groups]


def _run_held(source: Source, shard: Shard, summand: AnySummand, *held: Any) -> Part:
    """Run a shard on rows that are at hand."""
    assert isinstance(source.dataset, Arrays)
    return run_shard(source._replace(dataset=source.dataset.holding(shard.spans[0][0], *held)), summand, shard)


def _reduce_on_cluster(one: Pass, client: Client) -> list[Any]:
    """Submit shards and additions, and return the futures of the sums."""
    # Keys of one pass never meet those of another, nor are they of one task group, which is in the first one's span.
    pass_id, additions = uuid.uuid4().hex[:8], itertools.count()
    summand: Any = one.summand
    if is_large(summand):
        summand = upload_once(summand, client, (f"ntkdist-summand-{pass_id}", 0))
    threads = client.nthreads()
    at_once, workers = 2 * max(1, sum(threads.values())), sorted(threads)
    running = as_completed(loop=client.loop)  # the default would be the default client's
    serves = isinstance(one.summand, ServesRows)
    rows, shard_of = RowsDone(one.progress), dict[tuple[str, int], int]()

    def in_turn(number: int) -> dict[str, Any]:
        return {"workers": workers[number % len(workers)], "allow_other_workers": True} if workers else {}

    def finish_one() -> None:
        future = next(running)
        if future.status != "finished":
            future.result()
        if (i := shard_of.get(future.key)) is not None:
            rows.reach(i, one.shards[i].rows)

    def wait_for_room() -> None:
        while running.count() >= at_once:  # never more sums in flight than the workers can use
            finish_one()

    def leaves(group: list[int]) -> Iterator[Future[Any]]:
        for i in group:
            wait_for_room()
            key = f"ntkdist-shard-{pass_id}", i
            shard_of[key] = i
            # What is bound here is not searched for futures, which would take longer than all else of a submission.
            told = RowsTold(pass_id, i)
            run = functools.partial(run_shard, one.source, shard=one.shards[i], keep=one.keep, done=told)
            future = client.submit(run, summand, key=key, **(in_turn(i) if serves else {}))
            running.add(future)
            yield future

    def add(parts: list[Future[Any]]) -> Future[Any]:
        key = f"ntkdist-add-{pass_id}", next(additions)
        # In turn, as the projected memory counts them: Dask would gather all sums on the worker that has most of them.
        future = client.submit(add_parts, parts, key=key, priority=10, **in_turn(key[1]))
        running.add(future)  # with what it adds: else shards would run ahead of additions that wait for theirs
        return future

    with _said_in_a_sentence(client), listening(client, pass_id, rows):
        totals = [tree(leaves(group), one.fan_in, add) for group in one.groups]
        while running.count():
            finish_one()
    return totals


@contextmanager
def _said_in_a_sentence(client: Client) -> Iterator[None]:
    """Translate KilledWorker and lost connections into one ClusterError."""
    try:
        yield
    except KilledWorker as error:
        raise ClusterError(
            f"Task {_written(error.task)} was tried on several workers and each died ({error.last_worker} last); "
            "look at their logs, give them more memory, or lower block_rows"
        ) from error
    except Exception as error:
        if not isinstance(error, CancelledError) and client.status == "running":
            raise
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it would tell the same at length
        raise ClusterError(
            f"The connection to the Dask scheduler was lost ({type(error).__name__}); see that it runs and run again: "
            "what a checkpoint holds is not done anew"
        ) from error


def _written(key: Any) -> str:
    """Write a task's key as Dask's logs do."""
    return "-".join(map(str, key)) if isinstance(key, tuple) else str(key)


@contextmanager
def phase(name: str, rows: int, client: Client | None, watch: Watch | None) -> Iterator[Progress]:
    """Open a phase: in the log, as a span on the scheduler, and as progress by ``watch`` or what suits the place."""
    shown = watch or default_watch(len(client.nthreads()) if client else 1)
    with phases.phase(name, client), shown(name, rows) as done:
        yield done


def on_each_worker(client: Client | None, call: Callable[[], T]) -> list[T]:
    """Call a function in every process that takes part, all at once; one that dies meanwhile is left out."""
    return [call()] if client is None else list(client.run(call, on_error="ignore").values())
