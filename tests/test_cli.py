"""The command line's story on small tables: from a csv to predictions, and back to every number by Python."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import (
    FEATURES,
    ZONAL,
    Command,
    assert_one_line,
    assert_refused,
    columns,
    inputs,
    start,
    tree,
    write_csv,
    write_job,
)
from numpy.typing import NDArray

import ntkdist as nd
from ntkdist.data import zarr_groups

STRICT = '[plan]\ndtype = "float64"\nfolds = 4'


def done(result: Any) -> str:
    """What a command printed, which did not fail."""
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    out: str = result.stdout
    return out


def read(place: str, *names: str) -> list[NDArray[Any]]:
    """Arrays of a group, in the order of the source's rows."""
    order = np.argsort(zarr_groups.read_whole(place, "row"))
    return [zarr_groups.read_whole(place, name)[order] for name in names]


@pytest.fixture
def train(command: Command) -> dict[str, NDArray[Any]]:
    """A table, converted to ``train.zarr`` in the current directory."""
    table = columns()
    write_csv("train.csv", table, "a", "b", "c", "y")
    assert "240 rows of 3 float64, 1 target(s), 20 partitions of 12" in done(
        command("convert", "train.csv", "train.zarr", "--target", "y")
    )
    return table


def test_from_a_table_to_predictions(command: Command, train: dict[str, NDArray[Any]]) -> None:
    job, x = write_job(tables=STRICT), inputs(train)
    before = tree()
    assert "240 rows in 20 partitions" in done(command("plan", job))
    assert json.loads(done(command("plan", job, "--json")))["shards"] == 8
    assert tree() == before
    found = json.loads(done(command("fit", job, "--json", "--out", "run")))
    assert {"cv_rmse", "cv_r2", "alpha", "rows", "seconds"} <= found.keys()
    assert found["rows"] == 240
    assert 0.8 < found["cv_r2"] < 1
    assert sorted(p.name for p in Path("run").iterdir()) == ["equations.zarr", "job.json", "model.zarr", "report.json"]

    model = nd.load("run/model.zarr")
    error = model(x) - train["y"]
    expected = {
        "rmse": np.sqrt(np.mean(error**2)),
        "mae": np.abs(error).mean(),
        "r2": 1 - np.mean(error**2) / train["y"].var(),
    }
    found = json.loads(done(command("evaluate", "run", "train.zarr", "--json")))
    assert found.keys() == {"rmse", "mae", "r2", "rows", "clipped_rows", "seconds"}
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-9)
    assert "rmse" in done(command("evaluate", "run/model.zarr", "train.zarr"))

    done(command("predict", "run", "train.zarr", "predicted.zarr"))
    (predicted,) = read("predicted.zarr", "prediction")
    np.testing.assert_allclose(predicted, model(x), rtol=1e-12)


def test_predicting_needs_no_target(command: Command, train: dict[str, NDArray[Any]]) -> None:
    done(command("fit", write_job(), "--out", "run"))
    write_csv("new.csv", train, "c", "a", "b")  # columns go by their names
    done(command("convert", "new.csv", "new.zarr"))
    done(command("predict", "run", "new.zarr", "predicted.zarr"))
    (predicted,) = read("predicted.zarr", "prediction")
    np.testing.assert_allclose(predicted, nd.load("run/model.zarr")(inputs(train)), rtol=1e-5)


