"""The command line on clusters: a scheduler of its own, one named by the environment, local workers, and the demo."""

import json
import os
import re
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import servers
from command_line import Command, assert_one_line, columns, start, write_csv, write_job

import ntkdist as nd

pytestmark = pytest.mark.cluster


def finish(process: subprocess.Popen[str]) -> str:
    """What a command printed, which did not fail or complain."""
    out, err = process.communicate(timeout=120)
    # Dask says when a worker's last heartbeat meets a scheduler that is closing, and on a busy machine that it waits.
    assert process.returncode == 0, err
    said = ("Failed to communicate with scheduler during heartbeat", "Worker process still alive after")
    assert err == "" or any(words in err.splitlines()[0] for words in said), err
    return out


@pytest.fixture
def job(command: Command) -> str:
    """A job on ``train.zarr`` in the current directory, and in ``here`` what it gives in this process."""
    write_csv("train.csv", columns(), "a", "b", "c", "y")
    command("convert", "train.csv", "train.zarr", "--target", "y")
    path = write_job(tables='[plan]\ndtype = "float64"')
    assert command("fit", path, "--out", "here").exit_code == 0
    return path


def assert_like_here(run: str, workers: int) -> None:
    coef, expected = (nd.load(f"{place}/model.zarr").coef for place in (run, "here"))
    np.testing.assert_allclose(coef, expected, rtol=1e-6, atol=1e-12)
    report = json.loads(Path(f"{run}/report.json").read_text())["run"]
    assert report["workers"] == workers
    assert 1 <= len(report["peak_memory_bytes"]) <= workers


@pytest.mark.slow
def test_a_scheduler_that_runs_already(command: Command, job: str) -> None:
    with servers.scheduler_and_worker() as address:
        finish(start("fit", job, "--scheduler", address, "--out", "named", "--json"))
        finish(start("fit", job, "--out", "environment", DASK_SCHEDULER_ADDRESS=address))
        write_job("table.toml", tables=f'[cluster]\ntype = "address"\naddress = "{address}"\n[plan]\ndtype = "float64"')
        finish(start("fit", "table.toml", "--out", "table"))
        for run in ("named", "environment", "table"):
            assert_like_here(run, workers=1)
            (worker,) = json.loads(Path(f"{run}/report.json").read_text())["run"]["peak_memory_bytes"]
            assert worker != f"{socket.gethostname()}:{os.getpid()}"

        found = json.loads(finish(start("evaluate", "named", "train.zarr", "--json", "--scheduler", address)))
        finish(start("predict", "named", "train.zarr", "predicted.zarr", "--scheduler", address))
        assert found["rows"] == 240
        assert found["rmse"] == pytest.approx(
            json.loads(command("evaluate", "here", "train.zarr", "--json").stdout)["rmse"], rel=1e-6
        )

        Path("train.zarr/x/c/3/0").unlink()  # an error that happens on the worker reads as one here
        process = start("evaluate", "named", "train.zarr", "--scheduler", address)
        assert_one_line(process.communicate(timeout=120)[1], ["chunk x/c/3/0 is missing", "rows 36–47"])
        assert process.returncode == 1


def test_local_workers(job: str) -> None:
    """Also where the port of Dask's dashboard is taken, and without their logs in the way of an error."""
    tables = '[cluster]\nworkers = 2\n[plan]\ndtype = "float64"'
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("", 8787))
            taken.listen()
        except OSError:
            pass  # somebody else has it, which is as good
        finish(start("fit", write_job(tables=tables), "--out", "local"))
    assert_like_here("local", workers=2)

    Path("train.zarr/x/c/3/0").unlink()
    process = start("fit", write_job(top="alphas = [1.0]", tables=tables), "--out", "damaged")
    assert_one_line(process.communicate(timeout=120)[1], ["chunk x/c/3/0 is missing", "rows 36–47"])
    assert process.returncode == 1
    assert not Path("damaged/model.zarr").exists()


@pytest.mark.slow
def test_the_demo(command: Command) -> None:
    out, err = (process := start("demo", "--out", "demo")).communicate(timeout=240)
    assert (process.returncode, err) == (0, "")
    linear, ntk = (float(re.search(rf"{name} +(\d+\.\d+)% ", out)[1]) for name in ("linear", "NTK"))
    assert ntk > 95 > linear
    assert "times as many errors" in out
    report = Path("demo/ntk-run/report.json")
    assert f"report     {report}" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert json.loads(report.read_text())["run"]["workers"] == 2
    assert nd.load("demo/ntk-run/model.zarr").classes == tuple("0123456789")
