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
from typing import Any, TypeVar

import dask
from dask.callbacks import Callback
from dask.delayed import delayed
from distributed import CancelledError, Client, Future, KilledWorker, as_completed, wait
from distributed.protocol import register_generic

from ntkdist import backend, phases
from ntkdist.arrays import Arrays
from ntkdist.cluster import ahead, large, local_scheduler, shared
from ntkdist.data import Dataset
from ntkdist.errors import ClusterError
from ntkdist.progress import Progress, Watch, default_watch
from ntkdist.shards import AnySummand, Keep, Part, Remembering, Shard, Source, add_parts, run_shard
from ntkdist.sums import CrossSums, NormalEquations
from ntkdist.tree import evenly, tree

T = TypeVar("T")
MAP_TASKS, MAP_FAN_IN = 256, 8  # of a pass that makes one small sum
for _sum in (Part, NormalEquations, CrossSums):  # sent as their arrays: pickled for the scheduler they would be copied
    register_generic(_sum)


def reduce(
    source: Source,
    summand: AnySummand,
    shards: Sequence[Shard],
    fan_in: int,
    client: Client | None,
    progress: Progress,
    keep: Keep | None = None,
) -> list[Part]:
    """The sum of every group of shards; arguments and errors are those of `sums_in_place`."""
    return fetch(client, sums_in_place(source, summand, shards, fan_in, client, progress, keep))


def sums_in_place(
    source: Source,
    summand: AnySummand,
    shards: Sequence[Shard],
    fan_in: int,
    client: Client | None,
    progress: Progress,
    keep: Keep | None = None,
) -> list[Any]:
    """The sum of every group of shards, left where it was added up: a future of a `Part`; without a client, the part.

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
        If workers kept dying, a task kept failing, or the scheduler is gone.
    """
    if isinstance(source.dataset, Dataset):
        source = source._replace(dataset=source.dataset.absolute())
    elif source.dataset.lazy:
        return _reduce_lazy(source, summand, shards, fan_in, client, progress)
    if client is None:
        with backend.own_threads():
            backend.use_threads(source.threads)
            return _reduce_here(source, summand, shards, fan_in, progress, keep)
    return _reduce_there(source, summand, shards, fan_in, client, progress, keep)


def fetch(client: Client | None, promised: Sequence[Any]) -> list[Any]:
    """The values of some futures; without a client, what is given."""
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
    """One sum over all rows of a dataset, read in spans of a size, with progress shown."""
    rows = source.layout.rows
    spans = [(a, min(a + rows_per_span, rows)) for a in range(0, rows, rows_per_span)]
    shards = [Shard(0, tuple(some)) for some in evenly(spans, MAP_TASKS)]
    with phase(name, rows, client, watch) as done:
        return reduce(source, summand, shards, MAP_FAN_IN, client, done)[0]


def _groups(shards: Sequence[Shard]) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in range(1 + max(s.group for s in shards))]
    for i, shard in enumerate(shards):
        groups[shard.group].append(i)
    return groups


def _reduce_here(
    source: Source,
    summand: AnySummand,
    shards: Sequence[Shard],
    fan_in: int,
    progress: Progress,
    keep: Keep | None,
) -> list[Part]:
    if local_scheduler() == "synchronous":  # in their order, not Dask's, which breaks ties by random keys

        def part(i: int) -> Part:
            done = run_shard(source, summand, shards[i], keep)
            progress(shards[i].rows)
            return done

        return [tree((part(i) for i in group), fan_in, add_parts) for group in _groups(shards)]
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


