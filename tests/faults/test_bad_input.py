"""Bad input at the command line: one sentence that names what is wrong, an exit code, nothing left behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import FEATURES, Command, assert_refused, columns, in_process, inputs, tree, write_csv, write_job
from numpy.typing import NDArray

import ntkdist as nd
from ntkdist.cluster import connect, launch

Table = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``train.zarr`` of 20 partitions of 12 rows, and a model fitted on it in ``run``."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(connect, "_active_client", lambda: None)
        convert(in_process, columns(), "train", "y")
        fit(in_process, write_job())
    return place


@pytest.fixture
def table(command: Command, made: Path) -> Table:
    """A table, converted to ``train.zarr`` in the current directory."""
    shutil.copy(made / "train.csv", ".")
    shutil.copytree(made / "train.zarr", "train.zarr")
    return columns()


@pytest.fixture
def fitted(table: Table, made: Path) -> Table:
    """The same with a fitted regression model in ``run``, and its job in ``job.toml``."""
    shutil.copy(made / "job.toml", ".")
    shutil.copytree(made / "run", "run")
    return table


def convert(command: Command, table: dict[str, Any], name: str, target: str, inputs: str = "abc", *more: str) -> None:
    write_csv(f"{name}.csv", table, *inputs, target)
    found = command("convert", f"{name}.csv", f"{name}.zarr", "--target", target, *more)
    assert found.exit_code == 0, found.output


def fit(command: Command, job: str, out: str = "run") -> str:
    found = command("fit", job, "--out", out)
    assert found.exit_code == 0, found.output
    text: str = found.stdout
    return text


BAD_JOBS = {
    "unknown key": ({"top": "alpha = [1.0]"}, ["unknown key 'alpha'", "did you mean 'alphas'"]),
    "unknown table": ({"tables": "[plans]\nfolds = 5"}, ["unknown key 'plans'", "did you mean 'plan'"]),
    "in features": (
        {"features": FEATURES.replace("n_components", "n_component")},
        ["unknown key 'features.n_component'", "did you mean 'n_components'"],
    ),
    "in plan": ({"tables": "[plan]\nfold = 5"}, ["unknown key 'plan.fold'", "did you mean 'folds'"]),
    "in solver": (
        {"tables": '[solver]\ntype = "Cholesky"\njiter = 1'},
        ["unknown key 'solver.jiter'"],
    ),
    "a type where there is one only": ({"tables": '[plan]\ntype = "fast"'}, ["unknown key 'plan.type'", "dtype"]),
    "unknown map": (
        {"features": 'type = "NTKRandomFeature"\nn_components = 64'},
        ["unknown type 'NTKRandomFeature' in [features]", "did you mean 'NTKRandomFeatures'"],
    ),
    "no map": ({"features": "n_components = 64"}, ["[features] has no type", "NTKRandomFeatures"]),
    "unknown solver": ({"tables": '[solver]\ntype = "Eig"'}, ["unknown type 'Eig' in [solver]", "'Eigh'"]),
    "not a number": ({"features": FEATURES.replace("64", '"many"')}, ["features.n_components", "int", "str"]),
    "out of bounds": ({"features": FEATURES.replace("64", "0")}, ["features.n_components", ">= 1"]),
    "too few columns for the map": ({"features": FEATURES.replace("64", "3")}, ["n_components is 3", "at least"]),
    "both grids": ({"top": "alphas = [1.0]\nalphas_per_row = [1.0]"}, ["both alphas and alphas_per_row", "give one"]),
    "no alphas": ({"top": "alphas = []"}, ["alphas are []", "one or more"]),
    "negative alpha": ({"top": "alphas = [-1.0]"}, ["alphas are [-1.0]", "none negative"]),
    "one fold, many alphas": ({"tables": "[plan]\nfolds = 1"}, ["folds = 1", "single alpha"]),
    "more folds than partitions": (
        {"tables": "[plan]\nfolds = 21"},
        ["folds is 21", "20 partitions", "lower folds"],
    ),
    "small blocks": ({"tables": "[plan]\nblock_rows = 31"}, ["block_rows is 31", "at least", "32"]),
    "no such dataset": ({"store": "none.zarr"}, ["none.zarr", "check the path"]),
    "no such target": ({"store": 'train.zarr"\ny = "target'}, ["train.zarr", "no array 'target'", "known"]),
    "no such weight": ({"store": 'train.zarr"\nweight = "weights'}, ["no array 'weights'"]),
    "no such model to reuse": ({"tables": '[preprocess]\nreuse = "none"'}, ["none", "check the path"]),
    "wrong width for a linear map": (
        {"features": 'type = "Linear"\nn_components = 64'},
        ["Linear.n_components is 64", "set it to 3"],
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``train.zarr`` that tests share, because they leave it as it was."""
    found = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found)
        convert(in_process, columns(), "train", "y")
    return found


