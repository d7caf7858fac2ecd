"""Connections: the Dask cluster that a run uses, found by a fixed precedence, or this process; and what it can use
there.
"""

import functools
import logging
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import dask
from dask.delayed import delayed
from dask.system import CPU_COUNT
from dask.tokenize import tokenize
from distributed import Client, Future, default_client
from distributed.system import MEMORY_LIMIT
from distributed.utils import get_ip

from ntkdist import backend, gpu, memory
from ntkdist.cluster import preflight
from ntkdist.cluster.kinds import Address, AnyCluster, Cuda, Local
from ntkdist.cluster.launch import WORKERS_SECONDS, client_at, client_of, wait_for_workers
from ntkdist.data import zarr_groups

T = TypeVar("T")
# Of a process, beyond what can be loaded beforehand: code and objects of its first tasks, measured as 3 to 5 MB, and
# Dask's records of tasks, half a MB a run and up to 2 MB a minute, in lists of bounded length.
FOR_GOOD_BYTES = 2**23
EMBED_BYTES = 2**20  # of a value for many tasks; a larger one is the result of a task of its own


class Resources(NamedTuple):
    """Workers, threads and memory that a run can use."""

    workers: int  # processes
    tasks_at_once: int  # the most Dask threads of any worker
    threads: int  # of a task, so that a node's cores are used once: cores over tasks on the node
    memory_bytes: int  # the least memory limit of any worker
    driver_memory_bytes: int  # of this machine, over this process and the workers beside it
    process_bytes: int  # resident in any worker before it starts, at most, with what its first tasks take for good
    driver_process_bytes: int  # the same of this process
    gpus: tuple[gpu.Gpu | None, ...] = ()  # of each worker, if they were asked for, with the memory of a task
    here: bool = False  # no cluster: the only worker is this process, which also solves

    @property
    def shape(self) -> tuple[int, int, int]:
        """Workers, tasks at once and bytes of a process: with the plan, they decide the memory of a worker."""
        return self.workers, self.tasks_at_once, self.process_bytes


@contextmanager
def connect(
    table: AnyCluster | None = None,
    scheduler: str = "",
    client: Client | None = None,
    check: bool = True,
    leave: bool = False,
) -> Iterator[Client | None]:
    """Find the client to use and close at the end what was started or connected here.

    The first of these is used: the client given, the scheduler's address, the job's table, the client that is active in
    this process, Dask's ``scheduler-address`` (environment variable DASK_SCHEDULER_ADDRESS); else None, for this
    process.  A cluster whose versions differ from those here is refused if ``check`` is set; ``leave`` is that of
    `client_of`.

    Raises
    ------
    ClusterError
        If the scheduler does not answer, no worker comes, or versions differ.
    """
    with _found(table, scheduler, client, leave) as client:
        if client is not None and check:
            preflight.check(client)
        yield client


@contextmanager
def _found(table: AnyCluster | None, scheduler: str, client: Client | None, leave: bool) -> Iterator[Client | None]:
    configured = dask.config.get("scheduler-address", None)
    if client is not None:
        yield client
    elif scheduler or isinstance(table, Address):
        with client_at(scheduler or table.address) as client:  # type: ignore[union-attr]
            yield client
    elif table is not None:
        with client_of(table, leave) as client:
            if isinstance(table, (Local, Cuda)):
                client.run(_leave_errors_to_the_driver)
            yield client
    elif active := _active_client():
        yield active
    elif configured:
        with client_at(configured) as client:
            yield client
    else:
        yield None


