"""Progress where somebody looks: a real terminal, a real notebook kernel, and nothing elsewhere."""

import os
import pty
import subprocess
import sys
from typing import Any

import numpy as np

FIT = """
import ntkdist as nd
nd.fit(nd.Job(nd.Dataset({store!r}), nd.NTKRandomFeatures(64), alphas=(1.0,)))
"""


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


def test_nothing_is_shown_to_a_file(make_dataset: Any) -> None:
    store = make_dataset(np.eye(60), np.arange(60.0))
    done = subprocess.run([sys.executable, "-c", FIT.format(store=store)], capture_output=True, check=True)
    assert done.stderr == b""
    assert done.stdout == b""


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
    assert "rows/s, 0 s left" in shown[1]
