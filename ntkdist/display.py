"""Display of results in one line, and as a table in a notebook, in place of all their numbers."""

import html
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

DIGITS = 6


class Described:
    """A value that is displayed by a few facts; its arrays are not."""

    __slots__ = ()

    def facts(self) -> dict[str, Any]:
        """Return what is shown of the value, by name; None is left out."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return line(type(self).__name__, self.facts())

    def _repr_html_(self) -> str:
        return table(type(self).__name__, self.facts())


def line(name: str, facts: Mapping[str, Any]) -> str:
    """Return facts as one line, like the call of a constructor."""
    return f"{name}({', '.join(f'{key}={text(value)}' for key, value in _given(facts))})"


def table(name: str, facts: Mapping[str, Any]) -> str:
    """Return facts as a table of HTML."""
    cells = (
        f"<tr><th>{html.escape(key.replace('_', ' '))}</th><td>{html.escape(text(value))}</td></tr>"
        for key, value in _given(facts)
    )
    return f"<table><caption>{html.escape(name)}</caption>{''.join(cells)}</table>"


def text(value: Any) -> str:
    """Return a value in short: numbers with six digits, an array by one number if all are equal, else by its ends."""
    if isinstance(value, np.ndarray):
        if value.size and np.all(value == value.flat[0]):
            return text(value.flat[0].item())
        return f"{text(value.min().item())} to {text(value.max().item())}" if value.size else "none"
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines of text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{v:<{w}}" for v, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def names(some: Sequence[str], most: int = 5) -> str:
    """Return names with commas between, and the number of those left out."""
    rest = len(some) - most
    return ", ".join(some[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def date(seconds: float) -> str:
    """Return a moment, in seconds since 1970-01-01 UTC, as an ISO date, with its time unless that is midnight."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%d %H:%M").removesuffix(" 00:00")


def _given(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in facts.items() if value is not None]
