"""Progress for people: rows done, rows a second and the time left, in a terminal or a notebook; nothing elsewhere."""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Progress = Callable[[int], None]  # told the rows that are done
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
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=7),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows {task.fields[rate]}"),
        TextColumn(_of(workers)),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(phase, total=rows, rate="")
        start = time.perf_counter()

        def advance(done: int) -> None:
            progress.update(task, advance=done)
            rate = progress.tasks[0].completed / (time.perf_counter() - start)
            progress.update(task, rate=f"{rate:,.0f} rows/s")

        yield advance


@contextmanager
def cell(phase: str, rows: int, workers: int = 1) -> Iterator[Progress]:
    """Show the notebook's own bar in the cell's output; it needs no widgets."""
    from IPython.display import HTML, display

    start, total = time.perf_counter(), 0

    def shown() -> HTML:
        seconds = max(time.perf_counter() - start, 1e-9)
        left = f", {seconds * (rows - total) / total:,.0f} s left" if total else ""
        said = f"{phase}: {total:,} of {rows:,} rows, {total / seconds:,.0f} rows/s, {_of(workers)}{left}"
        return HTML(f'<progress value="{total}" max="{rows}"></progress> {said}')

    handle = display(shown(), display_id=True)

    def advance(done: int) -> None:
        nonlocal total
        total += done
        handle.update(shown())

    yield advance


def timed(progress: Progress, timeline: list[tuple[float, int]]) -> Progress:
    """Record the second and the rows of every call in ``timeline``, and pass the rows on."""
    start = time.perf_counter()

    def advance(done: int) -> None:
        timeline.append((round(time.perf_counter() - start, 4), done))
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
