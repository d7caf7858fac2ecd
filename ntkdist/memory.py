"""."""

import ctypes
import os
import resource
import socket
import sys
from pathlib import Path


def free_memory_bytes(root: str = "/") -> int | None:
    """What the machine has to give without swapping, or this process's control group (version 2), if that is less.

    None where neither says.
    """
    available = _number(root, "proc/meminfo", "MemAvailable:")
    found = [] if available is None else [available * 1024]
    own = (_word(root, "proc/self/cgroup", "0::") or "").strip("/")
    for group in {"sys/fs/cgroup", f"sys/fs/cgroup/{own}".rstrip("/")}:
        limit = _number(root, f"{group}/memory.max")
        if limit is not None:
            used = _number(root, f"{group}/memory.current") or 0
            files = _number(root, f"{group}/memory.stat", "inactive_file") or 0  # which give way
            found.append(max(0, limit - used + files))
    return min(found, default=None)


def _number(root: str, file: str, name: str = "") -> int | None:
    word = _word(root, file, name)
    return int(word) if word and word.isdigit() else None


def _word(root: str, file: str, name: str = "") -> str | None:
    """What follows a name in a file of the system, in the first line that begins with it."""
    try:
        lines = Path(root, file).read_text().splitlines()
        return next(line.removeprefix(name).split()[0] for line in lines if line.startswith(name))
    except (OSError, StopIteration, IndexError):
        return None


def peak_memory_bytes() -> int:
    """The most memory that this process has had resident, since `resident_bytes` where the system can forget."""
    # getrusage would count what the parent had when it started us
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def process_name() -> str:
    """What reports call this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def peak() -> tuple[str, int]:
    """This process's name, and `peak_memory_bytes`."""
    return process_name(), peak_memory_bytes()


def resident_bytes() -> int:
    """The memory that this process has resident once what is free in its heap is given back; peaks count anew."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):  # not glibc, not Linux
        pass
    return _status("VmRSS") or peak_memory_bytes()


def _status(name: str) -> int:
    """Bytes of an entry of /proc/self/status; 0 where there is none."""
    return 1024 * (_number("/", "proc/self/status", f"{name}:") or 0)
