"""Shards: tasks that stream spans of rows from a dataset through one accumulator, and the addition of their sums."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend, memory, random
from ntkdist.cluster.tally import Tally, added, first
from ntkdist.data.arrays import Arrays
from ntkdist.data.augment import Augment
from ntkdist.data.dataset import Dataset, Layout, Rows, Shard
from ntkdist.data.ranges import Range, SeenRange, first_outside
from ntkdist.data.scaling import Matching, column_names
from ntkdist.data.sparse import concatenate
from ntkdist.errors import ClusterError, NtkdistError

SHARE = 1002  # key of the random stream that picks a share of the rows: a layer that no map uses
PAUSES = (0.5, 2.0)  # seconds until a task that failed is tried again


class Summand(Protocol):
    """The computation of a pass: a picklable value that knows the empty sum, and how rows enter a sum."""

    def zero(self) -> Any:
        """Return the empty sum."""

    def update(self, total: Any, rows: Rows) -> Any:
        """Return the sum with some rows added; ``total`` may change in place."""


@runtime_checkable
class ServesRows(Protocol):
    """A summand of many passes that can keep a shard's rows in the memory of the process that read them."""

    def blocks(self, shard: "Shard", read: Iterator[Rows]) -> Iterator[Rows]:
        """Yield the blocks of a shard, from memory or as read."""


@runtime_checkable
class OnDevice(Protocol):
    """A summand that accumulates on a GPU; `to_host` copies the sum back before the task returns."""

    def to_host(self, total: Any, shard: "Shard") -> Any:
        """Copy a shard's sum to the host, before it leaves the task."""


@runtime_checkable
class PerFold(Protocol):
    """A summand that differs by fold, that is, by the group of a shard."""

    def of(self, group: int) -> Summand:
        """Return the summand of a group."""


AnySummand = Summand | PerFold
Done = Callable[[int], None]  # told the rows of a shard that are done, while it runs


class KeepsShards(Protocol):
    """A store of the sums of finished shards."""

    def load(self, shard: "Shard") -> "Part | None":
        """Load a shard's sum, if it was finished before."""

    def save(self, shard: "Shard", part: "Part") -> None:
        """Save a shard's sum."""


@dataclass(frozen=True)
class Part:
    """A sum, with the tally of its making."""

    total: Any
    tally: Tally

    def __sizeof__(self) -> int:
        """Return the bytes of the sum, which a worker counts and spills by."""
        return sys.getsizeof(self.total)


class Source(NamedTuple):
    """A source of rows, and the size of the blocks in which they reach the summand: span by span if ``block_rows`` is
    0.

    With ``folds``, rows are dealt to that many folds one by one, and a shard takes those of its fold, or if it has none
    of the fold that is its group.  Rows of the partitions in ``skip`` are left out, and so are all but a ``share`` of
    the others, which a hash of the positions picks.  With a ``matching``, rows are read as those of a model's columns.
    With a ``range``, rows with values outside are counted.  With ``augment``, copies of rows take their place, those of
    the shard.
    """

    dataset: Dataset | Arrays
    layout: Layout
    block_rows: int
    threads: int
    labelled: bool = True
    folds: int = 0
    skip: tuple[int, ...] = ()
    range: Range | SeenRange | None = None
    matching: Matching | None = None
    share: float = 1.0
    augment: Augment | None = None

    def kept(self, start: int, stop: int, fold: int) -> NDArray[np.bool_] | None:
        """Mark the rows of a span that belong to a fold and to the share; None for all."""
        keep = None
        if self.folds:
            keep = self.dataset.folds(self.layout, start, stop, self.folds) == fold
        if self.share < 1:
            picked = random.uniforms_of(np.arange(start, stop), 0, SHARE, 0) < self.share
            keep = picked if keep is None else keep & picked
        return keep


def run_shard(
    source: Source,
    summand: AnySummand,
    shard: Shard,
    keep: KeepsShards | None = None,
    done: Done | None = None,
) -> Part:
    """Read, map and add the rows of a shard: a pure function of its arguments, tried again after an error that may
    pass.

    An error of ntkdist's own is final: another try would not change it.  ``done`` is called with the rows that are done
    after every block.
    """
    if keep is not None and (kept := keep.load(shard)) is not None:
        return kept
    backend.use_threads(source.threads)
    one = summand.of(shard.group) if isinstance(summand, PerFold) else summand
    for pause in (*PAUSES, None):
        try:
            part = _sum(source, one, shard, done)
            break
        except NtkdistError:
            raise
        except Exception as error:
            if pause is None:
                rows = f"{shard.spans[0][0]}–{shard.spans[-1][1] - 1}"
                raise ClusterError(
                    f"The task of rows {rows} failed {len(PAUSES) + 1} times, last "
                    f"with {type(error).__name__}: {error} ({memory.process_name()}); see to the cause, and run again"
                ) from error
        time.sleep(pause)  # not in the handler, where the error would still hold the sum
    if keep is not None:
        keep.save(shard, part)
    return part


