"""Progress for people: a bar with rows a second and the time left, in a terminal or a notebook; nothing elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Progress = Callable[[int], None]  # told the rows that are done
Watch = Callable[[str, int], AbstractContextManager[Progress]]  # told a phase's name and rows


@contextmanager
def silent(phase: str, rows: int) -> Iterator[Progress]:
    """Show nothing."""
    yield lambda done: None


@contextmanager
def bar(phase: str, rows: int) -> Iterator[Progress]:
    """Show a bar by rich, on standard error or in the notebook's cell."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows  {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(phase, total=rows, rate="")

        def advance(done: int) -> None:
            progress.update(task, advance=done)
            if speed := progress.tasks[0].finished_speed or progress.tasks[0].speed:
                progress.update(task, rate=f"{speed:,.0f} rows/s")

        yield advance


def default_watch() -> Watch:
    """A bar where somebody looks: a terminal or a notebook."""
    notebook = "ipykernel" in sys.modules and not sys.stderr.isatty()
    return bar if notebook or sys.stderr.isatty() else silent
