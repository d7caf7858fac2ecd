"""Tables of categories: the columns that each name becomes, one-hot or means of the targets.

Legend: w weights, K names of a column, P parts of the training rows, t columns of the targets.
"""

import numpy as np
from numpy.typing import NDArray

F8 = NDArray[np.float64]
PRIOR = 10.0  # weight of the mean of all rows in the mean of a name


def one_hot(weight: F8, seen: NDArray[np.bool_]) -> F8:
    """Return the one-hot codes of names, less their mean, of total variance 1, (1, K + 1, seen); last of a new name."""
    share = np.append(weight, 0.0)[np.append(seen, False)] / weight[seen].sum()
    codes = np.vstack([np.eye(len(weight))[:, seen], np.zeros(seen.sum())]) - share
    variance = float((share * (1 - share)).sum())
    return codes[None] * (1 / np.sqrt(variance) if variance > 1e-12 else 0.0)


def target_means(parts: F8) -> F8:
    """Return smoothed means of the targets by name, and log counts, standardised, (P + 1, K + 1, t + 1).

    ``parts`` (P, K, 1 + t) are Σ w and Σ w y of each part.  Entry p of the result is made of the other parts, the last
    of all; a name that is new has the mean of all names.  A count is that of all parts if the others are like these,
    and that of a new name the least of a training row: zero may be far from all others.
    """
    every = range(len(parts))
    rest = np.stack([parts[[q for q in every if q != p]].sum(axis=0) for p in every] + [parts.sum(axis=0)])
    weight = rest[:, :, 0].sum(axis=1)  # of each entry
    weight = np.where(weight > 0, weight, 1.0)[:, None, None]
    prior = rest[:, :, 1:].sum(axis=1, keepdims=True) / weight
    rest = np.concatenate([rest, np.zeros_like(rest[:, :1])], axis=1)  # a new name
    mean = (rest[:, :, 1:] + PRIOR * prior) / (rest[:, :, :1] + PRIOR)
    count = np.log1p(rest[:, :, :1] * (weight[-1] / weight))
    out = np.concatenate([mean, count], axis=2)
    rows = parts[:, :, 0] / parts[:, :, 0].sum()  # the weight of training rows by entry and name
    centre = np.einsum("pk,pkj->j", rows, out[:-1, :-1])
    out -= centre
    spread = np.sqrt(np.einsum("pk,pkj->j", rows, out[:-1, :-1] ** 2))
    spread[spread <= 1e-12 * np.maximum(np.abs(centre), 1.0)] = 1.0
    spread[:-1] *= np.sqrt(len(spread) - 1)  # all targets together weigh as one column
    out /= spread
    out[:, :, -1] = np.maximum(out[:, :, -1], out[:-1, :-1, -1][rows > 0].min())
    return out
