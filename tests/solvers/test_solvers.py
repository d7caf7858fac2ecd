"""Every solver against scikit-learn's ridge, and cross-validation from sums against refitting fold by fold."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from ntkdist.errors import DataError, NotPositiveDefinite, SpecError
from ntkdist.features import NTKRandomFeatures
from ntkdist.ridge.solve import solve_at
from ntkdist.solvers import PCG, Cholesky, Eigh, InPlaceCholesky, Solver, TiledCholesky, choose, cross_validation, grid
from ntkdist.solvers.cross_validation import CVResult, cross_validate
from ntkdist.sums import NormalEquations

SOLVERS = [Cholesky(), Eigh(), InPlaceCholesky(), TiledCholesky(7)]
ALPHAS = [0.1, 1.0, 10.0, 100.0]
N, M, T, K = 400, 30, 2, 5
RNG = np.random.default_rng(3)
Z = RNG.standard_normal((N, M)) @ np.diag(np.geomspace(1, 1e-2, M)) + RNG.standard_normal(M)
Y = Z @ RNG.standard_normal((M, T)) + RNG.standard_normal((N, T)) + [5, -300]
W = RNG.uniform(0.1, 2, N)
FOLD = RNG.integers(0, K, N)
FOLDS = [NormalEquations.zeros(M, T).update(Z[k == FOLD], Y[k == FOLD], W[k == FOLD]) for k in range(K)]
TOTAL = NormalEquations.zeros(M, T).update(Z, Y, W)


@pytest.mark.parametrize("solver", SOLVERS)
def test_path_is_scikit_learns_ridge(solver: Solver) -> None:
    for solution in solver.solve(TOTAL, ALPHAS):
        ridge = Ridge(alpha=solution.alpha).fit(Z, Y, W)
        np.testing.assert_allclose(solution.coef, ridge.coef_.T, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(solution.intercept, ridge.intercept_, rtol=1e-9)


def test_no_penalty_is_least_squares_and_of_least_norm_when_singular() -> None:
    (plain,) = Cholesky().solve(TOTAL, [0.0])
    np.testing.assert_allclose(plain.coef, Eigh().solve(TOTAL, [0.0])[0].coef, rtol=1e-6, atol=1e-8)
    twice = np.hstack([Z, Z])
    (least,) = Eigh().solve(NormalEquations.zeros(2 * M, T).update(twice, Y), [0.0])
    centred, yc = twice - twice.mean(axis=0), Y - Y.mean(axis=0)
    np.testing.assert_allclose(least.coef, np.linalg.pinv(centred) @ yc, rtol=1e-5, atol=1e-7)


def test_cholesky_names_the_pivot_of_a_singular_gram() -> None:
    copies = NormalEquations.zeros(2, 1).update(np.ones((5, 2)) * np.arange(5)[:, None], np.arange(5.0))
    with pytest.raises(NotPositiveDefinite, match=r"not positive definite at alpha=0 \(pivot 2 of 2\); use a larger"):
        Cholesky().solve(copies, [0.0])


@pytest.mark.parametrize("solver", [*SOLVERS, PCG()])
@pytest.mark.parametrize("size", [1e20, np.inf])
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_solvers_refuse_sums_that_are_not_finite(solver: Solver, size: float) -> None:
    z = np.array([[size, 1.0], [0.0, 2.0], [1.0, 1.0], [-1.0, 3.0]], np.float32)
    fold, broken = NormalEquations.zeros(2, 1).update(z[1:], np.arange(3.0)), NormalEquations.zeros(2, 1)
    broken.update(z, np.arange(4.0))
    said = r"^Gram has values that are not finite, as where squares .*; look for huge values .*, or use dtype float64$"
    for solve in (
        lambda: solver.solve(broken, [1.0]),
        lambda: cross_validate([fold, broken], solver, [1.0, 2.0]),
        lambda: cross_validate([fold, broken], solver),
    ):
        with pytest.raises(NotPositiveDefinite, match=said):
            solve()


def test_the_intercept_is_not_penalised() -> None:
    for solver in SOLVERS:
        (solution,) = solver.solve(TOTAL, [1e12])
        np.testing.assert_allclose(solution.intercept, np.average(Y, axis=0, weights=W), rtol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_scores_are_those_of_refitting_fold_by_fold(solver: Solver) -> None:
    found = cross_validate(FOLDS, solver, ALPHAS, extend=False)
    for a, alpha in enumerate(ALPHAS):
        for k in range(K):
            train, test = k != FOLD, k == FOLD
            ridge = Ridge(alpha=alpha, tol=1e-12, solver="cholesky").fit(Z[train], Y[train], W[train])
            mse = np.average((Y[test] - ridge.predict(Z[test])) ** 2, axis=0, weights=W[test])
            np.testing.assert_allclose(found.mse[a, k], mse, rtol=1e-8)
    assert found.alpha[0] == ALPHAS[found.path.mean(axis=1).argmin()]
    spread = np.average((Y - np.average(Y, axis=0, weights=W)) ** 2, axis=0, weights=W)
    np.testing.assert_allclose(found.spread, spread)
    assert found.r2 == pytest.approx((1 - found.chosen / spread).mean())


def test_alphas_per_row_are_multiplied_by_the_weight_of_each_training_set() -> None:
    found = cross_validate(FOLDS, Cholesky(), alphas_per_row=[1e-3, 1e-2], extend=False)
    train, test = FOLD != 0, FOLD == 0
    ridge = Ridge(alpha=1e-2 * W[train].sum()).fit(Z[train], Y[train], W[train])
    mse = np.average((Y[test] - ridge.predict(Z[test])) ** 2, axis=0, weights=W[test])
    np.testing.assert_allclose(found.mse[1, 0], mse, rtol=1e-8)
    assert found.alpha[0] == pytest.approx(found.alphas[found.best[0]] * W.sum())


def test_per_target_choice_is_the_best_of_each() -> None:
    y = np.stack([Z[:, 0], RNG.standard_normal(N)], axis=1)
    folds = [NormalEquations.zeros(M, 2).update(Z[k == FOLD], y[k == FOLD]) for k in range(K)]
    found = cross_validate(folds, Cholesky(), np.geomspace(1e-6, 1e6, 13).tolist(), per_target=True, extend=False)
    assert found.alpha[0] < found.alpha[1]
    least = found.path.min(axis=0)
    np.testing.assert_allclose(found.path[found.best, [0, 1]], least, atol=found.path_rounding.max())
    assert len(set(cross_validate(folds, Cholesky(), [1e-6, 1.0], extend=False).best.tolist())) == 1


def test_a_grid_grows_past_its_edge_until_the_error_turns_or_is_flat() -> None:
    inside = cross_validate(FOLDS, Cholesky(), np.geomspace(1e-6, 1e6, 25).tolist())
    assert not inside.at_edge
    assert inside.note == ""
    for short in ([1e5, 1e6], [1e-9, 1e-8]):
        grown = cross_validate(FOLDS, Cholesky(), short)
        assert len(grown.alphas) > 2
        assert "the grid grew by" in grown.note
        assert grown.chosen.sum() < inside.chosen.sum() * 1.01
        kept = cross_validate(FOLDS, Cholesky(), short, extend=False)
        assert kept.at_edge
        assert "edge of the grid" in kept.note


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_grid_of_which_rounding_can_tell_nothing_does_not_grow_for_ever(dtype: str) -> None:
    """Targets are independent of the features: larger penalties are better, until their errors are within rounding."""
    y = np.random.default_rng(4).standard_normal(N)
    folds = [NormalEquations.zeros(M, 1).update(Z[k == FOLD].astype(dtype), y[k == FOLD]) for k in range(K)]
    found = cross_validate(folds, Cholesky(), [1e2, 1e4])
    assert 5 < len(found.alphas) < 2 + 3 * grid.EXTENSIONS
    assert found.chosen[0] == pytest.approx(found.path.min(), rel=1e-5)


def test_a_single_alpha_is_taken_as_it_is() -> None:
    found = cross_validate(FOLDS, Cholesky(), [3.0])
    assert found.alpha.tolist() == [3.0, 3.0]
    assert not found.at_edge


def test_an_alpha_too_small_to_factor_loses_and_does_not_fail() -> None:
    z = np.repeat(Z[:, :3], 2, axis=1)
    folds = [NormalEquations.zeros(6, T).update(z[k == FOLD], Y[k == FOLD]) for k in range(K)]
    found = cross_validate(folds, Cholesky(), [0.0, 1.0, 10.0], extend=False)
    assert np.isinf(found.mse[0]).all()
    assert found.alpha[0] > 0
    with pytest.raises(NotPositiveDefinite):
        cross_validate(folds, Cholesky(), [0.0])


def test_auto_grid_follows_the_scale_of_features() -> None:
    big = [NormalEquations.zeros(M, T).update(1000 * Z[k == FOLD], Y[k == FOLD], W[k == FOLD]) for k in range(K)]
    a, b = cross_validate(FOLDS, Cholesky()), cross_validate(big, Cholesky())
    np.testing.assert_allclose(b.alphas, a.alphas * 1e6, rtol=1e-9)
    np.testing.assert_allclose(a.chosen, b.chosen, rtol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 10**0.5], ids=["best among every second", "best between"])
def test_a_thin_grid_makes_the_same_choice_with_fewer_solutions(monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    monkeypatch.setattr(cross_validation, "AUTO_GRID", tuple(a * shift for a in cross_validation.AUTO_GRID))
    whole = cross_validate(FOLDS, Cholesky())
    assert len(whole.alphas) == 13
    assert whole.best[0] % 2 == (shift != 1)
    monkeypatch.setattr(grid, "THIN", M)
    thin = cross_validate(FOLDS, Cholesky())
    assert thin.alpha.tolist() == whole.alpha.tolist()
    tried = np.flatnonzero(np.isin(whole.alphas, thin.alphas))
    assert set(range(0, 13, 2)) | set(whole.best) < set(tried)
    assert len(tried) == len(thin.alphas) == 9
    np.testing.assert_array_equal(thin.mse, whole.mse[tried])
    assert len(cross_validate(FOLDS, Eigh()).alphas) == 13  # it has the whole path at once
    given = cross_validate(FOLDS, Cholesky(), whole.alphas.tolist(), extend=False)
    assert len(given.alphas) == 13


def test_threads_do_not_change_a_bit() -> None:
    found = [cross_validate(FOLDS, solver, ALPHAS, threads=n) for solver in SOLVERS for n in (1, 3, 16)]
    for a, b in zip(found, [first for first in found[::3] for _ in range(3)], strict=True):
        np.testing.assert_array_equal(a.mse, b.mse)


def test_the_standard_error_is_that_of_the_mean_over_folds() -> None:
    found = cross_validate(FOLDS, Cholesky(), [1.0])
    folds = found.mse[0].mean(axis=1)
    assert found.standard_error == pytest.approx(np.sqrt(((folds - folds.mean()) ** 2).sum() / (K - 1) / K))


def without_noise(dtype: str) -> tuple[CVResult, float]:
    """Cross-validate a target that is linear in the features; return the result and the error of rows at its choice."""
    rng = np.random.default_rng(0)
    z = NTKRandomFeatures(96, depth=2)(rng.standard_normal((3000, 5)).astype(dtype))
    y = z.astype(np.float64) @ rng.standard_normal(96)
    folds = [NormalEquations.zeros(96, 1).update(z[k::K], y[k::K]) for k in range(K)]
    found = cross_validate(folds, Cholesky(), alphas_per_row=np.geomspace(1e-9, 1, 19).tolist(), extend=False)
    total, errors = sum(folds[1:], folds[0]), []
    for k in range(K):
        train = total - folds[k]
        (s,) = Cholesky().solve(train, [found.alphas[found.best[0]] * train.weight])
        errors.append(np.mean((y[k::K] - z[k::K].astype(np.float64) @ s.coef[:, 0] - s.intercept) ** 2))
    return found, float(np.mean(errors))


def test_an_error_below_its_rounding_is_said_and_chosen_by_no_further() -> None:
    found, true = without_noise("float32")
    bound = found.path_rounding[found.best[0], 0]
    assert (found.path < 0).any()
    assert found.rounded.all()
    assert true < bound < 1e-5 * found.spread[0]
    assert abs(found.path[found.best[0], 0] - true) < bound
    assert 0 < found.rmse <= bound**0.5
    assert 1 - 1e-5 < found.r2 < 1
    assert found.best[0] > found.path.argmin()
    assert found.note.startswith("the error is below the rounding of its sums, ")
    assert found.note.endswith(
        "of the target's variance; smaller alphas differ from the one chosen by less than the rounding of the sums; "
        'use dtype = "float64" to tell more'
    )


def test_in_float64_the_same_error_is_known() -> None:
    found, true = without_noise("float64")
    assert found.chosen[0] == pytest.approx(true, rel=1e-2)
    assert "float64" not in found.note


def test_sums_whose_rounding_was_not_counted_are_chosen_from_as_they_are() -> None:
    older = [{name: a for name, a in fold.arrays().items() if name != "rounding"} for fold in FOLDS]
    found = cross_validate([NormalEquations.of_arrays(fold) for fold in older], Cholesky(), ALPHAS)
    np.testing.assert_array_equal(found.mse, cross_validate(FOLDS, Cholesky(), ALPHAS).mse)
    assert found.best[0] == found.path.mean(axis=1).argmin()
    assert np.isnan(found.path_rounding).all()
    below = replace(found, mse=found.mse - 2 * found.mse.max())
    assert below.rounded.all()
    assert below.rmse == 0


@pytest.mark.parametrize("solver", [*SOLVERS, PCG(tol=1e-12, max_iterations=1000)])
def test_targets_are_solved_at_a_penalty_each(solver: Solver) -> None:
    coef, intercept = solve_at(solver, TOTAL, np.array([0.1, 100.0]))
    for j, alpha in enumerate([0.1, 100.0]):
        ridge = Ridge(alpha=alpha).fit(Z, Y[:, j], W)
        np.testing.assert_allclose(coef[:, j], ridge.coef_, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(intercept[j], ridge.intercept_, rtol=1e-8)


def test_a_result_comes_back_from_json() -> None:
    z = np.repeat(Z[:, :3], 2, axis=1)
    singular = [NormalEquations.zeros(6, T).update(z[k == FOLD], Y[k == FOLD]) for k in range(K)]
    for found in (
        cross_validate(FOLDS, Cholesky(), per_target=True).scaled(np.array([2.0, 30.0])),
        cross_validate(singular, Cholesky(), [0.0, 1.0], extend=False),  # infinite where it could not be solved
    ):
        again = CVResult.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
        for name, value in vars(found).items():
            np.testing.assert_array_equal(getattr(again, name), value)
        assert again.to_dict() == found.to_dict()


@pytest.mark.parametrize(
    ("folds", "alphas", "options", "error", "said"),
    [
        (FOLDS[:1], [1.0], {}, DataError, "needs two or more folds"),
        ([FOLDS[0], NormalEquations.zeros(M, T)], [1.0], {}, DataError, "two or more folds with rows"),
        (FOLDS, [1.0], {"alphas_per_row": [1.0]}, SpecError, "both alphas and alphas_per_row"),
        (FOLDS, [-1.0], {}, SpecError, "none negative"),
        (FOLDS, [], {}, SpecError, "one or more"),
        (FOLDS, "automatic", {}, SpecError, 'expected "auto"'),
    ],
)
def test_bad_grids_and_folds_are_refused(folds, alphas, options, error, said) -> None:
    with pytest.raises(error, match=said):
        cross_validate(folds, Cholesky(), alphas, **options)


def test_choice_of_solver_follows_measured_cost() -> None:
    assert choose(512, 13) == Cholesky()
    assert choose(512, 100) == Eigh()
    assert choose(8192, 13) == Cholesky()
    assert choose(8192, 100) == Eigh()
    assert choose(30_001, 13) == choose(30_001, 100) == TiledCholesky()
