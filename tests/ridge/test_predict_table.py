"""Predictions of csv and parquet files as they are, beside those of frames and of converted datasets."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.csv
import pytest
import zarr
from command_line import Command

import ntkdist as nd
from ntkdist.data import frames, sources

ROWS, NEW = 400, 150


def table(rows: int, seed: int) -> pd.DataFrame:
    """Draw a table with a category, a date, a boolean and empty cells."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"id": np.arange(rows), "a": rng.standard_normal(rows), "b": rng.standard_normal(rows)})
    frame["shop"] = rng.choice(list("pqr"), rows)
    frame["day"] = pd.date_range("2026-01-01", periods=rows).astype("datetime64[us]")
    frame["open"] = rng.random(rows) < 0.5
    frame["price"] = np.sin(frame["a"]) + frame["b"] * (frame["shop"] == "p") + 0.1 * rng.standard_normal(rows)
    frame.loc[rng.random(rows) < 0.1, "a"] = np.nan
    return frame


INPUTS = ["a", "b", "shop", "day", "open"]


@pytest.fixture
def fitted(tmp_path: Path) -> Any:
    """Return a model of a table that was converted from csv, and a new table."""
    return fit(tmp_path, table(ROWS, 0)), table(NEW, 1).drop(columns="price")


def fit(place: Path, frame: pd.DataFrame, nan: str = "impute", **options: Any) -> nd.RidgeModel:
    """Fit to a frame that is written as csv."""
    frame.to_csv(place / "train.csv", index=False)
    nd.convert(str(place / "train.csv"), str(place / "train.zarr"), target=["price"], drop=["id"], **options)
    data = nd.Dataset(str(place / "train.zarr"), nan=nan)  # type: ignore[arg-type]
    return nd.fit(nd.Job(data, nd.Nystrom(60, nd.NTK(2, 1.0)), plan=nd.PlanTable(folds=2))).model


