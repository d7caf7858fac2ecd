"""Memory that a task holds beside its sum, step by step: counted from the shapes, before anything runs.

The allocator returns large arrays to the system when they are freed, and keeps the memory of all others in its heap: so
the most of the one comes on top of the most of the other, whichever steps they are of.

Legend: as in `ntkdist.planning.cut`; d numbers of a row as read; k columns that the Gram is multiplied with.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ntkdist import backend
from ntkdist.cluster.reduce import MAP_FAN_IN
from ntkdist.data.column_sums import ColumnSumsOf
from ntkdist.data.encoding import SPLITS, needed
from ntkdist.features.base import PIECE_BYTES
from ntkdist.planning.cut import Cut
from ntkdist.sums.gradients import PIECE_BYTES as GRADIENT_BYTES


class Step(NamedTuple):
    """The bytes of each array that a step holds, and of others whose sizes are not known one by one."""

    arrays: Sequence[int]
    others: int = 0

    def heap(self, kept: bool) -> int:
        """Return the bytes of small arrays, and of the others if the heap keeps them."""
        return sum(a for a in self.arrays if a < backend.HEAPED_BYTES) + kept * self.others

    def large(self, kept: bool) -> int:
        """Return the bytes that are not of the heap."""
        return sum(self.arrays) + self.others - self.heap(kept)


def of_task(p: Cut, k: int, samples: int) -> int:
    """Return the most bytes of a task, where a sample of the data holds so many rows."""
    steps = [_reading(p), _before(p, samples), _scaling(p), _summing(p, k)]
    both = [max(step.heap(kept) for step in steps) + max(step.large(kept) for step in steps) for kept in (True, False)]
    return max(_drawing(p), *both)


def of_gradients(p: Cut, sum_bytes: int) -> int:
    """Return the most bytes of a task that sums outer products of gradients, beside its sum of so many bytes."""
    rows, d = _block_rows(p), math.prod(p.mapped_shape)
    inputs = [*_partition(p), *_block(p), _scaled(p), 3 * 8 * rows * d]
    weights = p.features.gradient_weights_bytes(p.mapped_shape, p.dtype, p.t)
    piece = p.features.gradient_bytes(p.mapped_shape, p.dtype, p.t)
    gradients = 3 * max(GRADIENT_BYTES, 8 * p.t * d) + p.threads * max(PIECE_BYTES, piece)
    return max(_drawing(p), sum(inputs) + weights + gradients + sum_bytes)


def _reading(p: Cut) -> Step:
    """Count reading: Zarr holds a partition as stored, as chunks, a shard and rows, beside the rest of the last."""
    return Step([*_block(p), *4 * [_partition_rows(p) * p.layout.row_bytes], _partition_rows(p) * _beside_bytes(p)])


def _before(p: Cut, samples: int) -> Step:
    """Count the passes before: moments copy a partition to float64, and an addition of samples holds five.

    An addition of the sums of a table holds as many as are added at once, and one more.
    """
    copy = 8 * _partition_rows(p) * p.layout.row_values
    added = 5 * [samples * (8 * p.layout.row_values + 24)]
    if needed(p.layout, p.job.preprocess, p.dataset.nan):
        sums = ColumnSumsOf("columns", p.layout, SPLITS, targets=p.job.preprocess.front == "target-bins").nbytes
        added = max(added, (MAP_FAN_IN + 1) * [sums], key=sum)
    return Step([*_partition(p), copy, *added])


def _scaling(p: Cut) -> Step:
    """Count scaling a block in float64, of sparse rows with the scale of each number, and casting it."""
    copy = (8 + 16 * p.layout.sparse) * _block_rows(p) * _mapped_values(p)
    return Step([*_partition(p), *_block(p), copy, _scaled(p)])


def _drawing(p: Cut) -> int:
    """Count drawing the map, once a process, beside the first block; the heap is trimmed before and after."""
    shape = p.mapped_shape
    made = p.features.draw_bytes(shape, p.dtype) - p.features.kept_bytes(shape, p.dtype)
    return sum([*_partition(p), *_block(p), _scaled(p), made])


def _summing(p: Cut, k: int) -> Step:
    """Count mapping and summing a block: its features, their weighted products or the last block's, and targets.

    Each thread maps a piece of the block, then multiplies it tile by tile.
    """
    size, shape, rows = np.dtype(p.dtype).itemsize, p.mapped_shape, _block_rows(p)
    if p.layout.sparse:
        mapped = p.features.sparse_row_bytes(shape, p.dtype, p.layout.row_values)
    else:
        mapped = p.features.row_bytes(shape, p.dtype)
    tile = 16 * backend.TILE * k if k else size * backend.TILE**2
    piece = max(tile, min(rows * mapped, max(PIECE_BYTES, p.features.piece_rows * mapped)))
    features = (1 + bool(k or p.weighs_rows)) * [rows * p.m * size]
    targets = [16 * rows * p.t, 16 * rows * p.t, 2 * rows * k * size]
    arrays, pieces = [*_partition(p), *_block(p), _scaled(p), *features, *targets], p.threads * [piece]
    return Step([*arrays, *pieces]) if piece < backend.HEAPED_BYTES else Step(arrays, sum(pieces))


def _partition(p: Cut) -> list[int]:
    """Return the bytes of a partition as read, again for the rows of a fold that are taken from it, and for copies."""
    inputs = _partition_rows(p) * p.layout.row_bytes
    return [*(1 + bool(p.dataset.fold_array) + (p.copies > 1)) * [inputs], _partition_rows(p) * _beside_bytes(p)]


def _block(p: Cut) -> list[int]:
    return [_block_rows(p) * p.layout.row_bytes, _block_rows(p) * _beside_bytes(p)]


def _scaled(p: Cut) -> int:
    return _block_rows(p) * np.dtype(p.dtype).itemsize * _mapped_values(p)


def _mapped_values(p: Cut) -> int:
    """Count the numbers of a row that the map takes."""
    return p.layout.row_values if p.layout.sparse else int(np.prod(p.mapped_shape))


def _beside_bytes(p: Cut) -> int:
    """Count the bytes of a row beside its inputs: targets, weight and place."""
    return 8 * (max(p.layout.targets, 1) + 2)


def _partition_rows(p: Cut) -> int:
    return min(p.layout.rows_per_partition, p.layout.rows)


def _block_rows(p: Cut) -> int:
    """Count the rows of a block, all of one task."""
    longest = max(-(-len(p.parts(fold)) // p.tasks_of(fold)) for fold in range(p.folds))
    return min(p.block_rows, p.copies * longest * _partition_rows(p))
