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

import numpy as np
import pytest
from command_line import EXECUTABLE, FEATURES, write_job

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
    for said in (b"moments", b"equations", b"60/60 rows", b"rows/s", b"left"):
        assert said in shown


@pytest.mark.slow
def test_nothing_is_shown_to_a_file(make_dataset: Any) -> None:
    store = make_dataset(np.eye(60), np.arange(60.0))
    done = subprocess.run([sys.executable, "-c", FIT.format(store=store)], capture_output=True, check=True)
    assert done.stderr == b""
    assert done.stdout == b""


@pytest.mark.slow
def test_a_notebook_shows_its_own_bar(make_dataset: Any) -> None:
    import nbclient
    import nbformat

    store = make_dataset(np.eye(60), np.arange(60.0))
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(FIT.format(store=store))]
    nbclient.NotebookClient(notebook, timeout=120).execute()
    shown = [o["data"]["text/html"] for o in notebook.cells[0].outputs if o.output_type == "display_data"]
    assert len(shown) == 2
    assert "moments: 60 of 60 rows" in shown[0]
    assert '<progress value="60" max="60">' in shown[1]
    assert "rows/s, 1 worker, 0 s left" in shown[1]


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
    with contextlib.suppress(OSError):  # the other end is closed
        while said := os.read(driver, 4096):
            shown += said
    assert child.wait() == 130
    text = shown.decode()
    assert "2 workers" in text
    assert "\x1b[3" not in text  # no colours
    last = re.sub(r"\x1b\[[?\d]*\w", "", [line for line in text.splitlines() if line.strip()][-1])
    assert last == "ntkdist: stopped; the same command goes on from what run holds"
    assert "Traceback" not in text, text[-3000:]
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