def add_shard(source: Source, summand: Summand, shard: Shard, total: Any, done: Done | None = None) -> Part:
    """Add the rows of a shard to a sum, in place; arguments are those of `run_shard`.

    An error is final: some of the rows may be in the sum.
    """
    try:
        return _sum(source, summand, shard, done, total)
    except NtkdistError:
        raise
    except Exception as error:
        raise ClusterError(
            f"Adding rows {shard.which} failed with {type(error).__name__}: {error}; see to the cause, and run again: "
            "what a checkpoint holds is not done anew"
        ) from error


def _sum(source: Source, summand: Summand, shard: Shard, done: Done | None = None, total: Any = None) -> Part:
    """Add the rows of a shard to a total, or to the empty sum."""
    tally, count = Tally(), 0
    total = summand.zero() if total is None else total
    start = time.perf_counter()
    read = blocks(source, shard.spans, tally, shard.group, shard.fold, shard.copies)
    for rows in summand.blocks(shard, read) if isinstance(summand, ServesRows) else read:
        total = summand.update(total, rows)
        if done is not None and isinstance(rows, Rows):  # some summands serve what they made of rows before
            count += rows.n
            done(count)
        del rows  # which may be all that keeps the partition before, while the next one is read
    if isinstance(summand, OnDevice):
        total = summand.to_host(total, shard)
    tally.work_seconds = time.perf_counter() - start - tally.read_seconds
    name, peak = memory.peak()
    tally.saw([(name, peak)])
    tally.worked[name] = (tally.rows, tally.read_seconds + tally.work_seconds)
    return Part(total, tally)


def add_parts(parts: Sequence[Part]) -> Part:
    """Add sums from left to right; the first addition makes memory of its own, which the others may reuse."""
    total, tally = parts[0].total + parts[1].total, parts[0].tally + parts[1].tally
    for part in parts[2:]:
        total += part.total
        tally += part.tally
    return Part(total, tally)


def blocks(
    source: Source,
    spans: Iterable[tuple[int, int]],
    tally: Tally,
    group: int = 0,
    fold: int = -1,
    copies: tuple[int, ...] = (0,),
) -> Iterator[Rows]:
    """Yield the rows of some spans, cut into blocks of equal size (the last may be shorter) whatever the spans are.

    ``fold`` and ``copies`` are those of `Shard`.
    """
    held: list[Rows] = []
    for rows in _read(source, spans, tally, group, fold, copies):
        if not source.block_rows:
            yield rows
            del rows
            continue
        at = 0
        while at < rows.n:
            size = source.block_rows - sum(h.n for h in held)
            held.append(rows.take(slice(at, at + size)))
            at += held[-1].n
            if sum(h.n for h in held) == source.block_rows:
                yield _join(held)
                held = []
        if held and held[-1].n < rows.n:
            held[-1] = held[-1].take(np.arange(held[-1].n))  # a slice would keep the whole partition
        del rows  # before the next ones are read
    if held:
        yield _join(held)


def _read(
    source: Source, spans: Iterable[tuple[int, int]], tally: Tally, group: int, fold: int, copies: tuple[int, ...]
) -> Iterator[Rows]:
    """Yield rows as read, span by span, or some copies of them; rows are counted once, where they are themselves."""
    for start, stop in spans:
        if start // source.layout.rows_per_partition in source.skip:
            continue
        began = time.perf_counter()
        keep = source.kept(start, stop, fold if fold >= 0 else group)
        if keep is not None and not keep.any():
            continue
        rows = source.dataset.read(source.layout, start, stop, labelled=source.labelled, keep=keep)
        rows = (rows if source.matching is None else source.matching(rows))._replace(fold=fold)
        tally.read_seconds += time.perf_counter() - began
        tally.nbytes += rows.nbytes
        if 0 in copies:
            tally.rows += rows.n
            tally.dropped += rows.dropped
            if source.range is not None:
                _count_outside(source.range, source.layout, rows, tally)
        if source.augment is None:
            yield rows
        else:
            yield from source.augment.each(rows, copies)
        del rows  # before the next ones are read


def _count_outside(range: Range | SeenRange, layout: Layout, rows: Rows, tally: Tally) -> None:
    """Count the rows with values outside a range, which the mapping clips, and empty cells where it had none."""
    if isinstance(range, SeenRange):
        tally.empty_in = added(tally.empty_in, _by_name(layout, range.empty(rows.x)))
    clipped, columns = range.rows_outside(rows.x)
    tally.clipped += clipped
    if clipped:
        names = column_names(layout, len(columns))
        tally.clipped_in = added(tally.clipped_in, _by_name(layout, columns))
        rows_outside = first_outside(range, rows.x)
        mine = [(int(rows.places[i]), [names[j] for j in found]) for i, found in rows_outside]
        tally.clipped_first = first(tally.clipped_first, mine)


def _by_name(layout: Layout, counts: NDArray[np.int64]) -> dict[str, int]:
    """Return the counts of columns (d,) that are not 0, by name."""
    names = column_names(layout, len(counts))
    return {names[i]: int(counts[i]) for i in np.flatnonzero(counts)}


def _join(held: list[Rows]) -> Rows:
    if len(held) == 1:
        return held[0]
    pick = [None if a is None else concatenate([h[i] for h in held]) for i, a in enumerate(held[0][:4])]
    assert pick[0] is not None
    assert pick[3] is not None
    return held[0]._replace(x=pick[0], y=pick[1], weight=pick[2], places=pick[3])
