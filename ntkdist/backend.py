"""Threads and products of this process: the pool, BLAS's threads, the symmetric rank-k update and its peak rate.

Work inside a task is cut into pieces of fixed size, each done by one thread with a BLAS of one thread.  So the bits of
a result depend on neither the number of threads nor that of workers, and element-wise work uses all cores too.

Legend: z (b, m) a block of rows; G (m, m) its running Gram, of which only the lower triangle is kept up to date.
"""

import ctypes
import functools
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy.linalg  # noqa: F401  loads SciPy's BLAS now, so that limits reach it too
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, ssyrk
from threadpoolctl import ThreadpoolController, threadpool_info

from ntkdist import gpu

F8 = NDArray[np.float64]
T = TypeVar("T")
R = TypeVar("R")
TILE = 512  # columns of a tile of the Gram: large enough for the full rate of BLAS, small enough to balance threads
NANNY_TRIM = "65536"  # distributed.nanny.pre-spawn-environ, as Dask ships it
HEAPED_BYTES = 2**23  # arrays from this size on have pages of their own, which are returned when they are freed
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_threads = 0  # of this process's tasks; 0: not set, BLAS keeps its own number
_pool: ThreadPoolExecutor | None = None
_in_pool = threading.local()  # ``yes`` in the threads of a pool
_changing = threading.RLock()  # held while the variables below, or a number of threads, change
_runs = 0  # number of runs inside `own_threads`
_before: tuple[int, ThreadPoolExecutor | None] = (0, None)  # _threads and _pool before the first of these runs
_threads_before: dict[str, tuple[Any, int]] = {}  # libraries with one number per process, and that number before
_most = ContextVar("most", default=0)  # cores that a caller's work may use; 0: all


def use_threads(count: int) -> None:
    """Give the tasks of this process ``count`` threads and BLAS one; a cheap no-op if they have them already."""
    global _threads, _pool
    if _threads != count:
        with _changing:
            _limit_blas(1)
            keep_heap()
            _pool = ThreadPoolExecutor(count, "ntkdist", _enter_pool) if count > 1 else None
            _threads = count


def _enter_pool() -> None:
    """Mark a thread of a pool, which must not wait for the pool's other threads: they may wait for it."""
    _in_pool.yes = True


def _limit_blas(count: int) -> None:
    """Give BLAS a number of threads in the whole process, from any of its threads."""
    _set_threads((library, count) for library in _libraries().lib_controllers)


def _set_threads(counts: Iterable[tuple[Any, int]]) -> None:
    """Set each library's number of threads, so that other threads of the process can change it later.

    threadpoolctl (from 3.8) ignores all threads but the first that changed OpenBLAS, until that one leaves a limit: so
    a limit is entered and left.
    """
    with _changing:
        for library, count in counts:
            library.set_num_threads(count)
        with _libraries().limit():
            pass


def keep_heap() -> None:
    """Let the allocator keep freed small arrays where Dask's nanny set it to return all at once, in one heap.

    Each block's arrays would be mapped and zeroed again: measured to take half of a pass at m = 512, a fifth at 2,048,
    and to save no memory.  The nanny overwrites the environment of every worker, so it cannot be changed there.  With a
    heap for each thread, the default, what one thread has freed is of no use to the others: measured to take 6 to 56 MB
    more.  Threads that have a heap already keep it.
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
    """Restore the process's threads after the last of concurrent runs; yield whether no other run is inside."""
    global _runs, _before, _threads, _pool
    with _changing:
        alone, _runs = not _runs, _runs + 1
        if alone:
            _before = _threads, _pool
        counts = {library.filepath: (library, library.num_threads) for library in _libraries().lib_controllers}
        own = {path: pair for path, pair in counts.items() if not _of_process(pair[0])}
        for path in counts.keys() - own.keys():
            _threads_before.setdefault(path, counts[path])
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
    """Return whether a library has one number of threads per process, not one per thread as OpenMP has."""
    return library.internal_api in ("openblas", "blis") and library.threading_layer != "openmp"


@contextmanager
def one_thread() -> Iterator[None]:
    """Run with one BLAS thread, so that a factor has the same bits on every machine and in every process."""
    with own_threads():
        if not _threads:
            _limit_blas(1)
        yield


def _libraries() -> ThreadpoolController:
    """Return the loaded libraries that have threads; cached, as a search takes 3 ms and a pass may take less."""
    return _libraries_of(len(sys.modules))


@functools.lru_cache(1)
def _libraries_of(modules: int) -> ThreadpoolController:
    """Find the libraries; the cache holds until another module is imported, which may load one."""
    return ThreadpoolController()


def aligned(a: Any) -> Any:
    """Return an array at an aligned address, itself if it is at one, and any other value as it is.

    What another process sent may be at any address, and of an array that is not aligned, NumPy multiplies a copy in
    another order of memory, which on some processors rounds differently.
    """
    return np.require(a, requirements="A") if isinstance(a, np.ndarray) else a


