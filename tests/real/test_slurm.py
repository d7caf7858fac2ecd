"""SLURM for real, on one node: workers as batch jobs, and the tasks of one allocation."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import slurm_node
import yaml
from command_line import Command, assert_one_line, columns, start, write_csv, write_job

import ntkdist as nd

pytest.importorskip("dask_jobqueue")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(slurm_node.missing()), reason=slurm_node.missing()),
    pytest.mark.timeout(600),
]
DEPLOY = Path(__file__).parents[2] / "deploy" / "slurm"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user of the node, with deploy/'s jobqueue.yaml cut to its size."""
    place = tmp_path_factory.mktemp("slurm")
    site = yaml.safe_load((DEPLOY / "jobqueue.yaml").read_text())
    (place / "logs").mkdir()
    site["jobqueue"]["slurm"] |= {"cores": 1, "memory": "1GB", "interface": "lo", "log-directory": str(place / "logs")}
    (place / "dask").mkdir()
    (place / "dask" / "jobqueue.yaml").write_text(yaml.safe_dump(site))
    with slurm_node.running(place) as env:
        path = f"{Path(sys.executable).parent}:{env['PATH']}"
        yield env | {"PATH": path, "DASK_CONFIG": str(place / "dask")}


@pytest.fixture
def job(command: Command) -> str:
    """A job on ``train.zarr`` in the current directory, and in ``here`` what it gives in this process."""
    write_csv("train.csv", columns(), "a", "b", "c", "y")
    command("convert", "train.csv", "train.zarr", "--target", "y")
    assert command("fit", write_job(tables='[plan]\ndtype = "float64"'), "--out", "here").exit_code == 0
    return "job.toml"


def assert_like_here(run: str) -> dict[str, int]:
    """The same model as in this process; gives the peak memory of those who worked."""
    coef, expected = (nd.load(f"{place}/model.zarr").coef for place in (run, "here"))
    np.testing.assert_allclose(coef, expected, rtol=1e-6, atol=1e-12)
    report = json.loads(Path(f"{run}/report.json").read_text())["run"]
    assert report["workers"] == 2
    peaks: dict[str, int] = report["peak_memory_bytes"]
    return peaks


def wait_for_no_jobs(slurm: dict[str, str]) -> None:
    deadline = time.monotonic() + 120
    while left := [state for state in slurm_node.jobs(slurm) if state != "COMPLETING"]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def test_two_batch_jobs_as_workers(slurm: dict[str, str], job: str) -> None:
    table = '[cluster]\ntype = "slurm"\nworkers = 2\nqueue = "debug"\n[plan]\ndtype = "float64"'
    process = start("fit", write_job(tables=table), "--out", "run", "--json", **slurm)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert json.loads(out)["out"] == "run"
    assert f"{socket.gethostname()}:{process.pid}" not in assert_like_here("run")
    wait_for_no_jobs(slurm)


def test_workers_are_shown_and_end_with_the_command(slurm: dict[str, str], job: str) -> None:
    """One row a worker; a process each, with one task at a time on the one core that SLURM gave it."""
    process = start("workers", write_job(tables='[cluster]\ntype = "slurm"\nworkers = 2'), **slurm)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    head, *rows = out.splitlines()
    assert [h for h in head.split() if h in ("tasks", "threads")] == ["tasks", "threads"]
    assert len(rows) == 2
    assert all("  1      1        1.0 GB" in row for row in rows), out
    wait_for_no_jobs(slurm)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_batch_jobs_end_with_a_run_that_is_stopped(slurm: dict[str, str], job: str, sent: int) -> None:
    """More workers than the node has room for: the run waits for them, and is stopped."""
    process = start("fit", write_job(tables='[cluster]\ntype = "slurm"\nworkers = 9'), "--out", "run", **slurm)
    deadline = time.monotonic() + 300
    while "RUNNING" not in slurm_node.jobs(slurm):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(sent)
    process.communicate(timeout=200)
    assert process.returncode == (130 if sent == signal.SIGINT else 143)
    wait_for_no_jobs(slurm)
    assert not Path("run/model.zarr").exists()


def test_workers_that_do_not_come(slurm: dict[str, str], job: str) -> None:
    table = '[cluster]\ntype = "slurm"\nworkers = 9\nwait_seconds = 1'
    process = start("fit", write_job(tables=table), "--out", "run", **slurm)
    _, err = process.communicate(timeout=300)
    assert_one_line(err, ["The Slurm cluster has had ", "for 1 s; look at its logs and limits, or raise wait_seconds"])
    assert process.returncode == 1
    wait_for_no_jobs(slurm)


def test_a_queue_that_is_not_there(slurm: dict[str, str], job: str) -> None:
    process = start("fit", write_job(tables='[cluster]\ntype = "slurm"\nqueue = "nope"'), "--out", "run", **slurm)
    _, err = process.communicate(timeout=300)
    assert_one_line(err, ["SLURM refuses a worker's batch job: ", "invalid partition specified: nope"])
    assert process.returncode == 1


def test_one_allocation_is_a_cluster(slurm: dict[str, str], job: str) -> None:
    """The sbatch of deploy/, cut to this machine: a scheduler, the job, and two workers."""
    write_job("inside.toml", tables='[cluster]\ntype = "slurm-runner"\n[plan]\ndtype = "float64"')
    size = ["--ntasks=4", "--cpus-per-task=1", "--wait", "--output=job.log"]
    script = [str(DEPLOY / "ntkdist.sbatch"), "inside.toml", "--out", "run"]
    done = subprocess.run(
        ["sbatch", *size, *script], env=os.environ | slurm, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr + Path("job.log").read_text()
    assert len(assert_like_here("run")) <= 2


def test_a_runner_outside_an_allocation(job: str) -> None:
    process = start("fit", write_job(tables='[cluster]\ntype = "slurm-runner"'), "--out", "run")
    assert_one_line(process.communicate(timeout=120)[1], ["one of no SLURM tasks", "start the job by srun with -n 3"])
    assert process.returncode == 1
