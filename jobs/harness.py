"""The options, clocks, data and result files that all benchmarks share.

A result holds a title, the command that made it, its data, the machine, the versions, notes, rows of named values, and
claims: sentences for the READMEs, each made from the rows by the benchmark itself (what was measured: the outcome).
A list among the values is one quantity measured several times.
"""

import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from sklearn.datasets import load_digits
from tables import markdown

import ntkdist as nd

Rows = Sequence[dict[str, Any]]

json_option = click.option("--json", "out", default="", metavar="FILE", help="Write the result to this file.")


def options(**quick: Any) -> Callable[[Any], Any]:
    """Add ``--json``, and ``--quick``: these defaults instead; a function makes its value in a temporary directory."""

    def use(context: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted:
            place = context.with_resource(tempfile.TemporaryDirectory())
            context.default_map = {name: make(place) if callable(make) else make for name, make in quick.items()}

    text = "Use tiny data made on the spot: a run takes seconds, and its numbers mean nothing."
    flag = click.option("--quick", is_flag=True, is_eager=True, expose_value=False, callback=use, help=text)
    return lambda function: flag(json_option(function))


class Seconds(NamedTuple):
    """The time of a call by the wall clock and by the processors, where other processes on the machine count less."""

    wall: float
    processor: float


def started() -> Callable[[], Seconds]:
    """Start both clocks and return a function that reads them; processor time is that of all threads of the process."""
    wall, processor = time.perf_counter(), time.process_time()
    return lambda: Seconds(time.perf_counter() - wall, time.process_time() - processor)


def timed(call: Callable[[], object]) -> Seconds:
    """Time a call by both clocks."""
    elapsed = started()
    call()
    return elapsed()


def in_turns(calls: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[Seconds]]:
    """Time every call once a turn, so that the calls of a turn meet the same load of the machine."""
    seconds: dict[str, list[Seconds]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            seconds[name].append(timed(call))
    return seconds


def ratios(above: Sequence[Seconds], below: Sequence[Seconds]) -> dict[str, list[float]]:
    """Divide the seconds of two calls turn by turn: a list for each clock, by its name."""
    pairs = list(zip(above, below, strict=True))
    return {clock: [getattr(a, clock) / getattr(b, clock) for a, b in pairs] for clock in Seconds._fields}


def median(values: Any) -> float:
    """Return the median of some numbers as a plain number."""
    return float(np.median(values))


def file(path: str) -> dict[str, Any]:
    """Describe a data file by its name and its hash."""
    path = path.partition(".npz:")[0] + ".npz" if ".npz:" in path else path
    return {"name": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}


def normals(rows: int, columns: int) -> dict[str, Any]:
    """Describe standard normal inputs that a benchmark draws itself."""
    return {"name": "normals, seed 0", "rows": rows, "columns": columns}


def dataset(path: str, x: Any, y: Any, **how: Any) -> nd.Dataset:
    """Write inputs and a target as a dataset at a path without ending."""
    np.savez(f"{path}.npz", x=x, y=y)
    nd.convert(f"{path}.npz", f"{path}.zarr", target=["y"], **how)
    return nd.Dataset(f"{path}.zarr")


def tiny_table(place: str) -> str:
    """Write 2,000 rows of 4 columns with a nonlinear target and two splits, for ``--quick``."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 4))
    y = np.abs(x[:, 0]) + x[:, 1] * x[:, 2] + 0.3 * rng.standard_normal(len(x))
    np.savez(f"{place}/tiny.npz", x=x, y=y, test_fold=np.arange(len(x)) % 2)
    return f"{place}/tiny.npz"


def tiny_images(name: str, rows: slice, suffix: str = "") -> Callable[[str], str]:
    """Return a function that writes some of scikit-learn's digits as images (n, 8, 8, 1), for ``--quick``."""

    def write(place: str) -> str:
        images, labels = load_digits().images[rows, :, :, None], load_digits().target[rows]
        arrays = {f"x{suffix}": images.astype(np.uint8), f"y{suffix}": labels}
        np.savez(f"{place}/{name}.npz", **arrays)
        return f"{place}/{name}.npz"

    return write


class Result:
    """A result that prints every row as it comes, and writes the rows so far to a file if one is named."""

    def __init__(self, title: str, data: Rows, out: str, notes: Sequence[str] = ()) -> None:
        self.out, self.rows, self.notes = out, list[dict[str, Any]](), list(notes)
        words = ["python", f"jobs/{Path(sys.argv[0]).name}", *map(_word, sys.argv[1:])]
        self.origin = {"title": title, "command": " ".join(words), "data": list(data)}

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Append a row, print it, save, and return the row."""
        self.rows.append(row)
        print(row, flush=True)
        self._save()
        return row

    def end(self, claims: Mapping[str, str] | None = None) -> None:
        """Print the table of all rows, and save it with its claims."""
        print(markdown(self._save(claims)))

    def _save(self, claims: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Write the file, whole or not at all."""
        content = self.origin | {"machine": machine(), "versions": versions(), "notes": self.notes, "rows": self.rows}
        content |= {"claims": dict(claims or {})}
        if self.out:
            path = Path(self.out)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            os.replace(partial, path)
        return content


def report(
    title: str, rows: Rows, data: Rows, out: str, *, notes: Sequence[str] = (), claims: Mapping[str, str] | None = None
) -> None:
    """Print a result whose rows are all known, and write it to a file if one is named."""
    result = Result(title, data, out, notes)
    result.rows = list(rows)
    result.end(claims)


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
    """List the versions of Python and of the libraries that compute, those of others where they are installed."""
    names = ["numpy", "scipy", "dask", "zarr", "scikit-learn", *filter(find_spec, ("lightgbm", "catboost", "xrfm"))]
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def _word(word: str) -> str:
    """Write a word of a command line, and a table without its directory."""
    word = Path(word).name if ".npz" in word else word
    return f"'{word}'" if " " in word else word
