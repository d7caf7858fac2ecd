"""The machine: threads, the symmetric rank-k update, what it can do at best, and memory.

Work inside a task is cut into pieces of fixed size, each done by one thread with a BLAS of one thread.  So the bits of
a result depend on neither the number of threads nor that of workers, and element-wise work uses all cores too.

Legend: z (b, m) a block of rows; G (m, m) its running Gram, of which only the lower triangle is kept up to date.
"""

import ctypes
import functools
import math
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy.linalg  # noqa: F401  loads SciPy's BLAS now, so that limits reach it too
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, ssyrk
from threadpoolctl import ThreadpoolController, threadpool_info

from ntkdist import devices

F8 = NDArray[np.float64]
T = TypeVar("T")
R = TypeVar("R")
TILE = 512  # columns of a tile of the Gram: large enough for the full rate of BLAS, small enough to balance threads
NANNY_TRIM = "65536"  # distributed.nanny.pre-spawn-environ, as Dask ships it
HEAPED_BYTES = 2**23  # arrays from this size on have pages of their own, which the system has back when they are freed
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_threads = 0  # of this process's tasks; 0: not set, BLAS has what it started with
_pool: ThreadPoolExecutor | None = None
_in_pool = threading.local()  # ``yes`` in the threads of a pool
_changing = threading.RLock()  # held while what is below, or a number of threads, changes
_runs = 0  # that are inside `own_threads`
_before: tuple[int, ThreadPoolExecutor | None] = (0, None)  # _threads and _pool, as the first of them found them
_threads_before: dict[str, tuple[Any, int]] = {}  # libraries with one number for the process, and that number, likewise


def use_threads(count: int) -> None:
    """Give the tasks of this process ``count`` threads and BLAS one; a cheap no-op when that is so already."""
    global _threads, _pool
    if _threads != count:
        with _changing:
            _limit_blas(1)
            keep_heap()
            _pool = ThreadPoolExecutor(count, "ntkdist", _enter_pool) if count > 1 else None
            _threads = count


def _enter_pool() -> None:
    """Mark a thread of a pool: it may not wait for the others, which may wait for it."""
    _in_pool.yes = True


def _limit_blas(count: int) -> None:
    """Give BLAS a number of threads in the whole process, whichever of its threads asks."""
    _set_threads((library, count) for library in _libraries().lib_controllers)


def _set_threads(counts: Iterable[tuple[Any, int]]) -> None:
    """Give each library its number of threads, and leave it to other threads of the process to change that.

    threadpoolctl (from 3.8) ignores all threads but the one that was first to change OpenBLAS, until that leaves a
    limit of its own: so one is entered and left.
    """
    with _changing:
        for library, count in counts:
            library.set_num_threads(count)
        with _libraries().limit():
            pass


def keep_heap() -> None:
    """Have the allocator keep freed arrays of up to 32 MiB where Dask's nanny told it to give all back at once, in one
    heap for all threads.

    Each block's arrays would be mapped and zeroed anew: measured to take half of a pass at m = 512, a fifth at 2,048,
    and to save no memory.  A nanny says it in the environment of every worker, over what was there, so it is not
    changed there.  With a heap for each thread, as is the default, what one has freed is of no use to the others, and
    none can hold much of what it is full of, 64 MiB: measured to take 6 to 56 MB more.  Threads that have a heap
    already keep it.
    """
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") != NANNY_TRIM:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    for option, number in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, HEAPED_BYTES), (M_TRIM_THRESHOLD, 2**30)):
        mallopt(option, number)


@contextmanager
def own_threads() -> Iterator[bool]:
    """Give the process back the threads it had, once the last of the runs that are inside at once is over.

    Yields
    ------
    bool
        Whether no other run was inside.
    """
    global _runs, _before, _threads, _pool
    with _changing:
        alone, _runs = not _runs, _runs + 1
        if alone:
            _before = _threads, _pool
        found = {library.filepath: (library, library.num_threads) for library in _libraries().lib_controllers}
        own = {path: pair for path, pair in found.items() if not _of_process(pair[0])}
        for path in found.keys() - own.keys():
            _threads_before.setdefault(path, found[path])
    try:
        yield alone
    finally:
        with _changing:
            _runs -= 1
            _set_threads(own.values())
            if not _runs:
                _set_threads(_threads_before.values())
                _threads_before.clear()
                _threads, _pool = _before


def _of_process(library: Any) -> bool:
    """Whether a library has one number of threads for the process, not one for each of its threads as OpenMP does."""
    return library.internal_api in ("openblas", "blis") and library.threading_layer != "openmp"


@contextmanager
def one_thread() -> Iterator[None]:
    """Give BLAS one thread, so that a factor has the same bits on every machine and in every process."""
    with own_threads():
        if not _threads:
            _limit_blas(1)
        yield


def _libraries() -> ThreadpoolController:
    """Those with threads of their own that are loaded: to look for them takes 3 ms, a pass may take less."""
    return _libraries_of(len(sys.modules))


@functools.lru_cache(1)
def _libraries_of(modules: int) -> ThreadpoolController:
    """While no other module is imported, no other library is loaded."""
    return ThreadpoolController()


