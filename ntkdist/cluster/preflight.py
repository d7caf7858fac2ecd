"""Checks before work starts: versions that have to agree in all processes, and a table of the workers."""

import os
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from dask.system import CPU_COUNT
from distributed import Client
from distributed.system import MEMORY_LIMIT

from ntkdist import backend
from ntkdist.errors import ClusterError
from ntkdist.spec import versions

AGREE = ("ntkdist", "dask", "numpy")  # in major and minor version, in all processes: they pickle to one another
HEAD = ("worker", "host", "python", *AGREE, "BLAS", "tasks", "threads", "memory", "GPU")


class Machine(NamedTuple):
    """Cores, BLAS and GPUs of a process."""

    cores: frozenset[int]  # numbers of those that it may run on
    grant: str  # equal for processes of a host that share ``granted``
    granted: int  # the most cores at once, by SLURM or a container's quota
    blas: str
    gpus: tuple[str, ...]


def machine() -> Machine:
    """Describe this process."""
    cores, env = backend.core_numbers(), os.environ
    quota = CPU_COUNT if len(cores) > CPU_COUNT else os.cpu_count() or 1
    by_slurm = env.get("SLURM_CPUS_PER_TASK") or env.get("SLURM_CPUS_ON_NODE") or quota
    grant = "/".join(env.get(f"SLURM_{key}", "") for key in ("JOB_ID", "STEP_ID", "PROCID"))
    return Machine(cores, grant, min(quota, int(by_slurm)), backend.blas(), backend.gpus())


def threads(workers: dict[str, Any], machines: dict[str, Machine]) -> dict[str, int]:
    """Return the threads of a task of each worker, so that a node's cores are used once.

    Tasks share a core that several workers may run on, and a grant that several run under.  ``workers`` is the
    scheduler's description of each, ``machines`` each one's own, both by address.
    """
    on_core: Counter[tuple[str, int]] = Counter()
    under: Counter[tuple[str, str]] = Counter()
    for name, one in machines.items():
        host, tasks = workers[name]["host"], workers[name]["nthreads"]
        on_core.update({(host, core): tasks for core in one.cores})
        under.update({(host, one.grant): tasks})
    shares = {}
    for name, one in machines.items():
        host = workers[name]["host"]
        share = sum(1 / on_core[host, core] for core in one.cores) + 1e-9
        shares[name] = max(1, min(int(share), one.granted // under[host, one.grant]))
    return shares


def workers_of(client: Client) -> dict[str, Any]:
    """Ask the scheduler for the description of each worker, by address.

    `Client.scheduler_info` may return that of no worker: a callback of the client's replaces what was asked for.
    """
    scheduler: Any = client.scheduler
    workers: dict[str, Any] = client.sync(scheduler.identity, n_workers=-1)["workers"]
    return workers


def check(client: Client) -> None:
    """Refuse a cluster whose processes differ in the versions that have to agree, in one ClusterError."""
    said: Any = client.get_versions(packages=AGREE)
    for package in AGREE:
        here = said["client"]["packages"][package]
        others: dict[str, list[str]] = {}
        for name, one in {"the scheduler": said["scheduler"], **said["workers"]}.items():
            version = _version(one, package)
            if version.split(".")[:2] != str(here).split(".")[:2]:
                others.setdefault(version, []).append(name)
        if others:
            there = ", ".join(f"{version} on {_some(names)}" for version, names in others.items())
            raise ClusterError(
                f"{package} is {here} here but {there}; install one major.minor version everywhere "
                "('ntkdist workers' shows all)"
            )


def rows(client: Client | None) -> list[Sequence[str]]:
    """Return a head and one row for each worker, as text; for this process if there is no client."""
    workers: dict[str, Any]
    packages: dict[str, Any]
    if client is None:
        here = "this process"
        workers = {here: {"host": socket.gethostname(), "nthreads": 1, "memory_limit": MEMORY_LIMIT}}
        packages = {here: {"packages": versions()}}
        machines = {here: machine()}
    else:
        workers = workers_of(client)
        said: Any = client.get_versions(packages=AGREE)
        packages = said["workers"]
        answers = client.run(machine, on_error="return")  # an error where ntkdist is absent or another
        machines = {name: one for name, one in answers.items() if isinstance(one, Machine)}
    shares = threads(workers, machines)
    table: list[Sequence[str]] = [HEAD]
    for name, info in sorted(workers.items()):
        python = ".".join(_version(packages.get(name), "python").split(".")[:3])
        agree = (_version(packages.get(name), package) for package in AGREE)
        one = machines.get(name)
        blas, gpus = (one.blas, ", ".join(one.gpus) or "none") if one else ("-", "-")
        share, memory = str(shares.get(name, "-")), f"{(info['memory_limit'] or MEMORY_LIMIT) / 1e9:.1f} GB"
        table.append((name, info["host"], python, *agree, blas, str(info["nthreads"]), share, memory, gpus))
    return table


def _version(said: Any, package: str) -> str:
    return str((said or {}).get("packages", {}).get(package) or "absent")


def _some(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
