"""Which device a task computes on: the host by NumPy, or a GPU by CuPy, which has its one door here.

A GPU exists only inside a task: rows are read on the host and moved there, and the sum that leaves the task is NumPy's.
What computes on either asks an array for its module (`of`), and multiplies by ``@`` or `product`.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ntkdist.errors import ClusterError

Device = Literal["cpu", "gpu", "gpu-tf32"]
PIECE_BYTES = 2**30  # of what mapping some rows holds on a GPU at a time
PANEL = 4096  # rows of the Gram that are multiplied at a time: large enough for the full rate of cuBLAS
PROBE = 512  # size of the product that a GPU is tried with
_constants: dict[tuple[Any, ...], Any] = {}  # on GPUs, by their number


class Gpu(NamedTuple):
    """What a process computes on.

    Attributes
    ----------
    name : str
    bus : str
        Its address in the machine, by which processes that share it are told.
    free_bytes : int
        Of its memory; of several tasks that share it, of each.
    tf32 : bool
        Whether products of float32 are rounded to TF32, which keeps three digits.
    """

    name: str
    bus: str
    free_bytes: int
    tf32: bool


def cupy() -> Any:
    """CuPy.

    Raises
    ------
    ClusterError
        If it is not installed, or does not load.
    """
    try:
        import cupy
    except ImportError as error:
        raise ClusterError(
            f"CuPy, by which GPUs compute, does not load ({' '.join(str(error).split())}); pip install 'ntkdist[gpu]' "
            'where the workers are, or set [plan] device = "cpu"'
        ) from None
    return cupy


def gpu() -> Gpu | None:
    """What this process computes on, found by multiplying there; None if it has no CuPy, or CuPy sees no GPU.

    Raises
    ------
    ClusterError
        If CuPy is there but does not load, or sees a GPU but cannot compute on it.
    """
    if not _installed() or not (cp := cupy()).cuda.is_available():
        return None
    device = cp.cuda.Device()
    name = cp.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    try:
        x = cp.full((PROBE, PROBE), 1 + 2.0**-12, dtype=np.float32)  # which has two bits more than TF32
        tf32 = bool((x @ cp.eye(PROBE, dtype=np.float32) != x).any())
    except Exception as error:  # of CUDA, its libraries or the compiler: whatever it is, nothing can be computed
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
    """The module of an array's functions: CuPy if it is on a GPU, else NumPy."""
    return cupy() if hasattr(type(x), "__cuda_array_interface__") else np


def to_device(value: Any) -> Any:
    """An array, or arrays in dicts, moved to the GPU."""
    if isinstance(value, dict):
        return {k: to_device(v) for k, v in value.items()}
    return cupy().asarray(value)


def keep(value: Any) -> Any:
    """Move to the GPU, as `put` does, what stays there when its task is over.

    It gets memory of its own: cut from a block of CuPy's pool, it would keep the pool from giving back all of that.
    """
    cp = cupy()
    free()  # for memory of its own, CuPy does not look for room in the pool
    with cp.cuda.using_allocator(None):
        kept = to_device(value)
    cp.cuda.Device().synchronize()  # the threads that use it may have a stream each
    return kept


def constant(xp: Any, make: Callable[..., NDArray[Any]], *args: Any) -> Any:
    """Give ``make(*args)``, which never changes, as an array of a module: moved to a GPU once a process."""
    if xp is np:
        return make(*args)
    key = (number(), make, args)
    if key not in _constants:
        _constants[key] = keep(make(*args))
    return _constants[key]


def number() -> int:
    """Look up CuPy's number of the GPU that this thread computes on."""
    return int(cupy().cuda.Device().id)


def to_host(a: Any) -> NDArray[Any]:
    """An array on the host; one that is there already, as it is."""
    return a if isinstance(a, np.ndarray) else cast(NDArray[Any], cupy().asnumpy(a))


def free() -> None:
    """Give back what CuPy keeps of memory that no array has any more, on the GPU and, for transfers, on the host.

    CuPy's pool cuts blocks that it gets from the GPU into parts, and gives back those of which no part is in use.
    """
    cupy().get_default_memory_pool().free_all_blocks()
    cupy().get_default_pinned_memory_pool().free_all_blocks()


def product(a: Any, b: Any, out: Any) -> Any:
    """a b written to ``out``, which may be columns of a larger array."""
    if array_module(out) is np:
        return np.matmul(a, b, out=out)
    out[:] = a @ b
    return out


def squared_norms(x: Any) -> Any:
    """Sum the squares of every row (n, d), (n,)."""
    if array_module(x) is np:
        return np.einsum("ij,ij->i", x, x)
    return (x * x).sum(axis=1)  # CuPy makes n products of 1×d and d×1 of the einsum


def solve_lower(a: Any, b: Any) -> Any:
    """Solve a x = b on the GPU, by a's lower triangle, a in rows and b in columns; x is in b's own memory.

    As the upper triangle of aᵀ, which is in columns as cuBLAS wants it: in rows, CuPy would copy it.
    """
    return _solve_triangular()(a.T, b, trans="T", lower=False, overwrite_b=True)


def _solve_triangular() -> Any:
    cupy()
    from cupyx.scipy.linalg import solve_triangular

    return solve_triangular


def panels(m: int) -> list[tuple[int, int]]:
    """List the first rows and the ends of the panels that a Gram of m features is multiplied in."""
    return [(i, min(i + PANEL, m)) for i in range(0, m, PANEL)]


def product_rate(m: int, rows: int, dtype: str, seconds: float = 0.2) -> float:
    """Measure the operations a second of a bare product zᵀz of (rows, m) blocks on the GPU, 2m² a row.

    That is the ceiling of a Gram there.
    """
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
