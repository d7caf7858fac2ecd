"""Memory of this machine and of this process, as the operating system reports it."""

import ctypes
import os
import resource
import socket
import sys
from contextlib import suppress
from pathlib import Path


def free_memory_bytes(root: str = "/") -> int | None:
    """Return the memory that is free without swapping, in the machine or in this process's control group (version 2).

    It is the less of both; None if neither is known.
    """
    available = _number(root, "proc/meminfo", "MemAvailable:")
    free = [] if available is None else [available * 1024]
    group_of_process = (_word(root, "proc/self/cgroup", "0::") or "").strip("/")
    for group in {"sys/fs/cgroup", f"sys/fs/cgroup/{group_of_process}".rstrip("/")}:
        limit = _number(root, f"{group}/memory.max")
        if limit is not None:
            used = _number(root, f"{group}/memory.current") or 0
            files = _number(root, f"{group}/memory.stat", "inactive_file") or 0  # cached files, which the system drops
            free.append(max(0, limit - used + files))
    return min(free, default=None)


def _number(root: str, file: str, name: str = "") -> int | None:
    """Return `_word` as a number; None if it is not one."""
    word = _word(root, file, name)
    return int(word) if word and word.isdigit() else None


def _word(root: str, file: str, name: str = "") -> str | None:
    """Return the word after a name in a file of the system, in the first line that begins with that name."""
    try:
        lines = Path(root, file).read_text().splitlines()
        return next(line.removeprefix(name).split()[0] for line in lines if line.startswith(name))
    except (OSError, StopIteration, IndexError):
        return None


def peak_memory_bytes() -> int:
    """Return the peak of this process's resident memory, since `resident_bytes` if the system can reset its count."""
    # getrusage includes the memory of the parent when it started this process
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def process_name() -> str:
    """Return the name of this process in reports."""
    return f"{socket.gethostname()}:{os.getpid()}"


def peak() -> tuple[str, int]:
    """Return this process's name and `peak_memory_bytes`."""
    return process_name(), peak_memory_bytes()


def resident_bytes() -> int:
    """Give free heap memory back, reset the peak, and return this process's resident memory."""
    give_back()
    with suppress(OSError):  # not Linux
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or peak_memory_bytes()


def give_back() -> None:
    """Return to the system what is free in the heap."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    """Return the bytes of an entry of /proc/self/status; 0 if there is none."""
    return 1024 * (_number("/", "proc/self/status", f"{name}:") or 0)