def written(frame: pd.DataFrame, path: Path) -> str:
    """Write a frame as csv or parquet."""
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_is_predicted_in_its_order_whatever_that_of_its_columns(
    fitted: Any, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, new = fitted
    monkeypatch.setattr(sources, "BLOCK_BYTES", 2**12)  # many blocks
    shuffled = new[["open", "shop", "id", "day", "b", "a"]].assign(more="not an input")
    source = written(shuffled, tmp_path / f"new.{suffix}")
    for out in ("out.csv", "out.parquet"):
        report = nd.predict_table(model, source, str(tmp_path / out), keep=["id", "shop"])
        found = (pd.read_csv if out.endswith("csv") else pd.read_parquet)(tmp_path / out)
        assert list(found.columns) == ["id", "shop", "prediction"]
        assert found["id"].astype(int).tolist() == new["id"].tolist()
        np.testing.assert_allclose(found["prediction"], model(new[INPUTS]), rtol=1e-6)
        assert report.rows == NEW
        assert not report.unknown


def test_a_file_and_its_dataset_have_the_same_predictions(fitted: Any, tmp_path: Path) -> None:
    model, new = fitted
    source = written(new, tmp_path / "new.csv")
    nd.predict_table(model, source, str(tmp_path / "out.csv"))
    nd.convert(source, str(tmp_path / "new.zarr"), drop=["id"])
    nd.predict(model, str(tmp_path / "new.zarr"), str(tmp_path / "out.zarr"))
    there = zarr.open_group(tmp_path / "out.zarr")["prediction"][:]  # type: ignore[index]
    np.testing.assert_allclose(pd.read_csv(tmp_path / "out.csv")["prediction"], there, rtol=1e-6, atol=1e-6)


def test_classes_are_named_and_booleans_are_read(tmp_path: Path) -> None:
    frame = table(ROWS, 0).assign(price=lambda f: np.where(f["a"].fillna(0) > 0, "high", "low"))
    model, new = fit(tmp_path, frame), table(NEW, 1).drop(columns="price")
    source = written(new.assign(open=new["open"].map({True: "TRUE", False: "false"})), tmp_path / "new.csv")
    nd.predict_table(model, source, str(tmp_path / "out.csv"))
    found = pd.read_csv(tmp_path / "out.csv")["prediction"]
    assert set(found) == {"high", "low"}
    assert found.tolist() == model.predict(new[INPUTS]).tolist()
    with pytest.raises(nd.DataError, match="the model predicts classes, which have no std"):
        nd.predict_table(model, source, str(tmp_path / "std.csv"), std=True)


def test_several_targets_have_a_column_each(tmp_path: Path) -> None:
    frame = table(ROWS, 0)[["a", "b", "price"]].assign(cost=lambda f: f["b"] ** 2, a=lambda f: f["a"].fillna(0))
    source = written(frame, tmp_path / "train.csv")
    nd.convert(source, str(tmp_path / "train.zarr"), target=["price", "cost"])
    plan = nd.PlanTable(folds=2)
    model = nd.fit(nd.Job(nd.Dataset(str(tmp_path / "train.zarr")), nd.Nystrom(60), plan=plan)).model
    nd.predict_table(model, source, str(tmp_path / "out.csv"))
    found = pd.read_csv(tmp_path / "out.csv")
    assert list(found.columns) == ["prediction price", "prediction cost"]
    np.testing.assert_allclose(found, model(frame[["a", "b"]]), rtol=1e-6)


def test_standard_deviations_are_those_of_the_model(tmp_path: Path) -> None:
    frame = table(ROWS, 0)[["a", "b", "price"]].fillna(0.0)
    estimator = nd.NTKRidgeCV(nd.Nystrom(60), keep_factor=True).fit(frame[["a", "b"]], frame["price"])
    source = written(frame, tmp_path / "rows.csv")
    nd.predict_table(estimator.model_, source, str(tmp_path / "out.csv"), std=True)
    np.testing.assert_allclose(
        pd.read_csv(tmp_path / "out.csv")["std"], estimator.model_.std(frame[["a", "b"]]), rtol=1e-6
    )


def test_what_training_had_not_is_counted(fitted: Any, tmp_path: Path) -> None:
    model, new = fitted
    low, high = model.preprocessing.range.range
    b = model.preprocessing.columns.index("b")
    new.loc[3, "shop"], new.loc[4, "b"] = "elsewhere", 50.0
    before = int(((new["b"] < low[b]) | (new["b"] > high[b])).sum()) - 1
    report = nd.predict_table(model, written(new, tmp_path / "new.csv"), str(tmp_path / "out.csv"))
    assert report.unknown == {"shop": 1}
    assert (report.outside_in["shop"], report.outside_in["b"]) == (1, before + 1)
    outside, unknown, ignored = report.notes()
    assert outside.startswith(f"{report.outside} of {NEW} rows had values or names outside those of training (")
    assert f"'b' {before + 1}" in outside
    assert "line 5 (shop)" in outside
    assert unknown == "column 'shop' held 1 names that training had not, taken as unknown ones"
    assert ignored == "1 columns are not the model's, and were ignored: 'id'"


def test_columns_of_nothing_are_empty_cells(tmp_path: Path) -> None:
    """Also of dates, which a file of empty cells only calls numbers or nothing at all."""
    frame = table(ROWS, 0)
    frame.loc[::7, "day"] = pd.NaT
    frame.loc[::5, "shop"] = None
    model, new = fit(tmp_path, frame), table(NEW, 1).drop(columns="price")
    blank = new.assign(a=np.nan, day=pd.NaT, shop=None)
    expected = model.predict(blank[INPUTS])
    for name, day in (("float", np.nan), ("null", None)):
        path = tmp_path / f"{name}.parquet"
        blank.assign(day=day).to_parquet(path, index=False)
        nd.predict_table(model, str(path), str(tmp_path / f"{name}.csv"))
        np.testing.assert_allclose(pd.read_csv(tmp_path / f"{name}.csv")["prediction"], expected, rtol=1e-6)
    new.assign(day=3.5).to_parquet(tmp_path / "new.parquet", index=False)
    with pytest.raises(nd.DataError, match=r"'day' of new.parquet holds '3.5' in row 0 .*, but dates in training"):
        nd.predict_table(model, str(tmp_path / "new.parquet"), str(tmp_path / "out.csv"))


def test_a_fraction_among_codes_is_named_with_its_row(tmp_path: Path) -> None:
    frame = table(ROWS, 0).assign(code=np.arange(ROWS) % 3)
    model = fit(tmp_path, frame, category=["code"])
    new = table(NEW, 1).assign(code=(np.arange(NEW) % 3).astype(float))
    new.to_parquet(tmp_path / "new.parquet", index=False)
    assert not nd.predict_table(model, str(tmp_path / "new.parquet"), str(tmp_path / "out.csv")).unknown
    new.loc[9, "code"] = 1.5
    new.to_parquet(tmp_path / "new.parquet", index=False)
    with pytest.raises(nd.DataError, match=r"'code' of new.parquet holds '1.5' in row 9 .*, but categories in train"):
        nd.predict_table(model, str(tmp_path / "new.parquet"), str(tmp_path / "other.csv"))
    assert not (tmp_path / "other.csv").exists()


def test_empty_cells_of_a_dataset_are_counted_as_those_of_its_file(fitted: Any, tmp_path: Path) -> None:
    model, new = fitted
    new = new.assign(b=new["b"].where(np.arange(NEW) % 10 > 0), more=1.0)[["more", "open", "shop", "b", "day", "a"]]
    new.to_csv(tmp_path / "new.csv", index=False)
    nd.convert(str(tmp_path / "new.csv"), str(tmp_path / "new.zarr"))
    one = nd.predict(model, str(tmp_path / "new.zarr"), str(tmp_path / "one.csv"))
    other = nd.predict_table(model, str(tmp_path / "new.csv"), str(tmp_path / "other.csv"))
    assert one.empty == other.empty == {"b": 15}
    assert any("'b' was empty in 15 rows, and never in training" in note for note in one.notes())
    found = [pd.read_csv(tmp_path / f"{name}.csv") for name in ("one", "other")]
    pd.testing.assert_frame_equal(*found, rtol=1e-4, atol=1e-5)


def test_no_rows_are_a_header(fitted: Any, tmp_path: Path) -> None:
    model, new = fitted
    source = written(new[:0], tmp_path / "new.csv")
    assert nd.predict_table(model, source, str(tmp_path / "out.csv"), keep=["id"]).rows == 0
    assert pyarrow.csv.read_csv(tmp_path / "out.csv").column_names == ["id", "prediction"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"b": "oops"}, "column 'b' of new.csv holds 'oops' in line 2, but numbers in training"),
        ({"day": "someday"}, "column 'day' of new.csv holds 'someday' in line 2, but dates in training"),
        ({"a": None, "b": None}, "column 'a' of new.csv is empty in line 2, and training had no empty cells"),
    ],
)
def test_a_value_that_cannot_be_read_is_named_and_nothing_is_left(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    frame = table(ROWS, 0).assign(a=lambda f: f["a"].fillna(0.0))
    model, new = fit(tmp_path, frame, nan="error"), frame[:20].astype(dict.fromkeys(change, object))
    for name, value in change.items():
        new.loc[0, name] = value
    before = sorted(tmp_path.iterdir())
    with pytest.raises(nd.DataError, match=said):
        nd.predict_table(model, written(new, tmp_path / "new.csv"), str(tmp_path / "out.csv"))
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "new.csv"])


