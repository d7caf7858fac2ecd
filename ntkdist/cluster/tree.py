"""How work is cut, and the tree that its results are added in: of fixed shape, whoever finishes first."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Generic, TypeVar

T = TypeVar("T")


def evenly(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """Items cut into at most ``count`` runs whose lengths differ by one at most."""
    count = min(len(items), count)
    cuts = [len(items) * i // count for i in range(count + 1)]
    return [items[a:b] for a, b in pairwise(cuts)]


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


def most_alive(counts: Sequence[int], fan_in: int, ahead: int) -> tuple[int, int]:
    """How many results exist while a task makes another one, and while some are added, at most.

    Parameters
    ----------
    counts : sequence of int
        Leaves of each tree; one is made after the other, and each leaves its total.
    fan_in : int
    ahead : int
        Tasks at once.  Additions wait for the ones that run: so many more leaves exist, if there are.
    """
    making = adding = held = before = 0  # before: the additions that the last leaf completed
    left = sum(counts)

    def leaves(count: int) -> Iterator[int]:
        nonlocal making, held, before, left
        for _ in range(count):
            making, held, left = max(making, before), held + 1, left - 1
            before = held
            yield 1

    def add(parts: list[int]) -> int:
        nonlocal adding, held
        adding = max(adding, held + min(ahead, left))
        held -= len(parts) - 1
        return 1

    for count in counts:
        tree(leaves(count), fan_in, add)
    return making, adding
