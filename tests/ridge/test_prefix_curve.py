"""Smaller maps in the columns of a larger one, and the error against the number of features, from one Gram."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Command
from numpy.typing import NDArray
from stored import MakeDataset

import ntkdist as nd
from ntkdist.features import FeatureMap

F8 = NDArray[np.float64]

# Maps, the input dimension, and sizes at which a prefix is the map of that many components.
SAME = [
    (nd.RandomFourier(64, nd.Gaussian(2.0)), 5, (2, 8, 32, 64)),
    (nd.RandomFourier(65, nd.Laplace(2.0)), 5, (10, 64, 65)),
    (nd.NTKRandomFeatures(96, bias=1.0), 5, (24, 48, 96)),
    (nd.NTKRandomFeatures(48), 40, (16, 24, 48)),  # more input than half the columns: a projection
    (nd.ZonalFeatures(300, nd.NTK(2)), 12, (200, 256, 300)),
    (nd.ZonalFeatures(40, nd.NTK(2, bias=1.0)), 30, (8, 20, 40)),
]
NONE = [
    nd.Linear(5),
    nd.Nystrom(16, nd.NTK(1)),
    nd.NTKSketch(32),
    nd.NTKRandomFeatures(64, depth=2),
    nd.NTKRandomFeatures(64, variant="paper"),
    nd.CNTKSketch(64),
]


@pytest.mark.parametrize(
    ("phi", "d", "sizes"), SAME, ids=lambda v: type(v).__name__ if isinstance(v, nd.Linear) else None
)
def test_a_prefix_is_the_smaller_map(phi: FeatureMap, d: int, sizes: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal((7, d))
    z = phi(x)
    for k in sizes:
        columns, scale = phi.prefix(k, (d,))
        assert len(columns) == len(scale) == k
        fewer = type(phi)(**{f: getattr(phi, f) for f in phi.__struct_fields__} | {"n_components": k})
        np.testing.assert_allclose(z[:, columns] * scale, fewer(x), atol=1e-12)


def test_a_zonal_prefix_keeps_what_is_exact() -> None:
    """The mean of its kernel over seeds is that of the whole map."""
    x = np.random.default_rng(1).standard_normal((6, 3))
    phi = nd.ZonalFeatures(200, nd.NTK(1))
    columns, scale = phi.prefix(50, (3,))
    whole, part = np.zeros((6, 6)), np.zeros((6, 6))
    for seed in range(60):
        z = nd.ZonalFeatures(200, nd.NTK(1), seed)(x)
        s = z[:, columns] * scale
        whole, part = whole + z @ z.T / 60, part + s @ s.T / 60
    np.testing.assert_allclose(part, whole, atol=0.02 * np.abs(whole).max())
    with pytest.raises(nd.SpecError, match="expected 36 to 200"):
        phi.prefix(30, (3,))


def test_a_zonal_prefix_has_some_of_a_projected_linear_part() -> None:
    phi = nd.ZonalFeatures(32)
    columns, _ = phi.prefix(4, (64,))
    assert len(columns) == 4
    with pytest.raises(nd.SpecError, match=r"a prefix of 3 columns is none of ZonalFeatures; expected 4 to 32"):
        phi.prefix(3, (64,))


@pytest.mark.parametrize("phi", NONE, ids=lambda phi: type(phi).__name__)
def test_maps_without_prefixes_refuse(phi: FeatureMap) -> None:
    with pytest.raises(nd.SpecError, match="fit again with fewer n_components"):
        phi.prefix(8, (5,))


@pytest.mark.parametrize(
    "phi", [nd.RandomFourier(64, nd.Gaussian(2.0)), nd.NTKRandomFeatures(64, bias=1.0)], ids=lambda p: type(p).__name__
)
def test_the_curve_is_that_of_refits(phi: FeatureMap, table: tuple[F8, F8], make_dataset: MakeDataset) -> None:
    store = make_dataset(*table)

    def fit(n_components: int) -> nd.FitResult:
        fields = {f: getattr(phi, f) for f in phi.__struct_fields__} | {"n_components": n_components}
        plan = nd.PlanTable(folds=4, dtype="float64")
        return nd.fit(nd.Job(nd.Dataset(store), type(phi)(**fields), alphas=[0.01, 0.1, 1.0, 10.0], plan=plan))

    whole = fit(64)
    assert whole.equations is not None
    curve = nd.prefix_curve(whole.equations, whole.cv, [32, 24])
    assert curve.components.tolist() == [24, 32, 64]
    for k, cv, error in zip(curve.components, curve.results, curve.rmse, strict=True):
        alone = fit(int(k)).cv
        assert alone is not None
        asked = np.isin(cv.alphas, [0.01, 0.1, 1.0, 10.0])  # beside penalties by which the grid grew at 64
        np.testing.assert_allclose(cv.path[asked], alone.path[np.isin(alone.alphas, cv.alphas[asked])], rtol=1e-7)
        assert error == pytest.approx(cv.rmse)
        assert (curve.band > 0).all()


@pytest.mark.slow
def test_a_run_reports_it(make_dataset: MakeDataset, table: tuple[F8, F8], command: Command, tmp_path: Path) -> None:
    store = make_dataset(*table)
    job = '[dataset]\nstore = "{}"\n[features]\ntype = "{}"\nn_components = {}\n{}\n[plan]\nfolds = 3\n'
    (tmp_path / "a.toml").write_text(job.format(store, "ZonalFeatures", 128, 'kernel = {type = "NTK", depth = 2}'))
    (tmp_path / "b.toml").write_text(job.format(store, "Linear", 5, ""))
    said = command("fit", "a.toml", "--out", "a")
    curve = json.loads((tmp_path / "a" / "report.json").read_text())["curve"]
    assert curve["m"][-1] == 128
    assert curve["rmse"][-1] < curve["rmse"][0]
    assert len(curve["band"]) == len(curve["m"]) >= 2
    assert "rmse against features" in said.stdout
    assert json.loads(command("solve", "a", "--json").stdout)["curve"]["m"] == curve["m"]
    command("fit", "b.toml", "--out", "b")
    assert json.loads((tmp_path / "b" / "report.json").read_text())["curve"] is None
