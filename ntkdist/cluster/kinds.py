"""Kinds of clusters, as values: the ``[cluster]`` table of a job, from which `ntkdist.cluster.launch` makes a client.

A table holds the kind of cluster and the number of workers.  Settings of a site that are the same for every job
(address of the gateway, partition and account, cores and memory of a worker, certificates) stay in Dask's
configuration; ``deploy/`` has a commented example for each.  A cluster that a job starts ends with it.
"""

from typing import Annotated

from msgspec import Meta

from ntkdist.spec import Spec

Positive = Annotated[int, Meta(ge=1)]


class Local(Spec, frozen=True, tag="local"):
    """Worker processes on this machine.

    Parameters
    ----------
    workers : int
    """

    workers: Positive = 1


class Cuda(Spec, frozen=True, tag="cuda"):
    """Worker processes on this machine, each with a GPU of its own, started by dask-cuda.

    Parameters
    ----------
    workers : int, optional
        One for each visible GPU if absent.
    """

    workers: Positive | None = None


class Address(Spec, frozen=True, tag="address"):
    """A cluster that runs already.

    Parameters
    ----------
    address : str
        Of its scheduler, such as ``tcp://host:8786``, or ``tls://host:8786`` with Dask's configured certificates.
    """

    address: str


class SchedulerFile(Spec, frozen=True, tag="file"):
    """A cluster that runs already, or is just being started, whose scheduler writes its address to a shared file.

    Parameters
    ----------
    path : str
        What ``dask scheduler --scheduler-file`` was given.
    workers : int
        To wait for.
    wait_seconds : int
        Longest wait for the file and the workers.
    """

    path: str
    workers: Positive = 1
    wait_seconds: Positive = 60


class Gateway(Spec, frozen=True, tag="gateway"):
    """A cluster of a Dask Gateway, as behind a JupyterHub.  Needs the extra ``gateway``.

    Parameters
    ----------
    workers : int
    address : str
        Of the gateway; Dask's ``gateway.address`` if absent.
    name : str
        Of a cluster of the gateway that runs already, and goes on after the job; absent, a new one, which ends with the
        job, also with a detached one.
    wait_seconds : int
        Longest wait for the workers.
    """

    workers: Positive = 1
    address: str = ""
    name: str = ""
    wait_seconds: Positive = 600


class Slurm(Spec, frozen=True, tag="slurm"):
    """One batch job a worker, submitted from where the job is started.  Needs the extra ``slurm``.

    Cores and memory of a worker are those of Dask's ``jobqueue.slurm``.

    Parameters
    ----------
    workers : int
    queue : str
        SLURM's partition; ``jobqueue.slurm.queue`` if absent.
    walltime : str
        Of a batch job, such as ``"02:00:00"``; ``jobqueue.slurm.walltime`` if absent.
    wait_seconds : int
        Longest wait for all workers, so for the queue.
    """

    workers: Positive = 1
    queue: str = ""
    walltime: str = ""
    wait_seconds: Positive = 3600


class SlurmRunner(Spec, frozen=True, tag="slurm-runner"):
    """The tasks of one SLURM allocation, each of which runs the job, by ``srun ntkdist fit JOB``: the first becomes the
    scheduler, the second goes on, the others become workers.  Needs the extra ``slurm``.

    Parameters
    ----------
    wait_seconds : int
        Longest wait for the workers.
    """

    wait_seconds: Positive = 300


class Kubernetes(Spec, frozen=True, tag="kubernetes"):
    """A ``DaskCluster`` of the Dask operator, asked for from here.  Needs the extra ``kubernetes``.

    Parameters
    ----------
    image : str
        With the same ntkdist as here; ``deploy/Dockerfile`` makes it.
    workers : int
    cores : int
        Of a worker.
    memory : str
        Of a worker, as Kubernetes writes it: ``"16Gi"``.
    namespace : str
        That of the current context if absent.
    wait_seconds : int
        Longest wait for the workers.
    idle_seconds : int
        After which the operator removes a cluster that does nothing: should the job die without a word, and after a
        detached fit.
    """

    image: str
    workers: Positive = 1
    cores: Positive = 4
    memory: str = "16Gi"
    namespace: str = ""
    wait_seconds: Positive = 600
    idle_seconds: Positive = 3600


AnyCluster = Local | Cuda | Address | SchedulerFile | Gateway | Slurm | SlurmRunner | Kubernetes
# What can go on without the process that found or started it; of the others the scheduler is in that process, or ends
# with it.
DETACHABLE = (Address, SchedulerFile, Gateway, Kubernetes)