def _reduce_lazy(
    source: Source,
    summand: AnySummand,
    shards: Sequence[Shard],
    fan_in: int,
    client: Client | None,
    progress: Progress,
) -> list[Part]:
    """The same of rows that are Dask's to compute: a task gets them as an argument, from its first span to its last."""
    arrays = source.dataset
    assert isinstance(arrays, Arrays)
    bare, what, add = source._replace(dataset=arrays.without_rows()), shared(summand, client), delayed(add_parts)
    leaves = []
    for shard in shards:
        start, stop = shard.spans[0][0], shard.spans[-1][1]
        run = delayed(functools.partial(_run_held, bare, Shard(shard.group, ((start, stop),))), traverse=False)
        leaves.append(run(what, *arrays.between(start, stop)))
    totals = [tree((leaves[i] for i in group), fan_in, add) for group in _groups(shards)]
    if client is None:
        with backend.own_threads():
            backend.use_threads(source.threads)
            parts = list(dask.compute(*totals, scheduler=local_scheduler()))
    else:
        parts = list(client.compute(totals, sync=True))
    progress(sum(shard.rows for shard in shards))
    return parts


def _run_held(source: Source, shard: Shard, summand: AnySummand, *held: Any) -> Part:
    assert isinstance(source.dataset, Arrays)
    return run_shard(source._replace(dataset=source.dataset.holding(shard.spans[0][0], *held)), summand, shard)


def _reduce_there(
    source: Source,
    summand: AnySummand,
    shards: Sequence[Shard],
    fan_in: int,
    client: Client,
    progress: Progress,
    keep: Keep | None,
) -> list[Any]:
    # Keys of one pass never meet those of another, nor are they of one task group, which is in the first one's span.
    pass_id, additions = uuid.uuid4().hex[:8], itertools.count()
    held: Any = ahead(summand, client, (f"ntkdist-summand-{pass_id}", 0)) if large(summand) else summand
    at_once = 2 * max(1, sum(client.nthreads().values()))
    running = as_completed(loop=client.loop)  # the default would be the default client's
    homes = sorted(client.scheduler_info(n_workers=-1)["workers"]) if isinstance(summand, Remembering) else []
    rows: dict[tuple[str, int], int] = {}

    def finish_one() -> None:
        future = next(running)
        if future.status != "finished":
            future.result()
        progress(rows[future.key])

    def wait_for_room() -> None:
        while running.count() >= at_once:  # never more sums in flight than the workers can use
            finish_one()

    def leaves(group: list[int]) -> Iterator[Future[Any]]:
        for i in group:
            wait_for_room()
            key = f"ntkdist-shard-{pass_id}", i
            rows[key] = shards[i].rows
            home = {"workers": homes[i % len(homes)], "allow_other_workers": True} if homes else {}
            # What is bound here is not searched for futures, which would take longer than all else of a submission.
            run = functools.partial(run_shard, source, shard=shards[i], keep=keep)
            future = client.submit(run, held, key=key, **home)
            running.add(future)
            yield future

    def add(parts: list[Future[Any]]) -> Future[Any]:
        key = f"ntkdist-add-{pass_id}", next(additions)
        rows[key] = 0
        future = client.submit(add_parts, parts, key=key, priority=10)
        running.add(future)  # with what it adds: else shards would run ahead of additions that wait for theirs
        return future

    with _said_in_a_sentence(client):
        totals = [tree(leaves(group), fan_in, add) for group in _groups(shards)]
        while running.count():
            finish_one()
    return totals


@contextmanager
def _said_in_a_sentence(client: Client) -> Iterator[None]:
    """That workers kept dying, or the scheduler is gone."""
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
    """A task's key as others write it."""
    return "-".join(map(str, key)) if isinstance(key, tuple) else str(key)


@contextmanager
def phase(name: str, rows: int, client: Client | None, watch: Watch | None) -> Iterator[Progress]:
    """A phase for all who look: in the log, on the scheduler, and as progress by ``watch`` or what suits the place."""
    shown = watch or default_watch(len(client.nthreads()) if client else 1)
    with phases.phase(name, client), shown(name, rows) as done:
        yield done


def on_each_worker(client: Client | None, call: Callable[[], T]) -> list[T]:
    """Call a function in every process that takes part, all at once; one that dies meanwhile is left out."""
    return [call()] if client is None else list(client.run(call, on_error="ignore").values())
