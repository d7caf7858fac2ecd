"""Weighted means, variances, ranges and class counts, for standardising and clipping."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ntkdist.data.dataset import Layout, Rows

Mode = Literal["columns", "channels", "scale", "none"]

F8 = NDArray[np.float64]
COLUMNS = ("weight", "mean", "deviation", "low", "high")  # arrays with an entry per column, in constructor order


@dataclass(eq=False)
class Moments:
    """Weight, mean, sum of squared deviations and range of columns, and class counts: a value with ``+`` and ``-``.

    Combined by the pairwise formula of Chan, Golub, LeVeque (1979), which does not cancel when means are large.  A
    range cannot be subtracted: a difference keeps the wider range.
    """

    rows: int
    weight: F8  # (d,), Σ w of each column; of a channel of images, the sum over all its pixels
    mean: F8  # (d,)
    deviation: F8  # (d,), Σ w (x − mean)²
    low: F8  # (d,), least value among rows with weight, in sparse rows including 0; inf without such rows
    high: F8  # (d,), greatest value, likewise
    counts: F8 = field(default_factory=lambda: np.zeros(0))  # (k,), Σ w of each class; empty for regression

    @classmethod
    def zeros(cls, d: int, classes: int = 0, rows: int = 0) -> "Moments":
        """Return the moments of ``rows`` rows without weight, of d columns."""
        zero, inf = np.zeros(d), np.full(d, np.inf)
        return cls(rows, zero, zero, zero, inf, -inf, np.zeros(classes))

    @classmethod
    def of_arrays(cls, rows: int, arrays: Mapping[str, F8]) -> "Moments":
        return cls(rows, **arrays)

    def arrays(self) -> dict[str, F8]:
        """Return the arrays to save; empty class counts are left out."""
        columns = {name: getattr(self, name) for name in COLUMNS}
        return columns | ({"counts": self.counts} if self.counts.size else {})

    @classmethod
    def of(
        cls, columns: NDArray[Any] | csr_array, weight: NDArray[Any] | None, codes: NDArray[Any] | None, k: int
    ) -> "Moments":
        """Compute the moments of rows (n, ..., d), over all axes but the last, with class codes (n,) below k.

        NaN in rows (n, d) are left out.
        """
        n, d = columns.shape[0], columns.shape[-1]
        w = np.ones(n) if weight is None else np.asarray(weight, np.float64)
        counts = np.zeros(0) if codes is None else np.bincount(codes, weights=w, minlength=k).astype(np.float64)
        inner = int(np.prod(columns.shape[1:-1]))
        total = w.sum() * inner
        if total == 0:
            return cls.zeros(d, len(counts), n)
        if columns.ndim == 2 and columns.dtype.kind == "f" and columns.size and np.isnan(columns.min()):
            return cls(n, *_known_moments(columns, w), counts)
        low, high = _range(columns if w.all() else columns[w > 0])
        if isinstance(columns, csr_array):
            return cls(n, np.full(d, total), *_sparse_moments(columns, w, total), low, high, counts)
        w = np.repeat(w, inner)
        x = columns.reshape(n * inner, d)
        mean = w @ x / total
        centred = x - mean
        return cls(n, np.full(d, total), mean, np.einsum("i,ij,ij->j", w, centred, centred), low, high, counts)

    def __add__(self, other: "Moments") -> "Moments":
        return self._combine(other, 1)

    def __sub__(self, other: "Moments") -> "Moments":
        return self._combine(other, -1)

    def _combine(self, other: "Moments", sign: int) -> "Moments":
        weight = self.weight + sign * other.weight
        safe = np.where(weight == 0, 1.0, weight)
        delta = other.mean - self.mean
        mean = self.mean + sign * delta * other.weight / safe
        deviation = self.deviation + sign * (other.deviation + delta**2 * self.weight * other.weight / safe)
        empty = weight == 0
        return Moments(
            self.rows + sign * other.rows,
            weight,
            np.where(empty, 0.0, mean),
            np.where(empty, 0.0, np.maximum(deviation, 0.0)),
            np.where(empty, np.inf, np.minimum(self.low, other.low)),
            np.where(empty, -np.inf, np.maximum(self.high, other.high)),
            self.counts + sign * other.counts,
        )

    def beside(self, other: "Moments") -> "Moments":
        """Concatenate the columns of two moments of the same rows."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in (*COLUMNS, "counts"))
        return Moments(self.rows, *(np.concatenate(pair) for pair in pairs))

    def split(self, d: int) -> tuple["Moments", "Moments"]:
        """Split off the first d columns from the others with the class counts: the inverse of `beside`."""
        first = [getattr(self, name)[:d] for name in COLUMNS]
        others = [getattr(self, name)[d:] for name in COLUMNS]
        return Moments(self.rows, *first), Moments(self.rows, *(*others, self.counts))

    @property
    def std(self) -> F8:
        """Population standard deviations, (d,)."""
        return np.sqrt(self.deviation / np.where(self.weight == 0, 1.0, self.weight))

    def constant(self) -> NDArray[np.bool_]:
        """Mark the columns without variance beyond rounding, (d,)."""
        return self.std <= 1e-12 * np.abs(self.mean)

    def __sizeof__(self) -> int:
        return len(COLUMNS) * self.mean.nbytes + self.counts.nbytes


