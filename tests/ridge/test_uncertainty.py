"""Standard deviations, leverages, leave-one-out errors and intervals, against refits and a dense Gaussian process."""

from pathlib import Path

import numpy as np
import pytest
from command_line import Command
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from stored import MakeDataset

import ntkdist as nd
from ntkdist.data import zarr_groups
from ntkdist.data.arrays import Arrays

F8 = NDArray[np.float64]
PHI = nd.ZonalFeatures(48, nd.NTK(depth=1, bias=1.0))


def problem(n: int, seed: int = 0) -> tuple[F8, F8]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3))
    return x, np.abs(x[:, 0]) + x[:, 1] + 0.3 * rng.standard_normal(n)


def process_std(k: F8, cross: F8, own: F8, alpha: float, s: float) -> F8:
    """Compute standard deviations of a dense Gaussian process with kernel k·s²/alpha, a free mean and noise s².

    Rasmussen, Williams, "Gaussian processes for machine learning", section 2.7.
    """
    scale = s**2 / alpha
    solved = np.linalg.solve(scale * k + s**2 * np.eye(len(k)), np.column_stack([scale * cross.T, np.ones(len(k))]))
    known = scale * own - np.einsum("ij,ji->i", scale * cross, solved[:, :-1])
    return np.sqrt(known + (1 - solved[:, :-1].sum(axis=0)) ** 2 / solved[:, -1].sum())


def test_std_is_that_of_the_dense_gaussian_process_as_m_grows() -> None:
    x, y = problem(80)
    new, alpha = problem(30, 1)[0], 2.0
    kernel, off = nd.NTK(1, bias=1.0), []
    for m in (32, 128, 512):
        raw = {"inputs": "none", "clip": "none", "keep_factor": True}
        fitted = nd.NTKRidge(nd.NTKRandomFeatures(m, bias=1.0), alpha, **raw).fit(x, y)
        s = float(np.sqrt(fitted.model_.factor.noise[0]))
        z, z_new = fitted.model_.features(x), fitted.model_.features(new)
        std = fitted.predict(new, return_std=True)[1]
        same = process_std(z @ z.T, z_new @ z.T, np.einsum("ij,ij->i", z_new, z_new), alpha, s)
        np.testing.assert_allclose(std, same, rtol=1e-8)
        exact = process_std(kernel(x), kernel(new, x), np.diagonal(kernel(new)), alpha, s)
        off.append(np.abs(std / exact - 1).mean())
    assert off[2] < off[1] < off[0]
    assert off[2] < 0.03


def test_leave_one_out_and_leverage_are_those_of_refits() -> None:
    x, y = problem(40)
    y2 = np.stack([y, y**2], axis=1)
    w = np.random.default_rng(1).uniform(0.5, 3, 40)
    fitted = nd.NTKRidge(PHI, 0.7, inputs="none", keep_factor=True).fit(x, y2, w)
    z = PHI(x)
    seen = nd.leave_one_out(fitted.model_, Arrays(x, y2, w, "float64")).values
    hat = np.stack([Ridge(0.7, solver="cholesky").fit(z, e, w).predict(z) for e in np.eye(40)], axis=1)
    np.testing.assert_allclose(seen["leverage"], np.diagonal(hat), rtol=1e-8)
    for i in range(40):
        rest = np.arange(40) != i
        alone = Ridge(0.7, solver="cholesky").fit(z[rest], y2[rest], w[rest]).predict(z[[i]])
        np.testing.assert_allclose(seen["left_out"][i], alone[0], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(fitted.residuals_, y2 - seen["left_out"], rtol=1e-9)
    np.testing.assert_allclose(fitted.model_.factor.noise, w @ fitted.residuals_**2 / w.sum())


@pytest.mark.slow
def test_std_of_a_model_from_a_dataset_is_saved_and_written(
    make_dataset: MakeDataset, command: Command, tmp_path: Path
) -> None:
    x, y = problem(300)
    store = make_dataset(x, y)
    plan = nd.PlanTable(folds=4, dtype="float64")
    result = nd.fit(nd.Job(nd.Dataset(store), PHI, alphas=[1.0], plan=plan), out=str(tmp_path / "run"))
    assert result.equations is not None
    assert result.cv is not None
    model, _ = nd.solve(result.equations, alphas=[1.0], keep_factor=True)
    z = PHI(model.preprocessing.inputs(x, "float64"))
    centred = z - z.mean(axis=0)
    inverse = np.linalg.inv(centred.T @ centred + np.eye(48))
    variance = result.cv.chosen[0] * (1 / 300 + np.einsum("ij,jk,ik->i", centred, inverse, centred))
    np.testing.assert_allclose(model.std(x), np.sqrt(variance), rtol=1e-8)
    np.testing.assert_allclose(model.std(x, noise=True), np.sqrt(variance + result.cv.chosen[0]), rtol=1e-8)
    assert command("solve", "run", "--alphas", "1", "--keep-factor", "--out", "sure.zarr").exit_code == 0
    np.testing.assert_allclose(nd.load("sure.zarr").std(x), model.std(x), rtol=1e-12)
    seen = nd.leave_one_out(model, store).values
    assert seen["leverage"].sum() == pytest.approx(1 + np.trace(inverse @ centred.T @ centred))
    nd.predict(model, store, "out.zarr")
    np.testing.assert_allclose(zarr_groups.read_whole("out.zarr", "std"), model.std(x))
    with pytest.raises(nd.SpecError, match="keep_factor"):
        result.model.std(x)


def test_intervals_cover_what_they_promise() -> None:
    """The errors are not normal: 90 % and 50 % of 4,000 new rows, to four standard errors."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((6000, 3))
    y = np.abs(x[:, 0]) + rng.exponential(1.0, 6000) * np.sign(rng.standard_normal(6000))
    fitted = nd.NTKRidgeCV(PHI, keep_factor=True).fit(x[:2000], y[:2000])
    for coverage in (0.5, 0.9):
        low, high = fitted.predict_interval(x[2000:], coverage)
        inside = ((y[2000:] >= low) & (y[2000:] <= high)).mean()
        assert abs(inside - coverage) < 4 * np.sqrt(coverage * (1 - coverage) * (1 / 4000 + 1 / 2000))
    assert fitted.residuals_.shape == (2000, 1)
    assert np.mean(fitted.residuals_**2) == pytest.approx(fitted.cv_.chosen[0], rel=1e-6)
    copies = nd.conformal_radius(np.repeat(fitted.residuals_[:50], 2, axis=0), 0.9)
    np.testing.assert_array_equal(nd.conformal_radius(fitted.residuals_[:50], 0.9, np.full(50, 2.0)), copies)
    assert np.isinf(nd.conformal_radius(fitted.residuals_[:5], 0.9)).all()
    with pytest.raises(ValueError, match="keep_factor"):
        nd.NTKRidge(PHI).fit(x[:50], y[:50]).predict(x, return_std=True)
