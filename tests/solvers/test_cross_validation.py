"""Folds by groups, by time and by a holdout, and balanced classes, against scikit-learn's."""

from pathlib import Path
from typing import Any

import dask
import msgspec
import numpy as np
import pytest
from folds import ALPHAS, FEATURES, GROUPS, job_on, scaled
from hypothesis import given
from hypothesis import strategies as st
from interrupted import Cut, CutAfter, same
from numpy.typing import NDArray
from plans import plan_of
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit

import ntkdist as nd
from ntkdist.cluster.connect import resources
from ntkdist.cluster.shards import Source, blocks
from ntkdist.cluster.tally import Tally
from ntkdist.planning import estimate


def assert_scores_are_those_of_refitting(
    cv: nd.CVResult | None, x: NDArray[Any], y: NDArray[Any], fold: NDArray[Any]
) -> None:
    assert cv is not None
    z = FEATURES(scaled(x))
    for a, alpha in enumerate(cv.alphas):
        for k in range(cv.mse.shape[1]):
            ridge = Ridge(alpha=alpha, solver="cholesky").fit(z[fold != k], scaled(y)[fold != k])
            mse = ((ridge.predict(z[fold == k]) - scaled(y)[fold == k]) ** 2).mean(axis=0) * y.var(axis=0)
            np.testing.assert_allclose(cv.mse[a, k], mse, rtol=1e-7)


def folds_of(plan: nd.Plan) -> NDArray[np.int64]:
    """Return the fold of every row, read as the equations read it; fail unless each row is in exactly one."""
    source = Source(plan.dataset, plan.layout, 37, 1, folds=plan.folds if plan.dataset.fold_array else 0)
    found = np.full(plan.layout.rows, -1)
    for task in plan.tasks():
        for rows in blocks(source, [plan.layout.span(p) for p in task.partitions], Tally(), task.fold):
            assert (found[rows.places] == -1).all()
            found[rows.places] = task.fold
    assert found.tolist() == np.concatenate([plan.folds_of(i) for i in range(plan.layout.partitions)]).tolist()
    return found


# groups


def test_scores_by_group_are_those_of_refitting(make_dataset: Any, table: Any) -> None:
    job = job_on(make_dataset(*table, groups=GROUPS), groups="groups")
    result = nd.fit(job)
    assert_scores_are_those_of_refitting(result.cv, *table, folds_of(nd.plan(job)))
    assert result.report["data"]["rows"] == 900
    assert result.report["data"]["folds"] == {"count": 5, "dealt_by": "groups", "contiguous": False}
    x, y = table
    ridge = Ridge(alpha=result.model.alpha[0], solver="cholesky").fit(FEATURES(scaled(x)), y)
    np.testing.assert_allclose(result.model(x), ridge.predict(FEATURES(scaled(x))), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("rows_per_partition", "folds"), [(13, 5), (50, 2), (50, 9), (300, 1)])
def test_no_group_crosses_folds_and_every_row_is_in_one(make_dataset: Any, rows_per_partition, folds) -> None:
    rng = np.random.default_rng(folds)
    groups = rng.choice(np.array([-(2**63), -1, 0, 1, 2**53, 2**53 + 1, 2**63 - 1, *range(2, 40)]), 300)
    store = make_dataset(np.ones((300, 2)), np.ones(300), groups=groups, rows_per_partition=rows_per_partition)
    plan = nd.plan(job_on(store, {"folds": folds, "shards": 3 * folds}, (1.0,), groups="groups"))
    found = folds_of(plan)
    of = dict(zip(groups.tolist(), found.tolist(), strict=True))
    assert [of[g] for g in groups.tolist()] == found.tolist()
    assert set(found.tolist()) == set(range(folds))
    other = make_dataset(np.ones((200, 2)), np.ones(200), "other", groups=groups[199::-1], rows_per_partition=27)
    again = folds_of(nd.plan(job_on(other, {"folds": folds}, (1.0,), groups="groups")))
    assert again.tolist() == found[199::-1].tolist()  # by the value alone, wherever the row lies


def test_groups_are_dealt_evenly(make_dataset: Any) -> None:
    store = make_dataset(np.ones((5000, 1)), np.ones(5000), groups=np.arange(5000) * 7)
    counts = np.bincount(folds_of(nd.plan(job_on(store, groups="groups"))))
    assert ((counts - 1000) ** 2 / 1000).sum() < 24  # chi-squared with 4 degrees of freedom: 24 has probability 1e-4


@pytest.mark.slow
def test_groups_give_the_same_bits_everywhere(make_dataset: Any, table: Any, two_workers: Any) -> None:
    job = job_on(
        make_dataset(*table, groups=GROUPS, rows_per_partition=45), {"dtype": "float32", "shards": 12}, groups="groups"
    )
    plan = nd.plan(job)
    with dask.config.set(scheduler="synchronous"):
        here = nd.fit(plan)
    with dask.config.set(scheduler="threads", num_workers=3):
        same(here, nd.fit(plan))
    same(here, nd.fit(plan, client=two_workers))
    same(here, nd.fit(msgspec.structs.replace(plan, threads=2)))


