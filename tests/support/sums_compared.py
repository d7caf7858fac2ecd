"""Comparisons of normal equations."""

import numpy as np

from ntkdist.sums import NormalEquations


def assert_close(a: NormalEquations, b: NormalEquations, tolerance: float) -> None:
    diagonal = np.sqrt(np.diag(b.gram))
    assert np.max(np.abs(a.gram - b.gram) / np.outer(diagonal, diagonal)) < tolerance
    np.testing.assert_allclose(a.rhs, b.rhs, atol=tolerance * 1e3)


def assert_same_bits(a: list[NormalEquations], b: list[NormalEquations]) -> None:
    for mine, theirs in zip(a, b, strict=True):
        for name in ("gram", "rhs", "z_sum", "yy", "y_sum"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
