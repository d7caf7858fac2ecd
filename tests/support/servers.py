"""Servers on this machine's loopback that tests start, wait for and end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from distributed import LocalCluster

START_SECONDS = 120
DASK = Path(sys.executable).with_name("dask")
QUIET = {"OPENBLAS_NUM_THREADS": "1", "DASK_DISTRIBUTED__DASHBOARD__LINK": ""}


@contextmanager
def process(
    command: Sequence[str | Path], log: str | Path, env: Mapping[str, str], place: str | Path = "."
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is asked to end with the block, and then ended."""
    with open(log, "w") as file:
        started = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **env}, cwd=place)
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(60)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def dask(name: str, *args: str, **env: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """One of Dask's commands, with its log in the current directory."""
    ends = ("--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0")
    return process([DASK, name, *args, *ends], f"{name}.log", QUIET | env)


@contextmanager
def scheduler_and_worker(**env: str) -> Iterator[str]:
    """The address of a scheduler with one worker, which has an environment, both started by Dask's own commands."""
    with ExitStack() as stack:
        stack.enter_context(dask("scheduler", "--port", "0", "--scheduler-file", "scheduler.json"))
        deadline = time.monotonic() + START_SECONDS
        while not Path("scheduler.json").exists():
            assert time.monotonic() < deadline, Path("scheduler.log").read_text()
            time.sleep(0.05)
        address: str = json.loads(Path("scheduler.json").read_text())["address"]
        stack.enter_context(dask("worker", address, "--nthreads", "1", "--local-directory", "spill", **env))
        yield address


@contextmanager
def running(command: Sequence[str | Path], url: str, place: Path, env: dict[str, str]) -> Iterator[None]:
    """A server that runs in a directory from when it answers at an address to the end of the block."""
    log, deadline = place / f"{Path(command[0]).name}.log", time.monotonic() + START_SECONDS
    with process(command, log, env, place) as started:
        while True:
            try:
                urllib.request.urlopen(url, timeout=5)
                break
            except OSError:
                assert started.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield


def processes_in(place: Path) -> list[str]:
    """Command lines of the processes that work in a directory or below."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(place):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:  # it has just ended
            continue
    return found


def local_cluster(workers: int = 2, **options: Any) -> LocalCluster:
    """Start a cluster of worker processes of one thread each."""
    return LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", **options)


def free_ports(count: int) -> int:
    """The first of some free ports in a row."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
        try:
            for each in range(port, port + count):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", each))
        except (OSError, OverflowError):
            continue
        return port
