"""What a pass did, counted beside what it summed."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Rows, bytes, seconds and memory of some tasks: a value with ``+``.

    ``rows`` does not count those that were ``dropped``; ``resumed`` counts the tasks whose sum was kept from before;
    ``workers`` holds the peak resident bytes of each process that took part.
    """

    rows: int = 0
    dropped: int = 0
    resumed: int = 0
    nbytes: int = 0
    read_seconds: float = 0.0
    work_seconds: float = 0.0
    workers: dict[str, int] = field(default_factory=dict)

    def saw(self, peaks: Iterable[tuple[str, int]]) -> None:
        """Count more peaks of processes."""
        for name, nbytes in peaks:
            self.workers[name] = max(self.workers.get(name, 0), nbytes)

    def __add__(self, other: "Tally") -> "Tally":
        names = self.workers.keys() | other.workers.keys()
        return Tally(
            self.rows + other.rows,
            self.dropped + other.dropped,
            self.resumed + other.resumed,
            self.nbytes + other.nbytes,
            self.read_seconds + other.read_seconds,
            self.work_seconds + other.work_seconds,
            {n: max(self.workers.get(n, 0), other.workers.get(n, 0)) for n in sorted(names)},
        )
