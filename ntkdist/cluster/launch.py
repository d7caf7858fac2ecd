"""Clusters that a job starts or meets: a client for every kind of ``[cluster]`` table.

Packages that only one kind needs are imported where that kind is started.
"""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Security
from distributed.system import MEMORY_LIMIT
from distributed.versions import VersionMismatchWarning

from ntkdist.cluster.kinds import AnyCluster, Cuda, Gateway, Kubernetes, Local, SchedulerFile, Slurm, SlurmRunner
from ntkdist.cluster.local import local_cluster
from ntkdist.errors import ClusterError

CONNECT_SECONDS = 10
WORKERS_SECONDS = 60
ONE_FAT_TASK = ["--nthreads", "1"]  # of a worker, on all its cores: one accumulator, not one a core


@contextmanager
def client_at(address: str, workers: int = 1, seconds: int = WORKERS_SECONDS) -> Iterator[Client]:
    """Connect to a scheduler and wait until it has some workers.

    Raises
    ------
    ClusterError
        If it does not answer, or too few workers come in time.
    """
    configured = dask.config.get("distributed.client.security-loader", None)
    if address.startswith("tls:") and not (configured or Security().get_connection_args("client").get("ssl_context")):
        raise ClusterError(
            f"The scheduler at {address} needs certificates; name them in Dask's configuration (distributed.comm.tls)"
        )
    try:
        client = _client(address, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"No Dask scheduler answered at {address} within {CONNECT_SECONDS} s ({type(error).__name__}); "
            "check the address and that the scheduler runs"
        ) from None
    with client:
        wait_for_workers(client, workers, seconds, f"The scheduler at {address}", "start some")
        yield client


@contextmanager
def client_of(table: AnyCluster, leave: bool = False) -> Iterator[Client]:
    """Start or find the cluster of a table, and end what was started with the block, however that ends.

    With ``leave``, a cluster of one of the kinds `DETACHABLE` goes on after a block that does not fail.

    Raises
    ------
    ClusterError
        If it does not start, or its workers do not come in time.
    """
    if isinstance(table, SchedulerFile):
        with client_at(_address_in(table), table.workers, table.wait_seconds) as client:
            yield client
        return
    with _cluster(table) as cluster, _client(cluster) as client:
        if isinstance(table, (Gateway, Slurm, Kubernetes)):
            who, remedy = f"The {type(table).__name__} cluster", "look at its logs and limits, or raise wait_seconds"
            wait_for_workers(client, table.workers, table.wait_seconds, who, remedy)
        elif isinstance(table, SlurmRunner):
            wait_for_workers(client, cluster.n_workers, table.wait_seconds, "The allocation", "look at its output")
        yield client
        if leave:
            cluster.shutdown_on_close = False


def _client(of: Any, **options: Any) -> Client:
    """Make a client that does not warn of differing versions: `preflight` refuses them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VersionMismatchWarning)
        return Client(of, set_as_default=False, **options)


def wait_for_workers(client: Client, count: int, seconds: int, who: str, remedy: str) -> None:
    """Wait until a cluster has some workers; raise ClusterError if it has not after some seconds."""
    try:
        client.wait_for_workers(count, timeout=seconds)
    except TimeoutError:
        here = len(client.nthreads())
        some = f"{here} of {count} workers" if here else "no workers"
        raise ClusterError(f"{who} has had {some} for {seconds} s; {remedy}") from None


def _cluster(table: AnyCluster) -> Any:
    """Start the cluster of a table; the result is a context that ends it."""
    if isinstance(table, Local):
        return local_cluster(table)
    kinds: dict[type, Callable[[Any], Any]] = {
        Cuda: _cuda,
        Gateway: _gateway,
        Slurm: _slurm,
        SlurmRunner: _slurm_runner,
        Kubernetes: _kubernetes,
    }
    try:
        return kinds[type(table)](table)
    except ModuleNotFoundError as error:
        extra = type(table).__name__.lower().removesuffix("runner")
        raise ClusterError(
            f"A cluster of type {type(table).__name__} needs {error.name}; pip install 'ntkdist[{extra}]'"
        ) from None
    except ClusterError:
        raise
    except Exception as error:  # of aiohttp, kr8s, SLURM's commands, ...: whatever it is, no cluster came of it
        said = f"({type(error).__name__}): {' '.join(str(error).split()) or 'no reason given'}"
        raise ClusterError(f"The {type(table).__name__} cluster did not start {said}") from error


def _cuda(table: Cuda) -> Any:
    import dask_cuda

    workers = {} if table.workers is None else {"n_workers": table.workers}
    return dask_cuda.LocalCUDACluster(threads_per_worker=1, dashboard_address="127.0.0.1:0", **workers)


def _gateway(table: Gateway) -> Any:
    import dask_gateway

    address = {"address": table.address} if table.address else {}
    if table.name:
        return dask_gateway.GatewayCluster.from_name(table.name, **address)

    class Asked(dask_gateway.Gateway):  # type: ignore[misc]
        def __del__(self) -> None:
            """Skip the parent's closing, which would come a second time and complain."""

    name = ""
    with Asked(**address) as gateway:
        try:
            with _signals_wait():
                name = gateway.submit()
            cluster = dask_gateway.GatewayCluster.from_name(name, **address)
            cluster.scale(table.workers)  # which a limit of the gateway may refuse
        except BaseException:
            if name:
                gateway.stop_cluster(name)
            raise
    cluster.shutdown_on_close = True
    return cluster


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end of the block, so that what it starts is known to the code that has to end
    it.
    """
    if threading.current_thread() is not threading.main_thread():  # no other gets them
        yield
        return
    came: list[int] = []
    held = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(each, lambda number, _: came.append(number)) for each in held]
    try:
        yield
    finally:
        for each, handler in zip(held, before, strict=True):
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        for number in came:
            signal.raise_signal(number)


@contextmanager
def _interrupts_as_they_are() -> Iterator[None]:
    """Keep Ctrl-C a failure: importing dask-jobqueue makes it an exit with success."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is not before:
            signal.signal(signal.SIGINT, before)


