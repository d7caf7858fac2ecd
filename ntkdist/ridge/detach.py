"""Detached fits: one process submits a fit to a cluster, and any process follows it through the run directory.

The driver is a task with a client of its own.  It keeps no state: if its worker dies, the scheduler runs it again on
another, and it continues from the checkpoint.  It writes its state to ``status.json`` in the run directory, and stops
when a file ``cancel`` appears there.  A cluster that was started for the fit ends with it.
"""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec

from ntkdist.cluster import Client
from ntkdist.cluster.connect import connect
from ntkdist.cluster.detached import client_of_task, leave_running
from ntkdist.cluster.kinds import DETACHABLE, Gateway
from ntkdist.cluster.progress import Progress, Watch, default_watch
from ntkdist.data import storage
from ntkdist.errors import ClusterError, DataError, NtkdistError, StoreError
from ntkdist.planning.job import Job, job_digest
from ntkdist.ridge import run_directory
from ntkdist.ridge.fit import fit
from ntkdist.spec import decode, encode

STATUS, CANCEL = "status.json", "cancel"
BEAT_SECONDS = 2.0  # between two writes of the status
SILENT_SECONDS = 60  # without a write, after which the status warns


class Status(msgspec.Struct, frozen=True):
    """The state of a detached run."""

    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    phase: str = ""  # the current pass over the data
    rows: int = 0  # done in this phase
    of: int = 0  # all rows of this phase
    workers: int = 0
    beat: float = 0.0  # time of writing, in seconds since 1970
    said: str = ""  # the error of a failed run

    @property
    def over(self) -> bool:
        """A flag: the run has ended, by success or not."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def silent_seconds(self) -> float:
        """The time since the driver last wrote; 0 once the run is over."""
        return 0.0 if self.over else max(0.0, time.time() - self.beat)

    def __str__(self) -> str:
        share = f" {self.phase}: {self.rows:,} of {self.of:,} rows, {self.workers} worker(s)" if self.phase else ""
        late = self.silent_seconds
        silent = f" (no word for {late:,.0f} s; see whether the cluster has workers)" if late > SILENT_SECONDS else ""
        return f"{self.state}{'' if self.over else share}{silent}{': ' * bool(self.said)}{self.said}"


class Cancelled(NtkdistError):
    """A request to stop a run."""


def submit(job: Job, out: str, *, scheduler: str = "", client: Client | None = None) -> str:
    """Submit a fit to a cluster that outlives this process; return the run directory, which identifies the run.

    If the job's table asks for a new cluster, it is started, and ends with the run.

    Parameters
    ----------
    job : Job
        Every worker must be able to read its dataset.
    out : str
        Run directory; every worker must be able to write it.
    scheduler, client
        As in `fit`.

    Returns
    -------
    str
        ``out`` as an absolute path or URL.

    Raises
    ------
    ClusterError
        If there is no such cluster, or it would end with this process.
    StoreError
        If ``out`` holds another run.
    """
    out = storage.absolute(out)
    table = None if scheduler or client is not None else job.cluster
    if table is not None and not isinstance(table, DETACHABLE):
        raise ClusterError(
            f"A detached fit needs a cluster that goes on without this command, not {type(table).__name__}; give "
            '--scheduler, or a [cluster] of type "gateway", "kubernetes", "address" or "file"; or, on SLURM, leave out '
            "--detach and submit the command itself by sbatch"
        )
    if run_directory.existing_run(out, job):
        return out
    dataset = msgspec.structs.replace(job.dataset, store=storage.absolute(job.dataset.store))
    job = msgspec.structs.replace(job, dataset=dataset, cluster=None)
    with connect(table, scheduler, client, leave=True) as client:
        if client is None:
            raise ClusterError("There is no cluster to send the fit to; give --scheduler")
        with run_directory.open_run(out, job):
            storage.remove(storage.join(out, CANCEL))
            _write(out, Status("waiting"))
            key = f"ntkdist-driver-{job_digest(job)}-{uuid.uuid4().hex}"
            leave_running(client, drive, encode(job), out, key=key, last=isinstance(table, Gateway) and not table.name)
    return out


def drive(job: str, out: str) -> str:
    """Run the fit in a task, and write its status; return its state instead of errors, so that Dask does not retry."""
    decoded: Job = decode(msgspec.json.decode(job), Job, "job")
    with client_of_task() as client, _reporting(out, len(client.nthreads())) as watch:
        try:
            fit(decoded, out=out, client=client, watch=watch)
            end = Status("done")
        except Cancelled:
            end = Status("cancelled")
        except NtkdistError as error:
            end = Status("failed", said=str(error))
        except Exception as error:  # nothing else would report it
            end = Status("failed", said=f"{type(error).__name__}: {error}")
    _write(out, end)
    return end.state


def status(run: str) -> Status:
    """Read the status of a detached run from its run directory; raise DataError if there is none."""
    text = storage.read_text(storage.join(run, STATUS))
    if text is None:
        if storage.exists(storage.join(run, "report.json")):
            return Status("done")
        raise DataError(f"{run} holds no detached run: there is no {STATUS}; start one with fit --detach --out {run}")
    return msgspec.json.decode(text, type=Status)


def attach(run: str, watch: Watch | None = None, poll_seconds: float = 0.5) -> Status:
    """Show the progress of a detached run until it is over, and return its last status; the run is not affected.

    The status is read every ``poll_seconds``; ``watch`` is as in `fit`.
    """
    current = status(run)
    while not current.over:
        if not current.phase:
            time.sleep(poll_seconds)
            current = status(run)
            continue
        phase, shown = current.phase, 0
        with (watch or default_watch(current.workers))(phase, current.of) as done:
            while current.phase == phase and not current.over:
                done(current.rows - shown)
                shown = current.rows
                time.sleep(poll_seconds)
                current = status(run)
            done(current.of - shown if current.phase == phase else 0)
    return current


def cancel(run: str) -> None:
    """Stop a run: its driver ends when the next shard is done, and finished shards are kept.

    Raises
    ------
    DataError, StoreError
        If there is no run, or it is over.
    """
    if (current := status(run)).over:
        raise StoreError(f"{run} is over ({current}); there is nothing to cancel")
    storage.write_text(storage.join(run, CANCEL), "")


@contextmanager
def _reporting(out: str, workers: int) -> Iterator[Watch]:
    """Yield a watch: a thread writes its progress to the status every 2 s, and it stops the fit on a cancel."""
    now, over, cancelled = Status("running", workers=workers), threading.Event(), threading.Event()

    def beat() -> None:
        while True:
            _write(out, now)
            if storage.exists(storage.join(out, CANCEL)):
                cancelled.set()
            if over.wait(BEAT_SECONDS):
                return

    @contextmanager
    def watch(phase: str, rows: int) -> Iterator[Progress]:
        nonlocal now
        now = Status("running", phase, 0, rows, workers)

        def advance(done: int) -> None:
            nonlocal now
            now = msgspec.structs.replace(now, rows=now.rows + done)
            if cancelled.is_set():
                raise Cancelled(f"{out} was cancelled")

        yield advance

    thread = threading.Thread(target=beat, name="ntkdist-status", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()


def _write(out: str, current: Status) -> None:
    """Write a status with the time of writing."""
    storage.write_text(storage.join(out, STATUS), encode(msgspec.structs.replace(current, beat=time.time())))
