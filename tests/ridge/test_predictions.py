"""Predictions that people open: their order, format and columns, wherever rows come from and predictions go."""

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
import zarr
from command_line import ZONAL, Command, assert_refused, write_job
from distributed import Client
from stored import MakeDataset
from tabular import as_csv, converted, frame

import ntkdist as nd
from ntkdist.data import sources

NEW = 130
INPUTS = ["size", "city", "shop", "code", "day", "open", "rate"]
PLAN = nd.PlanTable(folds=3)


def fitted(folder: Path, data: pd.DataFrame, **options: Any) -> str:
    """Convert a table, fit to it, and return the run."""
    store = converted(folder, data, **options)
    nd.fit(nd.Job(nd.Dataset(store, nan="impute"), nd.Nystrom(50, nd.NTK(2, 1.0)), plan=PLAN), out=f"{folder}/run")
    return f"{folder}/run"


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the place of a run of numbers, with the model of `calibrate` beside it."""
    folder = tmp_path_factory.mktemp("numbers")
    run = fitted(folder, frame())
    nd.save(nd.calibrate(run, keep_factor=True), f"{folder}/model.zarr")
    return str(folder)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the place of a run of classes, with the model of `calibrate` beside it."""
    folder = tmp_path_factory.mktemp("classes")
    run = fitted(folder, frame(classes=True))
    nd.save(nd.calibrate(run), f"{folder}/model.zarr")
    return str(folder)


def read(path: str | Path) -> pd.DataFrame:
    return pd.read_parquet(path) if str(path).endswith("parquet") else pd.read_csv(path)


def test_from_csv_to_predictions_in_three_commands(command: Command) -> None:
    """The file's own order and kind, with its keys, and nothing else to run."""
    data = frame(300, 1).assign(id=[f"row {i}" for i in range(300)])
    as_csv(Path("train.csv"), data)
    new = frame(NEW, 2).assign(id=[f"new {i}" for i in range(NEW)]).drop(columns="y")
    as_csv(Path("new.csv"), new[["id", *INPUTS[::-1]]])
    write_job(features=ZONAL, tables="[plan]\nfolds = 3")
    Path("job.toml").write_text(Path("job.toml").read_text().replace("[features]", 'nan = "impute"\n[features]'))
    commands: list[tuple[str, ...]] = [
        ("convert", "train.csv", "train.zarr", "--target", "y", "--drop", "id", "--category", "code"),
        ("fit", "job.toml", "--out", "run"),
        ("predict", "run", "new.csv", "predictions.csv", "--keep", "id,day"),
    ]
    for each in commands:
        done = command(*each)
        assert done.exit_code == 0, done.output
    assert len(commands) == 3
    found = read("predictions.csv")
    assert list(found.columns) == ["id", "day", "prediction"]
    assert found["id"].tolist() == new["id"].tolist()
    assert found["day"].fillna("").tolist() == pd.read_csv("new.csv")["day"].fillna("").tolist()
    np.testing.assert_allclose(found["prediction"], nd.load("run/model.zarr")(new), rtol=1e-5)


