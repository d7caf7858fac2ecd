"""Progress for people: rows done, rows a second and the time left, in a terminal or a notebook; nothing elsewhere."""

import functools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Progress = Callable[[int], None]  # told the rows that are done
MARKS = 2048  # of a timeline, at most
WINDOW_SECONDS = 30.0  # of which the time left is estimated: shards that were kept take none
KNOWN_SECONDS = 1.0  # of work, from which on it is
Watch = Callable[[str, int], AbstractContextManager[Progress]]  # told a phase's name and rows


def ignore(rows: int) -> None:
    """Show nothing of some rows that are done."""


@contextmanager
def silent(phase: str, rows: int) -> Iterator[Progress]:
    """Show nothing of a phase."""
    yield ignore


@contextmanager
def bar(phase: str, rows: int, workers: int = 1) -> Iterator[Progress]:
    """Show a bar by rich, on standard error, in 80 columns."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=7),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows {task.fields[rate]}"),
        TextColumn(_of(workers)),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task, pace = progress.add_task(phase, total=rows, rate="", left=""), Pace(rows)

        def advance(done: int) -> None:
            pace.add(done)
            progress.update(task, advance=done, rate=f"{pace.rate:,.0f} rows/s", left=pace.left())

        yield advance


@contextmanager
def cell(phase: str, rows: int, workers: int = 1) -> Iterator[Progress]:
    """Show the notebook's own bar in the cell's output, in place of that of the phase before; it needs no widgets."""
    from IPython import get_ipython
    from IPython.display import HTML

    pace = Pace(rows)

    def shown() -> HTML:
        left = ", ".join(["", *filter(None, [pace.left()])])
        said = f"{phase}: {pace.done:,} of {rows:,} rows, {pace.rate:,.0f} rows/s, {_of(workers)}{left}"
        return HTML(f'<progress value="{pace.done}" max="{rows}"></progress> {said}')

    handle = _of_cell(get_ipython().execution_count)
    handle.update(shown())

    def advance(done: int) -> None:
        pace.add(done)
        handle.update(shown())

    yield advance


@functools.lru_cache(1)
def _of_cell(execution: int) -> Any:
    """Return the place of the bars of a cell that is run."""
    from IPython.display import HTML, display

    return display(HTML(""), display_id=True)


class Pace:
    """The rows of a phase that are done, their rate, and the time left."""

    def __init__(self, rows: int) -> None:
        self.rows, self.done, self.start = rows, 0, time.perf_counter()
        self._marks = deque([(0.0, 0)])  # seconds, and the rows done then, of the last `WINDOW_SECONDS`

    def add(self, rows: int) -> None:
        """Count more rows that are done."""
        self.done += rows
        self._marks.append((self._seconds(), self.done))
        while len(self._marks) > 2 and self._marks[1][0] < self._marks[-1][0] - WINDOW_SECONDS:
            self._marks.popleft()

    @property
    def rate(self) -> float:
        """Rows a second, since the start."""
        return self.done / max(self._seconds(), 1e-9)

    def left(self) -> str:
        """Describe the time left by the rows of the last half minute; "" while too little is known to say, or none is
        left."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        if self.done >= self.rows or after == before or end < KNOWN_SECONDS:
            return ""
        seconds = round((end - start) * (self.rows - self.done) / (after - before))
        minutes, hours = seconds // 60, seconds // 3600
        if hours:
            return f"{hours} h {minutes % 60} min left"
        return f"{minutes} min {seconds % 60} s left" if minutes else f"{seconds} s left"

    def _seconds(self) -> float:
        return time.perf_counter() - self.start


class RowsDone:
    """The rows of every shard that are done, of which what is new goes on to a display."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._lock = progress, threading.Lock()
        self._done: dict[int, int] = {}
        self._error: Exception | None = None

    def within(self, shard: int, rows: int) -> None:
        """Take note of rows as `reach` does, while the shard runs: an error of the display waits for its end.

        Else the shard would be tried again, as after an error of its own.
        """
        try:
            self.reach(shard, rows)
        except Exception as error:
            self._error = error

    def reach(self, shard: int, rows: int) -> None:
        """Take note that so many rows of a shard are done; one that is tried again begins with none."""
        with self._lock:
            if self._error is not None:
                raise self._error
            new = rows - self._done.get(shard, 0)
            if new > 0:
                self._done[shard] = rows
                self._progress(new)


def timed(progress: Progress, timeline: list[tuple[float, int]]) -> Progress:
    """Record the second and the rows of every call in ``timeline``, of many calls two by two; pass the rows on."""
    start = time.perf_counter()

    def advance(done: int) -> None:
        timeline.append((round(time.perf_counter() - start, 4), done))
        if len(timeline) == MARKS:
            timeline[:] = [(end, rows + more) for (_, rows), (end, more) in zip(*[iter(timeline)] * 2, strict=True)]
        progress(done)

    return advance


def _of(workers: int) -> str:
    return f"{workers} worker{'s' * (workers > 1)}"


def default_watch(workers: int = 1) -> Watch:
    """Return the progress display for this environment: notebook, terminal, or none."""
    if "IPython" in sys.modules:
        from IPython import get_ipython

        if hasattr(get_ipython(), "kernel"):  # a notebook's, not merely something imported
            return functools.partial(cell, workers=workers)
    return functools.partial(bar, workers=workers) if sys.stderr.isatty() else silent
