"""Fits that live on a cluster: sent there by one process, looked after from any other through the run directory alone.

The driver is a task like the others, but for a client of its own.  It keeps nothing: if its worker dies, the scheduler
runs it again elsewhere, and it goes on from the checkpoint.  What it has to say stands in ``status.json`` of the run,
and a file ``cancel`` beside it is all that it listens to.  A cluster that was started for it ends with it.
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
BEAT_SECONDS = 2.0  # between words of the driver
SILENT_SECONDS = 60  # without one, after which somebody should look


class Status(msgspec.Struct, frozen=True):
    """What is known of a run.

    Attributes
    ----------
    state : {"waiting", "running", "done", "failed", "cancelled"}
    phase : str
        What it is at, with ``rows`` done ``of`` so many.
    workers : int
    beat : float
        Seconds since 1970 when this was written.
    said : str
        Why it failed.
    """

    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    phase: str = ""
    rows: int = 0
    of: int = 0
    workers: int = 0
    beat: float = 0.0
    said: str = ""

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed", "cancelled")

    @property
    def silent_seconds(self) -> float:
        """Since the driver's last word; 0 where none is expected."""
        return 0.0 if self.over else max(0.0, time.time() - self.beat)

    def __str__(self) -> str:
        share = f" {self.phase}: {self.rows:,} of {self.of:,} rows, {self.workers} worker(s)" if self.phase else ""
        late = self.silent_seconds
        silent = f" (no word for {late:,.0f} s; see whether the cluster has workers)" if late > SILENT_SECONDS else ""
        return f"{self.state}{'' if self.over else share}{silent}{': ' * bool(self.said)}{self.said}"


class Cancelled(NtkdistError):
    """Somebody asked for the end of a run."""


def submit(job: Job, out: str, *, scheduler: str = "", client: Client | None = None) -> str:
    """Send a fit to a cluster that goes on without this process; returns the run directory, by which it is known.

    Where the job's table asks for a new cluster, that is started, has its workers, and ends with the run.

    Parameters
    ----------
    job : Job
        Dataset and ``out`` must be places that every worker sees.
    out : str
    scheduler, client
        As in `fit`.

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
    with connect(table, scheduler, client, leave=True) as found:
        if found is None:
            raise ClusterError("There is no cluster to send the fit to; give --scheduler")
        with run_directory.open_run(out, job):
            storage.remove(storage.join(out, CANCEL))
            _write(out, Status("waiting"))
            key = f"ntkdist-driver-{job_digest(job)}-{uuid.uuid4().hex}"
            leave_running(found, drive, encode(job), out, key=key, last=isinstance(table, Gateway) and not table.name)
    return out


def drive(job: str, out: str) -> str:
    """The task: fit, with words of how far it is; what went wrong is a word too, and no reason to try again."""
    decoded: Job = decode(msgspec.json.decode(job), Job, "job")
    with client_of_task() as client, _speaking(out, len(client.nthreads())) as watch:
        try:
            fit(decoded, out=out, client=client, watch=watch)
        except Cancelled:
            state, said = "cancelled", ""
        except NtkdistError as error:
            state, said = "failed", str(error)
        except Exception as error:  # nobody else is there to say it
            state, said = "failed", f"{type(error).__name__}: {error}"
        else:
            state, said = "done", ""
    _write(out, Status(state, said=said))  # type: ignore[arg-type]
    return state


def status(run: str) -> Status:
    """What is known of a detached run.

    Raises
    ------
    DataError
        If it is none.
    """
    text = storage.read_text(storage.join(run, STATUS))
    if text is None:
        if storage.exists(storage.join(run, "report.json")):
            return Status("done")
        raise DataError(f"{run} holds no detached run: there is no {STATUS}; start one with fit --detach --out {run}")
    return msgspec.json.decode(text, type=Status)


def attach(run: str, watch: Watch | None = None, poll_seconds: float = 0.5) -> Status:
    """Show the progress of a run until it is over; the run does not notice."""
    at = status(run)
    while not at.over:
        if not at.phase:
            time.sleep(poll_seconds)
            at = status(run)
            continue
        phase, seen = at.phase, 0
        with (watch or default_watch(at.workers))(phase, at.of) as done:
            while at.phase == phase and not at.over:
                done(at.rows - seen)
                seen = at.rows
                time.sleep(poll_seconds)
                at = status(run)
            done(at.of - seen if at.phase == phase else 0)
    return at


def cancel(run: str) -> None:
    """Ask for the end of a run; its driver hears it with the next shard, and what was finished is kept.

    Raises
    ------
    DataError, StoreError
        If there is no run, or it is over.
    """
    if (at := status(run)).over:
        raise StoreError(f"{run} is over ({at}); there is nothing to cancel")
    storage.write_text(storage.join(run, CANCEL), "")


@contextmanager
def _speaking(out: str, workers: int) -> Iterator[Watch]:
    """A watch whose words are written down every now and then, also while nothing happens, and that hears a cancel."""
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

    speaker = threading.Thread(target=beat, name="ntkdist-status", daemon=True)
    speaker.start()
    try:
        yield watch
    finally:
        over.set()
        speaker.join()


def _write(out: str, at: Status) -> None:
    storage.write_text(storage.join(out, STATUS), encode(msgspec.structs.replace(at, beat=time.time())))
