"""A seeded sample of rows, as a sum: the k rows of smallest key."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ntkdist import random
from ntkdist.data.dataset import Layout, Rows
from ntkdist.data.scaling import Preprocessing
from ntkdist.data.sparse import concatenate

SAMPLE, WEIGHTED, PRECONDITIONER, TRAINING = (
    2000,
    2001,
    2002,
    2003,
)  # roles, distinct from those of maps

RowWeights = Callable[[NDArray[Any]], NDArray[np.float64]]  # (n, *input_shape) → (n,)


class RowSample:
    """The ``size`` rows of smallest key so far: a value with ``+``, independent of the order and the cut of the data.

    Independent uniform keys give a simple random sample without replacement; keys −log(uniform)/weight give one in
    which rows enter in proportion to their weights (Efraimidis, Spirakis, 2006).

    ``keys`` (k,), k ≤ ``size``, ascend; rows of infinite key are never kept.  ``x`` is (k, *shape), or sparse (k, d).
    """

    def __init__(self, size: int, keys: NDArray[np.float64], x: NDArray[Any] | csr_array) -> None:
        keep = np.flatnonzero(np.isfinite(keys))
        keep = keep[np.argsort(keys[keep], kind="stable")[:size]]
        self.size, self.keys, self.x = size, keys[keep], x[keep]

    def __add__(self, other: "RowSample") -> "RowSample":
        return RowSample(self.size, np.concatenate([self.keys, other.keys]), concatenate([self.x, other.x]))

    def __sizeof__(self) -> int:
        x: Any = self.x
        return self.keys.nbytes + (x.data.nbytes + x.indices.nbytes if isinstance(x, csr_array) else x.nbytes)


@dataclass(frozen=True)
class SampleOf:
    """A summand: a seeded `RowSample` of scaled rows; rows of weight 0 never enter."""

    size: int
    seed: int
    preprocessing: Preprocessing
    weights: RowWeights | None = None  # rows enter in proportion to its values
    role: int = SAMPLE  # names the random stream
    by_weight: bool = False  # rows enter in proportion to their weight in the equations, too
    sparse: bool = False  # whether the inputs are sparse

    def zero(self) -> RowSample:
        shape = (0, *self.preprocessing.mapped_shape)
        return RowSample(self.size, np.empty(0), csr_array(shape) if self.sparse else np.empty(shape))

    def update(self, total: RowSample, rows: Rows) -> RowSample:
        keys = random.uniforms_of(rows.places, self.seed, 0, self.role)
        weight = self.preprocessing.weights(rows) if self.by_weight else rows.weight
        scale = np.ones(len(keys)) if weight is None else weight
        if not self.by_weight:
            scale = (scale > 0).astype(np.float64)
        x = self.preprocessing.of_rows(rows, np.float64)
        if self.weights is not None:
            scale = scale * self.weights(x)
        with np.errstate(divide="ignore"):
            keys = -np.log(keys) / scale
        return total + RowSample(self.size, keys, x)


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """The ``size`` rows of smallest key, raw and with all that a fit needs: a value with ``+``, as `RowSample`."""

    size: int
    keys: NDArray[np.float64]  # (k,), ascending
    columns: tuple[NDArray[Any], ...]  # inputs (k, d), targets, weights (k,) and folds (k,)

    def __add__(self, other: "TrainingSample") -> "TrainingSample":
        keys = np.concatenate([self.keys, other.keys])
        first = np.argsort(keys, kind="stable")[: self.size]
        both = zip(self.columns, other.columns, strict=True)
        return TrainingSample(self.size, keys[first], tuple(np.concatenate(pair)[first] for pair in both))

    def __sizeof__(self) -> int:
        return self.keys.nbytes + sum(column.nbytes for column in self.columns)


@dataclass(frozen=True)
class TrainingSampleOf:
    """A summand: a seeded `TrainingSample` of rows with weight, as read."""

    size: int
    layout: Layout

    def zero(self) -> TrainingSample:
        layout = self.layout
        y = np.zeros((0, layout.targets) if layout.targets else 0, np.int64 if layout.classes else np.float64)
        inputs = np.zeros((0, *layout.input_shape), layout.x_dtype)
        return TrainingSample(self.size, np.zeros(0), (inputs, y, np.zeros(0), np.zeros(0, np.int64)))

    def update(self, total: TrainingSample, rows: Rows) -> TrainingSample:
        weight = np.ones(rows.n) if rows.weight is None else rows.weight
        keys = random.uniforms_of(rows.places, 0, 0, TRAINING)
        order = np.argsort(keys, kind="stable")
        order = order[weight[order] > 0][: self.size]
        columns = (rows.x, rows.y, weight, np.full(rows.n, max(rows.fold, 0)))
        return total + TrainingSample(self.size, keys[order], tuple(np.asarray(c)[order] for c in columns))
