"""CuPy's part that ntkdist calls, computed by NumPy and as strict: what a GPU refuses is refused here, on any machine.

Arrays do not turn into NumPy's unless asked to, do not mix with them, and are multiplied into no other array's columns;
a function that is not here is not called.  That each name here is CuPy's, with these arguments, a test sees to.
"""

import operator
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

NUMBERS = (bool, int, float, np.generic)


class Memory:
    """Bytes of arrays that are alive, the most that were, and what a pool would keep; and the mode of products."""

    def __init__(self, tf32: bool = False) -> None:
        self.tf32 = tf32
        self.used = self.peak = self.kept = 0
        self.seen: set[int] = set()

    def holds(self, a: np.ndarray) -> None:
        """Count the memory of an array, once, until it is gone."""
        while isinstance(a.base, np.ndarray):
            a = a.base
        if id(a) in self.seen:
            return
        self.seen.add(id(a))
        self.used += a.nbytes
        self.peak, self.kept = max(self.peak, self.used), max(self.kept, self.used)
        weakref.finalize(a, self._gone, id(a), a.nbytes)

    def _gone(self, name: int, nbytes: int) -> None:
        self.seen.discard(name)
        self.used -= nbytes

    def used_bytes(self) -> int:
        return self.used

    def total_bytes(self) -> int:
        return self.kept

    def free_all_blocks(self) -> None:
        self.kept = self.used


class Array:
    """An array that only functions here, and operators, touch."""

    __array_ufunc__ = None  # NumPy's arrays do not operate on it

    def __init__(self, a: np.ndarray, memory: Memory) -> None:
        self._a, self._memory = a, memory
        memory.holds(a)

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
        return Array(np.asarray(a), self._memory)

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

    def __len__(self) -> int:
        return len(self._a)

    def __int__(self) -> int:
        return int(self._a)

    def __bool__(self) -> bool:
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
        a, b = (rounded(each._a) if self._memory.tf32 else each._a for each in (self, other))
        return self._new(a @ b)


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
    memory : Memory
    called : dict of str to set
        Names of functions that were called, and of arguments that were given by name.
    """

    ndarray = Array

    def __init__(self, free_bytes: int = 2**40, count: int = 1, tf32: bool = False) -> None:
        self.memory, self.called = Memory(tf32), dict[str, set[str]]()
        device = SimpleNamespace(
            id=0, pci_bus_id="0000:01:00.0", mem_info=(free_bytes, free_bytes), synchronize=lambda: None
        )
        self.cuda = SimpleNamespace(
            is_available=lambda: count > 0,
            Device=lambda: device,
            runtime=SimpleNamespace(getDeviceProperties=lambda _: {"name": b"a strict GPU"}),
        )

    def get_default_memory_pool(self) -> Memory:
        return self.memory

    def get_default_pinned_memory_pool(self) -> Memory:
        return Memory()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in FUNCTIONS:
            raise AttributeError(f"module 'cupy' as known here has no attribute {name!r}")

        def call(*args: Any, **named: Any) -> Any:
            self.called.setdefault(name, set()).update(named)
            return FUNCTIONS[name](self, *args, **named)

        return call

    def array(self, a: Any) -> Array:
        return Array(np.asarray(a), self.memory)

    def asarray(self, a: Any) -> Array:
        return a if isinstance(a, Array) else Array(np.array(a), self.memory)

    def asnumpy(self, a: Any) -> np.ndarray:
        assert isinstance(a, Array)
        return np.array(a._a)

    def nonzero(self, a: Any) -> tuple[Array, ...]:
        self.called.setdefault("nonzero", set())
        return tuple(map(self.array, np.nonzero(a._a)))

    def solve_lower(self, a: Any, b: Any) -> Array:
        """What `ntkdist.devices` has cupyx do, which cannot be imported without CUDA's libraries."""
        assert isinstance(a, Array)
        assert isinstance(b, Array)
        return self.array(solve_triangular(a._a, b._a, lower=True))


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
    **{name: _of_arrays(name) for name in ("einsum", "matmul", "concatenate", "ascontiguousarray", "zeros_like")},
}