def test_columns_and_endings_are_checked(fitted: Any, tmp_path: Path) -> None:
    model, new = fitted
    source = written(new.drop(columns="b"), tmp_path / "new.csv")
    with pytest.raises(nd.DataError, match=r"new\.csv has no column 'b', which the model was fitted to"):
        nd.predict_table(model, source, str(tmp_path / "out.csv"))
    source = written(new, tmp_path / "whole.csv")
    with pytest.raises(nd.DataError, match="no column 'idd', which is to be kept; did you mean 'id'"):
        nd.predict_table(model, source, str(tmp_path / "out.csv"), keep=["idd"])
    dates = written(new.assign(b=new["day"]), tmp_path / "dates.parquet")
    with pytest.raises(nd.DataError, match=r"column 'b' of dates\.parquet holds dates, but numbers in training"):
        nd.predict_table(model, dates, str(tmp_path / "out.csv"))
    earlier = written(new.assign(prediction=1.0), tmp_path / "earlier.csv")
    with pytest.raises(nd.DataError, match="column 'prediction' is to be kept, but"):
        nd.predict_table(model, earlier, str(tmp_path / "out.csv"), keep=["prediction"])
    with pytest.raises(nd.SpecError, match="neither csv, parquet nor Zarr by its ending"):
        nd.predict_table(model, source, str(tmp_path / "out.txt"))
    with pytest.raises(nd.StoreError, match="exists already"):
        nd.predict_table(model, source, source)
    nameless = nd.NTKRidgeCV(nd.Nystrom(20)).fit(np.random.default_rng(0).standard_normal((60, 2)), np.arange(60.0))
    with pytest.raises(nd.DataError, match="fitted to rows without names of columns"):
        nd.predict_table(nameless.model_, source, str(tmp_path / "out.csv"))


