"""The machine: BLAS threads, the symmetric rank-k update, what it can do at best, and memory.

Legend: z (b, m) a block of rows; G (m, m) its running Gram, of which only the lower triangle is kept up to date.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg  # noqa: F401  loads SciPy's BLAS now, so that limits reach it too
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, ssyrk
from threadpoolctl import threadpool_info, threadpool_limits

F8 = NDArray[np.float64]
_threads: int | None = None


def use_threads(count: int) -> None:
    """Set the BLAS threads of this process, for good; a cheap no-op when they are set already."""
    global _threads
    if _threads != count:
        threadpool_limits(count)
        _threads = count


@contextmanager
def own_threads() -> Iterator[None]:
    """Give the caller's process back the BLAS threads it had, once a run inside it is over."""
    global _threads
    before = {lib["prefix"]: lib["num_threads"] for lib in threadpool_info()}
    try:
        yield
    finally:
        threadpool_limits(before)
        _threads = None


def add_gram(gram: F8, z: NDArray[Any], scratch: NDArray[np.float32] | None) -> None:
    """gram += zᵀz in the lower triangle, in place.

    A float64 block is added by BLAS.  A float32 block is multiplied in float32 into ``scratch`` (m, m) and added in
    float64, so that rounding grows with the block and not with the data.
    """
    if z.dtype == np.float64:  # BLAS sees the transpose of a C-ordered array: its upper triangle is our lower
        dsyrk(1.0, z.T, beta=1.0, c=gram.T, overwrite_c=1)
        return
    assert scratch is not None
    ssyrk(1.0, z.T, beta=0.0, c=scratch.T, overwrite_c=1)
    for i in range(0, len(gram), 256):
        part = np.s_[i : i + 256, : i + 256]
        gram[part] += scratch[part]


def mirror(gram: F8) -> None:
    """Copy the lower triangle to the upper, in place."""
    m, b = len(gram), 256
    for i in range(0, m, b):
        gram[:i, i : i + b] = gram[i : i + b, :i].T
        square = gram[i : i + b, i : i + b]
        square[:] = np.tril(square) + np.tril(square, -1).T


def syrk_rate(m: int, rows: int, dtype: str, seconds: float = 0.2) -> float:
    """Floating-point operations per second of bare ``syrk`` on (rows, m) blocks, m² a row: the ceiling of a Gram."""
    z = np.ones((rows, m), dtype)
    c = np.zeros((m, m), dtype, order="F")
    syrk = dsyrk if z.dtype == np.float64 else ssyrk
    syrk(1.0, z.T, c=c, overwrite_c=1)
    times: list[float] = []
    while sum(times) < seconds:
        start = time.perf_counter()
        syrk(1.0, z.T, c=c, overwrite_c=1)
        times.append(time.perf_counter() - start)
    return rows * m**2 / float(np.median(times))


def peak_memory_bytes() -> int:
    """The most memory that this process has had resident."""
    try:  # getrusage would count what the parent had when it started us
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
