"""Sketches by hashing to buckets: CountSketch, TensorSketch and OSNAP.

Legend: n rows, d, p and q input dimensions, m output columns.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.sparse import csr_array

from ntkdist import random


def draw_count_sketch(d: int, m: int, seed: int, layer: int, role: int) -> dict[str, NDArray[Any]]:
    """Draw a CountSketch R^d → R^m: every coordinate is added to one bucket, with a random sign.

    Charikar, Chen, Farach-Colton, 2002.  Returned as ``order`` (coordinates sorted by bucket), ``starts``
    (the first of each bucket that is not empty), ``buckets`` (which those are) and ``signs`` in that order.
    """
    bucket = random.integers(m, d, seed, layer, role, 0)
    order = np.argsort(bucket, kind="stable")
    buckets, starts = np.unique(bucket[order], return_index=True)
    return {"order": order, "starts": starts, "buckets": buckets, "signs": random.signs(d, seed, layer, role, 1)[order]}


def count_sketch(s: dict[str, NDArray[Any]], x: NDArray[Any], m: int) -> NDArray[Any]:
    """Sketch rows x (n, d) to (n, m)."""
    out = np.zeros((len(x), m), x.dtype)
    out[:, s["buckets"]] = np.add.reduceat(x[:, s["order"]] * s["signs"], s["starts"], axis=1)
    return out


def tensor_sketch(
    s: dict[str, NDArray[Any]], x: NDArray[Any], t: dict[str, NDArray[Any]], y: NDArray[Any], m: int
) -> NDArray[Any]:
    """Sketch the rows x ⊗ y, never formed, to (n, m): the circular convolution of two CountSketches.

    Unbiased: the expected inner product of two outputs is ⟨x, x'⟩⟨y, y'⟩.  Pham, Pagh, KDD 2013.
    """
    f = fft.rfft(count_sketch(s, x, m), axis=1)
    f *= fft.rfft(count_sketch(t, y, m), axis=1)
    out: NDArray[Any] = fft.irfft(f, m, axis=1)
    return out


def tensor_sketch_bytes(p: int, q: int, m: int, itemsize: int) -> int:
    """Count the peak bytes that `tensor_sketch` of p- and q-dimensional rows allocates for one row."""
    return itemsize * (2 * max(p, q) + 5 * m)


def draw_osnap(
    d: int, m: int, seed: int, layer: int, role: int, scale: float = 1.0, nonzeros: int = 1
) -> dict[str, NDArray[Any]]:
    """Draw a sparse sketch R^d → R^m of ``scale`` · x: a coordinate is added to ``nonzeros`` buckets, with signs.

    Each is in its own range of buckets: the block construction of Nelson, Nguyen, "OSNAP", FOCS 2013.  With one, it is
    a CountSketch; more give lighter tails at the same variance, and cost in proportion.
    """
    edges = [i * m // nonzeros for i in range(nonzeros + 1)]
    bucket = [a + random.integers(b - a, d, seed, layer, role, 2 * i) for i, (a, b) in enumerate(pairwise(edges))]
    sign = [random.signs(d, seed, layer, role, 2 * i + 1) for i in range(nonzeros)]
    return {"bucket": np.array(bucket, np.int32), "sign": np.array(sign) * (scale / math.sqrt(nonzeros))}


def osnap(s: dict[str, NDArray[Any]], x: csr_array, m: int) -> NDArray[Any]:
    """Sketch sparse rows x (n, d) to (n, m), at a cost in proportion to their non-zeros."""
    moved = (
        csr_array((x.data * sign[x.indices], bucket[x.indices], x.indptr), (x.shape[0], m))
        for bucket, sign in zip(s["bucket"], s["sign"], strict=True)
    )
    out: NDArray[Any] = next(moved).toarray()  # adds the values that share a bucket
    for each in moved:
        out += each.toarray()
    return out
