"""The command line as tests use it: small tables and jobs, and the command in this process or in one of its own."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from ntkdist.cli import main

Command = Callable[..., Result]
EXECUTABLE = str(Path(sys.executable).with_name("ntkdist"))
FEATURES = 'type = "NTKRandomFeatures"\nn_components = 64\nbias = 1.0'
ZONAL = 'type = "ZonalFeatures"\nn_components = 64\nkernel = {type = "NTK", depth = 1, bias = 1.0}'


def columns(rows: int = 240, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Inputs a, b and c, of different scales, and three targets that depend on them: a number, a word, an integer."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.standard_normal((3, rows))
    y = np.abs(a) + b * c
    rank = np.digitize(y, [0.3, 1.0])
    word, integer = np.array(["low", "middle", "top"])[rank], np.array([7, -1, 10])[rank]
    return {"a": a, "b": 100 * b - 30, "c": c, "y": y, "word": word, "integer": integer}


def write_csv(path: str, table: dict[str, Any], *names: str) -> None:
    """Some columns of a table as a csv file, in the order of the names."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(zip(*(np.asarray(table[n]).tolist() for n in names), strict=True))


def inputs(table: dict[str, Any], names: str = "abc") -> NDArray[np.float64]:
    """The rows that a model takes."""
    return np.stack([table[n] for n in names], axis=1)


def write_job(
    path: str = "job.toml", store: str = "train.zarr", top: str = "", features: str = FEATURES, tables: str = ""
) -> str:
    """A job file on a dataset; ``top`` goes before the tables, ``tables`` after them."""
    Path(path).write_text(f'{top}\n[dataset]\nstore = "{store}"\n[features]\n{features}\n{tables}\n')
    return path


def in_process(*args: object) -> Result:
    """The command in this process."""
    return CliRunner().invoke(main, [str(a) for a in args])


def start(*args: object, **env: str) -> subprocess.Popen[str]:
    """The command in a process of its own, which was started in the current directory."""
    return subprocess.Popen(
        [EXECUTABLE, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"} | env,
    )


def tree(place: str | Path = ".") -> list[tuple[str, int]]:
    """All that is in a directory, with the times when it was written."""
    return sorted((str(p), p.stat().st_mtime_ns if p.is_file() else 0) for p in Path(place).rglob("*"))


def assert_one_line(stderr: str, says: Sequence[str]) -> None:
    """One readable sentence, which says what it should."""
    assert stderr.startswith("ntkdist: ")
    assert stderr.count("\n") == 1
    assert stderr.endswith("\n")
    assert "Traceback" not in stderr
    for words in says:
        assert words in stderr


def assert_refused(args: Sequence[object], *says: str, code: int = 1) -> None:
    """The command ends with a code and one sentence, and leaves the current directory as it was."""
    before = tree()
    found = in_process(*args)
    assert found.exit_code == code, found.output
    assert_one_line(found.stderr, says)
    assert tree() == before
