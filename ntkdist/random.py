"""Every random number of the program: Philox words in, arrays out.

A draw is named by ``(seed, layer, role, block)`` and nothing else, so that any worker, in any order and
in any chunking, makes the same map from a seed.  Only raw words are taken from NumPy, because those are
promised not to change between its versions; its normal and integer streams are not.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(count: int, seed: int, layer: int, role: int, block: int = 0) -> F8:
    """``count`` numbers of (0, 1), from the top 52 bits of Philox words: never 0 or 1, for no sum is rounded."""
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(layer, role, block))).random_raw(count)
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def normals(shape: tuple[int, ...], seed: int, layer: int, role: int, block: int = 0) -> F8:
    """Independent standard normals, by inversion."""
    z: F8 = ndtri(uniforms(int(np.prod(shape)), seed, layer, role, block)).reshape(shape)
    return z


def uniforms_of(index: I8, seed: int, layer: int, role: int) -> F8:
    """A number of (0, 1) for every index, a function of it and the stream alone: SplitMix64 of Steele, Lea, Flood."""
    (key,) = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(layer, role))).random_raw(1)
    z = _mixed((index.astype(np.uint64) + np.uint64(1)) * GOLDEN + key)
    return ((z >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def hashes(values: NDArray[Any], columns: I8) -> NDArray[np.uint64]:
    """A word for every number and its column, zero for zero, so that their sum names a row, dense or sparse."""
    bits = values.astype(np.float64).view(np.uint64)
    z = _mixed(_mixed(bits) + columns.astype(np.uint64) * GOLDEN)
    z[values == 0] = 0
    return z


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def integers(high: int, count: int, seed: int, layer: int, role: int, block: int = 0) -> I8:
    """Independent integers of [0, high), uniform to within 2⁻⁵² · high."""
    return np.floor(uniforms(count, seed, layer, role, block) * high).astype(np.int64)


def signs(count: int, seed: int, layer: int, role: int, block: int = 0) -> F8:
    """Independent ±1."""
    return np.where(uniforms(count, seed, layer, role, block) < 0.5, -1.0, 1.0)


def directions(d: int, m: int, seed: int, layer: int, role: int) -> F8:
    """``m`` unit vectors of dimension ``d`` as columns (d, m), each uniform on the sphere.

    Blocks of ``d`` columns are orthogonal (Haar: QR of a normal matrix, made unique by diag(R) > 0),
    blocks are independent of each other, and block ``b`` has its own stream, so that fewer columns are
    a prefix of more, to rounding (Yu et al., "Orthogonal Random Features", NeurIPS 2016).
    """
    out = np.empty((d, m))
    for b, start in enumerate(range(0, m, d)):
        block = out[:, start : start + d]  # of the last, only what is kept is factored
        q, r = np.linalg.qr(normals((d, d), seed, layer, role, b)[:, : block.shape[1]])
        block[:] = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return out