def test_the_command_writes_the_file_and_says_what_was_odd(fitted: Any, tmp_path: Path, command: Command) -> None:
    model, new = fitted
    nd.save(model, str(tmp_path / "model.zarr"))
    new.loc[3, "shop"] = "elsewhere"
    source = written(new, tmp_path / "new.csv")
    done = command("predict", str(tmp_path / "model.zarr"), source, str(tmp_path / "out.csv"), "--keep", "id,shop")
    assert f"out.csv: {NEW} rows" in done.stdout
    assert "column 'shop' held 1 names that training had not" in done.stdout
    assert list(pd.read_csv(tmp_path / "out.csv").columns) == ["id", "shop", "prediction"]


# ways of writing


def test_tables_written_in_any_way_are_predicted_alike(fitted: Any, tmp_path: Path, command: Command) -> None:
    """JSON lines, a directory, and csv with semicolons, decimal commas and question marks for gaps."""
    model, new = fitted
    nd.predict_table(model, written(new, tmp_path / "new.csv"), str(tmp_path / "expected.csv"))
    expected = pd.read_csv(tmp_path / "expected.csv")["prediction"]
    new.to_csv(tmp_path / "new.txt", sep=";", decimal=",", na_rep="?", index=False)
    (tmp_path / "many").mkdir()
    for i in range(3):
        new.iloc[50 * i : 50 * (i + 1)].to_parquet(tmp_path / f"many/{i}.parquet", index=False)
    new.assign(day=new["day"].astype(str)).to_json(tmp_path / "new.jsonl", orient="records", lines=True)
    way: Any = {"sep": ";", "decimal": ",", "missing": ["?"]}
    for i, (name, options) in enumerate([("new.txt", way), ("many", {}), ("many/*.parquet", {}), ("new.jsonl", {})]):
        report = nd.predict_table(model, str(tmp_path / name), str(tmp_path / f"{i}.csv"), **options)
        assert report.rows == NEW
        np.testing.assert_allclose(pd.read_csv(tmp_path / f"{i}.csv")["prediction"], expected, rtol=1e-5, atol=1e-6)
    nd.save(model, "model.zarr")
    done = command("predict", "model.zarr", "new.txt", "out.csv", "--sep", ";", "--decimal", ",", "--missing", "?")
    assert done.exit_code == 0, done.output
    np.testing.assert_allclose(pd.read_csv("out.csv")["prediction"], expected, rtol=1e-5, atol=1e-6)


def test_rows_of_several_files_are_named_by_file_and_line(fitted: Any, tmp_path: Path) -> None:
    model, new = fitted
    (tmp_path / "many").mkdir()
    odd = new.assign(a=new["a"].where(new.index != new.index[12], 1e9))
    for i in range(2):
        odd.iloc[10 * i : 10 * (i + 1)].to_csv(tmp_path / f"many/{i}.csv", index=False, sep=";")
    report = nd.predict_table(model, str(tmp_path / "many"), str(tmp_path / "out.csv"), sep=";")
    assert ("line 4 of 1.csv", ["a"]) in report.first
    last = tmp_path / "many/1.csv"
    last.write_text(last.read_text().replace("1000000000.0", "many"))
    with pytest.raises(nd.DataError, match=r"in line 4 of 1\.csv, but numbers in training"):
        nd.predict_table(model, str(tmp_path / "many"), str(tmp_path / "again.csv"), sep=";")


def test_times_of_a_day_are_read_as_in_training(tmp_path: Path) -> None:
    """From csv, Parquet and a frame: the same seconds since midnight."""
    rows = table(ROWS, 0).assign(at=[datetime.time(i % 24, i % 60) for i in range(ROWS)])
    model = fit(tmp_path, rows)
    assert model.preprocessing.columns == ("a", "b", "shop", "day", "open", "at")
    new = table(NEW, 1).assign(at=[None, *(datetime.time(i % 24, 30) for i in range(NEW - 1))])
    for name in ("new.csv", "new.parquet"):
        nd.predict_table(model, written(new.iloc[1:], tmp_path / name), str(tmp_path / f"out-{name}"))
    one, other = pd.read_csv(tmp_path / "out-new.csv"), pd.read_parquet(tmp_path / "out-new.parquet")
    np.testing.assert_allclose(one["prediction"], other["prediction"], rtol=1e-5, atol=1e-6)
    x = frames.as_trained(new, model.preprocessing.columns, model.preprocessing.encoding)
    np.testing.assert_allclose(model(x[1:]), one["prediction"], rtol=1e-5, atol=1e-6)
    (tmp_path / "bad.csv").write_text("a,b,shop,day,open,at\n1,1,p,2026-01-01,true,25:00\n")
    with pytest.raises(nd.DataError, match="'25:00' in line 2, but numbers in training"):
        nd.predict_table(model, str(tmp_path / "bad.csv"), str(tmp_path / "out.csv"))
