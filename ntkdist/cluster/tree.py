"""The tree in which results are added: of fixed shape, whichever finishes first."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Tree(Generic[T]):
    """Leaves added in a tree whose shape depends on their number alone, keeping fewer than ``fan_in`` of any level.

    The leaves may be sums, or futures of sums.
    """

    def __init__(self, fan_in: int, add: Callable[[list[T]], T]) -> None:
        self.fan_in, self.add = fan_in, add
        self.levels: list[list[T]] = []

    def push(self, leaf: T) -> None:
        """Append a leaf, and add what is complete."""
        height = 0
        while True:
            if height == len(self.levels):
                self.levels.append([])
            level = self.levels[height]
            level.append(leaf)
            if len(level) < self.fan_in:
                return
            leaf, self.levels[height] = self.add(level), []
            height += 1

    def total(self) -> T:
        """Add what is left, the tallest first: they hold the first leaves."""
        rest = [part for level in reversed(self.levels) for part in level]
        while len(rest) > 1:
            rest = [self.add(rest[: self.fan_in]), *rest[self.fan_in :]]
        return rest[0]


def tree(leaves: Iterable[T], fan_in: int, add: Callable[[list[T]], T]) -> T:
    """Add all leaves in a `Tree`."""
    sums = Tree(fan_in, add)
    for leaf in leaves:
        sums.push(leaf)
    return sums.total()


def most_held(counts: Sequence[int], fan_in: int, ahead: int, workers: int) -> int:
    """Count the results that one worker holds at most, beside those that it is making.

    Trees have ``counts`` leaves; one is made after the other, and each leaves its total.  Additions go to the workers
    in turn, which then hold all that they add; a leaf may lie on any of them.  Each of the ``ahead`` tasks at once of a
    worker begins another leaf before the addition.  Where sums are fetched from other workers, one more leaf is done
    meanwhile: a leaf of 4m rows takes longer than fetching its m² sums.
    """
    held, leaves, left, most = Counter[int](), 0, sum(counts), 0
    turns = itertools.cycle(range(workers))

    def count_leaves(count: int) -> Iterator[None]:
        nonlocal leaves, left, most
        for _ in range(count):
            leaves, left = leaves + 1, left - 1
            most = max(most, leaves + max(held.values(), default=0))
            yield None

    def add(parts: list[int | None]) -> int:
        nonlocal leaves, most
        worker = next(turns)
        fetched = sum(part not in (None, worker) for part in parts)
        most = max(most, held[worker] + fetched + leaves + min(ahead + (workers > 1), left))
        leaves -= parts.count(None)
        held.subtract(part for part in parts if part is not None)
        held[worker] += 1
        return worker

    for count in counts:
        tree(count_leaves(count), fan_in, add)
    return most
