"""SLURM on this machine, from Debian's packages, as root: one node that has more processors than it has."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import servers

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "sinfo")
CONF = """
ClusterName=ntkdist
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES State=UP
"""


def missing() -> str:
    """Why SLURM cannot be started here, if it cannot."""
    absent = [name for name in COMMANDS if not shutil.which(name, path=_path())]
    if absent:
        return f"no {', '.join(absent)}; apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "SLURM's daemons need root"


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


@contextlib.contextmanager
def running(place: Path) -> Iterator[dict[str, str]]:
    """The daemons, with all that they keep in a directory; gives what SLURM's commands need in their environment."""
    host = socket.gethostname().split(".")[0]
    (place / "munge.key").write_bytes(os.urandom(1024))
    (place / "munge.key").chmod(0o400)
    for name in ("state", "spool"):
        (place / name).mkdir()
    conf = place / "slurm.conf"
    conf.write_text(CONF.format(host=host, place=place, controller=_free_port(), node=_free_port()))
    env = {"SLURM_CONF": str(conf), "PATH": _path()}
    files = {name: place / f"munge.{name.split('-')[0]}" for name in ("socket", "key-file", "pid-file", "seed-file")}
    munged = ["munged", "--foreground", "--force", f"--log-file={place}/munge.log"]
    with contextlib.ExitStack() as stack:
        start = [
            [*munged, *(f"--{name}={path}" for name, path in files.items())],
            ["slurmctld", "-D", "-f", str(conf)],
            ["slurmd", "-D", "-f", str(conf), "-N", host],
        ]
        for command in start:
            stack.enter_context(servers.process(command, place / f"{command[0]}.out", env))
        stack.callback(subprocess.run, ["scancel", "--user", "root"], env=os.environ | env, timeout=60, check=False)
        deadline = time.monotonic() + 60
        while "idle" not in (said := _said(["sinfo", "-h", "-o", "%T"], env)):
            assert time.monotonic() < deadline, said + "".join(p.read_text() for p in place.glob("*.out"))
            time.sleep(0.2)
        yield env


def jobs(env: dict[str, str]) -> list[str]:
    """The states of the batch jobs that have not ended."""
    return _said(["squeue", "-h", "-o", "%T"], env).split()


def _said(command: list[str], env: dict[str, str]) -> str:
    run = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=60, check=False)
    return run.stdout
