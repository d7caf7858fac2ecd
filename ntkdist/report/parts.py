"""Parts of a page: tables, and sections of text, plots and tables."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ntkdist.report.pictures import Picture


class Table(NamedTuple):
    """A table of the page."""

    title: str
    rows: Sequence[tuple[Any, ...]]
    head: tuple[str, ...] = ()
    text: str = ""


class Section(NamedTuple):
    """A section of the page."""

    title: str
    text: str
    figures: Sequence[Picture]
    tables: Sequence[Table]
