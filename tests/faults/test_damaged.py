"""A dataset that skips damaged partitions is read the same way by all that is done with it, and each says so."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command, write_job
from numpy.typing import NDArray
from stored import MakeDataset, regression, write_dataset

import ntkdist as nd

F8 = NDArray[np.float64]
MAP = nd.ZonalFeatures(24, nd.NTK(depth=1, bias=1.0))
SIZE, LOST = 45, (3, 7)
LEFT = np.flatnonzero(~np.isin(np.arange(900) // SIZE, LOST))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def damaged(place: Path) -> nd.Dataset:
    """900 rows, of which two partitions of 45 cannot be read: an input's chunk is cut short, a target's is gone."""
    store = write_dataset(place, *regression(), rows_per_partition=SIZE)
    cut, gone = (Path(store) / name / "c" / str(i) / "0" for name, i in zip("xy", LOST, strict=True))
    cut.write_bytes(cut.read_bytes()[:-20])
    gone.unlink()
    return nd.Dataset(store, damaged="skip")


@pytest.fixture(scope="module")
def left(place: Path) -> str:
    """The rows that are left."""
    return write_dataset(place, *(each[LEFT] for each in regression()), name="left", rows_per_partition=SIZE)


@pytest.fixture(scope="module")
def model(left: str) -> nd.RidgeModel:
    job = nd.Job(nd.Dataset(left), MAP, alphas=(1.0,), plan=nd.PlanTable(folds=2, dtype="float64"))
    found = nd.fit(job)
    assert found.equations is not None
    return nd.solve(found.equations, alphas=[1.0], keep_factor=True)[0]


@pytest.fixture
def labels(make_dataset: MakeDataset, table: tuple[F8, F8]) -> nd.Dataset:
    """The same with class labels."""
    store = make_dataset(table[0], table[1][:, 0] > 101, name="labels", rows_per_partition=SIZE)
    (Path(store) / "x" / "c" / str(LOST[0]) / "0").unlink()
    (Path(store) / "y" / "c" / str(LOST[1])).unlink()
    return nd.Dataset(store, damaged="skip")


@pytest.mark.slow
def test_evaluate(damaged: nd.Dataset, left: str, model: nd.RidgeModel, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "ntkdist"):
        found = nd.evaluate(model, damaged)
    assert found.pop("skipped_rows") == 90
    assert "90 rows of the damaged partitions 3, 7 are skipped" in caplog.text
    expected = nd.evaluate(model, left)
    assert {k: found[k] for k in ("rmse", "r2", "rows")} == pytest.approx(
        {k: expected[k] for k in ("rmse", "r2", "rows")}
    )
    with pytest.raises(nd.DataError, match="rows 135–179"):
        nd.evaluate(model, damaged.store)


def test_leave_one_out(damaged: nd.Dataset, left: str, model: nd.RidgeModel) -> None:
    found, expected = nd.leave_one_out(model, damaged), nd.leave_one_out(model, left)
    np.testing.assert_array_equal(found.places, LEFT)
    np.testing.assert_allclose(found.values["left_out"], expected.values["left_out"], rtol=1e-9)
    with pytest.raises(nd.DataError, match="rows 135–179"):
        nd.leave_one_out(model, damaged.store)


def test_feature_transformer(damaged: nd.Dataset, table: tuple[F8, F8]) -> None:
    found = nd.FeatureTransformer(MAP).fit(damaged)
    np.testing.assert_allclose(found.preprocessing_.x_mean, table[0][LEFT].mean(axis=0), rtol=1e-12)
    with pytest.raises(nd.DataError, match="rows 135–179"):
        found.transform(damaged)  # which owes every row its features


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [nd.NTKRidge(MAP, keep_factor=True), nd.NTKRidgeCV(MAP, folds=3, keep_factor=True)]
)
def test_factors_of_regressors(damaged: nd.Dataset, table: tuple[F8, F8], estimator: Any) -> None:
    fitted = estimator.fit(damaged)
    assert fitted.residuals_.shape == (len(LEFT), 2)
    low, high = fitted.predict_interval(table[0][LEFT])
    assert 0.85 < np.mean((low < table[1][LEFT]) & (table[1][LEFT] < high)) < 0.95
    assert fitted.score(damaged) > 0.5


def test_calibration_of_classifiers(labels: nd.Dataset, table: tuple[F8, F8]) -> None:
    fitted = nd.NTKRidgeClassifier(MAP, folds=3).fit(labels)
    assert np.isfinite(fitted.temperature_)
    assert fitted.score(labels) == pytest.approx(fitted.score(table[0][LEFT], (table[1][LEFT, 0] > 101).astype(str)))


@pytest.mark.slow
@pytest.mark.usefixtures("few_rounds_on_one_thread")
def test_compare(make_dataset: MakeDataset, table: tuple[F8, F8]) -> None:
    """Jobs and yardsticks, learning from and tested on a dataset of which a sixth is damaged."""
    store = make_dataset(table[0][:120], table[1][:120, 0], rows_per_partition=20)
    (Path(store) / "x" / "c" / "3" / "0").unlink()
    dataset = nd.Dataset(store, damaged="skip")
    job = nd.Job(dataset, MAP, alphas=(1.0,), plan=nd.PlanTable(folds=2, dtype="float64"))
    found = nd.compare(dataset, [job], test=dataset, seeds=1, sample=50)
    lost = f"20 rows of the damaged partitions 3 of {store} were skipped, as asked"
    assert found.notes.count(lost) == 2
    tested = {row.name: row.test["rmse"] for row in found.models}
    assert set(tested) == {"ZonalFeatures", "linear", "gaussian rff", "exact kernel", "boosted trees"}
    assert tested["ZonalFeatures"] == pytest.approx(nd.evaluate(nd.fit(job).model, dataset)["rmse"], rel=1e-12)
    assert tested["exact kernel"] < table[1][:120, 0].std()


@pytest.mark.slow
def test_report(command: Command, damaged: nd.Dataset) -> None:
    store = damaged.store
    tables = '[plan]\nfolds = 2\n[preprocess]\ninputs = "columns"'
    write_job(store=f'{store}"\ndamaged = "skip', tables=tables)
    assert command("fit", "job.toml", "--out", "run").exit_code == 0
    result = command("report", "run")
    assert result.exit_code == 0, result.output
    page = Path("run/report.html").read_text()
    assert "90 rows of the damaged partitions 3, 7 were skipped, as asked" in page
    assert "810 of 900" in page
