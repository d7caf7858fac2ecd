"""Counts of a pass: rows, bytes, seconds and memory, beside what it sums."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ntkdist.data.ranges import FEW

IDLE = (0, 0.0)


@dataclass
class Tally:
    """Rows, bytes, seconds and memory of some tasks: a value with ``+``.

    ``rows`` does not count those that were ``dropped``, but those that were ``clipped`` to a range of other rows;
    ``clipped_in`` holds how many of these in each column, if any, by its name, and ``clipped_first`` the positions and
    the columns of the first few; ``empty_in`` the empty cells, likewise, of columns that had none in those other rows.
    ``resumed`` counts the tasks whose sum was kept from before; ``workers`` holds the peak resident bytes of each
    process that took part, ``worked`` its rows and the seconds of its tasks.
    """

    rows: int = 0
    dropped: int = 0
    clipped: int = 0
    clipped_in: dict[str, int] = field(default_factory=dict)
    clipped_first: list[tuple[int, list[str]]] = field(default_factory=list)
    empty_in: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    nbytes: int = 0
    read_seconds: float = 0.0
    work_seconds: float = 0.0
    workers: dict[str, int] = field(default_factory=dict)
    worked: dict[str, tuple[int, float]] = field(default_factory=dict)

    def saw(self, peaks: Iterable[tuple[str, int]]) -> None:
        """Include more peaks of processes."""
        for name, nbytes in peaks:
            self.workers[name] = max(self.workers.get(name, 0), nbytes)

    def __add__(self, other: "Tally") -> "Tally":
        names, both = self.workers.keys() | other.workers.keys(), self.worked.keys() | other.worked.keys()
        return Tally(
            self.rows + other.rows,
            self.dropped + other.dropped,
            self.clipped + other.clipped,
            added(self.clipped_in, other.clipped_in),
            first(self.clipped_first, other.clipped_first),
            added(self.empty_in, other.empty_in),
            self.resumed + other.resumed,
            self.nbytes + other.nbytes,
            self.read_seconds + other.read_seconds,
            self.work_seconds + other.work_seconds,
            {n: max(self.workers.get(n, 0), other.workers.get(n, 0)) for n in sorted(names)},
            {n: _both(self.worked.get(n, IDLE), other.worked.get(n, IDLE)) for n in sorted(both)},
        )

    def of_rows(self, other: "Tally") -> "Tally":
        """Replace the counts of rows by another's, so that passes over the same rows do not count them twice."""
        counts = "rows", "dropped", "clipped", "clipped_in", "clipped_first", "empty_in"
        return replace(self, **{name: getattr(other, name) for name in counts})

    def rates(self) -> dict[str, float]:
        """Return the rows a second of each process while a task of it ran; of one task, where several run at once."""
        return {name: rows / max(seconds, 1e-9) for name, (rows, seconds) in self.worked.items()}


def first(one: Iterable[tuple[int, list[str]]], other: Iterable[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Return the first few of rows, by their positions."""
    return sorted([*one, *other], key=lambda row: row[0])[:FEW]


def added(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """Add counts by name."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted(one.keys() | other.keys())}


def _both(one: tuple[int, float], other: tuple[int, float]) -> tuple[int, float]:
    return one[0] + other[0], one[1] + other[1]