def each(call: Callable[[T], object], pieces: Iterable[T]) -> None:
    """Call a function for every piece, on all threads of the task; pieces must not overlap in what they write.

    What a piece calls it for itself is done by the piece's own thread.
    """
    pool = None if getattr(_in_pool, "yes", False) else _pool  # once: another run may change it
    for _ in map(call, pieces) if pool is None else pool.map(call, pieces):
        pass


def at_once(call: Callable[[T], R], pieces: Iterable[T], threads: int) -> list[R]:
    """Results of independent calls, some at a time, each on one thread with a BLAS of one thread.

    For calls that are large themselves, such as factorisations: so their bits do not depend on the machine's cores.
    """
    with own_threads(), ThreadPoolExecutor(threads, "ntkdist-calls") as pool:
        use_threads(1)
        return list(pool.map(call, pieces))


def cores() -> int:
    """Those that this process may use."""
    return len(core_numbers())


def core_numbers() -> frozenset[int]:
    """The numbers of the cores that this process may use."""
    bound = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return frozenset(bound)


def blas() -> str:
    """Name and version of NumPy's BLAS."""
    found: dict[str, Any] = next((lib for lib in threadpool_info() if lib["user_api"] == "blas"), {})
    return f"{found.get('internal_api', 'unknown')} {found.get('version') or ''}".rstrip()


def gpus() -> tuple[str, ...]:
    """Models of the NVIDIA GPUs of this machine."""
    said = [p.read_text() for p in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    return tuple(line.split(":", 1)[1].strip() for text in said for line in text.splitlines() if "Model" in line)


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


def add_products(gram: F8, cross: F8, z: NDArray[Any], y: NDArray[Any]) -> None:
    """gram += zᵀz in the lower triangle and cross += zᵀy, in place, tile by tile.

    A tile is multiplied in z's precision and added in float64, so that rounding grows with the block and not with the
    data.  On a GPU it is panel by panel, of which fewer are as fast there.
    """
    if devices.of(z) is not np:
        for i, end in devices.panels(len(gram)):
            gram[i:end, :end] += z[:, i:end].T @ z[:, :end]
            cross[i:end] += z[:, i:end].T @ y
        return

    def add(tile: tuple[int, int]) -> None:
        j, i = tile
        a, b = np.s_[i : i + TILE], np.s_[j : j + TILE]
        gram[a, b] += z[:, a].T @ z[:, b]
        if i == j:
            cross[a] += z[:, a].T @ y

    each(add, combinations_with_replacement(range(0, len(gram), TILE), 2))


def gram_operations(m: int, device: str = "cpu") -> int:
    """Count the operations of a row in the Gram of `add_products`, as the rate of a bare product counts its own.

    That is m² by ``syrk``; on a GPU, where panels are products of general matrices, between m² and 2m².
    """
    return m**2 if device == "cpu" else sum(2 * (end - i) * end for i, end in devices.panels(m))


def mirror(gram: F8) -> None:
    """Copy the lower triangle to the upper, in place."""
    for i in range(0, len(gram), TILE):
        gram[:i, i : i + TILE] = gram[i : i + TILE, :i].T
        square = gram[i : i + TILE, i : i + TILE]
        square[:] = np.tril(square) + np.tril(square, -1).T


def pack(gram: F8) -> F8:
    """The rows of the lower triangle one after another, (m(m + 1)/2,)."""
    m = len(gram)
    packed = np.empty(m * (m + 1) // 2)
    for i in range(m):
        packed[i * (i + 1) // 2 : (i + 1) * (i + 2) // 2] = gram[i, : i + 1]
    return packed


def unpack(packed: F8) -> F8:
    """A matrix whose lower triangle was packed, zero above."""
    m = math.isqrt(2 * len(packed))
    gram = np.zeros((m, m))
    for i in range(m):
        gram[i, : i + 1] = packed[i * (i + 1) // 2 : (i + 1) * (i + 2) // 2]
    return gram


def syrk_rate(m: int, rows: int, dtype: str, threads: int, seconds: float = 0.2) -> float:
    """Floating-point operations per second of bare ``syrk`` on (rows, m) blocks, m² a row: the ceiling of a Gram.

    Beside another run of this process, whose BLAS has to keep its one thread, that of one thread times their number.
    """
    z = np.ones((rows, m), dtype)
    c = np.zeros((m, m), dtype, order="F")
    syrk = dsyrk if z.dtype == np.float64 else ssyrk
    times: list[float] = []
    with own_threads() as alone:
        if alone:
            _limit_blas(threads)
        syrk(1.0, z.T, c=c, overwrite_c=1)
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            syrk(1.0, z.T, c=c, overwrite_c=1)
            times.append(time.perf_counter() - start)
    return (1 if alone else threads) * rows * m**2 / float(np.median(times))


def warm(threads: int = 1) -> None:
    """Have BLAS take the buffers that it keeps, one for each thread that multiplies while others do."""

    def multiply(dtype: Any) -> None:
        np.ones((4 * TILE, TILE), dtype) @ np.ones((TILE, TILE), dtype)

    with ThreadPoolExecutor(threads, "ntkdist-warm") as pool:
        list(pool.map(multiply, threads * [np.float32] + threads * [np.float64]))


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
    give_back()
    with suppress(OSError):  # not Linux
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or peak_memory_bytes()


def give_back() -> None:
    """Let the system have what is free in the heap."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    """Bytes of an entry of /proc/self/status; 0 where there is none."""
    return 1024 * (_number("/", "proc/self/status", f"{name}:") or 0)