def _known_moments(x: NDArray[Any], w: F8) -> tuple[F8, F8, F8, F8, F8]:
    """Compute the arrays of moments from the values of rows (n, d) that are not NaN."""
    known = ~np.isnan(x) & (w > 0)[:, None]
    weight = w @ known
    mean = w @ np.where(known, x, 0.0) / np.where(weight == 0, 1.0, weight)
    deviation = w @ np.where(known, x - mean, 0.0) ** 2
    return weight, mean, deviation, np.where(known, x, np.inf).min(axis=0), np.where(known, x, -np.inf).max(axis=0)


def _range(x: NDArray[Any] | csr_array) -> tuple[F8, F8]:
    """Find the least and greatest value of each column, in sparse rows including 0."""
    if isinstance(x, csr_array):
        low, high = (np.asarray(end(axis=0).todense(), np.float64).ravel() for end in (x.min, x.max))
        return np.minimum(low, 0.0), np.maximum(high, 0.0)
    pixels = int(np.prod(x.shape[1:-1])), x.shape[-1]
    low, high = (end(axis=0).reshape(pixels) for end in (x.min, x.max))  # over rows first, which is fast
    return low.min(axis=0).astype(np.float64), high.max(axis=0).astype(np.float64)


def _sparse_moments(x: csr_array, w: F8, total: float) -> tuple[F8, F8]:
    """Compute mean and deviation of sparse rows; each zero of a column, together of weight total − Σ w, adds mean²."""
    d, weight = x.shape[1], np.repeat(w, np.diff(x.indptr))  # of each value stored
    mean = np.bincount(x.indices, weight * x.data, d) / total
    deviation = np.bincount(x.indices, weight * (x.data - mean[x.indices]) ** 2, d)
    zeros = np.maximum(total - np.bincount(x.indices, weight, d), 0)
    return mean, deviation + zeros * mean**2


@dataclass(frozen=True)
class MomentsOf:
    """A summand for fitting the scaling: moments of the inputs, followed by those of the targets."""

    mode: Mode
    layout: Layout

    @property
    def d(self) -> int:
        """Columns of the inputs."""
        shape = self.layout.input_shape
        return shape[-1] if self.mode == "channels" else int(np.prod(shape))

    def zero(self) -> Moments:
        t = 0 if self.layout.classes else max(self.layout.targets, 1)
        return Moments.zeros(self.d + t, len(self.layout.classes))

    def update(self, total: Moments, rows: Rows) -> Moments:
        assert rows.y is not None
        n = rows.n
        x = rows.x if self.mode == "channels" or self.layout.sparse else rows.x.reshape(n, -1)
        inputs = Moments.of(x, rows.weight, None, 0)
        if k := len(self.layout.classes):
            targets = Moments.of(np.zeros((n, 0)), rows.weight, rows.y, k)
        else:
            targets = Moments.of(rows.y.reshape(n, -1), rows.weight, None, 0)
        return total + inputs.beside(targets)
