"""dask worker ADDRESS --nthreads 1 --memory-limit 0.95 --preload preload.py

A worker that cannot do ntkdist's work does not join the cluster, and says what it is in its log before it does.
"""

import logging

from distributed import Worker


def dask_setup(worker: Worker) -> None:
    """Import what every task needs, now and not in the first task, and see that a task has all cores to itself."""
    from ntkdist.cluster import preflight, reduce  # noqa: F401

    log = logging.getLogger("distributed.preload")
    log.warning("ntkdist worker: %s", preflight.machine())
    if worker.state.nthreads > 1:
        log.warning(
            "--nthreads is %d: that many tasks run at once, each with its own accumulator; --nthreads 1 gives one task "
            "all cores and the memory",
            worker.state.nthreads,
        )
