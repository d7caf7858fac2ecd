"""From many Parquet files to predictions: three calls, or three commands, and the same by Dask."""

from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from command_line import Command
from tabular import frame

import ntkdist as nd

JOB = """
[dataset]
store = "train.zarr"
nan = "impute"
[features]
type = "Nystrom"
n_components = 64
kernel = {type = "NTK", depth = 1}
"""
SETTINGS: Any = {"features": nd.Nystrom(60, nd.NTK(2, 1.0)), "plan": nd.PlanTable(folds=2)}


def lake(place: Path, rows: pd.DataFrame) -> Path:
    """Write a table as many Parquet files in hive partitions, one of each city and year."""
    rows = rows.assign(year=rows["day"].dt.year.fillna(0).astype(int), city=rows["city"].fillna("unknown"))
    for (city, year), some in rows.groupby(["city", "year"]):
        folder = place / f"city={city}" / f"year={year}"
        folder.mkdir(parents=True)
        some.drop(columns=["city", "year"]).to_parquet(folder / "part-0.parquet", index=False)
    return place


@pytest.fixture
def lakes(tmp_path: Path) -> tuple[Path, Path]:
    """Return directories of labelled rows and of new ones."""
    return lake(tmp_path / "train", frame()), lake(tmp_path / "new", frame(100, seed=1))


def test_three_calls(lakes: tuple[Path, Path], tmp_path: Path) -> None:
    """Of Dask's frame, or of the directory that it reads: the same model."""
    train, new = lakes
    errors = []
    for i, source in enumerate((dd.read_parquet(train), str(train))):
        options: Any = {"target": ["y"], "drop": ["year"], "category": ["code"], "shuffle_seed": 0}
        nd.convert(source, str(tmp_path / f"{i}.zarr"), **options)
        result = nd.fit(nd.Job(nd.Dataset(str(tmp_path / f"{i}.zarr"), nan="impute"), **SETTINGS))
        report = nd.predict_table(result.model, str(new), str(tmp_path / f"{i}.parquet"), keep=["y"])
        assert report.rows == 100
        found = pd.read_parquet(tmp_path / f"{i}.parquet")
        errors.append(np.std(found["prediction"] - found["y"]) / np.std(found["y"]))
    assert errors[0] == pytest.approx(errors[1], rel=0.2)
    assert max(errors) < 0.8


def test_three_commands(lakes: tuple[Path, Path], tmp_path: Path, command: Command) -> None:
    train, new = lakes
    done = command("convert", f"{train}/**/*.parquet", "train.zarr", "--target", "y", "--category", "code")
    assert done.exit_code == 0, done.output
    assert "600 rows of 8" in done.output
    assert "\ncity    input   category  4: Bern, Oslo, Rome, unknown" in done.output
    Path("job.toml").write_text(JOB)
    for args in (("fit", "job.toml", "--out", "run"), ("predict", "run", new, "out.csv", "--keep", "rate,year")):
        done = command(*args)
        assert done.exit_code == 0, done.output
    expected = dd.read_parquet(new)[["rate", "year"]].compute()
    found = pd.read_csv("out.csv")
    assert sorted(found["rate"]) == pytest.approx(sorted(expected["rate"]))
    assert sorted(found["year"]) == sorted(expected["year"].astype(int))
    assert found["prediction"].notna().all()
