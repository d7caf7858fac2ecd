"""The device that a task computes on: the host by NumPy, or a GPU by CuPy, which is imported here only.

A GPU is used inside a task only: rows are read on the host and moved there, and the sum that leaves the task is
NumPy's.  Code for both devices asks for an array's module (`array_module`), and multiplies by ``@`` or `product`.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ntkdist.errors import ClusterError

Device = Literal["cpu", "gpu", "gpu-tf32"]
PIECE_BYTES = 2**30  # memory on a GPU for the rows that are mapped at a time
PANEL = 4096  # rows of the Gram that are multiplied at a time: large enough for the full rate of cuBLAS
PROBE = 512  # size of the product that a GPU is tried with
_constants: dict[tuple[Any, ...], Any] = {}  # on GPUs, by the number of the GPU


class Gpu(NamedTuple):
    """A GPU that a process computes on."""

    name: str
    bus: str  # its address in the machine, which identifies a GPU that several processes share
    free_bytes: int  # of memory; per task if several share the GPU
    tf32: bool  # whether products of float32 are rounded to TF32, which keeps three digits


def cupy() -> Any:
    """Import CuPy; raise `ClusterError` if it is not installed or does not load."""
    try:
        import cupy
    except ImportError as error:
        raise ClusterError(
            f"CuPy, by which GPUs compute, does not load ({' '.join(str(error).split())}); pip install 'ntkdist[gpu]' "
            'where the workers are, or set [plan] device = "cpu"'
        ) from None
    return cupy


def gpu() -> Gpu | None:
    """Return the GPU of this process after a trial product; None without CuPy, or if CuPy sees no GPU.

    A `ClusterError` is raised if CuPy does not load, or sees a GPU but cannot compute on it.
    """
    if not _installed() or not (cp := cupy()).cuda.is_available():
        return None
    device = cp.cuda.Device()
    name = cp.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    try:
        x = cp.full((PROBE, PROBE), 1 + 2.0**-12, dtype=np.float32)  # needs two bits more than TF32 has
        tf32 = bool((x @ cp.eye(PROBE, dtype=np.float32) != x).any())
    except Exception as error:  # of CUDA, its libraries or the compiler: all mean that it cannot compute
        raise ClusterError(
            f"CuPy sees {name} but cannot compute on it ({type(error).__name__}: {' '.join(str(error).split())}); "
            "pip install 'ntkdist[gpu]' brings CUDA's libraries, or set [plan] device = \"cpu\""
        ) from None
    del x
    free()
    return Gpu(name, device.pci_bus_id, device.mem_info[0], tf32)


def _installed() -> bool:
    return importlib.util.find_spec("cupy") is not None


def array_module(x: Any) -> Any:
    """Return the module of an array's functions: CuPy if it is on a GPU, else NumPy."""
    return cupy() if hasattr(type(x), "__cuda_array_interface__") else np


def to_device(value: Any) -> Any:
    """Move an array, or arrays in dicts, to the GPU."""
    if isinstance(value, dict):
        return {k: to_device(v) for k, v in value.items()}
    return cupy().asarray(value)


def keep(value: Any) -> Any:
    """Move arrays to the GPU as `to_device` does, to stay there after the task is over.

    They get memory of their own: a part of a block of CuPy's pool would keep the pool from freeing the whole block.
    """
    cp = cupy()
    free()  # for memory outside the pool, CuPy does not look for room in the pool
    with cp.cuda.using_allocator(None):
        kept = to_device(value)
    cp.cuda.Device().synchronize()  # the threads that use it may have a stream each
    return kept


def constant(xp: Any, make: Callable[..., NDArray[Any]], *args: Any) -> Any:
    """Return the constant ``make(*args)`` as an array of a module; it is moved to a GPU once per process."""
    if xp is np:
        return make(*args)
    key = (number(), make, args)
    if key not in _constants:
        _constants[key] = keep(make(*args))
    return _constants[key]


def number() -> int:
    """Return CuPy's number of the GPU that this thread computes on."""
    return int(cupy().cuda.Device().id)


def to_host(a: Any) -> NDArray[Any]:
    """Copy an array to the host; return one that is there already as it is."""
    return a if isinstance(a, np.ndarray) else cast(NDArray[Any], cupy().asnumpy(a))


def free() -> None:
    """Free the unused memory of CuPy's pools, on the GPU and, for transfers, on the host.

    The pool cuts blocks of the GPU's memory into parts, and frees the blocks of which no part is in use.
    """
    cupy().get_default_memory_pool().free_all_blocks()
    cupy().get_default_pinned_memory_pool().free_all_blocks()


def product(a: Any, b: Any, out: Any) -> Any:
    """Write a b to ``out``, which may be columns of a larger array, and return it."""
    if array_module(out) is np:
        return np.matmul(a, b, out=out)
    out[:] = a @ b
    return out


def squared_norms(x: Any) -> Any:
    """Sum the squares of every row (n, d), (n,)."""
    if array_module(x) is np:
        return np.einsum("ij,ij->i", x, x)
    return (x * x).sum(axis=1)  # CuPy turns the einsum into n products of 1×d and d×1


def solve_lower(a: Any, b: Any) -> Any:
    """Solve a x = b on the GPU by a's lower triangle, a in C order and b in Fortran order; x overwrites b.

    It is solved by the upper triangle of aᵀ, which has cuBLAS's Fortran order: CuPy would copy an array in C order.
    """
    return _solve_triangular()(a.T, b, trans="T", lower=False, overwrite_b=True)


def _solve_triangular() -> Any:
    cupy()
    from cupyx.scipy.linalg import solve_triangular

    return solve_triangular


def panels(m: int) -> list[tuple[int, int]]:
    """Return the bounds of the panels of rows that a Gram of m features is multiplied in."""
    return [(i, min(i + PANEL, m)) for i in range(0, m, PANEL)]


def product_rate(m: int, rows: int, dtype: str, seconds: float = 0.2) -> float:
    """Measure the operations per second of bare products zᵀz on the GPU, 2m² per row: the ceiling of a Gram there."""
    cp = cupy()
    z = cp.ones((rows, m), dtype=dtype)
    z.T @ z
    cp.cuda.Device().synchronize()
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() < start + seconds:
        z.T @ z
        cp.cuda.Device().synchronize()
        count += 1
    rate = 2.0 * rows * m**2 * count / (time.perf_counter() - start)
    del z
    free()
    return rate
