"""CuPy's part that ntkdist calls, computed by NumPy and as strict: what a GPU refuses is refused here, on any machine.

Arrays do not turn into NumPy's unless asked to, do not mix with them, and are multiplied into no other array's columns;
a function that is not here is not called.  That each name here is CuPy's, with these arguments, a test sees to.
Memory is counted as CuPy's pool takes it, and so are products and what is sent and waited for.
"""

import operator
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

NUMBERS = (bool, int, float, np.generic)


UNIT = 512  # bytes that memory is given out in


class Part:
    """A piece of memory, of a block that was taken from the GPU at once."""

    def __init__(self, size: int, block: "list[Part]", used: bool = True) -> None:
        self.size, self.block, self.used = size, block, used


class Pool:
    """CuPy's pool: free parts are cut to size and joined with their neighbours, and whole blocks given back.

    Attributes
    ----------
    total, used : int
        Bytes that it has of the GPU, and that arrays have of those.
    hooks : list
        Told when it takes a block.
    """

    def __init__(self) -> None:
        self.blocks, self.total, self.used, self.hooks = list[list[Part]](), 0, 0, list[Any]()

    def take(self, size: int) -> Part:
        """Give out the smallest part that is free and large enough, or a new block."""
        self.used += size
        fits = [part for block in self.blocks for part in block if not part.used and part.size >= size]
        if not fits:
            block = list[Part]()
            block.append(Part(size, block))
            self.blocks.append(block)
            self.total += size
            for hook in self.hooks:
                hook.alloc_postprocess(device_id=0, mem_size=size, mem_ptr=1)
            return block[0]
        part = min(fits, key=lambda part: part.size)
        if part.size > size:
            part.block.insert(part.block.index(part) + 1, Part(part.size - size, part.block, used=False))
        part.size, part.used = size, True
        return part

    def give(self, part: Part) -> None:
        """Take a part back."""
        self.used -= part.size
        part.used = False
        joined = list[Part]()
        for each in part.block:
            if joined and not joined[-1].used and not each.used:
                joined[-1].size += each.size
            else:
                joined.append(each)
        part.block[:] = joined

    def used_bytes(self) -> int:
        return self.used

    def total_bytes(self) -> int:
        return self.total

    def free_all_blocks(self) -> None:
        self.blocks = [block for block in self.blocks if len(block) > 1 or block[0].used]
        self.total = sum(part.size for block in self.blocks for part in block)


