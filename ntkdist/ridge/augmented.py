"""Passes over rows and their copies: what a fold trains with has copies, and what it is scored on has none.

The error on a fold is computed from sums, so the rows of a scored fold are summed apart from their copies, and added to
them for training: no row is mapped twice.
"""

from collections.abc import Sequence

from ntkdist.cluster.shards import Source
from ntkdist.data.augment import Augment
from ntkdist.data.dataset import Shard
from ntkdist.sums import NormalEquations


def with_copies(
    source: Source, shards: Sequence[Shard], augment: Augment, apart: Sequence[int] = ()
) -> tuple[Source, list[Shard]]:
    """Return the source and the shards of a pass over rows and copies, given those of one over rows by fold.

    The first groups are the folds, those ``apart`` without the rows themselves, which are the groups that follow.
    """
    if augment.copies == 1:
        return source, list(shards)
    every, folds = tuple(range(augment.copies)), 1 + max(shard.group for shard in shards)
    some = [shard._replace(copies=every[1:] if shard.group in apart else every) for shard in shards]
    own = [shard._replace(group=folds + i) for i, k in enumerate(apart) for shard in shards if shard.group == k]
    return source._replace(augment=augment), some + own


def joined(
    sums: list[NormalEquations], apart: Sequence[int]
) -> tuple[list[NormalEquations], dict[int, NormalEquations]]:
    """Return the sums of every fold, copies and all, and by fold those of the rows that were summed apart."""
    folds, own = sums[: len(sums) - len(apart)], dict(zip(apart, sums[len(sums) - len(apart) :], strict=True))
    for k, one in own.items():
        folds[k] += one
    return folds, own
