"""Sketches by Hadamard matrices: the SRHT, and TensorSRHT for products.

Legend: n rows, d input dimension, w the power of two that holds it, m output columns; H the Hadamard matrix of
Sylvester, H_2w = [[H, H], [H, −H]], entries ±1.

As H_w = H_a ⊗ H_b, a row of w = a·b values is transformed by two products with small matrices.  These have w(a + b)
multiplications where butterflies have w log w additions, and take a tenth of the time: BLAS works in the cache, and
butterflies in NumPy do not.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist import gpu, random

F8 = NDArray[np.float64]
DENSE = 128  # up to this power of two, an SRHT is one product with its own matrix


def next_power(d: int) -> int:
    """Return the least power of two that is at least d."""
    return 1 << max(0, d - 1).bit_length()


@cache
def hadamard(w: int, dtype: str = "float64") -> NDArray[Any]:
    """Return H_w for a power of two w."""
    h = np.ones((1, 1), dtype)
    while len(h) < w:
        h = np.block([[h, h], [h, -h]])
    h.flags.writeable = False
    return h


def mix(x: NDArray[Any]) -> NDArray[Any]:
    """Compute x H along the last axis, whose length is a power of two."""
    w, xp = x.shape[-1], gpu.array_module(x)
    b = 1 << (w.bit_length() // 2)
    left, right = (gpu.constant(xp, hadamard, width, x.dtype.name) for width in (w // b, b))
    y = (xp.ascontiguousarray(x).reshape(-1, b) @ right).reshape(-1, w // b, b)
    return xp.matmul(left, y).reshape(x.shape)


def draw_srht(d: int, m: int, seed: int, layer: int, role: int, scale: float | F8 = 1.0) -> dict[str, NDArray[Any]]:
    """Draw a subsampled randomised Hadamard transform R^d → R^m of ``scale`` ⊙ x: signs, then some of the rows of H.

    Rows are drawn without replacement, in random order; where m > w, from ⌈m/w⌉ independent transforms.  Ailon,
    Chazelle, STOC 2006; Tropp, 2011.  Returned as its dense ``matrix`` where d is small, as one product is then the
    fastest, else as ``signs`` (transforms, d), which carry the scale, and ``rows``.
    """
    w = next_power(d)
    count = -(-m // w)
    signs = random.signs(count * d, seed, layer, role, 0).reshape(count, d) * (scale / math.sqrt(m))
    order = np.argsort(random.uniforms(count * w, seed, layer, role, 1).reshape(count, w), axis=1)
    if w > DENSE:
        return {"signs": signs, "rows": (order + w * np.arange(count)[:, None]).ravel()[:m]}
    columns = [s[:, None] * hadamard(w)[:d, o] for s, o in zip(signs, order, strict=True)]
    return {"matrix": np.ascontiguousarray(np.concatenate(columns, axis=1)[:, :m])}


def srht(s: dict[str, NDArray[Any]], x: NDArray[Any]) -> NDArray[Any]:
    """Transform rows x (n, d) to (n, m)."""
    if "matrix" in s:
        return x @ s["matrix"]
    (count, d), n, xp = s["signs"].shape, len(x), gpu.array_module(x)
    wide = xp.zeros((n, count, next_power(d)), x.dtype)
    xp.multiply(x[:, None], s["signs"], out=wide[:, :, :d])
    return xp.take(mix(wide).reshape(n, -1), s["rows"], axis=1)


def srht_values(d: int, m: int) -> int:
    """Count the numbers that `srht` holds for one row at its peak, its result included."""
    w = next_power(d)
    return m if w <= DENSE else m + 3 * w * -(-m // w)


def tensor_srht(
    s: dict[str, NDArray[Any]], x: NDArray[Any], t: dict[str, NDArray[Any]], y: NDArray[Any]
) -> NDArray[Any]:
    """Sketch the rows x ⊗ y, never formed, to (n, m): the product, column by column, of their transforms.

    Unbiased: the expected inner product of two outputs is ⟨x, x'⟩⟨y, y'⟩, if one of the transforms was drawn with
    ``scale`` √m.  Ahle et al., "Oblivious sketching of high-degree polynomial kernels", SODA 2020, section 4.
    """
    z = srht(t, y)
    z *= srht(s, x)
    return z