class Gpu:
    """What a GPU holds, and what it was asked to do.

    Attributes
    ----------
    pool : Pool
    beside : int
        Bytes of arrays that are not of the pool.
    pooled : bool
        Whether new arrays are.
    peak : int
        The most bytes of arrays that were alive at once.
    operations : int
        In products of matrices.
    sent, waits : int
        Arrays that came from the host, and how often that waited for the GPU.
    tf32 : bool
        Whether products are rounded.
    """

    def __init__(self, tf32: bool = False) -> None:
        self.pool, self.beside, self.pooled, self.peak = Pool(), 0, True, 0
        self.operations = self.sent = self.waits = 0
        self.tf32 = tf32
        self.seen: set[int] = set()

    @property
    def used(self) -> int:
        return self.pool.used + self.beside

    def holds(self, a: np.ndarray) -> None:
        """Count the memory of an array, once, until it is gone."""
        while isinstance(a.base, np.ndarray):
            a = a.base
        if id(a) in self.seen or not a.nbytes:
            return
        self.seen.add(id(a))
        size = -(-a.nbytes // UNIT) * UNIT
        part = self.pool.take(size) if self.pooled else None
        self.beside += size * (not self.pooled)
        self.peak = max(self.peak, self.used)
        weakref.finalize(a, self._gone, id(a), size, part)

    def _gone(self, name: int, size: int, part: Part | None) -> None:
        self.seen.discard(name)
        if part is None:
            self.beside -= size
        else:
            self.pool.give(part)

    @contextmanager
    def using_allocator(self, allocator: None) -> Iterator[None]:
        """Have new arrays beside the pool."""
        assert allocator is None
        before, self.pooled = self.pooled, False
        try:
            yield
        finally:
            self.pooled = before


class Array:
    """An array that only functions here, and operators, touch."""

    __array_ufunc__ = None  # NumPy's arrays do not operate on it

    def __init__(self, a: np.ndarray, gpu: Gpu) -> None:
        self._a, self._gpu = a, gpu
        gpu.holds(a)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise AssertionError("nobody reads a GPU's memory")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __iter__(self) -> Any:
        raise AssertionError("one by one, numbers take for ever to come from a GPU")

    shape = property(lambda self: self._a.shape)
    dtype = property(lambda self: self._a.dtype)
    ndim = property(lambda self: self._a.ndim)
    size = property(lambda self: self._a.size)
    itemsize = property(lambda self: self._a.itemsize)
    flags = property(lambda self: self._a.flags)
    nbytes = property(lambda self: self._a.nbytes)

    def _new(self, a: Any) -> "Array":
        return Array(np.asarray(a), self._gpu)

    @property
    def T(self) -> "Array":
        return self._new(self._a.T)

    def astype(self, dtype: Any, copy: bool = True) -> "Array":
        return self._new(self._a.astype(dtype, copy=copy))

    def view(self, dtype: Any) -> "Array":
        return self._new(self._a.view(dtype))

    def reshape(self, *shape: Any) -> "Array":
        return self._new(self._a.reshape(*shape))

    def any(self) -> "Array":
        return self._new(self._a.any())

    def sum(self, axis: int) -> "Array":
        return self._new(self._a.sum(axis=axis))

    def __len__(self) -> int:
        return len(self._a)

    def __int__(self) -> int:
        self._gpu.waits += 1
        return int(self._a)

    def __bool__(self) -> bool:
        self._gpu.waits += 1
        return bool(self._a)

    def __getitem__(self, key: Any) -> "Array":
        return self._new(self._a[places(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._a[places(key)] = plain(value)

    def __neg__(self) -> "Array":
        return self._new(-self._a)

    def __matmul__(self, other: Any) -> "Array":
        if not isinstance(other, Array):
            raise TypeError(f"Unsupported type {type(other)}")
        self._gpu.operations += 2 * len(self) * other.size
        operands = [contiguous(each) for each in (self, other)]
        a, b = (rounded(each._a) if self._gpu.tf32 else each._a for each in operands)
        return self._new(a @ b)


def contiguous(a: Array, columns: bool = False) -> Array:
    """Copy a matrix that lies neither by its rows nor by its columns, or only if not by its columns."""
    if a.flags.f_contiguous or (a.flags.c_contiguous and not columns):
        return a
    return a._new(a._a.copy(order="F" if columns else "C"))


def places(key: Any) -> Any:
    """What selects elements: slices and numbers, or arrays of here."""
    return tuple(map(places, key)) if isinstance(key, tuple) else key._a if isinstance(key, Array) else key


def rounded(a: np.ndarray) -> np.ndarray:
    """Float32 to the 10 bits after the first that TF32 has."""
    bits = np.ascontiguousarray(a).view(np.uint32)
    return ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)


def plain(value: Any) -> Any:
    """What an operation takes: an array of here, or a number."""
    if isinstance(value, Array):
        return value._a
    if isinstance(value, NUMBERS):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def _binary(name: str, both_ways: bool = True) -> None:
    of = getattr(operator, f"__{name}__")

    def inplace(self: Array, other: Any) -> Array:
        getattr(operator, f"__i{name}__")(self._a, plain(other))
        return self

    setattr(Array, f"__{name}__", lambda self, other: self._new(of(self._a, plain(other))))
    if not both_ways:
        return
    setattr(Array, f"__r{name}__", lambda self, other: self._new(of(plain(other), self._a)))
    setattr(Array, f"__i{name}__", inplace)


for _name in ("add", "sub", "mul", "truediv", "xor", "and"):
    _binary(_name)
for _name in ("eq", "ne", "gt"):
    _binary(_name, both_ways=False)


class Module:
    """The module, with a GPU of some free bytes, that rounds products to TF32 if told so.

    Attributes
    ----------
    gpu : Gpu
    called : dict of str to set
        Names of functions that were called, and of arguments that were given by name.
    """

    ndarray = Array

    def __init__(self, free_bytes: int = 2**40, count: int = 1, tf32: bool = False) -> None:
        self.gpu, self.called = Gpu(tf32), dict[str, set[str]]()
        device = SimpleNamespace(
            id=0, pci_bus_id="0000:01:00.0", mem_info=(free_bytes, free_bytes), synchronize=lambda: None
        )
        self.cuda = SimpleNamespace(
            is_available=lambda: count > 0,
            Device=lambda: device,
            runtime=SimpleNamespace(getDeviceProperties=lambda _: {"name": b"a strict GPU"}),
            using_allocator=self.gpu.using_allocator,
            MemoryHook=_hook_of(self.gpu.pool),
        )

    def get_default_memory_pool(self) -> Pool:
        return self.gpu.pool

    def get_default_pinned_memory_pool(self) -> Pool:
        return Pool()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in FUNCTIONS:
            raise AttributeError(f"module 'cupy' as known here has no attribute {name!r}")

        def call(*args: Any, **named: Any) -> Any:
            self.called.setdefault(name, set()).update(named)
            return FUNCTIONS[name](self, *args, **named)

        return call

    def array(self, a: Any) -> Array:
        return Array(np.asarray(a), self.gpu)

    def asarray(self, a: Any) -> Array:
        if isinstance(a, Array):
            return a
        self.gpu.sent += 1
        return Array(np.array(a), self.gpu)

    def asnumpy(self, a: Any) -> np.ndarray:
        assert isinstance(a, Array)
        self.gpu.waits += 1
        return np.array(a._a)

    def nonzero(self, a: Any) -> tuple[Array, ...]:
        self.called.setdefault("nonzero", set())
        self.gpu.waits += 1
        found = self.array(np.ascontiguousarray(np.argwhere(a._a)))
        return tuple(found[:, i] for i in range(a.ndim))

    def solve_triangular(self, a: Any, b: Any, trans: str, lower: bool, overwrite_b: bool) -> Array:
        """What `ntkdist.gpu` takes from cupyx, which cannot be imported without CUDA's libraries."""
        assert isinstance(a, Array)
        assert isinstance(b, Array)
        a, out = contiguous(a, columns=True), contiguous(b, columns=True)
        if out is b and not overwrite_b:
            out = b._new(b._a.copy(order="F"))
        out._a[:] = solve_triangular(a._a, out._a, trans=trans, lower=lower)
        return out


def _hook_of(pool: Pool) -> type:
    """Make the class whose objects, while they are entered, are told what a pool does."""

    class MemoryHook:
        def __enter__(self) -> Any:
            pool.hooks.append(self)
            return self

        def __exit__(self, *_: Any) -> None:
            pool.hooks.remove(self)

    return MemoryHook


def _made(name: str) -> Callable[..., Array]:
    """A function that makes an array of numbers."""
    return lambda module, *args, **named: module.array(getattr(np, name)(*args, **named))


def _of_arrays(name: str) -> Callable[..., Array]:
    """A function of arrays, which may be given one to write to."""

    def call(module: Module, *args: Any, out: Any = None, **named: Any) -> Array:
        values = [tuple(map(plain, a)) if isinstance(a, list) else a if isinstance(a, str) else plain(a) for a in args]
        if out is None:
            return module.array(getattr(np, name)(*values, **named))
        getattr(np, name)(*values, out=plain(out), **named)
        return out

    return call


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _made(name) for name in ("empty", "zeros", "ones", "full", "eye")},
    **{
        name: _of_arrays(name)
        for name in ("sqrt", "rint", "cos", "sin", "abs", "multiply", "maximum", "clip", "where", "take")
    },
    **{name: _of_arrays(name) for name in ("matmul", "concatenate", "ascontiguousarray", "zeros_like")},
}
