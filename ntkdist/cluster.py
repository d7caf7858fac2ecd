"""Where a run happens: a Dask cluster, found by a fixed precedence, or this process."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, default_client
from distributed.system import MEMORY_LIMIT
from distributed.utils import get_ip

from ntkdist.clusters import Address, AnyCluster, Local
from ntkdist.errors import ClusterError

CONNECT_SECONDS = 10
WORKERS_SECONDS = 60
# Arrays up to 64 MiB come from a heap that is kept: with Dask's own setting each one is mapped and zeroed anew, which
# was measured to cost a third of the rate at m = 1,024 and to save no memory.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(64 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(1024 * 2**20)}


class Resources(NamedTuple):
    """What a run can use.

    Attributes
    ----------
    workers : int
        Processes.
    tasks_at_once : int
        Most Dask threads of any of them.
    threads : int
        Threads of a task so that a node's cores are used once: cores over tasks on the node.
    memory_bytes : int
        Least memory limit of any worker.
    driver_memory_bytes : int
        Memory of this machine, over this process and the workers beside it.
    """

    workers: int
    tasks_at_once: int
    threads: int
    memory_bytes: int
    driver_memory_bytes: int


@contextmanager
def connect(
    table: AnyCluster | None = None, scheduler: str = "", client: Client | None = None
) -> Iterator[Client | None]:
    """The client to use: the one given, the scheduler's address, the job's table, the client that is active in this
    process, Dask's ``scheduler-address`` (environment variable DASK_SCHEDULER_ADDRESS), or None for this process.

    What was started or connected here is closed at the end.

    Raises
    ------
    ClusterError
        If the scheduler does not answer or no worker comes.
    """
    if client is not None:
        yield client
    elif scheduler:
        with _client(scheduler) as client:
            yield client
    elif isinstance(table, Local):
        limit = MEMORY_LIMIT // (table.workers + 1)  # the driver, which solves, needs its share
        options = {"memory_limit": limit, "dashboard_address": "127.0.0.1:0", "env": MALLOC}
        with (
            LocalCluster(n_workers=table.workers, threads_per_worker=1, **options) as cluster,
            Client(cluster) as client,
        ):
            client.run(_leave_errors_to_the_driver)
            yield client
    elif isinstance(table, Address):
        with _client(table.address) as client:
            yield client
    elif active := _active_client():
        yield active
    elif address := dask.config.get("scheduler-address", None):
        with _client(address) as client:
            yield client
    else:
        yield None


def resources(client: Client | None) -> Resources:
    """What the workers of a client have, or this process."""
    if client is None:
        pool = local_scheduler() == "threads"
        at_once = (dask.config.get("num_workers", None) or CPU_COUNT) if pool else 1
        return Resources(1, at_once, max(1, CPU_COUNT // at_once), MEMORY_LIMIT, MEMORY_LIMIT)
    cores = client.run(_cores)
    workers = client.scheduler_info(n_workers=-1)["workers"]
    tasks: Counter[str] = Counter()  # at once on each host
    for info in workers.values():
        tasks[info["host"]] += info["nthreads"]
    beside = sum(info["host"] in ("127.0.0.1", get_ip()) for info in workers.values())
    return Resources(
        len(workers),
        max(info["nthreads"] for info in workers.values()),
        max(1, min(cores[name] // tasks[workers[name]["host"]] for name in cores if name in workers)),
        min(info["memory_limit"] or MEMORY_LIMIT for info in workers.values()),
        MEMORY_LIMIT // (1 + beside),
    )


def local_scheduler() -> str:
    """Dask's scheduler for work in this process: "threads" if that is configured, else "synchronous".

    One task on all cores is the default: it keeps one accumulator, not one a core.
    """
    return "threads" if dask.config.get("scheduler", None) in ("threads", "threading") else "synchronous"


def _leave_errors_to_the_driver() -> None:
    """Keep a worker, which shares the driver's standard error, from printing a failed task's error as well, and that
    the others were cancelled for it."""
    logging.getLogger("distributed.worker").addFilter(lambda record: not str(record.msg).startswith("Compute Failed"))
    logging.getLogger("distributed.worker.state_machine").setLevel(logging.ERROR)


def _cores() -> int:
    return CPU_COUNT


def _active_client() -> Client | None:
    try:
        return default_client()
    except ValueError:
        return None


@contextmanager
def _client(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(
            f"No Dask scheduler answered at {address} within {CONNECT_SECONDS} s ({type(error).__name__}); "
            "check the address and that the scheduler runs"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKERS_SECONDS)
        except TimeoutError:
            raise ClusterError(
                f"The scheduler at {address} has had no workers for {WORKERS_SECONDS} s; start some"
            ) from None
        yield client
