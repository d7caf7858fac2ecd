"""All random numbers of the program: Philox words in, arrays out.

A draw is named by ``(seed, layer, role, block)`` alone, so that any worker, in any order and any chunking, makes the
same map from a seed.  Only raw words are taken from NumPy, which promises not to change them between versions; it does
not promise this of its normal and integer streams.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(count: int, seed: int, layer: int, role: int, block: int = 0) -> F8:
    """Draw uniform numbers of (0, 1), from the top 52 bits of Philox words: never 0 or 1, as no sum is rounded."""
    return _to_uniform(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(layer, role, block))).random_raw(count))


def normals(shape: tuple[int, ...], seed: int, layer: int, role: int, block: int = 0) -> F8:
    """Draw independent standard normals, by inversion."""
    z: F8 = ndtri(uniforms(int(np.prod(shape)), seed, layer, role, block)).reshape(shape)
    return z


def uniforms_of(index: I8, seed: int, layer: int, role: int) -> F8:
    """Draw a number of (0, 1) for every index, from the index and the stream alone (SplitMix64: Steele, Lea, Flood)."""
    (key,) = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(layer, role))).random_raw(1)
    return _to_uniform(_mix((index.astype(np.uint64) + np.uint64(1)) * GOLDEN + key))


def _to_uniform(words: NDArray[np.uint64]) -> F8:
    """Convert words to numbers of (0, 1), by their top 52 bits."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def hashes(values: NDArray[Any], columns: I8) -> NDArray[np.uint64]:
    """Hash every number with its column; 0 gives 0, so that a row's sum of hashes is the same, dense or sparse."""
    bits = values.astype(np.float64).view(np.uint64)
    z = _mix(_mix(bits) + columns.astype(np.uint64) * GOLDEN)
    z[values == 0] = 0
    return z


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finaliser of SplitMix64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def integers(high: int, count: int, seed: int, layer: int, role: int, block: int = 0) -> I8:
    """Draw independent integers of [0, high), uniform to within 2⁻⁵² · high."""
    return np.floor(uniforms(count, seed, layer, role, block) * high).astype(np.int64)


def signs(count: int, seed: int, layer: int, role: int, block: int = 0) -> F8:
    return np.where(uniforms(count, seed, layer, role, block) < 0.5, -1.0, 1.0)


def directions(d: int, m: int, seed: int, layer: int, role: int) -> F8:
    """Draw ``m`` unit vectors of dimension ``d`` as columns (d, m), each uniform on the sphere.

    Blocks of ``d`` columns are orthogonal (Haar: QR of a normal matrix, made unique by diag(R) > 0) and independent of
    each other.  Each block has its own stream, so that fewer columns are a prefix of more, to rounding (Yu et al.,
    "Orthogonal Random Features", NeurIPS 2016).
    """
    out = np.empty((d, m))
    for b, start in enumerate(range(0, m, d)):
        block = out[:, start : start + d]  # of the last block, only the columns that are returned are factored
        q, r = np.linalg.qr(normals((d, d), seed, layer, role, b)[:, : block.shape[1]])
        block[:] = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return out
