"""Tables with categories, dates and gaps: compared with baselines, reported, planned and featurized."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tabular import N, converted, frame

import ntkdist as nd
from ntkdist.data import zarr_groups
from ntkdist.planning import estimate
from ntkdist.report import page

pytestmark = pytest.mark.usefixtures("few_rounds_on_one_thread")
PLAN = nd.PlanTable(folds=3, threads=1)
FEATURES = nd.NTKRandomFeatures(64, depth=1, bias=0.5)


def test_baselines_see_what_the_jobs_see(tmp_path: Path) -> None:
    """All know the categories, without which they would be far behind; the exact kernel is scored out of fold."""
    store, test = converted(tmp_path, frame()), converted(tmp_path, frame(200, seed=1), "test")
    data = nd.Dataset(store, nan="impute")
    job = nd.Job(data, FEATURES, plan=PLAN)
    found: Any = nd.compare(data, [job], test=nd.Dataset(test, nan="impute"), seeds=1, sample=50)
    rows = {row.name: row for row in found.models}
    assert {"exact kernel", "boosted trees", "linear", "gaussian rff"} <= rows.keys()
    for row in rows.values():
        assert row.test["rmse"] < 0.75 * frame()["y"].std(), row.name
    assert rows["exact kernel"].cv_rmse == pytest.approx(rows["exact kernel"].test["rmse"], rel=0.25)


def test_a_run_is_reported_and_planned(tmp_path: Path) -> None:
    job = nd.Job(nd.Dataset(converted(tmp_path, frame()), nan="impute"), FEATURES, plan=PLAN)
    p, _, cost = estimate.planned(job, None, 0.0)
    assert p.mapped_shape[0] > 20
    assert cost
    found = nd.fit(job, out=str(tmp_path / "run"))
    text = Path(page.write(str(tmp_path / "run"))).read_text()
    assert "600 rows of 7 with" in text
    assert found.report["data"]["dropped_rows"] == 0


def test_features_of_tables_are_those_of_a_model(tmp_path: Path) -> None:
    """Rows are mapped as new ones are: what is known of a name is of all rows."""
    store = converted(tmp_path, frame())
    nd.featurize(nd.Dataset(store, nan="impute"), FEATURES, str(tmp_path / "z"), dtype="float64")
    z = zarr_groups.read_whole(str(tmp_path / "z"), "x")
    assert z.shape == (N, 64)
    assert np.isfinite(z).all()
    with pytest.raises(nd.DataError, match="has NaN or Inf"):
        nd.featurize(store, FEATURES, str(tmp_path / "other"))
