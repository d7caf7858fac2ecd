"""Solving at the chosen penalty where the sums of all rows are worse than those that it was chosen by."""

import numpy as np
import pytest

import ntkdist as nd
from ntkdist.data.scaling import Preprocessing
from ntkdist.sums import NormalEquations


def equations(below_zero: float) -> nd.Equations:
    """Two folds, of which the scored one has lost a multiple of the identity, as by rounding."""
    rng = np.random.default_rng(0)
    z, coef = rng.standard_normal((200, 6)), rng.standard_normal(6)
    folds = [NormalEquations.zeros(6, 1).update(part, part @ coef) for part in (z[:4], z[4:])]
    folds[1]._gram -= (below_zero + np.linalg.eigvalsh(folds[0].gram + folds[1].gram)[0]) * np.eye(6)
    pre = Preprocessing((6,), np.zeros(6), np.ones(6), np.zeros(1), np.ones(1))
    return nd.Equations(folds, nd.Linear(6), pre, "float64", scored=(1,))


def test_the_next_larger_penalty_that_can_be_solved_is_taken_and_noted() -> None:
    one = equations(1.0)
    model, cv = nd.solve(one, solver=nd.Cholesky(), alphas=(1e-3, 0.1, 10.0, 100.0))
    assert model.alpha.tolist() == cv.alpha.tolist() == [10.0]
    assert cv.alphas[cv.best].tolist() == [10.0]
    assert "could not be solved for all rows, and 10 was taken" in cv.note
    np.testing.assert_allclose(model.coef, nd.Cholesky().solve(one.total, [10.0])[0].coef)


def test_where_none_can_be_solved_the_error_says_so() -> None:
    with pytest.raises(nd.NotPositiveDefinite, match="not positive definite at alpha=100"):
        nd.solve(equations(1e3), solver=nd.Cholesky(), alphas=(1e-3, 100.0))