@pytest.mark.parametrize(
    ("out", "shuffle_seed"), [("p.csv", 0), ("p.parquet", 0), pytest.param("p.csv", None, marks=pytest.mark.slow)]
)
def test_a_dataset_becomes_the_table_that_its_file_does(
    numbers: str, tmp_path: Path, out: str, shuffle_seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the source, with names and dates as they were there."""
    monkeypatch.setattr(sources, "BLOCK_BYTES", 2**12)  # many blocks
    model, new = nd.load(f"{numbers}/model.zarr"), frame(NEW, 3)
    rows, asked = as_csv(tmp_path / "new.csv", new), {"std": True, "interval": 0.8}
    store = converted(tmp_path, new, "new", shuffle_seed=shuffle_seed)
    report = nd.predict(model, store, str(tmp_path / out), keep=["row", "city", "day", "size", "y"], **asked)
    found = read(tmp_path / out)
    assert (tmp_path / out).is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["new.csv", "new.zarr", out])
    assert list(found.columns) == ["row", "city", "day", "size", "y", "prediction", "std", "low", "high"]
    assert found["row"].tolist() == list(range(NEW))
    assert found["city"].fillna("").tolist() == new["city"].fillna("").tolist()
    assert pd.to_datetime(found["day"]).astype("datetime64[s]").equals(new["day"])
    np.testing.assert_allclose(found[["size", "y"]], new[["size", "y"]])
    nd.predict_table(model, str(rows), str(tmp_path / f"file-{out}"), **asked)
    other = read(tmp_path / f"file-{out}")
    np.testing.assert_allclose(found[other.columns], other, rtol=1e-5)
    assert report.rows == NEW
    nd.predict(model, str(rows), str(tmp_path / f"again-{out}"), keep=["city"])  # a file, by the same function
    assert list(read(tmp_path / f"again-{out}").columns) == ["city", "prediction"]


def test_a_file_becomes_the_group_that_its_dataset_does(numbers: str, classes: str, tmp_path: Path) -> None:
    for place, asked in ((numbers, {"std": True, "interval": 0.9}), (classes, {"proba": True})):
        folder = tmp_path / Path(place).name
        folder.mkdir()
        model, new = nd.load(f"{place}/model.zarr"), frame(NEW, 3, classes=place == classes)
        store = converted(folder, new, "new")
        outs = [str(folder / "of-file.zarr"), str(folder / "of-dataset.zarr")]
        nd.predict_table(model, str(folder / "new.csv"), outs[0], **asked)
        nd.predict(model, store, outs[1], **asked)
        groups = [zarr.open_group(out, mode="r") for out in outs]
        names = {"prediction", "score", "probability"} if place == classes else {"prediction", "std", "low", "high"}
        assert set(groups[0].array_keys()) == names == set(groups[1].array_keys()) - {"row"}
        for name in names:
            np.testing.assert_allclose(groups[0][name][:], groups[1][name][:], rtol=1e-5, atol=1e-5)
        for attribute in ("classes", "target_names", "order", "clipped_rows", "clipped_columns", "complete"):
            assert groups[0].attrs[attribute] == groups[1].attrs[attribute]


def test_classes_have_names_and_calibrated_probabilities(classes: str, tmp_path: Path) -> None:
    model, new = nd.load(f"{classes}/model.zarr"), frame(NEW, 3, classes=True)
    rows = as_csv(tmp_path / "new.csv", new)
    nd.predict_table(model, str(rows), str(tmp_path / "p.csv"), keep=["y"], proba=True)
    found = read(tmp_path / "p.csv")
    assert list(found.columns) == ["y", "prediction", "probability high", "probability low"]
    proba = found[["probability high", "probability low"]].to_numpy()
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_allclose(proba, model.probabilities(new), rtol=1e-4)
    assert found["prediction"].tolist() == np.array(["high", "low"])[proba.argmax(axis=1)].tolist()
    plain = nd.load(f"{classes}/run/model.zarr")
    report = nd.predict_table(plain, str(rows), str(tmp_path / "plain.csv"), proba=True)
    assert any("ntkdist calibrate RUN" in note for note in report.notes())
    scores = np.clip(plain(new), 1e-6, 1)
    np.testing.assert_allclose(
        read(tmp_path / "plain.csv")["probability low"], scores[:, 1] / scores.sum(axis=1), rtol=1e-4
    )


def test_calibration_is_that_of_the_estimators(numbers: str, classes: str) -> None:
    """They predict the same rows by the models of the same folds."""
    features = nd.Nystrom(50, nd.NTK(2, 1.0))
    estimator = nd.NTKRidgeCV(features, folds=3, keep_factor=True).fit(f"{numbers}/data.zarr")
    model, new = nd.load(f"{numbers}/model.zarr"), frame(NEW, 4)[INPUTS]
    np.testing.assert_allclose(model.calibration.residuals, estimator.residuals_, atol=2e-3)  # float32 beside float64
    np.testing.assert_array_equal(estimator.model_.calibration.residuals, estimator.residuals_)
    for found, expected in zip(model.interval(new, 0.8), estimator.predict_interval(new, 0.8), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-3)
    np.testing.assert_allclose(model.std(new), estimator.predict(new, return_std=True)[1], rtol=1e-2)
    classifier = nd.NTKRidgeClassifier(features, folds=3).fit(f"{classes}/data.zarr")
    assert nd.load(f"{classes}/model.zarr").temperature == pytest.approx(classifier.temperature_, rel=0.02)
    np.testing.assert_array_equal(classifier.predict_proba(new), classifier.model_.probabilities(new))


def test_intervals_cover_new_rows(numbers: str) -> None:
    model, new = nd.load(f"{numbers}/model.zarr"), frame(2000, 5)
    for coverage in (0.5, 0.9):
        low, high = model.interval(new, coverage)
        assert np.mean((low <= new["y"]) & (new["y"] <= high)) == pytest.approx(coverage, abs=0.05)


def test_what_a_model_lacks_is_said_with_the_remedy(numbers: str, classes: str, tmp_path: Path) -> None:
    run, of_classes = nd.load(f"{numbers}/run/model.zarr"), nd.load(f"{classes}/model.zarr")
    rows, out = str(as_csv(tmp_path / "new.csv", frame(5, 3))), str(tmp_path / "out.csv")
    for model, asked, says in (
        (run, {"interval": 0.9}, r"no residuals out of fold.*`ntkdist calibrate RUN MODEL\.zarr`"),
        (run, {"std": True}, "no factor.*`ntkdist solve RUN --keep-factor"),
        (run, {"proba": True}, "predicts numbers, which have no probabilities"),
        (of_classes, {"interval": 0.9}, "predicts classes, which have no intervals"),
        (nd.load(f"{numbers}/model.zarr"), {"interval": 90}, "coverage is 90; expected a number between 0 and 1"),
    ):
        for source in (rows, f"{numbers}/data.zarr"):
            with pytest.raises(nd.NtkdistError, match=says):
                nd.predict(model, source, out, **asked)
    assert not Path(out).exists()


@pytest.mark.parametrize("out", ["p.csv", "p.zarr"])
def test_rows_and_predictions_in_an_object_store(numbers: str, tmp_path: Path, out: str) -> None:
    model, new = nd.load(f"{numbers}/model.zarr"), frame(NEW, 3)
    memory, bucket = fsspec.filesystem("memory"), f"memory://bucket{tmp_path}"
    memory.pipe(f"{bucket}/new.csv", as_csv(tmp_path / "new.csv", new).read_bytes())
    nd.predict(model, f"{bucket}/new.csv", f"{bucket}/{out}")
    converted(tmp_path, new, "new")
    with pytest.raises(nd.StoreError, match="exists already"):
        nd.predict(model, str(tmp_path / "new.zarr"), f"{bucket}/{out}")
    nd.predict(model, str(tmp_path / "new.zarr"), f"{bucket}/of-dataset-{out}")
    for name in (out, f"of-dataset-{out}"):
        if out.endswith("zarr"):
            store = zarr.storage.FsspecStore.from_url(f"{bucket}/{name}")
            found = zarr.open_group(store, mode="r")["prediction"][:]
        else:
            found = read(f"{bucket}/{name}")["prediction"]
        np.testing.assert_allclose(found, model(new), rtol=1e-5)
    memory.pipe(f"{bucket}/bad.csv", (tmp_path / "new.csv").read_bytes() + b"x" * 20)
    with pytest.raises(nd.DataError):
        nd.predict(model, f"{bucket}/bad.csv", f"{bucket}/second-{out}")
    left = {Path(name).name for name in memory.ls(bucket, detail=False)}
    assert left == {"new.csv", "bad.csv", out, f"of-dataset-{out}"}


def test_workers_do_not_see_the_memory_of_a_process(numbers: str) -> None:
    model = nd.load(f"{numbers}/model.zarr")
    with Client(processes=False, dashboard_address=None, n_workers=1) as client:
        for out in ("memory://bucket/p.csv", "memory://bucket/p.zarr"):
            with pytest.raises(nd.StoreError, match="in the memory of this process, which workers do not see"):
                nd.predict(model, f"{numbers}/data.zarr", out, client=client)


def test_endings_say_what_is_written(numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory is never named as a file is, and other endings are refused before anything is read."""
    monkeypatch.chdir(tmp_path)
    as_csv(Path("new.csv"), frame(20, 3))
    converted(tmp_path, frame(20, 3), "set")
    for rows in ("new.csv", "set.zarr"):
        for out in ("p.txt", "p.csv.gz", "p.json", "p.parquet.zip"):
            says = f"{out} is neither csv, parquet nor Zarr by its ending; end it in .csv, .parquet or .zarr"
            assert_refused(("predict", f"{numbers}/run", rows, out), says)
        assert_refused(("predict", f"{numbers}/run", rows, "p.zarr", "--keep", "day"), "which keeps no columns")
        assert_refused(("predict", f"{numbers}/run", rows, "p.csv", "--keep", "dya"), "did you mean 'day'")
    assert_refused(("predict", f"{numbers}/run", "new.csv", "p"), "neither csv, parquet nor Zarr")
    assert_refused(("predict", f"{numbers}/run", "none.csv", "p.csv"), "no such file")
    assert_refused(("featurize", write_job(store="set.zarr"), "p.csv"), "is the name of a table")


def test_the_commands_for_errors_of_predictions(numbers: str, tmp_path: Path, command: Command) -> None:
    as_csv(tmp_path / "new.csv", frame(20, 3))
    done = command("calibrate", f"{numbers}/run", "model.zarr", "--keep-factor")
    assert done.stdout == "model.zarr\n"
    np.testing.assert_array_equal(
        nd.load("model.zarr").calibration.residuals, nd.load(f"{numbers}/model.zarr").calibration.residuals
    )
    done = command(
        "predict", "model.zarr", tmp_path / "new.csv", "p.csv", "--std", "--interval", "0.9", "--keep", "city"
    )
    assert done.exit_code == 0, done.output
    found = read("p.csv")
    assert list(found.columns) == ["city", "prediction", "std", "low", "high"]
    np.testing.assert_allclose(found["high"] - found["low"], 2 * nd.load("model.zarr").radius(0.9)[0])
    assert_refused(("calibrate", f"{numbers}/run", "model.zarr"), "exists already")
    assert_refused(("calibrate", "nowhere", "other.zarr"), "no complete run")
    assert_refused(("predict", f"{numbers}/run", tmp_path / "new.csv", "q.csv", "--interval", 0.9), "calibrate RUN")


def test_csv_has_quotes_where_they_are_needed(numbers: str, tmp_path: Path) -> None:
    """Keys are as they were, also those with leading zeros, commas, quotes and lines."""
    new = frame(4, 3).assign(id=["007", "a, b", 'say "c"', "two\nlines"], plain=["p", "q", None, "s"])
    model, rows = nd.load(f"{numbers}/model.zarr"), as_csv(tmp_path / "new.csv", new)
    nd.predict_table(model, str(rows), str(tmp_path / "p.csv"), keep=["plain"])
    header, first, _, third, *_ = (tmp_path / "p.csv").read_text().split("\n")
    assert (header, first[:2], third[:1]) == ("plain,prediction", "p,", ",")
    nd.predict_table(model, str(rows), str(tmp_path / "q.csv"), keep=["id", "plain"])
    found = pd.read_csv(tmp_path / "q.csv", dtype=str)
    assert found["id"].tolist() == new["id"].tolist()
    assert found["plain"].fillna("").tolist() == ["p", "q", "", "s"]


def test_a_failed_prediction_leaves_nothing(numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where some blocks are written before the bad row is read."""
    monkeypatch.setattr(sources, "BLOCK_BYTES", 2**12)
    new = frame(NEW, 3).astype({"rate": object})
    new.loc[NEW - 1, "rate"] = "oops"
    rows, model = as_csv(tmp_path / "new.csv", new), nd.load(f"{numbers}/model.zarr")
    for out in ("p.csv", "p.parquet", "p.zarr"):
        with pytest.raises(nd.DataError, match=f"column 'rate' of new.csv holds 'oops' in line {NEW + 1}"):
            nd.predict_table(model, str(rows), str(tmp_path / out))
    assert [p.name for p in tmp_path.iterdir()] == ["new.csv"]


def test_lines_are_those_of_an_editor(numbers: str, tmp_path: Path) -> None:
    """Cells over several lines, and empty lines, are counted; parquet has rows."""
    new, model = frame(6, 3).assign(note="plain"), nd.load(f"{numbers}/model.zarr")
    new.loc[1, "note"] = 'two\n"lines", quoted\n\nand four'
    rows = as_csv(tmp_path / "new.csv", new.astype({"rate": object}).assign(rate=[1, 2, 3, 4, "wrong", 6]))
    lines = rows.read_text().split("\n")
    rows.write_text("\n".join([*lines[:2], "", *lines[2:]]))
    line = next(i for i, text in enumerate(rows.read_text().split("\n"), start=1) if "wrong" in text)
    assert line == 10
    with pytest.raises(nd.DataError, match=rf"column 'rate' of new\.csv holds 'wrong' in line {line}, but numbers"):
        nd.predict_table(model, str(rows), str(tmp_path / "p.csv"))
    new.assign(rate=["1", "2", "3", "4", "wrong", "6"]).to_parquet(tmp_path / "new.parquet")
    with pytest.raises(nd.DataError, match=r"of new\.parquet holds 'wrong' in row 4 \(counted from 0\), but numbers"):
        nd.predict_table(model, str(tmp_path / "new.parquet"), str(tmp_path / "p.csv"))
    for value in ("inf", "-1e999"):
        rows = as_csv(tmp_path / "inf.csv", frame(6, 3).astype({"rate": object}).assign(rate=[1, value, 3, 4, 5, 6]))
        with pytest.raises(nd.DataError, match=rf"column 'rate' of inf\.csv holds '{value}' in line 3, but finite"):
            nd.predict_table(model, str(rows), str(tmp_path / "p.csv"))


def test_the_model_owns_the_columns(numbers: str, tmp_path: Path) -> None:
    """Order, more columns, absent and unknown names, and cells that were never empty: each has a result and a count."""
    model, new = nd.load(f"{numbers}/model.zarr"), frame(NEW, 3).assign(city="Oslo")  # two names are absent
    expected = model(new)
    report = nd.predict_table(model, str(as_csv(tmp_path / "a.csv", new)), str(tmp_path / "a-out.csv"))
    np.testing.assert_allclose(read(tmp_path / "a-out.csv")["prediction"], expected, rtol=1e-5)
    assert report.ignored == ["y"]
    assert (report.unknown, report.empty) == ({}, {})
    odd = new[INPUTS[::-1]].astype({"rate": object}).assign(extra=1, more=2)
    odd.loc[[3, 4], "rate"], odd.loc[7, "city"], odd.loc[9, "shop"] = None, "Pisa", None
    report = nd.predict_table(model, str(as_csv(tmp_path / "b.csv", odd)), str(tmp_path / "b-out.csv"))
    found = read(tmp_path / "b-out.csv")["prediction"]
    np.testing.assert_allclose(found, model(odd.assign(rate=odd["rate"].astype(float))), rtol=1e-5)
    same = ~np.isin(np.arange(NEW), [3, 4, 7, 9])
    np.testing.assert_allclose(found[same], expected[same], rtol=1e-5)
    assert report.unknown == {"city": 1}
    assert report.empty == {"rate": 2, "shop": 1}
    assert report.ignored == ["extra", "more"]
    notes = "\n".join(report.notes())
    for says in (
        "column 'city' held 1 names that training had not",
        "column 'rate' was empty in 2 rows, and never in training",
        "column 'shop' was empty in 1 rows, and never in training",
        "2 columns are not the model's, and were ignored: 'extra', 'more'",
        "line 9 (city)",
    ):
        assert says in notes


@pytest.mark.parametrize(("unit", "zone"), [("s", None), ("ms", "Asia/Tokyo"), ("ns", None)])
def test_dates_are_the_same_in_any_unit_and_zone(numbers: str, tmp_path: Path, unit: str, zone: str | None) -> None:
    model, new = nd.load(f"{numbers}/model.zarr"), frame(NEW, 3)
    moments = pa.array(new["day"].dt.tz_localize("UTC").dt.as_unit(unit), pa.timestamp(unit, "UTC"))  # type: ignore[arg-type]
    moments = moments.cast(pa.timestamp(unit, zone)) if zone else moments.cast(pa.timestamp(unit))
    table = pa.Table.from_pandas(new.drop(columns="day")).append_column("day", moments)
    pyarrow.parquet.write_table(table, tmp_path / "new.parquet", version="2.6")
    nd.predict_table(model, str(tmp_path / "new.parquet"), str(tmp_path / "p.csv"))
    np.testing.assert_allclose(read(tmp_path / "p.csv")["prediction"], model(new), rtol=1e-5)


def test_dates_of_csv_have_their_offsets(numbers: str, tmp_path: Path) -> None:
    model, new = nd.load(f"{numbers}/model.zarr"), frame(40, 3)
    written = (
        new["day"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo").map(lambda d: "" if pd.isna(d) else d.isoformat())
    )
    new.assign(day=written).to_csv(tmp_path / "new.csv", index=False)
    nd.predict_table(model, str(tmp_path / "new.csv"), str(tmp_path / "p.csv"))
    np.testing.assert_allclose(read(tmp_path / "p.csv")["prediction"], model(new), rtol=1e-5)


def test_frames_as_they_were_read_have_the_same_predictions(numbers: str, tmp_path: Path) -> None:
    """Of pandas and polars, with dates still text, integers for names, and columns in another order."""
    model, new = nd.load(f"{numbers}/model.zarr"), frame(NEW, 3)
    expected = model(new)
    path = as_csv(tmp_path / "new.csv", new[INPUTS[::-1]])
    assert pd.read_csv(path)["day"].dropna().map(type).eq(str).all()
    for raw in (pd.read_csv(path), pl.read_csv(path), pl.read_csv(path, try_parse_dates=True), new):
        np.testing.assert_allclose(model.predict(raw), expected, rtol=1e-6)
    bad = pd.read_csv(path)
    bad.loc[5, "day"] = "someday"
    with pytest.raises(nd.DataError, match="Column 'day' holds 'someday' in row 5, which cannot be read as a date"):
        model.predict(bad)
    aware = new.assign(day=new["day"].dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"))
    np.testing.assert_allclose(model.predict(aware), expected, rtol=1e-6)


def test_rows_outside_the_range_are_named(numbers: str, tmp_path: Path, command: Command) -> None:
    """By line of a file and row of a dataset's source, with their columns; the same in a group's attributes."""
    new = frame(NEW, 3)
    new["rate"] = new["rate"].clip(-1, 1)
    new["size"] = new["size"].clip(0.5, 2)
    new.loc[[7, 50], "rate"], new.loc[50, "size"] = 1e6, -1e6
    rows, store = as_csv(tmp_path / "new.csv", new), converted(tmp_path, new, "new", shuffle_seed=0)
    done = command("predict", f"{numbers}/model.zarr", rows, "p.csv", "--std")
    counts = "2 of 130 rows had values or names outside those of training ('size' 1, 'rate' 2)"
    assert f"{counts}; among them line 9 (rate), line 52 (size, rate)." in done.stdout
    done = command("predict", f"{numbers}/model.zarr", store, "p.zarr")
    among = "among them row 7 (rate), row 50 (size, rate), counted from 0."
    assert "2 of 130 rows" in done.stdout
    assert among in done.stdout
    attrs = zarr.open_group("p.zarr", mode="r").attrs
    assert (attrs["clipped_rows"], attrs["clipped_columns"]) == (2, {"size": 1, "rate": 2})
    assert attrs["clipped_first"] == [["row 7", ["rate"]], ["row 50", ["size", "rate"]]]


def test_runs_that_cannot_be_calibrated_are_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3))
    data = nd.Dataset(make_dataset(x, x[:, 0]))
    map_ = nd.NTKRandomFeatures(32)
    nd.fit(nd.Job(data, map_, alphas=(1.0,), plan=nd.PlanTable(folds=1)), out=str(tmp_path / "one"))
    nd.fit(nd.Job(data, map_, alphas=(1.0,), solver=nd.PCG()), out=str(tmp_path / "iterated"))
    for run, error, says in (
        ("one", nd.SpecError, "one has a single fold, and so no error out of fold; fit with more folds"),
        ("iterated", nd.DataError, "iterated has no equations: its solver kept no Gram; fit again"),
        ("none", nd.StoreError, "none"),
    ):
        with pytest.raises(error, match=says):
            nd.calibrate(str(tmp_path / run))
