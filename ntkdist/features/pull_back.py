"""Gradients of functions of rows from the derivatives of their features.

Legend: n rows x of d values; u unit rows; r features that depend on a row by its inner products with r points; t
functions, each a weighted sum of the features.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pull_back(slopes: NDArray[Any], weights: NDArray[Any], points: NDArray[Any]) -> NDArray[Any]:
    """Compute Σ_j slopes[n, j] weights[j, t] points[j, d], (n, t, d), by matrix products.

    The smaller of slopes and points takes the weights, and functions are taken a few at a time, so that no more than
    an array of the slopes' size is made beside the result, and a block of it.
    """
    (n, r), (t, d) = slopes.shape, (weights.shape[1], points.shape[1])
    out = np.empty((n, t, d), slopes.dtype)
    if n < d:
        for i in range(t):
            out[:, i] = (slopes * weights[:, i]) @ points
        return out
    for i in range(0, t, n // d):
        block = np.multiply(weights[:, i : i + n // d, None], points[:, None], order="C")
        columns = block.shape[1] * d
        out[:, i : i + n // d] = (slopes @ block.reshape(r, columns)).reshape(n, -1, d)
    return out


def of_lengths(
    slopes: NDArray[Any], u: NDArray[Any], values: NDArray[Any], length: NDArray[Any], d: int
) -> NDArray[Any]:
    """Return the gradients (n, t, d) of f(x) = ‖x‖ h(u), from those of h at unit rows, in their memory.

    ∇f = ∇h + u (h − u·∇h): only the part of ∇h across u counts.  0 for rows of length 0; columns after the first d,
    such as a bias, are dropped.

    Parameters
    ----------
    slopes : (n, t, d') array
        The gradients of h.
    u : (n, d') array
    values : (n, t) array
        Those of h.
    length : (n, 1) array
        Of the rows x.
    d : int
    """
    along = values - np.matmul(slopes, u[:, :, None])[:, :, 0]
    along[length[:, 0] == 0] = 0
    out = slopes[:, :, :d]
    out += along[:, :, None] * u[:, None, :d]
    out[length[:, 0] == 0] = 0
    return out
