"""Saved models and equations: equal after loading, refused where they cannot be equal."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import regression, write_dataset

import ntkdist as nd
from ntkdist.data import zarr_groups


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, which tests only copy."""
    place, (x, y) = tmp_path_factory.mktemp("store"), regression()
    names = np.array(["low", "high"])[(y[:, 0] > y[:, 0].mean()).astype(int)]
    dataset = nd.Dataset(write_dataset(place, x, names))
    job = nd.Job(dataset, nd.NTKRandomFeatures(64, depth=2), alphas=(0.1, 1.0), plan=nd.PlanTable(folds=3))
    nd.fit(job, out=str(place / "run"))
    return place / "run"


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "run"))


def edit_attributes(group: Path, **changes: Any) -> None:
    path = group / "zarr.json"
    meta = json.loads(path.read_text())
    for key, value in changes.items():
        meta["attributes"][key] = value
    path.write_text(json.dumps(meta))


def test_a_loaded_model_predicts_the_same(run: Path, table: Any, tmp_path: Path) -> None:
    model = nd.load(str(run / "model.zarr"))
    again = tmp_path / "again.zarr"
    nd.save(model, str(again))
    other = nd.load(str(again))
    np.testing.assert_array_equal(model(table[0]), other(table[0]))
    assert model.features == other.features == nd.NTKRandomFeatures(64, depth=2)
    assert other.classes == ("high", "low")
    assert set(other.predict(table[0]).tolist()) == {"high", "low"}


def test_loaded_equations_solve_to_the_same_model(run: Path, table: Any) -> None:
    equations = nd.load(str(run / "equations.zarr"))
    model, cv = nd.solve(equations, alphas=[0.1, 1.0])
    np.testing.assert_allclose(model(table[0]), nd.load(str(run / "model.zarr"))(table[0]), rtol=1e-12)
    assert len(equations.folds) == 3
    assert (equations.total.gram == equations.total.gram.T).all()
    assert cv is not None


def test_nothing_saved_is_a_pickle(run: Path) -> None:
    """All files are JSON or chunks of arrays, and all arrays are of numbers or truth values."""
    files = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
    assert all(path.name in ("zarr.json", "report.json", "job.json") or "c" in path.parts for path in files)
    nodes = [json.loads((run / path).read_text()) for path in files if path.name == "zarr.json"]
    types = {node["data_type"] for node in nodes if node["node_type"] == "array"}
    assert types
    assert all(np.dtype(name).kind in "biuf" for name in types)


def test_features_that_this_machine_makes_otherwise_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ntkdist.features import ntk_random_features

    monkeypatch.setattr(ntk_random_features, "mean_abs", lambda d: 0.81)
    monkeypatch.setattr("ntkdist.features.base._drawn", {})
    with pytest.raises(nd.StoreError, match=r"makes other features than the saved ones .* changed versions: none"):
        nd.load(str(run / "model.zarr"))


def test_versions_that_differ_are_named_when_features_do(run: Path) -> None:
    meta = json.loads((run / "model.zarr" / "zarr.json").read_text())["attributes"]
    edit_attributes(
        run / "model.zarr",
        features=meta["features"] | {"seed": 1},
        versions=meta["versions"] | {"numpy": "1.0"},
    )
    with pytest.raises(nd.StoreError, match=r"changed versions: numpy 1\.0 → "):
        nd.load(str(run / "model.zarr"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"version": 99}, nd.StoreError, "saved in format 99, this ntkdist reads up to 3; update"),
        ({"complete": False}, nd.DataError, "never finished"),
        (
            {"kind": "something"},
            nd.DataError,
            "expected a group of kind ntkdist.model or ntkdist.equations, got something",
        ),
        (
            {"features": {"type": "NTKRandomFeature", "n_components": 64}},
            nd.SpecError,
            "did you mean 'NTKRandomFeatures'",
        ),
        ({"features": {"type": "Linear", "n_components": 4}}, nd.SpecError, "set it to 5"),
    ],
)
def test_groups_that_cannot_be_trusted_are_refused(run: Path, changes: Any, error: Any, message: str) -> None:
    edit_attributes(run / "model.zarr", **changes)
    with pytest.raises(error, match=message):
        nd.load(str(run / "model.zarr"))


def test_a_damaged_coefficient_is_refused(run: Path) -> None:
    path = run / "model.zarr" / "coef" / "c" / "0" / "0"
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    with pytest.raises(nd.DataError, match="array 'coef', rows 0–63, cannot be read"):
        nd.load(str(run / "model.zarr"))
    path.unlink()
    with pytest.raises(nd.DataError, match="chunk coef/c/0/0 is missing"):
        nd.load(str(run / "model.zarr"))


def test_saving_over_something_is_refused_and_leaves_it(run: Path) -> None:
    model = nd.load(str(run / "model.zarr"))
    with pytest.raises(nd.StoreError, match="exists already; choose another destination"):
        nd.save(model, str(run / "model.zarr"))
    nd.load(str(run / "model.zarr"))


def test_saving_appears_whole_or_not_at_all(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nd.load(str(run / "model.zarr"))
    write = zarr_groups.write_whole

    def fails_at_coef(url: str, name: str, values: Any) -> None:
        if name == "coef":
            raise OSError("disk full")
        write(url, name, values)

    monkeypatch.setattr(zarr_groups, "write_whole", fails_at_coef)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="disk full"):
        nd.save(model, str(tmp_path / "new.zarr"))
    assert sorted(tmp_path.iterdir()) == before
