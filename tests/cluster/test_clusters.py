"""Clusters beyond this machine's own: scheduler files, certificates, versions, cores, and what is absent."""

import json
import os
import re
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
import servers
from command_line import Command, assert_one_line, columns, start, write_csv, write_job
from distributed.security import Security

import ntkdist as nd
from ntkdist.cluster import launch, preflight
from ntkdist.cluster.connect import resources
from ntkdist.cluster.preflight import Machine
from ntkdist.ridge.tiled import TilePlacement

DEPLOY = Path(__file__).parents[2] / "deploy" / "dask"


def certificates() -> dict[str, str]:
    """Certificates of one authority as files in the current directory, named to Dask by the environment."""
    made = Security.temporary()
    for name, text in (("ca", made.tls_ca_file), ("cert", made.tls_client_cert), ("key", made.tls_client_key)):
        Path(f"{name}.pem").write_text(text)
    tls = {"CA_FILE": "ca"} | {
        f"{role}__{what}": what.lower() for role in ("CLIENT", "SCHEDULER", "WORKER") for what in ("CERT", "KEY")
    }
    return {f"DASK_DISTRIBUTED__COMM__TLS__{key}": str(Path(f"{name}.pem").absolute()) for key, name in tls.items()}


def test_workers_are_those_that_the_scheduler_knows(two_workers, monkeypatch) -> None:
    """Also while a callback of the client's replaces its own copy of them by one without any."""

    async def replaced(n_workers: int = 0) -> None:
        two_workers._scheduler_identity = {"workers": {}}

    monkeypatch.setattr(two_workers, "_update_scheduler_info", replaced)
    assert two_workers.scheduler_info(n_workers=-1)["workers"] == {}
    assert sorted(preflight.workers_of(two_workers)) == sorted(two_workers.nthreads())
    assert resources(two_workers).workers == 2
    assert len(TilePlacement(two_workers, 1, 3).workers) == 2


def worker(host: str, tasks: int = 1) -> dict[str, object]:
    return {"host": host, "nthreads": tasks}


def machine(cores: range, granted: int = 64, grant: str = "") -> Machine:
    return Machine(frozenset(cores), grant, granted, "openblas", ())


@pytest.mark.parametrize(
    ("workers", "machines", "expected"),
    [
        ([worker("a")], [machine(range(16))], [16]),  # one fat process has a node's cores
        ([worker("a", 4)], [machine(range(16))], [4]),
        ([worker("a"), worker("a")], [machine(range(16))] * 2, [8, 8]),  # two share them
        ([worker("a"), worker("b")], [machine(range(16))] * 2, [16, 16]),
        ([worker("a"), worker("a")], [machine(range(8)), machine(range(8, 16))], [8, 8]),  # each is bound to its own
        ([worker("a"), worker("a", 3)], [machine(range(12))] * 2, [3, 3]),
        ([worker("a")], [machine(range(16), granted=2)], [2]),  # a container's quota
        ([worker("a"), worker("a")], [machine(range(64), granted=8, grant="one")] * 2, [4, 4]),  # which two share
        (
            [worker("a"), worker("a")],  # two batch jobs on a node that they do not have to themselves
            [machine(range(64), granted=8, grant="17//0"), machine(range(64), granted=4, grant="18//0")],
            [8, 4],
        ),
        ([worker("a", 8)], [machine(range(2))], [1]),
    ],
)
def test_cores_are_used_once(workers: list[dict[str, object]], machines: list[Machine], expected: list[int]) -> None:
    names = [f"tcp://{i}" for i in range(len(workers))]
    found = preflight.threads(dict(zip(names, workers, strict=True)), dict(zip(names, machines, strict=True)))
    assert list(found.values()) == expected


