"""Results of benchmarks: one form of file, and the tables that are made of it.

    python jobs/tables.py jobs/results/*.json        # prints Markdown

A file holds a title, the command that made it, the machine, notes, and rows of named values.  A list is one quantity
measured several times and is printed as its mean ± standard error (± 95 % is about twice that).
"""

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

Rows = Sequence[dict[str, Any]]


def result(title: str, rows: Rows, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Rows with the command and the machine that they come from."""
    return {
        "title": title,
        "command": " ".join(["python", f"jobs/{Path(sys.argv[0]).name}", *map(_word, sys.argv[1:])]),
        "machine": machine(),
        "notes": list(notes),
        "rows": list(rows),
    }


def save(path: str, found: dict[str, Any]) -> None:
    """Write a result, whole or not at all."""
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    os.replace(partial, place)


def machine() -> dict[str, Any]:
    """Where a result was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = {name: version(name) for name in ("numpy", "scipy", "dask", "zarr", "scikit-learn")}
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(total / 1e9, 1),
        "python": platform.python_version(),
        **versions,
    }


def markdown(found: dict[str, Any]) -> str:
    """A title, a table and its notes."""
    rows = found["rows"]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    body = [[cell(row.get(name)) for name in columns] for row in rows]
    right = [all(not isinstance(row.get(name), str) for row in rows) for name in columns]
    lines = [columns, ["---:" if r else "---" for r in right], *body]
    where = found["machine"]
    notes = [
        *found["notes"],
        f"`{found['command']}` on {where['cores']} cores of {where['processor']}, {where['memory_gb']} GB",
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([f"**{found['title']}**\n", table, "", *(f"* {note}." for note in notes)]) + "\n"


def cell(value: Any) -> str:
    """A value as text: a number to four digits, a list as mean ± standard error, or as it is if of text."""
    if value is None:
        return ""
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            return value[0] if len(set(value)) == 1 else "; ".join(dict.fromkeys(value))
        mean = float(np.mean(value))
        if len(value) < 2:
            return cell(mean)
        return f"{cell(mean)} ± {float(np.std(value, ddof=1) / np.sqrt(len(value))):.2g}"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _word(word: str) -> str:
    """Of a command line; a table by its name alone, wherever it lies."""
    word = Path(word).name if ".npz" in word else word
    return f"'{word}'" if " " in word else word


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True))
def main(files: tuple[str, ...]) -> None:
    print("\n".join(markdown(json.loads(Path(name).read_text())) for name in files), end="")


if __name__ == "__main__":
    main()
