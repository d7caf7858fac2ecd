"""A user's own map, imported by name: in a job, an estimator, a comparison and a saved model, here and on workers."""

import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from command_line import assert_refused, start
from own_map import phi
from sklearn.linear_model import Ridge

import ntkdist as nd

PHI = nd.Imported(9, "own_map:phi")


def table(n: int = 400) -> tuple[Any, Any]:
    x = np.random.default_rng(1).standard_normal((n, 6))
    return x, np.cos(x @ phi.directions[:, 0]) + 0.1 * np.sin(x[:, 1])


def test_a_fit_is_ridge_on_the_features_of_the_object() -> None:
    x, y = table()
    ours = nd.NTKRidge(PHI, alpha=0.3, inputs="none", clip="none").fit(x, y)
    target = (y - y.mean()) / y.std()
    expected = Ridge(alpha=0.3).fit(phi(x), target).predict(phi(x)) * y.std() + y.mean()
    np.testing.assert_allclose(ours.predict(x), expected, rtol=1e-10)


def test_a_job_by_name_fits_saves_and_predicts_on_workers(
    make_dataset: Any, two_workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = table()
    two_workers.run(sys.path.append, str(Path(__file__).parents[1] / "support"))
    job = nd.Job(nd.Dataset(make_dataset(x, y)), PHI)
    here, there = nd.fit(job, out=str(tmp_path / "run")), nd.fit(nd.plan(job), client=two_workers)
    np.testing.assert_allclose(there.model.coef, here.model.coef, rtol=1e-4, atol=1e-4)
    assert here.cv.rmse < 0.2
    loaded: Any = nd.load(str(tmp_path / "run/model.zarr"))
    np.testing.assert_array_equal(loaded(x), here.model(x))
    other = msgspec.structs.replace(job, features=nd.Linear(6))
    found = nd.compare(job.dataset, [job, other], seeds=1, baselines=False)
    own, linear = found.models
    assert own.frobenius == pytest.approx([0], abs=1e-6)
    assert own.cv_rmse < 0.3 * linear.cv_rmse


def test_the_command_takes_a_map_of_a_directory_on_the_path(make_dataset: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from own_map import phi\n")
    features = '[features]\ntype = "Imported"\nname = "mine:phi"\nn_components = 9\n'
    (tmp_path / "job.toml").write_text(f'{features}\n[dataset]\nstore = "{make_dataset(*table())}"\n')
    paths = [str(tmp_path), *sys.path]
    fitting = start("fit", tmp_path / "job.toml", "--out", tmp_path / "run", PYTHONPATH=os.pathsep.join(paths))
    _, said = fitting.communicate()
    assert fitting.returncode == 0, said
    assert_refused(("fit", tmp_path / "job.toml", "--out", tmp_path / "other"), "mine:phi cannot be imported here")


@pytest.mark.parametrize(
    ("features", "says"),
    [
        (nd.Imported(9, "nowhere:phi"), "nowhere:phi cannot be imported here .* put its directory on PYTHONPATH"),
        (nd.Imported(9, "own_map:psi"), "own_map:psi cannot be imported here"),
        (nd.Imported(9, "own_map:of_another_shape"), "no object that maps rows; name an instance"),
        (nd.Imported(8, "own_map:phi"), "n_components is 8, but own_map:phi has 9; set it to that"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(features: Any, says: str) -> None:
    x, y = table(50)
    with pytest.raises(nd.SpecError, match=says):
        nd.NTKRidge(features).fit(x, y)


def test_names_and_shapes_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("phi", ":phi", "own_map:"):
        with pytest.raises(nd.SpecError, match="expected module:name"):
            nd.Imported(9, name)
    monkeypatch.setattr(type(phi), "__call__", lambda self, x: np.zeros((len(x), 3)))
    with pytest.raises(ValueError, match=r"own_map:phi returned an array of shape \(50, 3\) for 50 rows"):
        nd.NTKRidge(PHI).fit(*table(50))
