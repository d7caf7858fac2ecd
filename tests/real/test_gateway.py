"""A Dask Gateway for real, with its local backend and the configuration of deploy/."""

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
from command_line import Command, assert_one_line, columns, start, write_csv, write_job
from servers import free_ports, processes_in, running

import ntkdist as nd

dask_gateway = pytest.importorskip("dask_gateway")
pytest.importorskip("dask_gateway_server")
pytestmark = [pytest.mark.gateway, pytest.mark.timeout(600)]
CONFIG = Path(__file__).parents[2] / "deploy" / "gateway" / "dask_gateway_config.py"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user of a gateway: its address, as a hub would set it, and where its clusters work."""
    place, port = tmp_path_factory.mktemp("gateway"), free_ports(3)
    clusters = {"TMPDIR": str(place / "clusters")}
    (place / "clusters").mkdir()
    env = {"NTKDIST_GATEWAY_PORT": str(port), "PATH": f"{BIN}:{os.environ['PATH']}"}
    address = f"http://127.0.0.1:{port}"
    user = {"DASK_GATEWAY__ADDRESS": address, "DASK_GATEWAY__PROXY_ADDRESS": f"gateway://127.0.0.1:{port + 1}"}
    with running([BIN / "dask-gateway-server", "-f", CONFIG], f"{address}/api/health", place, env | clusters):
        yield user | clusters


@pytest.fixture
def job(command: Command) -> str:
    """A job for the gateway on ``train.zarr`` in the current directory; in ``here`` what it gives in this process."""
    write_csv("train.csv", columns(), "a", "b", "c", "y")
    command("convert", str(Path("train.csv").absolute()), "train.zarr", "--target", "y")
    assert command("fit", write_job(tables='[plan]\ndtype = "float64"'), "--out", "here").exit_code == 0
    return write_job(tables='[cluster]\ntype = "gateway"\nworkers = 2\n[plan]\ndtype = "float64"')


def clusters(gateway: dict[str, str]) -> list[str]:
    """Names of the clusters that run at the gateway."""
    address, proxy = gateway["DASK_GATEWAY__ADDRESS"], gateway["DASK_GATEWAY__PROXY_ADDRESS"]
    with dask_gateway.Gateway(address, proxy) as client:
        return [report.name for report in client.list_clusters()]


def wait_for_no_clusters(gateway: dict[str, str]) -> None:
    """Neither does the gateway know of one, nor is there a scheduler or worker."""
    deadline = time.monotonic() + 200
    while left := clusters(gateway) + processes_in(Path(gateway["TMPDIR"])):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def test_a_fit_through_a_gateway(gateway: dict[str, str], job: str) -> None:
    process = start("fit", job, "--out", "run", "--json", **gateway)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert json.loads(out)["rows"] == 240
    coef, expected = (nd.load(f"{place}/model.zarr").coef for place in ("run", "here"))
    np.testing.assert_allclose(coef, expected, rtol=1e-6, atol=1e-12)
    report = json.loads(Path("run/report.json").read_text())["run"]
    assert report["workers"] == 2
    assert f"{socket.gethostname()}:{process.pid}" not in report["peak_memory_bytes"]
    wait_for_no_clusters(gateway)


def test_a_cluster_that_runs_already_goes_on(gateway: dict[str, str], job: str) -> None:
    address, proxy = gateway["DASK_GATEWAY__ADDRESS"], gateway["DASK_GATEWAY__PROXY_ADDRESS"]
    with dask_gateway.GatewayCluster(address=address, proxy_address=proxy) as cluster:
        cluster.scale(1)
        named = write_job("named.toml", tables=f'[cluster]\ntype = "gateway"\nname = "{cluster.name}"')
        process = start("workers", named, **gateway)
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
        assert len(out.splitlines()) == 2
        assert clusters(gateway) == [cluster.name]
    wait_for_no_clusters(gateway)


def test_the_cluster_ends_with_a_run_that_is_stopped(gateway: dict[str, str], job: str) -> None:
    waits = write_job("waits.toml", tables='[cluster]\ntype = "gateway"\nworkers = 1000')
    process = start("fit", waits, "--out", "run", **gateway)
    deadline = time.monotonic() + 300
    while not clusters(gateway):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=200)
    assert process.returncode == 130
    wait_for_no_clusters(gateway)


def test_a_stop_while_a_cluster_is_asked_for_leaves_none(gateway: dict[str, str], job: str) -> None:
    """Ctrl-C before the gateway has said which cluster it starts."""
    code = """
import os, signal, sys
import dask_gateway
from ntkdist.cli import main

submit = dask_gateway.Gateway.submit

def stopped(self, *args, **options):
    os.kill(os.getpid(), signal.SIGINT)
    print(name := submit(self, *args, **options), flush=True)
    return name

dask_gateway.Gateway.submit = stopped
main(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "fit", job, "--out", "run"],
        env=os.environ | gateway,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 130
    assert done.stdout.strip()  # there was one
    wait_for_no_clusters(gateway)


def detached(job: str, gateway: dict[str, str]) -> None:
    """A fit is left to a new cluster, and the process that did so is gone."""
    process = start("fit", job, "--out", "run", "--detach", **gateway)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert out == f"{Path('run').absolute()}\n"


def test_a_detached_fit_and_its_cluster_go_on_until_it_is_done(gateway: dict[str, str], job: str) -> None:
    detached(job, gateway)
    assert nd.status("run").state in ("waiting", "running", "done")
    process = start("attach", "run", "--json")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert json.loads(out)["rows"] == 240
    coef, expected = (nd.load(f"{place}/model.zarr").coef for place in ("run", "here"))
    np.testing.assert_allclose(coef, expected, rtol=1e-6, atol=1e-12)
    assert nd.status("run").state == "done"
    wait_for_no_clusters(gateway)


def test_the_cluster_of_a_detached_fit_ends_with_its_failure(gateway: dict[str, str], job: str) -> None:
    Path("train.zarr/y/c/19").unlink()
    detached(job, gateway)
    process = start("attach", "run")
    assert_one_line(process.communicate(timeout=400)[1], ["run: failed: ", "chunk y/c/19 is missing"])
    assert process.returncode == 1
    wait_for_no_clusters(gateway)


def test_what_cannot_be_submitted_leaves_no_cluster(gateway: dict[str, str], job: str) -> None:
    few = write_job("few.toml", tables='[cluster]\ntype = "gateway"\nworkers = 8\nwait_seconds = 1')
    process = start("fit", few, "--out", "run", "--detach", **gateway)
    assert_one_line(process.communicate(timeout=400)[1], ["The Gateway cluster has had", "raise wait_seconds"])
    assert process.returncode == 1
    assert not Path("run").exists()
    wait_for_no_clusters(gateway)


def test_no_gateway_there(job: str) -> None:
    process = start("fit", job, "--out", "run", DASK_GATEWAY__ADDRESS="http://127.0.0.1:1")
    assert_one_line(process.communicate(timeout=120)[1], ["The Gateway cluster did not start (", "127.0.0.1:1"])
    assert process.returncode == 1