def _slurm(table: Slurm) -> Any:
    with _interrupts_as_they_are():
        import dask_jobqueue

    if not shutil.which("sbatch"):
        raise ClusterError("There is no sbatch here; start the job where SLURM's commands are, such as a login node")
    extra = [*dask.config.get("jobqueue.slurm.worker-extra-args"), *ONE_FAT_TASK]
    options: dict[str, Any] = {"queue": table.queue or None, "walltime": table.walltime or None}
    cluster = dask_jobqueue.SLURMCluster(processes=1, worker_extra_args=extra, **options)
    try:
        # Asked first: of a job that is refused later nobody would be told until the wait is over.
        asked = subprocess.run(
            ["sbatch", "--test-only"], input=cluster.job_script(), text=True, capture_output=True, check=False
        )
        if asked.returncode:
            said = " ".join(asked.stderr.replace("sbatch: error:", "").split())
            raise ClusterError(f"SLURM refuses a worker's batch job: {said}; change [cluster] or Dask's jobqueue.slurm")
        cluster.scale(jobs=table.workers)
    except BaseException:
        cluster.close()
        raise
    return cluster


def _slurm_runner(_: SlurmRunner) -> Any:
    """Start a runner; only the client's task returns from here, and the others end with the scheduler."""
    if int(os.environ.get("SLURM_NTASKS", "0")) < 3 or "SLURM_PROCID" not in os.environ:
        raise ClusterError(
            f"This is one of {os.environ.get('SLURM_NTASKS', 'no')} SLURM tasks but a scheduler, a client and a worker "
            "need three; start the job by srun with -n 3 or more"
        )
    a_node = -(-int(os.environ["SLURM_NTASKS"]) // int(os.environ.get("SLURM_NNODES", "1")))
    granted = int(os.environ.get("SLURM_MEM_PER_NODE", "0")) * 2**20
    memory = min(granted or MEMORY_LIMIT, MEMORY_LIMIT) // a_node
    with _interrupts_as_they_are():
        from dask_jobqueue.slurm import SLURMRunner

        return SLURMRunner(worker_options={"nthreads": 1, "memory_limit": memory})


def _kubernetes(table: Kubernetes) -> Any:
    import kr8s
    from dask_kubernetes.operator import KubeCluster

    kr8s.api().version()  # an API server that is not there is known before anything is left to clean up
    namespace = {"namespace": table.namespace} if table.namespace else {}
    return KubeCluster(custom_cluster_spec=kubernetes_resource(table), quiet=True, **namespace)


def kubernetes_resource(table: Kubernetes) -> dict[str, Any]:
    """Return the ``DaskCluster`` of a table."""
    from dask_kubernetes.operator import make_cluster_spec

    size = {"cpu": str(table.cores), "memory": table.memory}
    made: dict[str, Any] = make_cluster_spec(
        name=f"ntkdist-{uuid.uuid4().hex[:8]}",
        image=table.image,
        n_workers=table.workers,
        env={},  # absent, it would be null, which the resource may not hold
        resources={"requests": size, "limits": size},
        # Dask's default gives one thread of several cores its part of the memory only.
        worker_command=["dask", "worker", *ONE_FAT_TASK, "--memory-limit", "0.95"],
        idle_timeout=table.idle_seconds,
    )
    (scheduler,) = made["spec"]["scheduler"]["spec"]["containers"]
    scheduler["args"] = ["dask", "scheduler", "--host", "0.0.0.0"]  # it would say dask-scheduler, which is no more
    scheduler["resources"] = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "4Gi"}}
    return made


def _address_in(table: SchedulerFile) -> str:
    """Read the address from a scheduler's file once it is written."""
    end = time.monotonic() + table.wait_seconds
    while True:
        try:
            return str(json.loads(Path(table.path).read_text())["address"])
        except (OSError, ValueError, KeyError) as error:  # there not yet, or half written
            if time.monotonic() > end:
                raise ClusterError(
                    f"No scheduler has written its address to {table.path} for {table.wait_seconds} s "
                    f"({type(error).__name__}); start it with --scheduler-file {table.path}"
                ) from None
        time.sleep(0.1)
