"""Weighted means, variances and class counts, for standardising."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

F8 = NDArray[np.float64]


class Moments:
    """Weight, mean and sum of squared deviations of columns, and class counts: a value with ``+`` and ``-``.

    Combined by the pairwise formula of Chan, Golub, LeVeque (1979), which does not cancel when means are large.

    Attributes
    ----------
    rows : int
    weight : (d,) float64 array
        Σ w of each column; the same for all but images, where each pixel of a channel counts.
    mean : (d,) float64 array
    deviation : (d,) float64 array
        Σ w (x − mean)²
    counts : (k,) float64 array
        Σ w of each class; empty for regression.
    """

    def __init__(self, rows: int, weight: F8, mean: F8, deviation: F8, counts: F8) -> None:
        self.rows, self.weight, self.mean, self.deviation, self.counts = rows, weight, mean, deviation, counts

    @classmethod
    def zeros(cls, d: int, classes: int = 0) -> "Moments":
        """The empty sum for d columns and a number of classes."""
        return cls(0, np.zeros(d), np.zeros(d), np.zeros(d), np.zeros(classes))

    @classmethod
    def of(
        cls, columns: NDArray[Any] | csr_array, weight: NDArray[Any] | None, codes: NDArray[Any] | None, k: int
    ) -> "Moments":
        """Moments of one block.

        Parameters
        ----------
        columns : (n, d) or (n, h, w, d) array, or (n, d) sparse array
            All axes but the first and last are averaged over.
        weight : (n,) array or None
        codes : (n,) integer array or None
            Class of each row, of ``k``.
        """
        n, d = columns.shape[0], columns.shape[-1]
        w = np.ones(n) if weight is None else np.asarray(weight, np.float64)
        counts = np.zeros(0) if codes is None else np.bincount(codes, weights=w, minlength=k).astype(np.float64)
        inner = int(np.prod(columns.shape[1:-1]))
        total = w.sum() * inner
        if total == 0:
            return cls(n, np.zeros(d), np.zeros(d), np.zeros(d), counts)
        if isinstance(columns, csr_array):
            return cls(n, np.full(d, total), *_sparse_moments(columns, w, total), counts)
        w = np.repeat(w, inner)
        x = columns.reshape(n * inner, d)
        mean = w @ x / total
        centred = x - mean
        return cls(n, np.full(d, total), mean, np.einsum("i,ij,ij->j", w, centred, centred), counts)

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
            self.counts + sign * other.counts,
        )

    def beside(self, other: "Moments") -> "Moments":
        """Moments of the columns of both, of the same rows."""
        pairs = zip(
            (self.weight, self.mean, self.deviation, self.counts),
            (other.weight, other.mean, other.deviation, other.counts),
            strict=True,
        )
        return Moments(self.rows, *(np.concatenate(pair) for pair in pairs))

    def split(self, d: int) -> tuple["Moments", "Moments"]:
        """The first d columns, and the others with the class counts: the inverse of `beside`."""
        first = Moments(self.rows, self.weight[:d], self.mean[:d], self.deviation[:d], self.counts[:0])
        return first, Moments(self.rows, self.weight[d:], self.mean[d:], self.deviation[d:], self.counts)

    @property
    def std(self) -> F8:
        """Population standard deviations, (d,)."""
        return np.sqrt(self.deviation / np.where(self.weight == 0, 1.0, self.weight))

    def constant(self) -> NDArray[np.bool_]:
        """Which columns have no variance beyond rounding, (d,)."""
        return self.std <= 1e-12 * np.abs(self.mean)

    def __sizeof__(self) -> int:
        return 3 * self.mean.nbytes + self.counts.nbytes


def _sparse_moments(x: csr_array, w: F8, total: float) -> tuple[F8, F8]:
    """Mean and deviation of sparse rows: the zeros of a column, of weight total − Σ w, are all mean² off."""
    d, each = x.shape[1], np.repeat(w, np.diff(x.indptr))
    mean = np.bincount(x.indices, each * x.data, d) / total
    deviation = np.bincount(x.indices, each * (x.data - mean[x.indices]) ** 2, d)
    zeros = np.maximum(total - np.bincount(x.indices, each, d), 0)
    return mean, deviation + zeros * mean**2
