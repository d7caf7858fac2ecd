"""Phases of a run, for observers: lines in the log ``ntkdist``, and spans on the scheduler."""

import importlib.util
import logging
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import distributed
from distributed import Client

from ntkdist.data import storage
from ntkdist.errors import ClusterError

LOG = logging.getLogger("ntkdist")
LOG.addHandler(logging.NullHandler())  # nothing is printed unless somebody asks logging for it
_RUN: ContextVar[str] = ContextVar("run", default="")


@contextmanager
def run(name: str) -> Iterator[str]:
    """Open a run and yield its id, with which every line of its log begins: the name and a random suffix."""
    token = _RUN.set(f"{name}-{uuid.uuid4().hex[:8]}")
    try:
        with _logged("run"):
            yield _RUN.get()
    finally:
        _RUN.reset(token)


def run_id() -> str:
    """Return the id of the run that is open, or ""."""
    return _RUN.get()


@contextmanager
def phase(name: str, client: Client | None) -> Iterator[None]:
    """Open a phase of a run: its tasks belong to the span (run id, name), or (name,) outside of a run."""
    if client is None:
        with _logged(name):
            yield
        return
    with _logged(name), distributed.span(*filter(None, (_RUN.get(), name))):
        yield


@contextmanager
def _logged(name: str) -> Iterator[None]:
    who, start = _RUN.get() or "-", time.perf_counter()
    LOG.info("%s %s starts", who, name)
    try:
        yield
    except BaseException as error:
        LOG.info("%s %s failed after %.2f s: %s", who, name, time.perf_counter() - start, type(error).__name__)
        raise
    LOG.info("%s %s ended after %.2f s", who, name, time.perf_counter() - start)


@contextmanager
def performance_report(url: str, client: Client | None) -> Iterator[None]:
    """Write Dask's report of the cluster during the block to an HTML file; nothing without a file, or if the block
    fails.

    Raises
    ------
    ClusterError
        If there is no cluster, or its scheduler lacks bokeh.
    """
    if not url:
        yield
        return
    if client is None:
        raise ClusterError(
            "A performance report is of a Dask cluster but this run has none; give --scheduler or [cluster], or leave "
            "out the performance report"
        )
    if not client.run_on_scheduler(_has_bokeh):
        raise ClusterError(
            "A performance report needs bokeh where the scheduler runs, and it is not there; pip install "
            "'ntkdist[dashboard]' there, or leave out the performance report"
        )
    with tempfile.TemporaryDirectory() as place:
        page = Path(place) / "performance.html"
        with client.as_current(), distributed.performance_report(str(page)):
            yield
        storage.write_text(url, page.read_text())


def _has_bokeh() -> bool:
    return importlib.util.find_spec("bokeh") is not None
