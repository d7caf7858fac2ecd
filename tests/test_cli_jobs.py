"""Jobs by the command line: their first file, keys that are set over it, and results as JSON."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command, assert_one_line, assert_refused, columns, write_csv, write_job

import ntkdist as nd
from ntkdist.errors import SpecError
from ntkdist.spec import set_key


@pytest.fixture
def table() -> dict[str, Any]:
    """Numbers with gaps, a word, an integer and a date a row."""
    found: dict[str, Any] = columns(120)
    found["a"] = np.where(np.arange(120) % 7 == 0, "", found["a"].astype(str))
    found["day"] = np.array([f"2024-01-{1 + i % 28:02d}" for i in range(120)])
    found["id"] = np.array([f"row {i}" for i in range(120)])
    return found


def test_the_first_job_of_a_table_runs_by_the_commands_that_it_names(command: Command, table: dict[str, Any]) -> None:
    write_csv("train.csv", table, "a", "b", "word", "day", "id", "y")
    made = command("init", "train.csv", "--target", "y")
    assert made.exit_code == 0, made.output
    assert "Regression of y on 5 columns of train.csv." in made.output
    assert "id has another name in every row" in made.output
    text = Path("train.toml").read_text()
    assert tomllib.loads(text) == {"dataset": {"store": "train.zarr", "nan": "impute"}, "plan": {}}
    assert "Columns of numbers in the first 120 rows: a, b." in text
    assert "Columns of names in the first 120 rows: word, id." in text
    commands = [line.split("ntkdist ")[1] for line in made.output.splitlines() if line.startswith("ntkdist ")]
    assert [each.split()[0] for each in commands] == ["convert", "plan", "fit", "report"]
    assert all(f"#     ntkdist {each}\n" in text for each in commands)
    assert command(*commands[0].split()).exit_code == 0
    small = ("--set", "features.type=Nystrom", "--set", "features.n_components=16", "--out", "run")
    assert command("fit", "train.toml", *small).exit_code == 0
    assert_refused(["init", "train.csv", "--target", "y"], "train.toml already exists; choose another --out")


def test_the_task_of_a_first_job(command: Command, table: dict[str, Any]) -> None:
    write_csv("train.csv", table, "b", "word", "integer")
    for options, task, ends in (
        (("--target", "word"), "classification", "--target word"),
        (("--target", "integer"), "regression", "--target integer"),
        (("--target", "integer", "--classes"), "classification", "--target integer --classes"),
    ):
        found = json.loads(command("init", "train.csv", *options, "--out", f"{ends}.toml", "--json").stdout)
        assert found["task"] == task
        assert found["commands"][0] == f"ntkdist convert train.csv train.zarr {ends}"
        assert any("if they are class labels" in note for note in found["notes"]) == (ends == "--target integer")
    assert command("convert", "train.csv", "train.zarr", "--target", "word").exit_code == 0
    made = command("init", "train.zarr")
    assert "Classification of 3 classes on 120 rows of 2 in train.zarr." in made.output
    assert nd.Job.read("train.toml").dataset.store == "train.zarr"
    assert_refused(["init", "train.csv"], "has the columns b, word, integer; name the target with --target")
    assert_refused(["init", "train.csv", "--target", "wrd"], "no column 'wrd'", "did you mean 'word'?")
    assert_refused(["init", "none.csv", "--target", "y"], "none.csv: no such file")


def test_keys_are_set_over_those_of_the_file(command: Command) -> None:
    write_csv("train.csv", columns(), "a", "b", "c", "y")
    assert command("convert", "train.csv", "train.zarr", "--target", "y").exit_code == 0
    job = write_job()
    settings = ("--set", "features.n_components=32", "--set", "plan.folds=3", "--set", "alphas=[2.5]")
    assert json.loads(command("plan", job, *settings, "--json").stdout)["n_components"] == 32
    assert json.loads(command("fit", job, *settings, "--out", "run", "--json").stdout)["alpha"] == 2.5
    plan = json.loads(Path("run/report.json").read_text())["plan"]
    assert (plan["folds"], plan["job"]["features"]["n_components"]) == (3, 32)
    found = command("featurize", job, "z.zarr", "--set", "features.n_components=16", "--json")
    assert json.loads(found.stdout) == {"out": "z.zarr", "clipped_rows": 0}
    assert nd.Dataset("z.zarr").layout().input_shape == (16,)
    assert_refused(["fit", job, "--set", "features.n_component=3"], "unknown key", "did you mean 'n_components'?")
    assert_refused(["plan", job, "--set", "plan.folds=many"], "Expected `int", "--set")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("a=1", {"a": 1}),
        ("a.b = [1e-3, 2]", {"a": {"b": [1e-3, 2]}}),
        ("a.type=Nystrom", {"a": {"type": "Nystrom"}}),
        ('a.type="Nystrom"', {"a": {"type": "Nystrom"}}),
        ("store=s3://bucket/a.zarr", {"store": "s3://bucket/a.zarr"}),
        ("k={type = 'NTK', depth = 3}", {"k": {"type": "NTK", "depth": 3}}),
        ("on=true", {"on": True}),
    ],
)
def test_a_setting(setting: str, expected: dict[str, Any]) -> None:
    data: dict[str, Any] = {}
    set_key(data, setting)
    assert data == expected


@pytest.mark.parametrize(("setting", "says"), [("a", "sets nothing"), ("=1", "sets nothing"), ("a=[1", "quote it")])
def test_what_is_no_setting(setting: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        set_key({}, setting)
    with pytest.raises(SpecError, match="'a' is no table"):
        set_key({"a": 1}, "a.b=1")


def test_every_result_is_one_object_of_json(command: Command) -> None:
    write_csv("train.csv", columns(), "a", "b", "c", "y")
    converted = json.loads(command("convert", "train.csv", "train.zarr", "--target", "y", "--json").stdout)
    assert (converted["rows"], converted["columns"]) == (240, ["a", "b", "c"])
    command("fit", write_job(), "--out", "run")
    predicted = json.loads(command("predict", "run", "train.csv", "new.csv", "--json").stdout)
    counted = {"outside": 0, "outside_in": {}, "first": [], "unknown": {}, "empty": {}, "uncalibrated": False}
    assert predicted == {"out": "new.csv", "rows": 240, "ignored": ["y"]} | counted
    of_dataset = json.loads(command("predict", "run", "train.zarr", "new.zarr", "--json").stdout)
    assert of_dataset == predicted | {"out": "new.zarr", "ignored": []}
    assert json.loads(command("report", "run", "--no-data", "--json").stdout) == {"out": "run/report.html"}
    (worker,) = json.loads(command("workers", "--json").stdout)["workers"]
    assert worker["worker"] == "this process"
    assert json.loads(command("status", "run", "--json").stdout)["state"] == "done"
    assert_one_line(command("status", "nowhere", "--json").stderr, ["no detached run"])


def test_a_run_has_the_name_of_its_directory(command: Command) -> None:
    write_csv("train.csv", columns(), "a", "b", "c", "y")
    command("convert", "train.csv", "train.zarr", "--target", "y")
    command("fit", write_job(), "--out", "prices run")
    name = json.loads(Path("prices run/report.json").read_text())["run"]["id"]
    assert name.rpartition("-")[0] == "prices-run"
