"""Runs cut off at a given shard, and the comparison of two fits bit by bit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import ntkdist as nd


class Cut(InterruptedError):
    """The end of a run that was cut off."""


class CutAfter:
    """A watch that ends the run when some shards of a phase's passes are done."""

    def __init__(self, shards: int, phase: str = "equations") -> None:
        self.left, self.phase = shards, phase

    @contextmanager
    def __call__(self, phase: str, rows: int) -> Iterator[Any]:
        def done(count: int) -> None:
            self.left -= phase == self.phase
            if self.left == 0:
                raise Cut

        yield done


def same(a: nd.FitResult, b: nd.FitResult) -> None:
    """Assert that two fits have the same bits."""
    for one, other in zip(a.equations.folds, b.equations.folds, strict=True):
        for name in ("gram", "rhs", "z_sum", "y_sum", "yy"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(a.model.coef, b.model.coef)
    np.testing.assert_array_equal(a.model.intercept, b.model.intercept)
