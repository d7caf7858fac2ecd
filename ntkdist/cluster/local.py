"""Worker processes on this machine, which a Ctrl-C ends at once and without a word of their own."""

import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

import dask
import psutil
from distributed import LocalCluster
from distributed.system import MEMORY_LIMIT

from ntkdist.cluster import phases
from ntkdist.cluster.kinds import Local

POLL_SECONDS = 0.05
FRUGAL = {
    "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,  # see backend.keep_heap
    "distributed.worker.profile.cycle": "1 minute",  # of a second, its profiles fill an hour's list
}


@contextmanager
def local_cluster(table: Local) -> Iterator[LocalCluster]:
    """Start the workers of a table, and end them with the block: by SIGKILL if a signal ends it.

    Whatever they keep appears whole or not at all, so that nothing is lost that was finished.
    """
    cluster = _started(table)
    try:
        yield cluster
    except (KeyboardInterrupt, SystemExit):
        with _quiet():
            _kill(cluster)
            cluster.close()
        raise
    finally:
        cluster.close()  # a second time nothing happens


def _started(table: Local) -> LocalCluster:
    """Start a cluster in a thread that SIGINT does not reach, and neither do the processes that come of it.

    A terminal sends Ctrl-C to all of them, and a worker that starts would print a traceback.
    """
    resource_tracker.ensure_running()  # here: a thread that starts it would no longer block interrupts
    before = set(_spawned())
    with ThreadPoolExecutor(1, initializer=_block_interrupts) as pool:
        starting = pool.submit(_start, table.workers, phases.run_id())
        try:
            return starting.result()
        except (KeyboardInterrupt, SystemExit):
            with _quiet():
                _abandon(starting, before)
            raise


def _start(workers: int, name: str) -> LocalCluster:
    limit = MEMORY_LIMIT // (workers + 1)  # the driver, which solves, needs its share
    options: dict[str, Any] = {"memory_limit": limit, "dashboard_address": "127.0.0.1:0", "name": name or None}
    with dask.config.set(FRUGAL):
        return LocalCluster(n_workers=workers, threads_per_worker=1, **options)


def _block_interrupts() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _abandon(starting: Future[LocalCluster], before: set[int]) -> None:
    """Kill the processes of a cluster that is starting until it gives up, or is there and can be closed."""
    while not starting.done():
        for pid in set(_spawned()) - before:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait([starting], POLL_SECONDS)
    if starting.exception() is None:
        _kill(starting.result())
        starting.result().close()


def _kill(cluster: LocalCluster) -> None:
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        if nanny.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(nanny.pid, signal.SIGKILL)


def _spawned() -> Iterator[int]:
    """Yield the processes that multiprocessing has started from this one, without its tracker of resources."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any("spawn_main" in part for part in child.cmdline()):
                yield child.pid


@contextmanager
def _quiet() -> Iterator[None]:
    """Log nothing: Dask has much to say of processes that were killed."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
