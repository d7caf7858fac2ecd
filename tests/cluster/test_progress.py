"""Progress where somebody looks: a real terminal, a real notebook kernel, and nothing elsewhere."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from command_line import EXECUTABLE, FEATURES, write_job
from counted import CountRows

import ntkdist as nd
from ntkdist.cluster.progress import MARKS, Pace, ignore, timed
from ntkdist.cluster.reduce import Pass, reduce
from ntkdist.cluster.shards import Source
from ntkdist.data.dataset import Rows, Shard

FIT = """
import pytest

import ntkdist as nd
nd.fit(nd.Job(nd.Dataset({store!r}), nd.NTKRandomFeatures(64), alphas=(1.0,)))
"""


@pytest.mark.slow
def test_a_terminal_shows_phases_rates_and_time_left(make_dataset: Any) -> None:
    store = make_dataset(np.eye(60), np.arange(60.0))
    driver, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", FIT.format(store=store)], stderr=terminal, env={**os.environ, "COLUMNS": "100"}
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(driver, 4096)
        except OSError:  # the other end is closed
            break
    assert child.wait() == 0
    for said in (b"moments", b"equations", b"60/60 rows", b"rows/s"):
        assert said in shown
    assert b"left" not in shown  # of a moment's work nothing can be said


@pytest.mark.slow
def test_nothing_is_shown_to_a_file(make_dataset: Any) -> None:
    store = make_dataset(np.eye(60), np.arange(60.0))
    done = subprocess.run([sys.executable, "-c", FIT.format(store=store)], capture_output=True, check=True)
    assert done.stderr == b""
    assert done.stdout == b""


@pytest.mark.slow
def test_a_notebook_shows_one_bar_in_a_cell(make_dataset: Any) -> None:
    import nbclient
    import nbformat

    store = make_dataset(np.eye(60), np.arange(60.0))
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(FIT.format(store=store)) for _ in range(2)]
    nbclient.NotebookClient(notebook, timeout=120).execute()
    for ran in notebook.cells:
        (shown,) = [o["data"]["text/html"] for o in ran.outputs if o.output_type == "display_data"]
        assert '<progress value="60" max="60"></progress> equations: 60 of 60 rows' in shown
        assert shown.endswith("rows/s, 1 worker")  # nothing is left


def test_the_time_left_is_that_of_the_last_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing before a second of work is known; rows that took no time, as kept ones, are soon forgotten."""
    now = 100.0
    monkeypatch.setattr("ntkdist.cluster.progress.time.perf_counter", lambda: now)
    pace = Pace(10_000)
    assert pace.left() == ""
    pace.add(5000)
    assert pace.left() == ""
    now += 2
    pace.add(10)
    assert pace.left() == "2 s left"  # as if the first rows said something
    for _ in range(50):
        now += 1
        pace.add(5)
    assert pace.left() == f"{(10_000 - 5260) // 5 // 60} min {(10_000 - 5260) // 5 % 60} s left"
    assert pace.rate == pytest.approx(5260 / 52)
    pace.add(10_000 - 5260)
    assert pace.left() == ""


def test_a_timeline_has_a_bounded_length_and_all_rows() -> None:
    timeline: list[tuple[float, int]] = []
    advance = timed(ignore, timeline)
    for _ in range(10_000):
        advance(3)
    assert MARKS / 2 <= len(timeline) < MARKS
    assert sum(rows for _, rows in timeline) == 30_000
    assert timeline == sorted(timeline, key=lambda mark: mark[0])


@pytest.mark.parametrize("where", ["here", "threads", "cluster"])
def test_rows_of_a_shard_are_told_before_it_ends(make_dataset: Any, request: pytest.FixtureRequest, where: str) -> None:
    """Four blocks of one shard; on a cluster, where the first is told at once, as events of the scheduler."""
    client = request.getfixturevalue("two_workers") if where == "cluster" else None
    store = make_dataset(np.zeros((400, 3)), np.zeros(400), rows_per_partition=400)
    source = Source(nd.Dataset(store), nd.Dataset(store).layout(), 100, 1)
    told: list[int] = []
    with dask.config.set(scheduler="threads") if where == "threads" else contextlib.nullcontext():
        (part,) = reduce(Pass(source, SlowCount(), [Shard(0, ((0, 400),))], 4, told.append), client)
    assert part.total == sum(told) == 400
    assert told == [100] * 4 if client is None else told[0] == 100


class SlowCount(CountRows):
    """Rows, counted so slowly that the first block's event arrives before the shard has ended."""

    def update(self, total: int, rows: Rows) -> int:
        time.sleep(0.15)
        return super().update(total, rows)


@pytest.mark.slow
def test_ctrl_c_ends_workers_and_says_how_to_go_on(make_dataset: Any, tmp_path: Path) -> None:
    """In a terminal, with two worker processes: one sentence, exit code 130, no process left, what was done is kept."""
    rng = np.random.default_rng(0)
    make_dataset(rng.standard_normal((20000, 20)), rng.standard_normal(20000), rows_per_partition=200)
    features = FEATURES.replace("64", "1024")  # so that there is time to stop it
    tables = "[plan]\nshards = 100\n[cluster]\nworkers = 2\n"
    job = write_job(str(tmp_path / "job.toml"), "data.zarr", "alphas = [1.0, 2.0]", features, tables)
    driver, terminal = pty.openpty()
    setting = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    command = [EXECUTABLE, "fit", job, "--out", "run"]
    child = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=setting, cwd=tmp_path, start_new_session=True
    )
    os.close(terminal)
    shown = b""
    while not any((tmp_path / "run" / "checkpoint").glob("shard-*.zarr")):
        if select.select([driver], [], [], 0.05)[0]:
            shown += os.read(driver, 4096)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to all of its processes
    stopped = time.monotonic()
    with contextlib.suppress(OSError):  # the other end is closed
        while said := os.read(driver, 4096):
            shown += said
    assert child.wait() == 130
    assert time.monotonic() - stopped < 3  # less than the four seconds that Dask waits for a busy worker
    text = shown.decode()
    assert "2 workers" in text
    assert "\x1b[3" not in text  # no colours
    last = re.sub(r"\x1b\[[?\d]*\w", "", [line for line in text.splitlines() if line.strip()][-1])
    assert last == "ntkdist: stopped; the same command goes on from what run holds"
    assert "Traceback" not in text, text[-3000:]
    assert "WARNING" not in text, text[-3000:]
    while runs(child.pid):  # until the last of its processes is gone
        time.sleep(0.1)
    assert any((tmp_path / "run" / "checkpoint").glob("shard-*.zarr"))


def runs(group: int) -> bool:
    """Whether any process of a group does."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
