"""Groups and holdouts from a table to a fit: converted as they are, named where they are missing, and used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import FEATURES as FEATURES_TABLE
from command_line import Command, columns, write_csv, write_job
from folds import GROUPS
from numpy.typing import NDArray
from scipy.sparse import random_array, save_npz

import ntkdist as nd


def everything(store: Path | str) -> dict[str, NDArray[Any]]:
    """Arrays beside the inputs, in the order of the source."""
    dataset = nd.Dataset(str(store))
    layout = dataset.layout(labelled=False)
    names = [n for n in dataset.others() if "/" not in n]
    arrays = {n: dataset.column(layout, n, 0, layout.rows) for n in names}
    return {n: a[np.argsort(arrays["row"])] for n, a in arrays.items()}


BIG = 2**53 + 1 + GROUPS.astype(np.int64)
HELD = GROUPS % 3 == 0
CITIES = np.array(["Rome", "Oslo", "Bern"])[GROUPS % 3]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["npz", "npy", "sparse", "csv", "parquet"])
def test_groups_and_holdouts_are_converted_as_they_are(tmp_path: Path, suffix: str) -> None:
    x = np.random.default_rng(0).standard_normal((900, 2))
    options = {"groups": "g", "holdout": "h"}
    source = tmp_path / f"a.{suffix}"
    table = {"a": x[:, 0], "b": x[:, 1], "g": BIG, "h": HELD}
    if suffix == "npz":
        np.savez(source, x=x, g=BIG, h=HELD)
    elif suffix in ("csv", "parquet"):
        import pyarrow as pa
        from pyarrow import parquet

        if suffix == "csv":
            write_csv(str(source), table, *table)
        else:
            parquet.write_table(pa.table(table), source)
    else:
        for name, array in {"g": BIG, "h": HELD, "a": x}.items():
            np.save(tmp_path / f"{name}.npy", array)
        options = {role: str(tmp_path / f"{name}.npy") for role, name in options.items()}
        if suffix == "sparse":
            source = tmp_path / "a.npz"
            save_npz(source, random_array((900, 2), density=0.5, format="csr", rng=np.random.default_rng(0)))
    layout = nd.convert(str(source), str(tmp_path / "d"), **options)  # type: ignore[arg-type]
    found = everything(tmp_path / "d")
    assert layout.input_shape == (2,)
    assert (found["groups"].dtype, found["holdout"].dtype) == (np.int64, np.uint8)
    np.testing.assert_array_equal(found["groups"], BIG)
    np.testing.assert_array_equal(found["holdout"], HELD)
    if suffix in ("npy", "sparse"):
        attrs = json.loads((tmp_path / "d" / "zarr.json").read_text())["attributes"]["source"]
        assert {"groups", "holdout"} <= attrs.keys()


def test_a_string_is_the_same_group_in_every_file(tmp_path: Path) -> None:
    x = np.arange(900.0)
    np.savez(tmp_path / "a.npz", x=x, g=CITIES)
    np.savez(tmp_path / "b.npz", x=x[:500], g=np.char.encode(CITIES[:500]))
    write_csv(str(tmp_path / "c.csv"), {"a": x, "g": CITIES}, "a", "g")
    for name in ("a.npz", "b.npz", "c.csv"):
        nd.convert(str(tmp_path / name), str(tmp_path / f"{name}.zarr"), groups="g")
    one, half, other = (everything(tmp_path / f"{name}.zarr")["groups"] for name in ("a.npz", "b.npz", "c.csv"))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one[:500], half)
    assert len(set(zip(CITIES, one, strict=True))) == len(set(one.tolist())) == 3


@pytest.mark.parametrize("block", [100, 16 * 2**20])
@pytest.mark.parametrize("suffix", ["npz", "csv", "parquet"])
def test_rows_without_a_group_are_named(tmp_path: Path, suffix: str, block: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("ntkdist.data.sources.BLOCK_BYTES", block)
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, list[Any]] = {
        "x": [1.0] * 9,
        "g": [1, 1, 2, 3, None, 5, 6, 1.0, 1],
        "s": [*"abcdefg", None, "h"],
    }
    columns |= {"h": [0, 1, 0, 1, 0, 2, 0, 1, 1], "f": [0.5, *[1.0] * 8]}
    source = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        del columns["s"]
        np.savez(source, **{k: np.array(v, float) for k, v in columns.items()})
    elif suffix == "csv":
        write_csv(str(source), {k: np.array(["" if i is None else i for i in v]) for k, v in columns.items()}, *columns)
    else:
        parquet.write_table(pa.table(columns), source)
    for options, says in (
        ({"groups": "g"}, r"'g' of a\.\w+ is nan in row 4; expected whole numbers or strings: mend the source"),
        ({"groups": "s"}, r"'s' of a\.\w+ is None in row 7; expected a group for every row"),
        ({"groups": "f"}, r"'f' of a\.\w+ is 0\.5 in row 0; expected whole"),
        ({"holdout": "h"}, r"'h' of a\.\w+ is 2(\.0)? in row 5; expected 0, or 1"),
        ({"holdout": "g"}, r"'g' of a\.\w+ is "),
    ):
        if set(options.values()) <= columns.keys():
            with pytest.raises(nd.DataError, match=says):
                nd.convert(str(source), str(tmp_path / "d"), **options)
    assert not (tmp_path / "d").exists()


@pytest.mark.slow
def test_the_command_line_from_table_to_predictions(command: Command) -> None:
    """Converted with both, fitted by either; features and predictions keep them."""
    table = columns() | {"who": np.repeat([f"p{i}" for i in range(40)], 6), "late": (np.arange(240) > 180).astype(int)}
    write_csv("train.csv", table, *"abc", "word", "who", "late")
    found = command(
        *("convert", "train.csv", "train.zarr", "--target", "word", "--groups", "who", "--holdout", "late"),
        *("--shuffle-seed", "none"),
    )
    assert found.exit_code == 0, found.output
    assert "240 rows of 3 float64" in found.stdout
    store = 'train.zarr"\nholdout = "holdout'
    job = write_job(store=store, top='class_weight = "balanced"\nalphas = [0.1, 1.0]')
    found = command("fit", job, "--out", "held")
    assert found.exit_code == 0, found.output
    report = json.loads(Path("held/report.json").read_text())
    assert report["cv"]["mse_standard_error"] is None
    assert report["cv"]["scored_folds"] == [1]
    assert report["plan"]["folds"] == 2
    assert len(report["data"]["class_weight"]) == 3
    assert nd.CVResult.from_dict(report["cv"]).scored == (1,)
    assert command("solve", "held", "--alphas", "1").exit_code == 0
    job = write_job("groups.toml", store='train.zarr"\ngroups = "groups', features=FEATURES_TABLE)
    assert command("fit", job, "--out", "run").exit_code == 0
    assert command("plan", job).exit_code == 0
    assert command("featurize", job, "features.zarr").exit_code == 0
    assert command("predict", "run", "train.zarr", "predicted.zarr").exit_code == 0
    source, features = everything("train.zarr"), everything("features.zarr")
    import zarr

    predicted = zarr.open_group("predicted.zarr", mode="r")
    for name in ("groups", "holdout"):
        np.testing.assert_array_equal(features[name], source[name])
        np.testing.assert_array_equal(np.asarray(predicted[name]), source[name])
    np.testing.assert_array_equal(source["holdout"], table["late"])
    assert nd.Dataset("features.zarr", groups="groups").layout().rows == 240
