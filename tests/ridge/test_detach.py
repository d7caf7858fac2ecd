"""Detached fits: followed by processes that did not submit them, through the run directory."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import FEATURES, Command, write_job
from distributed import Client
from servers import local_cluster
from stored import MakeDataset

import ntkdist as nd

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Start a cluster of two worker processes without a client here, and yield its scheduler's address."""
    with local_cluster() as cluster:
        yield cluster.scheduler_address


def job_of(make_dataset: MakeDataset, m: int, shards: int, wrong: bool = False) -> str:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 8))
    if wrong:
        x[1234, 5] = np.nan
    make_dataset(x, np.abs(x[:, 0]), rows_per_partition=100)
    features = FEATURES.replace("64", str(m))
    return write_job("job.toml", "data.zarr", "alphas = [0.1, 1.0]", features, f"[plan]\nshards = {shards}\n")


def same_sums(run: str, other: str) -> None:
    """Assert sums of the same bits; the models differ by rounding, which depends on the threads of BLAS."""
    detached, local = (nd.load(f"{each}/equations.zarr") for each in (run, other))
    for mine, theirs in zip(detached.folds, local.folds, strict=True):
        np.testing.assert_array_equal(mine.gram, theirs.gram)
        np.testing.assert_array_equal(mine.rhs, theirs.rhs)
    x = np.random.default_rng(1).standard_normal((5, 8))
    np.testing.assert_allclose(nd.load(f"{run}/model.zarr")(x), nd.load(f"{other}/model.zarr")(x), rtol=1e-9)


def until(holds: Callable[[], bool]) -> None:
    while not holds():  # until the time limit of the test
        time.sleep(0.05)


def test_a_detached_fit_has_the_sums_of_a_local_one(command: Command, make_dataset: MakeDataset, address: str) -> None:
    """Submit, read the status and attach in a process each; a second submission finds the run complete."""
    job = job_of(make_dataset, 64, 10)
    sent = command("fit", job, "--scheduler", address, "--detach", "--out", "run")
    assert sent.exit_code == 0, sent.output
    assert sent.output.strip() == str(Path("run").absolute())
    assert command("status", "run").output.split()[0].rstrip(":") in ("waiting", "running", "done")
    attached = command("attach", "run")
    assert attached.exit_code == 0, attached.output
    assert "cv_rmse" in attached.output
    assert command("status", "run").output == "done\n"
    assert command("fit", job, "--out", "local").exit_code == 0
    same_sums("run", "local")
    assert command("fit", job, "--scheduler", address, "--detach", "--out", "run").exit_code == 0
    assert nd.status("run").state == "done"
    assert "nothing to cancel" in command("cancel", "run").output


def test_a_failure_is_in_the_status(command: Command, make_dataset: MakeDataset, address: str) -> None:
    job = job_of(make_dataset, 64, 10, wrong=True)
    assert command("fit", job, "--scheduler", address, "--detach", "--out", "run").exit_code == 0
    attached = command("attach", "run")
    assert attached.exit_code == 1
    assert "failed" in attached.output
    assert "NaN" in attached.output
    assert "row 1234" in attached.output


def test_a_cancelled_fit_keeps_finished_shards(command: Command, make_dataset: MakeDataset, address: str) -> None:
    """The same fit, submitted again, continues from there."""
    job = job_of(make_dataset, 1024, 40)
    nd.submit(nd.Job.read(job), "run", scheduler=address)
    until(lambda: any(Path("run/checkpoint").glob("shard-*.zarr")))
    assert command("cancel", "run").exit_code == 0
    until(lambda: nd.status("run").over)
    assert nd.status("run").state == "cancelled"
    kept = len(list(Path("run/checkpoint").glob("shard-*.zarr")))
    assert 0 < kept < 40
    nd.submit(nd.Job.read(job), "run", scheduler=address)
    assert nd.attach("run").state == "done"
    assert "of 40 shards were finished before" in Path("run/report.json").read_text()


def test_the_driver_moves_when_its_worker_dies(command: Command, make_dataset: MakeDataset) -> None:
    """SIGKILL of the worker that drives; the fit ends with the sums of an undisturbed one."""
    job = job_of(make_dataset, 1024, 40)
    with local_cluster() as cluster:
        nd.submit(nd.Job.read(job), "run", scheduler=cluster.scheduler_address)
        until(lambda: any(Path("run/checkpoint").glob("shard-*.zarr")))
        with Client(cluster) as client:
            (where,) = {w for key, ws in client.who_has().items() for w in ws if "driver" in str(key)} or {
                w for w, keys in client.processing().items() if any("driver" in str(key) for key in keys)
            }
            pid = client.run(os.getpid, workers=[where])[where]
            os.kill(pid, signal.SIGKILL)
        assert nd.attach("run").state == "done"
    assert command("fit", job, "--out", "local").exit_code == 0
    same_sums("run", "local")


@pytest.mark.parametrize("kind", ["local", "cuda", "slurm", "slurm-runner"])
def test_a_cluster_that_ends_with_the_command_is_refused(
    command: Command, make_dataset: MakeDataset, kind: str
) -> None:
    job = job_of(make_dataset, 64, 10)
    with open(job, "a") as file:
        file.write(f'[cluster]\ntype = "{kind}"\n')
    result = command("fit", job, "--detach", "--out", "run")
    assert result.exit_code == 1
    assert f"goes on without this command, not {kind.title().replace('-', '')}" in result.output
    assert not Path("run").exists()
    assert "no detached run" in command("status", "run").output
