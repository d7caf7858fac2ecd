"""Knots of a column of numbers, weighted quantiles or thresholds of a small tree, and the columns made by them.

Legend: x (n,) values, w (n,) weights, y (n, t) targets.
"""

import heapq

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

F8 = NDArray[np.float64]
TAIL = 3.0  # normal quantiles are clipped at


def quantiles(x: F8, weight: F8, shares: F8) -> F8:
    """Return quantiles as `numpy.quantile` does; a row counts as many times as its weight holds the least weight."""
    if not len(x):
        return np.zeros(len(shares))
    order = np.argsort(x, kind="stable")
    x, weight = x[order], weight[order]
    if (weight == weight[0]).all():
        return np.quantile(x, shares)
    last = np.cumsum(weight) - weight.min() / 2
    ends = np.column_stack([last - (weight - weight.min()), last]).ravel()  # of the first and the last copy
    return np.interp(shares, (ends - ends[0]) / (ends[-1] - ends[0]), np.repeat(x, 2))


def bin_edges(x: F8, weight: F8, bins: int) -> F8:
    """Return the edges of at most so many bins of about equal weight."""
    return _at_least_one(np.unique(quantiles(x, weight, np.linspace(0, 1, bins + 1))))


def tree_edges(x: F8, y: F8, weight: F8, bins: int) -> F8:
    """Return the edges of the leaves of a regression tree, at most so many, each with 1/(4·bins) of the weight.

    The leaf whose best split lessens the squared error most is split first.
    """
    if not len(x):
        return _at_least_one(np.zeros(1))
    order = np.argsort(x, kind="stable")
    x = x[order]
    sums = np.cumsum(np.column_stack([weight, weight[:, None] * (y - weight @ y / weight.sum())])[order], axis=0)
    sums = np.vstack([np.zeros(sums.shape[1]), sums])
    least = sums[-1, 0] / (4 * bins)
    heap = [_best_split(x, sums, 0, len(x), least)]
    cuts: list[int] = []
    while len(cuts) < bins - 1 and heap and heap[0][0] < 0:
        _, start, stop, at = heapq.heappop(heap)
        cuts.append(at)
        for some in ((start, at), (at, stop)):
            heapq.heappush(heap, _best_split(x, sums, *some, least))
    return _at_least_one(np.unique([x[0], *((x[c - 1] + x[c]) / 2 for c in cuts), x[-1]]))


def _best_split(x: F8, sums: F8, start: int, stop: int, least: float) -> tuple[float, int, int, int]:
    """Return the best split of some rows: its negative gain, 0 if there is none, the rows, and where it is."""
    at = np.arange(start + 1, stop)
    left, right, whole = sums[at] - sums[start], sums[stop] - sums[at], sums[stop] - sums[start]
    tolerance = least * (1 - 1e-9)
    may = (x[at - 1] < x[at]) & (left[:, 0] >= tolerance) & (right[:, 0] >= tolerance)
    if not may.any():
        return 0.0, start, stop, start
    at, left, right = at[may], left[may], right[may]
    gain = (left[:, 1:] ** 2).sum(axis=1) / left[:, 0] + (right[:, 1:] ** 2).sum(axis=1) / right[:, 0]
    best = int(np.argmax(gain))
    return min(0.0, float((whole[1:] ** 2).sum() / whole[0] - gain[best])), start, stop, int(at[best])


def _at_least_one(edges: F8) -> F8:
    """Return edges of one bin or more."""
    return edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1.0])


def normal_quantiles(x: F8, knots: F8) -> F8:
    """Return the clipped normal quantiles of values by knots, which are evenly spaced quantiles; 0 if all are one."""
    if knots[0] == knots[-1]:
        return np.zeros(len(x))
    share = np.linspace(0, 1, len(knots))
    both = np.interp(x, knots, share) - np.interp(-x, -knots[::-1], -share[::-1])  # the middle, of equal knots
    return np.clip(ndtri(both / 2), -TAIL, TAIL)


def in_bins(x: F8, edges: F8) -> F8:
    """Return the share of each bin that lies below values, (n, bins)."""
    return np.clip((x[:, None] - edges[:-1]) / np.diff(edges), 0.0, 1.0)
