"""Oblivious sketches: short vectors whose inner products are those of long ones, in expectation.

Legend: n rows, p and q input dimensions, m output columns.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from ntkdist import draws


def draw_count_sketch(d: int, m: int, seed: int, layer: int, role: int) -> dict[str, NDArray[Any]]:
    """A CountSketch R^d → R^m: every coordinate goes to one bucket, with a sign.

    Charikar, Chen, Farach-Colton, 2002.  Returned as ``order`` (coordinates sorted by bucket), ``starts``
    (the first of each bucket that is not empty), ``buckets`` (which those are) and ``signs`` in that order.
    """
    bucket = draws.integers(m, d, seed, layer, role, 0)
    order = np.argsort(bucket, kind="stable")
    buckets, starts = np.unique(bucket[order], return_index=True)
    return {"order": order, "starts": starts, "buckets": buckets, "signs": draws.signs(d, seed, layer, role, 1)[order]}


def count_sketch(s: dict[str, NDArray[Any]], x: NDArray[Any], m: int) -> NDArray[Any]:
    """The sketch (n, m) of rows x (n, d)."""
    out = np.zeros((len(x), m), x.dtype)
    out[:, s["buckets"]] = np.add.reduceat(x[:, s["order"]] * s["signs"], s["starts"], axis=1)
    return out


def tensor_sketch(
    s: dict[str, NDArray[Any]], x: NDArray[Any], t: dict[str, NDArray[Any]], y: NDArray[Any], m: int
) -> NDArray[Any]:
    """A sketch (n, m) of the rows x ⊗ y, never formed: the circular convolution of two CountSketches.

    Unbiased: the expected inner product of two outputs is ⟨x, x'⟩⟨y, y'⟩.  Pham, Pagh, KDD 2013.
    """
    f = fft.rfft(count_sketch(s, x, m), axis=1)
    f *= fft.rfft(count_sketch(t, y, m), axis=1)
    out: NDArray[Any] = fft.irfft(f, m, axis=1)
    return out


def tensor_sketch_bytes(p: int, q: int, m: int, itemsize: int) -> int:
    """Peak bytes that `tensor_sketch` of p- and q-dimensional rows allocates for one row."""
    return itemsize * (2 * max(p, q) + 5 * m)
