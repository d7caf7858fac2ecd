"""Measure calls in turns, and write every benchmark's result in one form of file.

A result holds a title, the command that made it, its data, the machine, the versions, notes, rows of named values, and
claims: what the README says of it, words for what was measured and for what was found, made of the rows by the
benchmark itself.  A
list among the values is one quantity measured several times.
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from tables import markdown

Rows = Sequence[dict[str, Any]]

json_option = click.option("--json", "--out", "out", default="", help="File for the result.")


class Seconds(NamedTuple):
    """The time of a call by the wall clock and by the processors, where other processes on the machine count less."""

    wall: float
    processor: float


def started() -> Callable[[], Seconds]:
    """Start both clocks; the call that is returned reads them.  Of the processor: all threads of this process."""
    wall, processor = time.perf_counter(), time.process_time()
    return lambda: Seconds(time.perf_counter() - wall, time.process_time() - processor)


def timed(call: Callable[[], object]) -> Seconds:
    """Time a call by both clocks."""
    elapsed = started()
    call()
    return elapsed()


def in_turns(calls: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[Seconds]]:
    """Time every call once a turn, so that the calls of a turn meet the same load of the machine."""
    found: dict[str, list[Seconds]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            found[name].append(timed(call))
    return found


def ratios(above: Sequence[Seconds], below: Sequence[Seconds]) -> dict[str, list[float]]:
    """Divide the seconds of two calls turn by turn: a list for either clock, by its name."""
    pairs = list(zip(above, below, strict=True))
    return {clock: [getattr(a, clock) / getattr(b, clock) for a, b in pairs] for clock in Seconds._fields}


def file(path: str) -> dict[str, Any]:
    """Describe a data file by its name and its hash."""
    path = path.partition(".npz:")[0] + ".npz" if ".npz:" in path else path
    return {"name": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def report(
    title: str,
    rows: Rows,
    data: Rows,
    out: str,
    *,
    notes: Sequence[str] = (),
    claims: Mapping[str, str] | None = None,
) -> None:
    """Print a result, and write it to a file if one is named."""
    found = result(title, rows, data, notes, claims)
    print(markdown(found))
    if out:
        save(out, found)


def result(
    title: str, rows: Rows, data: Rows, notes: Sequence[str] = (), claims: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Join rows with the command, data, machine and versions that they come from."""
    return {
        "title": title,
        "command": " ".join(["python", f"jobs/{Path(sys.argv[0]).name}", *map(_word, sys.argv[1:])]),
        "data": list(data),
        "machine": machine(),
        "versions": versions(),
        "notes": list(notes),
        "rows": list(rows),
        "claims": dict(claims or {}),
    }


def save(path: str, found: dict[str, Any]) -> None:
    """Write a result, whole or not at all."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    os.replace(partial, place)


def machine() -> dict[str, Any]:
    """Describe the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(total / 1e9, 1),
    }


def versions() -> dict[str, str]:
    """List the versions of Python and of what computes here."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("numpy", "scipy", "dask", "zarr", "scikit-learn")
    }


def median(values: Any) -> float:
    """Return the median of some numbers as a plain number."""
    return float(np.median(values))


def _word(word: str) -> str:
    """Write a word of a command line, and a table by its name alone, wherever it lies."""
    word = Path(word).name if ".npz" in word else word
    return f"'{word}'" if " " in word else word
