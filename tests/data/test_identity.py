"""What a dataset and a job are: equal fingerprints for equal content only, and what differs said in words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from converted import DIGITS, W, X, Y, convert
from scipy import sparse

import ntkdist as nd
from ntkdist.data.partitions import Content
from ntkdist.planning.job import job_digest
from ntkdist.spec import digest

OTHERS: dict[str, dict[str, Any]] = {
    "target": {"target": ["u"]},
    "classes": {"classes": True, "target": ["k"]},
    "inputs": {"x": "v"},
    "weight": {"weight": "w"},
    "another weight": {"weight": "u"},
    "groups": {"groups": "k"},
    "holdout": {"holdout": "half"},
    "another holdout": {"holdout": "other half"},
    "shuffle": {"shuffle_seed": 1},
    "no shuffle": {"shuffle_seed": None},
    "partitions": {"rows_per_partition": 40},
}


@pytest.fixture
def source(tmp_path: Path) -> str:
    arrays = {"y": Y, "u": W, "w": W[::-1], "v": X + 1, "k": DIGITS, "half": DIGITS % 2, "other half": 1 - DIGITS % 2}
    np.savez(tmp_path / "a.npz", x=X, **arrays)
    return str(tmp_path / "a.npz")


def test_conversions_that_took_other_arrays_or_rows_have_other_fingerprints(source: str, tmp_path: Path) -> None:
    asked = {"plain": {}, **OTHERS, "numbers": {"target": ["k"]}}
    found = {name: convert(source, str(tmp_path / name), **options).fingerprint for name, options in asked.items()}
    assert len(set(found.values())) == len(asked), found


def test_the_same_rows_have_the_same_fingerprint_wherever_they_are(source: str, tmp_path: Path) -> None:
    first = convert(source, str(tmp_path / "a"), weight="w").fingerprint
    (tmp_path / "moved").mkdir()
    again = str(shutil.move(source, tmp_path / "moved" / "b.npz"))
    assert convert(again, str(tmp_path / "moved" / "a"), weight="w").fingerprint == first


def test_columns_of_a_table_by_their_content_and_names(tmp_path: Path) -> None:
    rows = "\n".join(f"{a},{b},{b},{i}" for i, (a, b) in enumerate(zip(Y, W, strict=True)))
    for name, head in (("a", "p,q,r,t"), ("b", "p,s,r,t")):
        (tmp_path / f"{name}.csv").write_text(f"{head}\n{rows}\n")
    of = [
        convert(str(tmp_path / "a.csv"), str(tmp_path / "1"), target=["t"], weight="q"),
        convert(str(tmp_path / "a.csv"), str(tmp_path / "2"), target=["t"], weight="p"),
        convert(str(tmp_path / "a.csv"), str(tmp_path / "3"), target=["t"]),
        convert(str(tmp_path / "b.csv"), str(tmp_path / "4"), target=["t"]),
    ]
    assert len({each.fingerprint for each in of}) == 4


def test_sparse_rows_by_their_content(tmp_path: Path) -> None:
    x = sparse.random_array((60, 9), density=0.3, format="csr", rng=np.random.default_rng(0))
    other = x.copy()
    other.data[7] += 1
    found = []
    for name, rows in (("a", x), ("b", x), ("c", other)):
        sparse.save_npz(tmp_path / f"{name}.npz", rows)
        found.append(convert(str(tmp_path / f"{name}.npz"), str(tmp_path / name), rows_per_partition=20).fingerprint)
    assert found[0] == found[1] != found[2]


@pytest.mark.slow
@pytest.mark.cluster
def test_features_by_their_content_whoever_made_them(source: str, tmp_path: Path, two_workers: Any) -> None:
    convert(source, str(tmp_path / "d"), rows_per_partition=20)
    shutil.copytree(tmp_path / "d", tmp_path / "e")

    def made(of: str, name: str, inputs: Any, client: Any = None) -> str:
        pre = nd.Preprocess(inputs=inputs)
        nd.featurize(str(tmp_path / of), nd.Linear(3), str(tmp_path / name), preprocess=pre, client=client)
        return nd.Dataset(str(tmp_path / name)).layout().fingerprint

    plain = made("d", "1", "none")
    assert made("e", "2", "none", two_workers) == plain  # spans in another order, of another place
    assert made("d", "3", "columns") != plain


def test_content_is_a_sum_and_knows_where_rows_are() -> None:
    a, b = np.arange(6.0), np.arange(6.0, 12.0)
    pieces = [Content.of("x", 0, a), Content.of("x", 6, b), Content.of("y", 0, a)]
    total = pieces[0] + pieces[1] + pieces[2]
    assert total == pieces[2] + (pieces[1] + pieces[0])
    assert set(total.to_dict()) == {"x", "y"}
    others = [Content.of("x", 6, a) + Content.of("x", 0, b), Content.of("x", 0, a.view(np.int64)) + pieces[1]]
    assert len({each.to_dict()["x"] for each in (total, *others, pieces[0], pieces[2] + pieces[1])}) == 5


def test_a_dataset_of_before_is_named_by_its_attributes(source: str, tmp_path: Path) -> None:
    """The digests were not recorded then; it loads, and a run of then on it is known again."""
    found = []
    for seed in (0, 1):
        convert(source, str(tmp_path / str(seed)), shuffle_seed=seed)
        path = tmp_path / str(seed) / "zarr.json"
        meta = json.loads(path.read_text())
        del meta["attributes"]["content"]
        path.write_text(json.dumps(meta))
        found.append(nd.Dataset(str(tmp_path / str(seed))).layout().fingerprint)
        assert found[-1] == digest(meta["attributes"])
    assert found[0] != found[1]


# runs


@pytest.fixture
def fit(source: str, tmp_path: Path) -> Callable[..., nd.FitResult]:
    """Fit to a new dataset at the same place, in the same run directory or with the same checkpoint."""

    def fit(changes: dict[str, Any], *, checkpoint: bool = False, **options: Any) -> nd.FitResult:
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        convert(source, str(tmp_path / "d"), **({"weight": "w", "rows_per_partition": 20} | options))
        table = nd.PlanTable(folds=2, checkpoint=str(tmp_path / "kept") if checkpoint else "")
        dataset = nd.Dataset(str(tmp_path / "d"), **changes.pop("dataset", {}))
        job = nd.Job(dataset, changes.pop("features", nd.Linear(3)), alphas=(1.0,), plan=table)
        return nd.fit(msgspec.structs.replace(job, **changes), out="" if checkpoint else str(tmp_path / "run"))

    return fit


DIFFERENCES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"target": ["u"]}, "the dataset has other content"),
    ({}, {"shuffle_seed": 1}, "the dataset has other content"),
    ({"features": nd.RandomFourier(8)}, {}, 'features.type is "Linear" there and "RandomFourier" here'),
    (
        {"dataset": {"weight": "weight", "nan": "drop"}},
        {},
        'dataset.nan is "error" there and "drop" here, dataset.weight is "" there and "weight" here',
    ),
    (
        {"preprocess": nd.Preprocess(inputs="none")},
        {"target": ["u"]},
        'preprocess.inputs is "auto" there and "none" here, the dataset has other content',
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True], ids=["run", "checkpoint"])
def test_what_differs_is_said(fit: Callable[..., nd.FitResult], kept: bool) -> None:
    """What is refused leaves what is there, for the next and for the same again."""
    before = fit({}, checkpoint=kept)
    head = "kept is the checkpoint of another job or of other data" if kept else "run holds another run"
    for changes, options, said in DIFFERENCES:
        with pytest.raises(nd.StoreError) as caught:
            fit(dict(changes), checkpoint=kept, **options)
        assert f"{head}: {said}; choose another" in str(caught.value)
    np.testing.assert_array_equal(fit({}, checkpoint=kept).model.coef, before.model.coef)


@pytest.mark.slow
def test_penalties_differ_between_runs_but_not_between_sums(fit: Callable[..., nd.FitResult]) -> None:
    fit({}, checkpoint=True)
    fit({"alphas": (2.0,)}, checkpoint=True)
    fit({})
    with pytest.raises(nd.StoreError, match=r"another run: alphas is \[1\.0\] there and \[2\.0\] here; choose"):
        fit({"alphas": (2.0,)})


@pytest.mark.slow
def test_a_run_of_before_says_no_more_than_its_digest(fit: Callable[..., nd.FitResult], tmp_path: Path) -> None:
    name = fit({}).report["digest"]
    (tmp_path / "run" / "job.json").write_text(json.dumps({"digest": name}))
    fit({})
    with pytest.raises(nd.StoreError, match=rf"run holds another run \({name}, this job is \w+\); choose"):
        fit({"alphas": (2.0,)})


def test_how_a_dataset_is_read_is_part_of_a_job(source: str, tmp_path: Path) -> None:
    everything = {"weight": "w", "groups": "k", "holdout": "half"}
    convert(source, str(tmp_path / "d"), **everything)
    of: list[dict[str, Any]] = [
        *({}, {"y": "weight"}, {"x": "z"}, {"weight": "weight"}, {"groups": "groups"}, {"holdout": "holdout"}),
        *({"nan": "drop"}, {"damaged": "skip"}),
    ]
    shutil.copytree(tmp_path / "d" / "x", tmp_path / "d" / "z")
    meta = json.loads((tmp_path / "d" / "zarr.json").read_text())
    meta["attributes"]["arrays"]["z"] = meta["attributes"]["arrays"]["x"]
    (tmp_path / "d" / "zarr.json").write_text(json.dumps(meta))
    names = {job_digest(nd.Job(nd.Dataset(str(tmp_path / "d"), **each), nd.Linear(3))) for each in of}
    assert len(names) == len(of)