def test_a_run_by_groups_that_was_cut_off_goes_on_to_the_same_bits(
    make_dataset: Any, table: Any, tmp_path: Path
) -> None:
    """Shards of different folds read the same rows and are kept apart."""
    job, out = job_on(make_dataset(*table, groups=GROUPS), {"folds": 3}, groups="groups"), str(tmp_path / "run")
    straight = nd.fit(job)
    with pytest.raises(Cut):
        nd.fit(job, out=out, watch=CutAfter(4))
    result = nd.fit(job, out=out, resume=True)
    same(result, straight)
    assert "of 6 shards were finished before" in " ".join(result.report["notes"])


def test_rows_that_are_dropped_are_counted_once(make_dataset: Any, table: Any) -> None:
    x = table[0].copy()
    x[[3, 4, 500], 0] = np.nan
    store = make_dataset(x, table[1], groups=GROUPS)
    with pytest.raises(nd.DataError, match=r"NaN or Inf in 2 of the rows 0–\d+, first in row 3"):
        nd.fit(job_on(store, groups="groups"))
    result = nd.fit(job_on(store, groups="groups", nan="drop"))
    assert (result.report["data"]["rows"], result.report["data"]["dropped_rows"]) == (897, 3)
    assert result.equations.total.weight == 897


def test_what_a_plan_counts(make_dataset: Any, table: Any) -> None:
    """Each fold reads the partitions that it has rows in; rows are mapped once."""
    store = make_dataset(*table, groups=np.repeat(np.arange(90), 10))
    plain, by = nd.plan(job_on(store)), nd.plan(job_on(store, groups="groups"))
    costs = [estimate.cost(p, resources(None)) for p in (plain, by)]
    assert [c["bytes_read"] for c in costs] == [2 * 900 * 40, 6 * 900 * 40]
    assert costs[0]["gram_flops"] == costs[1]["gram_flops"]
    assert "5 folds by 'groups'" in (said := estimate.table(by, resources(None), costs[1]))
    assert "device     cpu" in said.splitlines()
    plain, by = (msgspec.structs.replace(p, block_rows=44) for p in (plain, by))
    assert by.memory()["batch"] - plain.memory()["batch"] == plain.layout.rows_per_partition * 40
    read = nd.fit(by).report["run"]["bytes_read"]
    assert 900 * 56 < read < 5 * 900 * 56  # some partitions have no row of some folds
    assert nd.plan(job_on(store, {"shards": 1000}, groups="groups")).shards == 5 * plain.layout.partitions


# folds of consecutive rows


def test_scores_of_consecutive_rows_are_those_of_refitting(make_dataset: Any, table: Any) -> None:
    store = make_dataset(*table, rows_per_partition=45)
    result = nd.fit(job_on(store, {"contiguous": True, "folds": 3}))
    fold = np.arange(900) // 45 * 3 // 20
    assert_scores_are_those_of_refitting(result.cv, *table, fold)
    assert folds_of(nd.plan(job_on(store, {"contiguous": True, "folds": 3}))).tolist() == fold.tolist()