def test_features_are_a_dataset(command: Command, train: dict[str, NDArray[Any]]) -> None:
    job, x = write_job(tables=STRICT), inputs(train)
    done(command("featurize", job, "features.zarr"))
    z, y = read("features.zarr", "x", "y")
    expected = nd.Job.read(job).features((x - x.mean(0)) / x.std(0))
    np.testing.assert_allclose(z, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(y, train["y"])

    linear = write_job("linear.toml", "features.zarr", features='type = "Linear"\nn_components = 64', tables=STRICT)
    done(command("fit", linear, "--out", "run"))
    done(command("predict", "run", "features.zarr", "predicted.zarr"))
    (predicted,) = read("predicted.zarr", "prediction")
    assert np.corrcoef(predicted, train["y"])[0, 1] > 0.95


def test_solving_again_from_the_equations(command: Command, train: dict[str, NDArray[Any]]) -> None:
    found = json.loads(done(command("fit", write_job(tables=STRICT), "--out", "run", "--json")))
    again = json.loads(done(command("solve", "run", "--json", "--out", "again.zarr")))
    assert again["alpha"] == [pytest.approx(found["alpha"], rel=1e-12)]
    assert again["cv_rmse"] == pytest.approx(found["cv_rmse"], rel=1e-9)
    first, second = nd.load("run/model.zarr"), nd.load("again.zarr")
    np.testing.assert_allclose(second.coef, first.coef, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(second(inputs(train)), first(inputs(train)), rtol=1e-9)

    shutil.rmtree("train.zarr")  # none of it needs the data
    one = json.loads(done(command("solve", "run/equations.zarr", "--alphas", "2.5", "--json")))
    assert one["alpha"] == [2.5]
    per_row = json.loads(done(command("solve", "run", "--alphas-per-row", "0.01", "--json", "--out", "per.zarr")))
    assert per_row["alpha"] == [pytest.approx(2.4)]
    assert "alpha [2.5], cv_rmse" in done(command("solve", "run", "--alphas", "2.5", "--out", "strong.zarr"))
    assert np.abs(nd.load("strong.zarr").coef).sum() < np.abs(nd.load("per.zarr").coef).sum()


@pytest.mark.slow
def test_equations_of_several_runs_add_and_subtract(command: Command) -> None:
    """New days and withdrawn rows, without a pass over what was there: the model of the rows that are left."""
    table = columns(360)
    parts = {"train": slice(0, 360), "old": slice(0, 120), "new": slice(120, 360), "gone": slice(300, 360)}
    for name, rows in (*parts.items(), ("left", slice(0, 300))):
        write_csv(f"{name}.csv", {k: v[rows] for k, v in table.items()}, "a", "b", "c", "y")
        options = ("--target", "y", "--shuffle-seed", "none", "--rows-per-partition", "12")
        done(command("convert", f"{name}.csv", f"{name}.zarr", *options))
    done(command("fit", write_job(), "--out", "train-run"))
    for name in (*list(parts)[1:], "left"):
        job = write_job(f"{name}.toml", f"{name}.zarr", tables='[preprocess]\nreuse = "train-run"')
        done(command("fit", job, "--out", f"{name}-run"))
    sums = ("old-run", "+", "new-run/equations.zarr", "-", "gone-run")
    done(command("solve", *sums, "--alphas", "0.5", "--out", "changed.zarr"))
    done(command("solve", "left-run", "--alphas", "0.5", "--out", "straight.zarr"))
    x = inputs(table)
    np.testing.assert_allclose(nd.load("changed.zarr")(x), nd.load("straight.zarr")(x), atol=1e-5)

    write_job("other.toml", "gone.zarr", features=FEATURES + "\nseed = 1", tables='[preprocess]\nreuse = "train-run"')
    done(command("fit", "other.toml", "--out", "other-run"))
    done(command("fit", write_job("new.toml", "new.zarr"), "--out", "own-run"))
    assert_refused(["solve", "old-run", "+", "other-run"], "Equations of different features do not add")
    assert_refused(["solve", "old-run", "+", "own-run"], "Equations of different scaling do not add")
    assert_refused(["solve", "old-run", "+", "old-run/equations.zarr"], "which would be added twice; add each run once")
    for wrong in (["old-run", "new-run"], ["old-run", "+"], ["old-run", "x", "new-run"]):
        assert command("solve", *wrong).exit_code == 2


@pytest.mark.slow
def test_classes_are_matched_by_name(command: Command) -> None:
    table, test = columns(), columns(80, seed=1)
    some = {k: v[test["word"] != "low"] for k, v in test.items()}
    write_csv("train.csv", table, "a", "b", "c", "word")
    write_csv("test.csv", test, "a", "b", "c", "word")
    write_csv("some.csv", some, "word", "c", "a", "b")  # columns in another order, and a class less
    for name in ("train", "test", "some"):
        done(command("convert", f"{name}.csv", f"{name}.zarr", "--target", "word"))
    done(command("fit", write_job(), "--out", "run"))

    model = nd.load("run/model.zarr")
    labels = model.predict(inputs(test))
    assert set(labels) <= {"low", "middle", "top"}
    found = json.loads(done(command("evaluate", "run", "test.zarr", "--json")))
    assert found.keys() == {"accuracy", "log_loss", "rows", "clipped_rows", "seconds"}
    assert found["accuracy"] == pytest.approx(np.mean(labels == test["word"]))
    assert 0 < found["log_loss"] < 1
    assert found["accuracy"] > 0.7

    found = json.loads(done(command("evaluate", "run", "some.zarr", "--json")))
    assert found["accuracy"] == pytest.approx(np.mean(model.predict(inputs(some)) == some["word"]))
    for name, rows in (("test", test), ("some", some)):
        done(command("predict", "run", f"{name}.zarr", f"{name}-predicted.zarr"))
        codes, scores = read(f"{name}-predicted.zarr", "prediction", "score")
        _, attrs = zarr_groups.read_attributes(f"{name}-predicted.zarr", ("ntkdist.predictions",))
        np.testing.assert_array_equal(np.array(attrs["classes"])[codes], model.predict(inputs(rows)))
        np.testing.assert_allclose(scores, model(inputs(rows)), atol=1e-5)


def test_integer_classes_come_back_as_integers(command: Command) -> None:
    table = columns()
    write_csv("train.csv", table, "a", "b", "c", "integer")
    assert "3 classes" in done(command("convert", "train.csv", "train.zarr", "--target", "integer", "--classes"))
    done(command("fit", write_job(), "--out", "run"))
    labels = nd.load("run/model.zarr").predict(inputs(table))
    assert labels.dtype.kind == "i"
    assert set(labels) == {7, -1, 10}
    assert np.mean(labels == table["integer"]) > 0.7


def test_the_report_tells_how_a_run_went(command: Command, train: dict[str, NDArray[Any]]) -> None:
    job = write_job(features=FEATURES + "\nseed = 3", tables="[plan]\nfolds = 4\nthreads = 1")
    done(command("fit", job, "--out", "run"))
    report = json.loads(Path("run/report.json").read_text())
    assert report["plan"]["job"]["features"]["seed"] == 3
    assert report["plan"]["folds"] == 4
    assert report["plan"]["threads"] == 1
    assert report["data"]["store"] == "train.zarr"
    assert report["data"]["rows"] == 240
    assert report["plan"]["layout"]["fingerprint"] == nd.Dataset("train.zarr").layout().fingerprint
    assert report["versions"]["numpy"] == importlib.metadata.version("numpy")
    cv, (alpha,) = report["cv"], report["alpha"]
    assert len(cv["alphas_per_row"]) == len(cv["mse"]) == len(cv["fold_mse"])
    assert alpha == pytest.approx(240 * cv["alphas_per_row"][cv["best"][0]])
    assert report["alpha_per_row"] == [pytest.approx(alpha / 240)]
    run = report["run"]
    assert run["bytes_read"] == 240 * 4 * 8
    assert run["rows_per_second"] == pytest.approx(240 / run["seconds"]["equations"])
    assert run["gram_to_syrk_ratio"] > 0
    (peak,) = run["peak_memory_bytes"].values()
    (speed,) = run["worker_rows_per_second"].values()
    assert run["peak_memory_bytes"].keys() == run["worker_rows_per_second"].keys()
    assert speed > 240 / run["seconds"]["total"]
    assert peak > 50e6
    assert sum(run["projected_memory_bytes"].values()) > 100e6


def test_a_complete_run_is_not_done_again(command: Command, train: dict[str, NDArray[Any]]) -> None:
    first = json.loads(done(command("fit", write_job(), "--out", "run", "--json")))
    assert not first["complete_before"]
    Path("train.zarr/x/c/0/0").unlink()  # whoever computes now, fails
    before = tree()
    again = json.loads(done(command("fit", "job.toml", "--out", "run", "--json")))
    assert again == first | {"complete_before": True}
    assert "\nrun was complete already; nothing was done.\n" in done(command("fit", "job.toml", "--out", "run"))
    assert tree() == before
    # where it ran and where its data lie is no part of a job
    Path("train.zarr").rename("moved.zarr")
    write_job(store="moved.zarr", tables="[cluster]\nworkers = 2")
    assert json.loads(done(command("fit", "job.toml", "--out", "run", "--json"))) == again


def test_a_run_directory_belongs_to_one_job(command: Command, train: dict[str, NDArray[Any]]) -> None:
    done(command("fit", write_job(), "--out", "run"))
    write_job(top="alphas = [1.0]")
    assert_refused(["fit", "job.toml", "--out", "run"], "run holds another run: alphas is ", "choose another --out")
    one = ["fit", write_job(), "--out", "run", "--set", "features.n_components=32"]
    assert_refused(one, "run holds another run: features.n_components is 64 there and 32 here; choose another --out")
    assert_refused(["fit", "job.toml", "--out", "train.zarr"], "not a run", "choose another --out")
    assert_refused(["fit", "job.toml", "--out", "train.csv"], "train.csv", "not a directory")
    Path("other").mkdir()
    Path("other/job.json").write_text("[]")
    assert_refused(["fit", "job.toml", "--out", "other"], "not a run")


def test_a_run_that_was_cut_off_is_done_again(command: Command, train: dict[str, NDArray[Any]]) -> None:
    done(command("fit", write_job(), "--out", "run"))
    coef = nd.load("run/model.zarr").coef
    Path("run/report.json").unlink()
    shutil.rmtree("run/model.zarr/coef")
    done(command("fit", "job.toml", "--out", "run"))
    np.testing.assert_array_equal(nd.load("run/model.zarr").coef, coef)
    assert Path("run/report.json").exists()


def test_the_default_run_directory_is_named_after_the_job(command: Command, train: dict[str, NDArray[Any]]) -> None:
    assert "Written to job-run" in done(command("fit", write_job()))
    assert Path("job-run/report.json").exists()


def test_rounds_of_a_metric_are_planned_and_printed(command: Command, train: dict[str, NDArray[Any]]) -> None:
    job = write_job(features=ZONAL, tables="[metric]\nrounds = 1\nn_components = 32\nscales = [1.0]")
    planned = done(command("plan", job))
    assert "\nmetric     at most 1 round on 32 columns and 240 rows: about " in planned
    assert max(map(len, planned.splitlines())) <= 80
    printed = done(command("fit", job, "--out", "run"))
    metric = json.loads(Path("run/report.json").read_text())["metric"]
    errors = [f"{i}: {one['rmse']:.4g}{', kept' * one['kept']}" for i, one in enumerate(metric["rounds"])]
    assert f"\nrmse by round of the metric  {'  '.join(errors)}\n" in printed
    shares = sorted(metric["importances"].items(), key=lambda item: -item[1])
    assert f"\nimportances  {'  '.join(f'{name}: {share:.1%}' for name, share in shares)}\n" in printed
    assert {name for name, _ in shares} == set("abc")
    assert "metric" not in done(command("plan", write_job("plain.toml")))
    assert "metric" not in done(command("fit", "plain.toml", "--out", "plain"))


@pytest.mark.slow
def test_grids_of_either_kind(command: Command, train: dict[str, NDArray[Any]]) -> None:
    for i, (grid, unit) in enumerate((("alphas", 1), ("alphas_per_row", 240))):
        job = write_job(top=f"{grid} = [1e-9, {2.4 / unit}, 1e9]", tables=STRICT)
        found = json.loads(done(command("fit", job, "--out", f"run{i}", "--json")))
        assert found["alpha"] == pytest.approx(2.4)
        assert grid in json.loads(Path(f"run{i}/report.json").read_text())["cv"]
    job = write_job(top="alphas = [2.4]", tables='[plan]\nfolds = 1\ndtype = "float64"')
    found = json.loads(done(command("fit", job, "--out", "single", "--json")))
    assert (found["alpha"], found["cv_rmse"]) == (2.4, None)
    single, cross_validated = (nd.load(f"{run}/model.zarr").coef for run in ("single", "run0"))
    np.testing.assert_allclose(single, cross_validated, rtol=1e-9, atol=1e-12)


def test_json_is_strict_where_a_number_does_not_exist(command: Command) -> None:
    """The share of the variance that is explained, where there is no variance."""
    write_csv("train.csv", columns() | {"y": np.full(240, 5.0)}, "a", "b", "c", "y")
    done(command("convert", "train.csv", "train.zarr", "--target", "y"))
    fitted = done(command("fit", write_job(), "--out", "run", "--json"))
    evaluated = done(command("evaluate", "run", "train.zarr", "--json"))
    assert json.loads(fitted, parse_constant=pytest.fail)["cv_r2"] is None
    assert json.loads(evaluated, parse_constant=pytest.fail)["r2"] is None
    json.loads(Path("run/report.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
def test_every_command_as_a_process(command: Command, train: dict[str, NDArray[Any]]) -> None:
    """Results on standard output and nothing on standard error; failures the other way round."""
    job = write_job()
    Path("empty.toml").write_text("")
    for good in (
        [
            ("convert", "train.csv", "again.zarr", "--json"),
            ("plan", job, "--json"),
            ("fit", job, "--out", "run", "--json"),
        ],
        [("evaluate", "run", "train.zarr", "--json"), ("predict", "run", "train.zarr", "predicted.zarr")],
        [("solve", "run", "--json"), ("featurize", job, "features.zarr")],
    ):
        for args, process in [(args, start(*args)) for args in good]:
            out, err = process.communicate()
            assert (process.returncode, err) == (0, ""), args
            assert json.loads(out) if args[-1] == "--json" else out.count("\n") == 1
    bad = [("convert", "train.csv", "train.zarr"), ("fit", "empty.toml"), ("plan", "empty.toml")]
    bad += [("predict", "train.zarr", "train.zarr", "new.zarr")]
    bad += [("evaluate", "run", "none.zarr"), ("solve", "train.zarr"), ("featurize", job, "features.zarr")]
    for args, process in [(args, start(*args)) for args in bad]:
        out, err = process.communicate()
        assert (process.returncode, out) == (1, ""), args
        assert_one_line(err, [])