def test_slurms_grant_is_what_a_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = preflight.machine()
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    granted = preflight.machine()
    assert (mine.granted, granted.granted) == (os.cpu_count(), 1)
    assert (mine.grant, granted.grant) == ("//", "17//")
    assert re.match(r"\w+ \d", mine.blas)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            nd.SchedulerFile("nowhere.json", wait_seconds=1),
            "No scheduler has written its address to nowhere.json for 1 s",
        ),
        (nd.SlurmRunner(), "start the job by srun with -n 3 or more"),
        (nd.Slurm(), r"There is no sbatch here; start the job where SLURM's commands are"),
        (nd.Kubernetes("ntkdist:latest"), r"The Kubernetes cluster did not start \(\w+\): .+"),
        (nd.Cuda(), r"needs dask_cuda; pip install 'ntkdist\[cuda\]'"),
    ],
)
def test_what_is_not_here(table: nd.Slurm, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    monkeypatch.setitem(sys.modules, "dask_cuda", None)  # as if it were not installed
    monkeypatch.setenv("HOME", str(tmp_path))  # nor is there a kubeconfig
    monkeypatch.delenv("KUBECONFIG", raising=False)
    for kind, needs in ((nd.Slurm, "dask_jobqueue"), (nd.Kubernetes, "dask_kubernetes")):
        if isinstance(table, kind):
            pytest.importorskip(needs)
    with pytest.raises(nd.ClusterError, match=says), launch.client_of(table):
        pass


def test_a_table_for_every_kind(tmp_path: Path) -> None:
    said = {
        "local": nd.Local(2),
        "cuda": nd.Cuda(2),
        'address"\naddress = "tls://a:1': nd.Address("tls://a:1"),
        'file"\npath = "s.json': nd.SchedulerFile("s.json"),
        'gateway"\nname = "abc': nd.Gateway(name="abc"),
        'slurm"\nwalltime = "01:00:00': nd.Slurm(walltime="01:00:00"),
        "slurm-runner": nd.SlurmRunner(),
        'kubernetes"\nimage = "ntkdist:1': nd.Kubernetes("ntkdist:1"),
    }
    for text, expected in said.items():
        more = "workers = 2\n" if text in ("local", "cuda") else ""
        path = write_job(str(tmp_path / "job.toml"), tables=f'[cluster]\ntype = "{text}"\n{more}')
        assert nd.Job.read(path).cluster == expected


@pytest.mark.slow
@pytest.mark.cluster
def test_certificates_scheduler_file_and_the_settings_of_deploy(command: Command) -> None:
    """An encrypted cluster with deploy/'s settings and preload, met by its scheduler file; not without certificates."""
    write_csv("train.csv", columns(), "a", "b", "c", "y")
    command("convert", "train.csv", "train.zarr", "--target", "y")
    assert command("fit", write_job(tables='[plan]\ndtype = "float64"'), "--out", "here").exit_code == 0
    job = write_job(tables='[cluster]\ntype = "file"\npath = "s.json"\nwait_seconds = 200\n[plan]\ndtype = "float64"')
    Path("dask").mkdir()  # where Dask would leave commented defaults of its extensions
    shutil.copy(DEPLOY / "ntkdist.yaml", "dask")
    env = certificates() | {"DASK_CONFIG": str(Path("dask").absolute())}
    process = start("fit", job, "--out", "there", **env)  # it waits for the scheduler, which comes later
    with ExitStack() as stack:
        options = ("--protocol", "tls", "--port", "0", "--scheduler-file", "s.json")
        stack.enter_context(servers.dask("scheduler", *options, **env))
        options = ("--scheduler-file", "s.json", "--nthreads", "1", "--preload", str(DEPLOY / "preload.py"))
        stack.enter_context(
            servers.dask("worker", *options, "--local-directory", "spill", "--memory-limit", "0.5", **env)
        )
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        address = json.loads(Path("s.json").read_text())["address"]
        assert address.startswith("tls://")

        other = start("workers", "--scheduler", address)
        assert_one_line(other.communicate(timeout=120)[1], [f"{address} needs certificates", "distributed.comm.tls"])
    assert "ntkdist worker: Machine(" in Path("worker.log").read_text()
    coef, expected = (nd.load(f"{place}/model.zarr").coef for place in ("there", "here"))
    np.testing.assert_allclose(coef, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_worker_of_another_version(command: Command) -> None:
    """Its NumPy says that it is another: the run is refused, and the table shows it."""
    dist = Path("other") / "numpy-1.2.3.dist-info"
    dist.mkdir(parents=True)
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.2.3\n")
    places = [str(Path("other").absolute()), *filter(None, [os.environ.get("PYTHONPATH")])]
    with servers.scheduler_and_worker(PYTHONPATH=os.pathsep.join(places)) as address:
        out, err = (process := start("workers", "--scheduler", address)).communicate(timeout=120)
    assert process.returncode == 1
    assert_one_line(err, [f"numpy is {np.__version__} here but 1.2.3 on tcp://127.0.0.1:", "'ntkdist workers' shows"])
    head, row = out.splitlines()
    assert head.split() == list(preflight.HEAD)
    assert "1.2.3" in row.split()


@pytest.mark.cluster
@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_workers_end_with_a_run_that_is_stopped(command: Command, sent: int) -> None:
    write_csv("train.csv", columns(), "a", "b", "c", "y")
    command("convert", "train.csv", "train.zarr", "--target", "y")
    process = start("fit", write_job(tables="[cluster]\nworkers = 2"), "--out", "run")
    me, deadline = psutil.Process(process.pid), time.monotonic() + 60
    while len(children := me.children(recursive=True)) < 2:  # the run may not have connected to them yet
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(sent)
    process.communicate(timeout=120)
    assert process.returncode == (130 if sent == signal.SIGINT else 143)
    _, left = psutil.wait_procs(children, timeout=60)
    assert left == []
