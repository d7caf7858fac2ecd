"""What an earlier version saved: runs and models are read as they were, and a checkpoint is continued."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from saved_before import CHECKPOINT, LABELS, MAP, NEW, PLAN, X, Y, checkpointed, unpack
from stored import MakeDataset

import ntkdist as nd


@pytest.fixture
def predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Predictions of then for NEW, by the name of the run; what was saved lies in the current directory."""
    monkeypatch.chdir(tmp_path)
    return unpack(tmp_path)


def job_on(store: str, reuse: str = "", **changes: Any) -> nd.Job:
    job = nd.Job(nd.Dataset(store), MAP, alphas=(1.0,), plan=PLAN, preprocess=nd.Preprocess(reuse=reuse))
    return msgspec.structs.replace(job, **changes)


def near(found: Any, then: Any) -> bool:
    return bool(np.max(np.abs(found - np.asarray(then))) <= 1e-12 * np.max(np.abs(then)))


def test_models_predict_and_equations_solve_to_what_they_did(predictions: dict[str, Any]) -> None:
    """They are of format 1, which has no range of the inputs: no input is clipped."""
    assert len(predictions) == 7
    for name, then in predictions.items():
        model = nd.load("nystrom.zarr" if name == "nystrom" else f"{name}-run/model.zarr")
        assert near(model(NEW), then)
        assert not model.preprocessing.range.bounded
    for name in predictions.keys() - {"nystrom"}:
        assert near(nd.solve(nd.load(f"{name}-run/equations.zarr"), alphas=[1.0])[0](NEW), predictions[name])
    nd.save(nd.load("nystrom.zarr"), "again.zarr")
    assert near(nd.load("again.zarr")(NEW), predictions["nystrom"])


def test_a_dataset_is_read_and_a_model_evaluated_on_it(predictions: dict[str, Any]) -> None:
    dataset = nd.Dataset("numbers-there.zarr")
    np.testing.assert_array_equal(dataset.read(dataset.layout(), 0, 12).x, X[12:])
    found = nd.evaluate(nd.load("numbers-there-run/model.zarr"), "numbers-there.zarr")
    error = np.asarray(predictions["numbers-there"])[12:24] - Y[12:]
    np.testing.assert_allclose(found["rmse"], np.sqrt(np.mean(error**2, axis=0)).mean(), rtol=1e-9)
    assert (found["rows"], found["clipped_rows"]) == (12, 0)


def test_sums_are_added_to_those_of_today(predictions: dict[str, Any], make_dataset: MakeDataset) -> None:
    """The parts here and there as one, both of today's fits and of those that were saved."""
    here, scaled = (nd.load(f"numbers-{name}-run/equations.zarr") for name in ("here", "scaled"))
    there = nd.fit(job_on(make_dataset(X[12:], Y[12:]), reuse="numbers-here-run")).equations
    assert there is not None
    both, then = nd.solve(here + there, alphas=[1.0])[0], nd.solve(here + scaled, alphas=[1.0])[0]
    assert near(both(NEW), then(NEW))
    assert ((here + there).total.weight, (here + there).moments) == (24, None)


@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_moments_are_lent_by_runs_that_were_scaled_by_their_own_rows(
    predictions: dict[str, Any], make_dataset: MakeDataset, kind: str
) -> None:
    """They are recovered from the scaling; where the report cannot say what it was fitted to, the run is refused."""
    here, there, scaled = (f"{kind}-{name}-run" for name in ("here", "there", "scaled"))
    whole = make_dataset(X, LABELS if kind == "classes" else Y, classes=kind == "classes", rows_per_partition=3)
    asked = nd.fit(job_on(whole)).model.preprocessing
    lent = nd.fit(job_on(f"{kind}-here.zarr", reuse=f"{here} + {there}")).model.preprocessing
    for scale in ("x_mean", "x_scale", "y_mean", "y_scale"):
        np.testing.assert_allclose(getattr(lent, scale), getattr(asked, scale), rtol=1e-10, err_msg=scale)
    assert not lent.range.bounded
    for other in (scaled, f"{there}/equations.zarr"):
        with pytest.raises(nd.DataError, match=r"was saved without the moments of its rows, .*; fit that run again"):
            nd.fit(job_on(f"{kind}-here.zarr", reuse=f"{here} + {other}"))


def test_a_run_that_is_not_clipped_is_reused_so(predictions: dict[str, Any], make_dataset: MakeDataset) -> None:
    model = nd.fit(job_on(make_dataset(4 * X, Y), reuse="numbers-here-run")).model
    assert model.preprocessing.digest() == nd.load("numbers-here-run/model.zarr").preprocessing.digest()


def test_a_checkpoint_is_continued_as_it_was_begun(predictions: dict[str, Any]) -> None:
    """Inputs were not clipped then; a job that would clip them is another one, and the checkpoint is left as it is."""
    job = checkpointed("numbers-here.zarr", CHECKPOINT)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    with pytest.raises(nd.StoreError, match=r'preprocess\.clip is "none" there and "range" here; choose'):
        nd.fit(job)
    with pytest.raises(nd.StoreError, match=r"holds another run .*; choose another --out or remove it"):
        nd.fit(job_on("numbers-here.zarr"), out="numbers-here-run")
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    result = nd.fit(msgspec.structs.replace(job, preprocess=nd.Preprocess(clip="none")))
    assert any(note.startswith("2 of 4 shards were finished before") for note in result.report["notes"])
    assert near(result.model(NEW), predictions["numbers-here"])