def parallel_for(call: Callable[[T], R], pieces: Iterable[T]) -> list[R]:
    """Call a function for every piece, on all threads of the task or, nested, on one, and return the results in order.

    Pieces write to own memory.
    """
    pool = None if getattr(_in_pool, "yes", False) else _pool  # once: another run may change it
    return list(map(call, pieces) if pool is None else pool.map(call, pieces))


def parallel_map(call: Callable[[T], R], pieces: Iterable[T], threads: int) -> list[R]:
    """Return the results of large, independent calls, ``threads`` at a time, each on one thread with a BLAS of one."""
    with own_threads(), ThreadPoolExecutor(threads, "ntkdist-calls") as pool:
        use_threads(1)
        return list(pool.map(call, pieces))


def cores() -> int:
    return most(len(core_numbers()))


def most(count: int) -> int:
    """Return so many cores, or fewer inside `at_most`."""
    return min(count, _most.get() or count)


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Let the caller's passes and cross-validation use at most so many cores of this process, all if it is 0."""
    token = _most.set(count)
    try:
        yield
    finally:
        _most.reset(token)


def core_numbers() -> frozenset[int]:
    """Return the numbers of the cores that this process may use."""
    numbers = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return frozenset(numbers)


def blas() -> str:
    """Return the name and version of NumPy's BLAS."""
    library: dict[str, Any] = next((lib for lib in threadpool_info() if lib["user_api"] == "blas"), {})
    return f"{library.get('internal_api', 'unknown')} {library.get('version') or ''}".rstrip()


def gpus() -> tuple[str, ...]:
    """Return the models of the NVIDIA GPUs of this machine."""
    texts = [p.read_text() for p in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    return tuple(line.split(":", 1)[1].strip() for text in texts for line in text.splitlines() if "Model" in line)


def add_products(gram: F8, cross: F8, z: NDArray[Any], y: NDArray[Any]) -> None:
    """Add zᵀz to the lower triangle of ``gram`` and zᵀy to ``cross``, in place, tile by tile.

    A tile is multiplied in z's precision and added in float64, so that rounding grows with the block and not with the
    data.  A GPU multiplies larger panels instead.
    """
    if gpu.array_module(z) is not np:
        for i, end in gpu.panels(len(gram)):
            gram[i:end, :end] += z[:, i:end].T @ z[:, :end]
            cross[i:end] += z[:, i:end].T @ y
        return

    def add(tile: tuple[int, int]) -> None:
        j, i = tile
        a, b = np.s_[i : i + TILE], np.s_[j : j + TILE]
        gram[a, b] += z[:, a].T @ z[:, b]
        if i == j:
            cross[a] += z[:, a].T @ y

    parallel_for(add, combinations_with_replacement(range(0, len(gram), TILE), 2))


def gram_operations(m: int, device: str = "cpu") -> int:
    """Count the operations of `add_products` per row: m² by ``syrk``, up to 2m² by the products of a GPU's panels."""
    return m**2 if device == "cpu" else sum(2 * (end - i) * end for i, end in gpu.panels(m))


def mirror(gram: F8) -> None:
    """Copy the lower triangle to the upper, in place."""
    for i in range(0, len(gram), TILE):
        gram[:i, i : i + TILE] = gram[i : i + TILE, :i].T
        square = gram[i : i + TILE, i : i + TILE]
        square[:] = np.tril(square) + np.tril(square, -1).T


def pack(gram: F8) -> F8:
    """Pack the lower triangle, row after row, (m(m + 1)/2,)."""
    return np.concatenate([row[: i + 1] for i, row in enumerate(gram)])


def unpack(packed: F8) -> F8:
    """Unpack a lower triangle to a matrix that is zero above."""
    m = math.isqrt(2 * len(packed))
    gram = np.zeros((m, m))
    for i in range(m):
        gram[i, : i + 1] = packed[i * (i + 1) // 2 : (i + 1) * (i + 2) // 2]
    return gram


def syrk_rate(m: int, rows: int, dtype: str, threads: int, seconds: float = 0.2) -> float:
    """Measure the operations per second of bare ``syrk`` on (rows, m) blocks, m² per row: the ceiling of a Gram.

    Beside another run of this process, whose BLAS must keep its one thread, measure one thread and multiply.
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


@functools.cache  # the buffers stay
def warm(threads: int = 1) -> None:
    """Run products on so many threads at once, so that BLAS allocates the buffers that it keeps."""

    def multiply(dtype: Any) -> None:
        np.ones((4 * TILE, TILE), dtype) @ np.ones((TILE, TILE), dtype)

    with ThreadPoolExecutor(threads, "ntkdist-warm") as pool:
        list(pool.map(multiply, threads * [np.float32] + threads * [np.float64]))


def product_rate(m: int, rows: int, dtype: str, threads: int, device: str = "cpu", seconds: float = 0.2) -> float:
    """Measure the rate of bare ``syrk``, on a GPU of ``gemm``, at about the size of a run."""
    if device != "cpu":
        return gpu.product_rate(min(m, 8192), min(rows, 8192), dtype, seconds)
    return syrk_rate(min(m, 4096), min(rows, 2048), dtype, threads, seconds)
