"""Importances of columns, and leading directions, of a learned metric.

Legend: x scaled inputs, P the metric; a step s moves a row by ‖sP‖ under the metric, so PPᵀ is what is read here.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.data.scaling import Preprocessing, column_names
from ntkdist.errors import SpecError

F8 = NDArray[np.float64]
LARGEST = 5  # columns that a direction names


class Direction(NamedTuple):
    """A direction of the scaled inputs: a unit eigenvector of PPᵀ."""

    share: float  # of the trace of PPᵀ
    columns: dict[str, float]  # weights of its largest columns, the largest first and positive


def importances(pre: Preprocessing) -> F8:
    """Return the share of each raw column in the metric, (d,): the diagonal of PPᵀ over its trace.

    It compares steps of one standard deviation of each column, or of one unit where inputs are not scaled.
    """
    squares = _squares(pre)
    return _by_raw_column(pre, squares / squares.sum())


def sensitivities(pre: Preprocessing) -> F8:
    """Return how far a row moves under the metric for a unit of each raw column, in the units of the data, (d,)."""
    return np.sqrt(_by_raw_column(pre, _squares(pre))) / pre.x_scale


def directions(pre: Preprocessing, count: int) -> list[Direction]:
    """Return the leading eigenvectors of PPᵀ, at most ``count``; of a diagonal metric, they are single columns."""
    if pre.metric.ndim == 2:
        with backend.one_thread():
            values, vectors = np.linalg.eigh(pre.metric @ pre.metric.T)
    else:
        values, vectors = _squares(pre), np.eye(len(pre.metric))
    order = np.argsort(-values, kind="stable")[:count]
    _, names = mapped_columns(pre)
    return [Direction(float(values[i] / values.sum()), _largest(vectors[:, i], names)) for i in order]


def mapped_columns(pre: Preprocessing) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the raw column, and the name, of each column that a map takes."""
    if pre.encoding is not None:
        return pre.encoding.source_column, pre.encoding.names
    d = pre.mapped_shape[0]
    return np.arange(d), column_names(pre, d)


def raw_names(pre: Preprocessing) -> tuple[str, ...]:
    """Return the names of the raw columns."""
    return column_names(pre, pre.input_shape[0])


def _largest(vector: F8, names: tuple[str, ...]) -> dict[str, float]:
    """Return the largest weights of a direction by name, with the sign that makes the first positive."""
    order = [i for i in np.argsort(-np.abs(vector), kind="stable")[:LARGEST] if vector[i]]
    return {names[i]: float(vector[i] * np.sign(vector[order[0]])) for i in order}


def _squares(pre: Preprocessing) -> F8:
    """Compute the diagonal of PPᵀ."""
    if not pre.metric.size:
        raise SpecError("the model has no metric; expected one that was learned, give metric.rounds = 1 or more")
    squares = np.einsum("ij,ij->i", pre.metric, pre.metric) if pre.metric.ndim == 2 else pre.metric**2
    source, _ = mapped_columns(pre)
    constant = np.isin(raw_names(pre), pre.constant)  # the metric has a number for them, which nothing multiplies
    return np.where(constant[source], 0.0, squares)


def _by_raw_column(pre: Preprocessing, values: F8) -> F8:
    """Add up the values of the columns that each raw column became."""
    source, _ = mapped_columns(pre)
    total = np.zeros(pre.input_shape[0])
    np.add.at(total, source, values)
    return total