@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 300))
def test_contiguous_folds_are_runs_of_partitions(partitions: int, folds: int, shards: int) -> None:
    folds = min(folds, partitions)
    p = plan_of(partitions, folds=folds, shards=max(folds, min(shards, partitions)))
    tasks = msgspec.structs.replace(p, job=job_on("none", {"contiguous": True})).tasks()
    assert [i for t in tasks for i in t.partitions] == list(range(partitions))
    assert all(i * folds // partitions == t.fold for t in tasks for i in t.partitions)


# a holdout


@pytest.mark.parametrize("kind", [bool, np.int64, float])
def test_a_holdout_is_scikit_learns_predefined_split_with_refit(make_dataset: Any, table: Any, kind: Any) -> None:
    x, y = table[0], table[1][:, 0]
    out = np.random.default_rng(0).random(900) < 0.3
    result = nd.fit(job_on(make_dataset(x, y, holdout=out.astype(kind)), holdout="holdout"))
    search = GridSearchCV(
        Ridge(solver="cholesky"),
        {"alpha": ALPHAS},
        scoring="neg_mean_squared_error",
        cv=PredefinedSplit(np.where(out, 0, -1)),
    ).fit(FEATURES(scaled(x)), scaled(y))
    assert result.cv is not None
    np.testing.assert_allclose(result.cv.mse[:, 0, 0], -search.cv_results_["mean_test_score"] * y.var(), rtol=1e-7)
    assert result.model.alpha == [search.best_params_["alpha"]]
    np.testing.assert_allclose(result.model(x), search.predict(FEATURES(scaled(x))) * y.std() + y.mean(), rtol=1e-6)
    assert (result.cv.scored, result.cv.mse.shape) == ((1,), (3, 1, 1))
    assert np.isnan(result.cv.standard_error)
    assert "one fold of 2 was scored" in result.cv.note
    assert any("rows held out by 'holdout', then all were used" in note for note in result.report["notes"])


def test_penalties_per_row_are_scaled_by_the_training_set_then_by_all(make_dataset: Any, table: Any) -> None:
    out = np.arange(900) % 3 == 0
    job = job_on(make_dataset(*table, holdout=out), alphas="auto", holdout="holdout")
    per_row = nd.fit(msgspec.structs.replace(job, alphas_per_row=(1e-3,)))
    absolute = nd.fit(msgspec.structs.replace(job, alphas=(0.6,)))
    assert per_row.cv is not None
    assert absolute.cv is not None
    np.testing.assert_allclose(per_row.cv.mse, absolute.cv.mse, rtol=1e-12)
    np.testing.assert_allclose(per_row.model.alpha, 0.9)


def test_scored_folds_are_saved_and_must_agree_to_add(make_dataset: Any, table: Any, tmp_path: Path) -> None:
    store = make_dataset(*table, holdout=np.arange(900) % 4 == 0)
    held, plain = (
        nd.fit(job_on(store, plan, **dataset)).equations
        for plan, dataset in (({}, {"holdout": "holdout"}), ({"folds": 2}, {}))
    )
    nd.save(held, str(tmp_path / "held.zarr"))
    loaded = nd.load(str(tmp_path / "held.zarr"))
    assert loaded.scored == (1,)
    assert (held - loaded).scored == (1,)
    _, cv = nd.solve(loaded, alphas=ALPHAS)
    assert cv is not None
    assert cv.scored == (1,)
    assert cv.to_dict()["scored_folds"] == [1]
    with pytest.raises(nd.DataError, match=r"Equations of different scored folds do not add \(\(1,\) and all\)"):
        held + plain
    for scored in ((), (2,), (-1,)):
        with pytest.raises(nd.SpecError, match=r"scored folds are .*; expected one or more of 0 to 1"):
            nd.cross_validate(held.folds, nd.Cholesky(), ALPHAS, scored=scored)


# what cannot be


def test_jobs_that_cannot_be() -> None:
    for dataset, plan, says in (
        ({"groups": "g", "holdout": "h"}, {}, r"both groups \('g'\) and holdout \('h'\) are given; give one"),
        ({"holdout": "h"}, {"folds": 2}, r"both folds \(2\) and holdout \('h'\) are given; leave out folds"),
        ({"groups": "g"}, {"contiguous": True}, "contiguous deals partitions to folds, but 'g' deals rows"),
        ({"holdout": "h"}, {"contiguous": True}, "contiguous deals partitions to folds, but 'h' deals rows"),
    ):
        with pytest.raises(nd.SpecError, match=says):
            job_on("none", plan, **dataset)


def test_arrays_that_cannot_deal_rows(make_dataset: Any, table: Any) -> None:
    x, y = table
    store = make_dataset(x, y, groups=GROUPS % 2, holdout=np.zeros(900, int))
    for dataset, says in (
        ({"groups": "group"}, "no array 'group'; did you mean 'groups'"),
        ({"groups": "x"}, r"array 'x' has shape \(900, 5\) and type float64; expected integers, one a row; convert"),
        ({"holdout": "y"}, r"array 'y' has shape .* expected 0 and 1, one a row; convert again with --holdout"),
    ):
        with pytest.raises(nd.DataError, match=says):
            nd.plan(job_on(store, **dataset))
    with pytest.raises(nd.DataError, match=r"only [12] of 5 folds get rows from the groups of 'groups'.*; lower folds"):
        nd.fit(job_on(store, groups="groups"))
    with pytest.raises(nd.DataError, match="no row is held out by 'holdout'; expected 1 for some rows and 0 for oth"):
        nd.fit(job_on(store, holdout="holdout"))
    with pytest.raises(nd.DataError, match="all rows are held out by 'holdout'"):
        nd.fit(job_on(make_dataset(x, y, "all", holdout=np.ones(900, int)), holdout="holdout"))
    with pytest.raises(nd.DataError, match=r"array 'groups' is -?\d+ in row \d+; expected 0, or 1"):
        nd.fit(job_on(make_dataset(x, y, "wrong", groups=GROUPS), holdout="groups"))
    with pytest.raises(nd.SpecError, match=r'class_weight = "balanced" but the targets of .* are numbers; leave'):
        nd.plan(msgspec.structs.replace(job_on(store), class_weight="balanced"))