@pytest.mark.parametrize("case", BAD_JOBS)
def test_a_job_that_cannot_be(command: Command, place: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(place)
    what, says = BAD_JOBS[case]
    assert_refused(["fit", write_job(**what), "--out", "run"], *says)


def test_a_job_file_that_cannot_be_read(command: Command) -> None:
    assert_refused(["fit", "none.toml"], "none.toml", "No such file", "check the path")
    Path("job.toml").write_text("alphas = ")
    assert_refused(["fit", "job.toml"], "job.toml: not TOML", "Invalid value")
    Path("job.toml").write_bytes(b"\xff\xfe\x00")
    assert_refused(["plan", "job.toml"], "job.toml: not TOML")
    assert_refused(["featurize", ".", "out.zarr"], ".", "Is a directory")


def test_a_plan_that_does_not_fit(command: Command, table: Table) -> None:
    """Neither runs nor takes the memory that it would refuse."""
    job = write_job(features=FEATURES.replace("64", "200000") + "\ndepth = 2", tables='[solver]\ntype = "Cholesky"')
    parts = ["Plan needs", "GB per worker (process", "accumulator", "waiting sums", "batch", "limit is", "lower"]
    for verb in (["plan", job], ["plan", job, "--json"], ["fit", job, "--out", "run"]):
        assert_refused(verb, *parts, code=3)


def test_a_scheduler_that_does_not_answer(command: Command, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "CONNECT_SECONDS", 1)
    address = "tcp://127.0.0.1:9"
    for args in (["fit", write_job(), "--scheduler", address], ["plan", "job.toml", "--scheduler", "nonsense://"]):
        assert_refused(args, "No Dask scheduler answered at", args[-1], "within 1 s", "check the address")
    table_of = write_job(tables=f'[cluster]\ntype = "address"\naddress = "{address}"')
    assert_refused(["fit", table_of], address)


def test_chunks_that_are_missing_or_short(command: Command, fitted: Table) -> None:
    verbs = [["fit", write_job(top="alphas = [1.0]"), "--out", "new"], ["featurize", "job.toml", "new.zarr"]]
    verbs += [["evaluate", "run", "train.zarr"], ["predict", "run", "train.zarr", "new.zarr"]]
    chunk = Path("train.zarr/x/c/3/0")
    whole = chunk.read_bytes()
    for kept, says in ((None, "chunk x/c/3/0 is missing"), (0, "chunk x/c/3/0 is empty"), (100, "array 'x'")):
        chunk.unlink() if kept is None else chunk.write_bytes(whole[:kept])
        for args in verbs:
            assert_refused(args, "train.zarr", says, "36–47", "convert again")
    chunk.write_bytes(whole)
    Path("train.zarr/y/c/19").unlink()
    assert_refused(verbs[0], "chunk y/c/19 is missing", "rows 228–239")
    assert command("predict", "run", "train.zarr", "new.zarr").exit_code == 0  # needs no targets


@pytest.mark.slow
def test_rows_that_are_not_finite(command: Command, table: Table) -> None:
    table["a"][[3, 8]] = np.nan
    table["y"][10] = np.inf
    convert(command, table, "nan", "y", "abc", "--shuffle-seed", "none")
    job = write_job(store="nan.zarr", tables='[plan]\ndtype = "float64"')
    assert_refused(["fit", job, "--out", "run"], "nan.zarr", "array 'x'", "NaN or Inf", "row 3", 'nan = "drop"')
    assert_refused(["featurize", job, "new.zarr"], "row 3")

    # the remedy that it names works, in the same directory, and says how many rows it left out
    mended = write_job(store='nan.zarr"\nnan = "drop', tables='[plan]\ndtype = "float64"')
    assert "Note: 3 rows with NaN or Inf were dropped" in fit(command, mended)
    found = json.loads(Path("run/report.json").read_text())["data"]
    assert (found["rows"], found["dropped_rows"]) == (237, 3)
    assert json.loads(command("fit", mended, "--out", "run", "--json").stdout)["rows"] == 237
    for args in (["evaluate", "run", "nan.zarr"], ["predict", "run", "nan.zarr", "new.zarr"]):
        assert_refused(args, "nan.zarr", "row 3")


def test_targets_of_the_wrong_length(command: Command, table: Table) -> None:
    np.savez("short.npz", x=inputs(table), y=table["y"][:200])
    assert_refused(["convert", "short.npz", "new.zarr"], "array 'y' of short.npz has 200 rows", "has 240")
    metadata = Path("train.zarr/y/zarr.json")
    metadata.write_text(metadata.read_text().replace("240", "250"))
    assert_refused(["fit", write_job()], "train.zarr", "array 'y' has 250 rows but 'x' has 240", "convert again")


def test_sources_that_cannot_be_converted(command: Command, table: Table) -> None:
    assert_refused(["convert", "none.csv", "new.zarr"], "none.csv", "no such file")
    assert_refused(["convert", "train.csv", "new.zarr", "--target", "yy"], "no column 'yy'", "did you mean 'y'")
    Path("header.csv").write_text("a,b,y\n")
    assert_refused(["convert", "header.csv", "new.zarr", "--target", "y"], "header.csv has no rows")
    assert_refused(["convert", "train.csv", "new.zarr", "--classes"], "one target", "--target")
    assert_refused(["convert", "train.csv", "train.zarr"], "train.zarr exists already", "choose another")


def test_one_class_only(command: Command, table: Table) -> None:
    convert(command, table | {"word": np.full(240, "same")}, "one", "word")
    assert_refused(["fit", write_job(store="one.zarr")], "'same'", "at least two")


@pytest.mark.slow
def test_a_column_without_variance_is_harmless(command: Command, table: Table) -> None:
    linear = 'type = "Linear"\nn_components = {}'
    fit(command, write_job(features=linear.format(3)), "without")
    convert(command, table | {"f": np.full(240, 1e6)}, "flat", "y", "abcf")
    assert "Note: columns without variance, kept and harmless: f." in fit(
        command, write_job(store="flat.zarr", features=linear.format(4)), "with"
    )
    assert json.loads(Path("with/report.json").read_text())["data"]["constant_columns"] == ["f"]
    coef = nd.load("with/model.zarr").coef
    assert coef[3] == 0
    np.testing.assert_allclose(coef[:3], nd.load("without/model.zarr").coef, rtol=1e-5)


def test_destinations_that_exist(command: Command, fitted: Table) -> None:
    for args in (
        ["predict", "run", "train.zarr", "train.zarr"],
        ["featurize", "job.toml", "train.zarr"],
        ["solve", "run", "--out", "train.zarr"],
        ["demo", "--out", "train.zarr"],
    ):
        assert_refused(args, "train.zarr exists already", "choose another destination or remove it")


@pytest.mark.slow
def test_data_that_do_not_match_the_model(command: Command, fitted: Table) -> None:
    convert(command, fitted, "words", "word")
    convert(command, fitted, "narrow", "y", "ac")
    assert_refused(["evaluate", "run", "words.zarr"], "targets are class labels", "the model predicts numbers")
    for args in (["evaluate", "run", "narrow.zarr"], ["predict", "run", "narrow.zarr", "new.zarr"]):
        assert_refused(args, "narrow.zarr", "column 'b' of the model is missing")
    np.savez("nameless.npz", x=inputs(fitted)[:, :2])
    command("convert", "nameless.npz", "nameless.zarr")
    assert_refused(["predict", "run", "nameless.zarr", "new.zarr"], "shape (2,)", "(3,)")
    assert_refused(["evaluate", "run", "nameless.zarr"], "nameless.zarr", "no array 'y'")

    fit(command, write_job(store="words.zarr"), "classes")
    assert_refused(["evaluate", "classes", "train.zarr"], "targets are numbers", "the model predicts class labels")
    fitted["word"][5] = "huge"
    convert(command, fitted, "more", "word")
    assert_refused(["evaluate", "classes", "more.zarr"], "more.zarr", "class 'huge' is unknown to the model")


def test_places_that_hold_something_else(command: Command, fitted: Table) -> None:
    for args in (["evaluate", "train.zarr", "train.zarr"], ["solve", "train.zarr"], ["evaluate", "run", "run"]):
        assert_refused(args, args[1 if args[0] == "solve" else -1], "check the path")
    assert_refused(["predict", "run/equations.zarr", "train.zarr", "new.zarr"], "holds Equations", "expected a model")
    assert_refused(["solve", "run/model.zarr"], "holds a RidgeModel", "expected equations")
    for args in (["evaluate", "none", "train.zarr"], ["predict", "none", "train.zarr", "new.zarr"]):
        assert_refused(args, "none", "check the path")
    metadata = Path("train.zarr/zarr.json")
    metadata.write_text(metadata.read_text().replace('"complete": true', '"complete": false'))
    assert_refused(["evaluate", "run", "train.zarr"], "train.zarr", "never finished")
    Path("run/model.zarr/coef/c/0/0").unlink()
    assert_refused(["evaluate", "run", "train.zarr"], "run/model.zarr", "chunk coef/c/0/0 is missing")


def test_grids_that_cannot_be_solved(command: Command, fitted: Table) -> None:
    assert_refused(["solve", "run", "--alphas", "1", "--alphas-per-row", "1"], "both", "give one")
    assert_refused(["solve", "run", "--alphas", "-1"], "alphas are [-1.0]", "none negative")


@pytest.mark.parametrize(
    "args",
    [
        ["nothing"],
        ["fit"],
        ["fit", "job.toml", "--nothing"],
        ["convert", "a.csv", "a.zarr", "--rows-per-partition", "0"],
        ["convert", "a.csv", "a.zarr", "--shuffle-seed", "-1"],
        ["solve", "run", "--alphas", "one"],
    ],
)
def test_wrong_usage(command: Command, args: list[str]) -> None:
    found = command(*args)
    assert found.exit_code == 2
    assert "Usage:" in found.stderr
    assert tree() == []


def test_tracebacks_only_on_demand(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(["fit", "none.toml"], "none.toml")
    for args in (["--debug", "fit", "none.toml"], ["fit", "none.toml", "--debug"]):
        assert isinstance(command(*args).exception, nd.SpecError)

    def defect(*_: object, **__: object) -> None:
        raise KeyError("a defect\nof two lines")

    monkeypatch.setattr(nd.Job, "read", defect)
    assert_refused(["fit", "job.toml"], "KeyError", "a defect", "--debug")
    assert isinstance(command("fit", "job.toml", "--debug").exception, KeyError)