def resources(client: Client | None, warm: Callable[[], object] = int, gpus: bool = False) -> Resources:
    """Measure what the workers of a client have, or this process.

    ``warm`` is called in each of them before its memory is measured, to load what it will need.  ``gpus`` asks for
    GPUs, too.

    Raises
    ------
    ClusterError
        If a GPU does not compute, or there are no workers and none comes.
    """
    if client is None:
        pool = local_scheduler() == "threads"
        at_once = (dask.config.get("num_workers", None) or CPU_COUNT) if pool else 1
        threads = max(1, backend.most(CPU_COUNT) // at_once)
        shares = _shared({"": gpu.gpu()} if gpus else {}, {"": ("", at_once)})
        process = _resident(warm, 1, 1)
        return Resources(1, at_once, threads, MEMORY_LIMIT, MEMORY_LIMIT, process, process, shares, here=True)
    wait_for_workers(client, 1, WORKERS_SECONDS, "The cluster", "see why its workers end")  # a nanny starts another
    seen = client.run(gpu.gpu) if gpus else {}  # first: CUDA takes memory of a process, too
    machines = client.run(preflight.machine)
    workers = preflight.workers_of(client)
    here = {name: one for name, one in machines.items() if name in workers}
    threads, tasks = min(preflight.threads(workers, here).values()), max(info["nthreads"] for info in workers.values())
    beside = sum(info["host"] in ("127.0.0.1", get_ip()) for info in workers.values())
    return Resources(
        len(workers),
        tasks,
        threads,
        min(info["memory_limit"] or MEMORY_LIMIT for info in workers.values()),
        MEMORY_LIMIT // (1 + beside),
        max(client.run(_resident_worker, warm, threads, tasks).values()),
        memory.resident_bytes(),
        _shared(seen, {name: (info["host"], info["nthreads"]) for name, info in workers.items()}),
    )


def _shared(seen: dict[str, gpu.Gpu | None], workers: dict[str, tuple[str, int]]) -> tuple[gpu.Gpu | None, ...]:
    """Return the GPU of each worker, its memory divided by the tasks that share it."""
    seen = {name: one for name, one in seen.items() if name in workers}  # one may be gone meanwhile
    tasks: Counter[tuple[str, str]] = Counter()
    for name, one in seen.items():
        if one is not None:
            tasks[workers[name][0], one.bus] += workers[name][1]
    return tuple(
        one and one._replace(free_bytes=one.free_bytes // tasks[workers[name][0], one.bus])
        for name, one in seen.items()
    )


def local_scheduler() -> str:
    """Return Dask's scheduler for work in this process: "threads" if that is configured, else "synchronous".

    One task on all cores is the default: it keeps one accumulator, not one a core.
    """
    return "threads" if dask.config.get("scheduler", None) in ("threads", "threading") else "synchronous"


def _leave_errors_to_the_driver() -> None:
    """Silence a worker that shares the driver's terminal: the driver reports a failed task or a Ctrl-C, and ends its
    workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("distributed.worker", "distributed.core"):
        logging.getLogger(name).addFilter(
            lambda record: not (record.exc_info or str(record.msg).startswith("Compute Failed"))
        )
    logging.getLogger("distributed.worker.state_machine").setLevel(logging.ERROR)


def as_delayed(value: T, client: Client | None = None) -> Any:
    """Wrap a value for a Dask graph, as the result of one task from which all others take it.

    A large value is uploaded beforehand through the client given, or the active one, so that no graph carries it.
    """
    client = client or _active_client()
    if client is not None and is_large(value):
        return delayed(upload_once(value, client, (f"ntkdist-shared-{tokenize(value)}", 0)))
    return delayed(functools.partial(identity, value), traverse=False, pure=True)()


def is_large(value: object) -> bool:
    """Return whether a value is too large to be in each of many tasks, or in a graph."""
    arrays: list[pickle.PickleBuffer] = []  # counted without a copy
    rest = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    return len(rest) + sum(array.raw().nbytes for array in arrays) > EMBED_BYTES


def upload_once(value: T, client: Client, key: tuple[str, int]) -> Future[T]:
    """Upload a value as the result of a task, which is run again if its worker is lost."""
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"}):  # once a key
        future: Future[T] = client.submit(identity, value, key=key)
    return future


def identity(value: T) -> T:
    """Return a value as a task's result, which workers then send to one another."""
    return value


def _resident(warm: Callable[[], object], threads: int, tasks: int) -> int:
    """Return the memory of this process once it is warm, with what its first tasks will take for good."""
    zarr_groups.warm()
    warm()
    backend.warm(threads * tasks)
    return memory.resident_bytes() + FOR_GOOD_BYTES


def _resident_worker(warm: Callable[[], object], threads: int, tasks: int) -> int:
    """Return `_resident` of a worker, after its heap and BLAS are set as for a task of so many threads."""
    backend.use_threads(threads)
    return _resident(warm, threads, tasks)


def _active_client() -> Client | None:
    try:
        return default_client()
    except ValueError:
        return None
