"""Tables as they are, end to end: encoded out of fold, to the same bits anywhere, and saved with the model."""

import re
from pathlib import Path
from typing import Any

import dask
import msgspec
import numpy as np
import pandas as pd
import pytest
from interrupted import Cut, CutAfter, same
from sums_compared import assert_same_bits
from tabular import COLUMNS, N, converted, frame

import ntkdist as nd
from ntkdist.data import zarr_groups
from ntkdist.ridge.residuals import fold_models
from ntkdist.sums import NormalEquations

FEATURES = nd.NTKRandomFeatures(n_components=96, depth=1, bias=0.5)
PLAN = nd.PlanTable(folds=4, threads=1)


def job_on(store: str, nan: Any = "impute", **changes: Any) -> nd.Job:
    return msgspec.structs.replace(nd.Job(nd.Dataset(store, nan=nan), FEATURES, plan=PLAN), **changes)


def fit_of(store: str, **changes: Any) -> nd.FitResult:
    return nd.fit(job_on(store, **changes))


@pytest.mark.parametrize("front", ["standard", "both", "target-bins"])
def test_one_plan_gives_the_same_bits_everywhere(tmp_path: Path, two_workers: Any, front: Any) -> None:
    job = job_on(converted(tmp_path, frame()), preprocess=nd.Preprocess(front=front))
    plan = nd.plan(msgspec.structs.replace(job, plan=msgspec.structs.replace(PLAN, shards=8)))
    with dask.config.set(scheduler="synchronous"):
        here = nd.fit(plan)
    with dask.config.set(scheduler="threads", num_workers=3):
        threads = nd.fit(plan)
    there = nd.fit(plan, client=two_workers)
    for other in (threads, there):
        assert_same_bits(here.equations.folds, other.equations.folds)
        np.testing.assert_array_equal(here.model.coef, other.model.coef)
        assert here.model.preprocessing.digest() == other.model.preprocessing.digest()


def test_training_rows_are_encoded_by_the_other_folds(tmp_path: Path) -> None:
    """The sums of a fold are of features of its rows as an encoding without its targets makes them."""
    dataset = nd.Dataset(converted(tmp_path, frame()), nan="impute")
    found = nd.fit(job_on(dataset.store, plan=msgspec.structs.replace(PLAN, dtype="float64")))
    pre, rows = found.model.preprocessing, dataset.read(dataset.layout(), 0, N)
    fold = np.arange(N) // 50 % 4
    for k, sums in enumerate(found.equations.folds):
        mine = fold == k
        z = FEATURES(pre.for_fold(k).inputs(rows.x[mine], "float64"))
        expected = NormalEquations.zeros(96, 1).update(z, pre.targets(rows.y[mine]))
        np.testing.assert_allclose(sums.gram, expected.gram, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(sums.rhs, expected.rhs, rtol=1e-10, atol=1e-10)
        assert np.abs(FEATURES(pre.inputs(rows.x[mine], "float64")).sum(axis=0) - sums.z_sum).max() > 1e-3


def test_cross_validation_is_of_the_models_of_the_folds(tmp_path: Path) -> None:
    """Its error is that of predictions of each fold's rows by the model that knows nothing of them."""
    dataset = nd.Dataset(converted(tmp_path, frame()), nan="impute")
    found = nd.fit(job_on(dataset.store, plan=msgspec.structs.replace(PLAN, dtype="float64")))
    rows, fold = dataset.read(dataset.layout(), 0, N), np.arange(N) // 50 % 4
    models = fold_models(nd.Cholesky(), found.equations, found.cv)
    errors = [np.mean((models[k](rows.x[fold == k]) - rows.y[fold == k]) ** 2) for k in range(4)]
    assert found.cv.rmse == pytest.approx(np.sqrt(np.mean(errors)), rel=1e-6)


@pytest.mark.parametrize("changes", [{"groups": "g"}, {"holdout": "h"}, {"folds": 2}, {"folds": 1}], ids=str)
def test_folds_of_every_kind_leave_a_rows_own_target_out(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Targets are noise: names would predict the rows they are learnt of, if those entered, and predict nothing new."""
    data, rng = frame(), np.random.default_rng(5)
    data = data[["shop", "y"]].assign(shop=rng.integers(0, 200, N).astype(str), y=rng.normal(size=N))
    options = {"category": ["shop"]}
    data = data.assign(g=rng.integers(0, 60, N), h=(np.arange(N) % 3 == 0).astype(int))
    options |= {"groups": "g"} if "groups" in changes else {"drop": ["g"]}
    options["drop"] = [c for c in "gh" if c not in (changes.get("groups"), changes.get("holdout"))]
    options |= {"holdout": "h"} if "holdout" in changes else {}
    source = tmp_path / "noise.csv"
    data.to_csv(source, index=False)
    nd.convert(str(source), str(tmp_path / "d"), target=["y"], rows_per_partition=50, shuffle_seed=None, **options)
    named = {role: role for role in ("groups", "holdout") if role in changes}
    table = nd.PlanTable(folds=changes.get("folds"), dtype="float64")
    found = nd.fit(nd.Job(nd.Dataset(str(tmp_path / "d"), **named), nd.Linear(2), alphas=(1e-6,), plan=table))
    explained = 1 - found.equations.total.loss(found.model.coef / found.model.preprocessing.y_scale, np.zeros(1)) / N
    assert abs(float(explained[0])) < 0.05
    assert np.std(data["y"]) == pytest.approx(1, abs=0.1)
    if found.cv is not None:
        assert found.cv.rmse == pytest.approx(1, abs=0.15)


def test_categories_dates_and_gaps_are_worth_more_than_the_numbers(tmp_path: Path) -> None:
    data = frame(1200)
    whole = fit_of(converted(tmp_path, data, rows_per_partition=100))
    numbers = fit_of(converted(tmp_path, data[["size", "rate", "y"]], "numbers", category=(), rows_per_partition=100))
    assert whole.cv.rmse < 0.6 * numbers.cv.rmse
    pre = whole.model.preprocessing
    assert pre.columns == COLUMNS
    assert {"size missing", "city=", "code=12", "shop target", "day time of day sine"} <= set(pre.encoding.names)
    test = converted(tmp_path, frame(400, seed=1), "test")
    assert nd.evaluate(whole.model, test)["rmse"] == pytest.approx(whole.cv.rmse, rel=0.15)


@pytest.mark.parametrize("solver", [nd.TiledCholesky(), nd.PCG(sample_rows=96, tol=1e-10)], ids=["tiled", "pcg"])
def test_all_solvers_agree(tmp_path: Path, solver: Any) -> None:
    store = converted(tmp_path, frame())
    table = msgspec.structs.replace(PLAN, dtype="float64")
    dense = fit_of(store, alphas=(1.0, 10.0), plan=table)
    other = fit_of(store, alphas=(1.0, 10.0), plan=table, solver=solver)
    np.testing.assert_allclose(other.cv.mse, dense.cv.mse, rtol=1e-6)
    np.testing.assert_allclose(other.model.coef, dense.model.coef, rtol=1e-5, atol=1e-8)


def test_a_run_that_was_cut_off_continues(tmp_path: Path) -> None:
    job = job_on(converted(tmp_path, frame()), plan=msgspec.structs.replace(PLAN, shards=8))
    whole = nd.fit(job)
    with pytest.raises(Cut):
        nd.fit(job, out=str(tmp_path / "run"), watch=CutAfter(3))
    again = nd.fit(job, out=str(tmp_path / "run"))
    same(whole, again)
    assert any(re.match("[3-7] of 8 shards were finished before", note) for note in again.report["notes"])


@pytest.mark.parametrize("classes", [False, True])
def test_a_saved_model_takes_other_tables_by_name(tmp_path: Path, classes: bool) -> None:
    """Columns in another order, names absent, new or with other codes: each row gets what it did."""
    found = fit_of(converted(tmp_path, frame(classes=classes)))
    nd.save(found.model, str(tmp_path / "model.zarr"))
    model = nd.load(str(tmp_path / "model.zarr"))
    assert model.preprocessing.digest() == found.model.preprocessing.digest()
    new = frame(90, seed=2, classes=classes)
    new.loc[:4, "city"] = "Ulm"
    new = new[new["city"] != "Bern"]
    turned = new[[*reversed(COLUMNS), "y"]]
    nd.predict(model, converted(tmp_path, turned, "new", target=(), drop=["y"]), str(tmp_path / "out.zarr"))
    pre = model.preprocessing
    names = dict(zip(pre.columns, pre.encoding.categories, strict=True))
    x = new[list(COLUMNS)].copy()
    for column, known in names.items():
        if known:
            codes = {name: i for i, name in enumerate(known)}
            x[column] = [codes.get("" if pd.isna(v) else str(v), -1) for v in new[column]]
    x["day"] = (new["day"] - pd.Timestamp(0)).dt.total_seconds()
    key = "score" if classes else "prediction"
    predicted = zarr_groups.read_whole(str(tmp_path / "out.zarr"), key)
    np.testing.assert_allclose(predicted, model(x.to_numpy(np.float64)), rtol=1e-5, atol=1e-6)
    clipped = zarr_groups.read_attributes(str(tmp_path / "out.zarr"), ("ntkdist.predictions",))[1]["clipped_rows"]
    assert clipped >= 5
    assert nd.evaluate(model, converted(tmp_path, turned, "scored"))["clipped_rows"] == clipped


def test_sums_of_more_rows_add_whatever_their_codes(tmp_path: Path) -> None:
    first, second = frame(), frame(seed=7)
    second = second[second["city"] != "Bern"]
    run = str(tmp_path / "run")
    here = nd.fit(job_on(converted(tmp_path, first)), out=run)
    reuse = {"preprocess": nd.Preprocess(reuse=run)}
    there = fit_of(converted(tmp_path, second, "more"), **reuse)
    both = here.equations + there.equations
    assert both.total.weight == N + len(second)
    padded = pd.concat([second, first[first["city"] == "Bern"].iloc[:1]])  # so that codes are those of the first
    ordered = fit_of(converted(tmp_path, padded, "again", rows_per_partition=len(second) // 4 + 1), **reuse)
    again = fit_of(converted(tmp_path, second, "same", rows_per_partition=len(second) // 4 + 1), **reuse)
    for fold, other in zip(again.equations.folds[:3], ordered.equations.folds[:3], strict=True):
        np.testing.assert_array_equal(fold.gram, other.gram)
    pre = here.model.preprocessing
    x = converted(tmp_path, second, "rows")
    rows = nd.Dataset(x, nan="impute").read(nd.Dataset(x).layout(), 0, len(second))
    z = FEATURES(pre.inputs(pre.match(nd.Dataset(x).layout(), x)(rows).x, "float32"))
    np.testing.assert_allclose(there.equations.total.z_sum, z.sum(axis=0), rtol=0.2, atol=0.1 * len(z))
    with pytest.raises(nd.DataError, match=r"does not add, so that .* cannot be reused together"):
        fit_of(x, preprocess=nd.Preprocess(reuse=f"{run} + {run}"))


def test_a_scaling_of_whole_rows_refuses_gaps(make_dataset: Any, table: Any, tmp_path: Path) -> None:
    x = table[0].copy()
    nd.fit(job_on(make_dataset(*table)), out=str(tmp_path / "run"))
    x[70, 1] = np.nan
    with pytest.raises(nd.DataError, match=r"has NaN or Inf in 1 of the rows .*, first in row 70"):
        fit_of(make_dataset(x, table[1], name="gaps"), preprocess=nd.Preprocess(reuse=str(tmp_path / "run")))


def test_plain_numbers_are_fitted_as_before(make_dataset: Any, table: Any) -> None:
    """To the bit, and without an encoding, whatever nan says."""
    store = make_dataset(*table)
    plain, imputed = (fit_of(store, nan=nan) for nan in ("error", "impute"))
    assert imputed.model.preprocessing.encoding is None
    assert imputed.model.preprocessing.digest() == plain.model.preprocessing.digest()
    same(plain, imputed)


def test_the_planned_width_bounds_what_is_made(tmp_path: Path) -> None:
    store = converted(tmp_path, frame())
    for settings in (nd.Preprocess(), nd.Preprocess(front="bins", bins=5, one_hot=64)):
        job = job_on(store, preprocess=settings)
        (made,) = nd.fit(job).model.preprocessing.mapped_shape
        (bound,) = nd.plan(job).mapped_shape
        assert made <= bound <= made + 6  # marks of missing values, and bins of a column of two values


# refused


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rate": "x"}, "column 'rate' holds categories, but numbers in training; convert it as then"),
        ({"day": 1.0}, "column 'day' holds numbers, but dates in training"),
        ({"city": 3}, "column 'city' holds numbers, but categories in training; convert with --category city"),
    ],
)
def test_a_column_of_another_kind_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    model = fit_of(converted(tmp_path, frame())).model
    other = frame(60).assign(**change)
    other.assign(code="7").to_csv(tmp_path / "other.csv", index=False)
    nd.convert(str(tmp_path / "other.csv"), str(tmp_path / "other"), target=["y"], category=["code"])
    with pytest.raises(nd.DataError, match=sentence):
        nd.evaluate(model, str(tmp_path / "other"))


def test_a_missing_column_and_missing_values_are_refused(tmp_path: Path) -> None:
    model = fit_of(converted(tmp_path, frame())).model
    with pytest.raises(nd.DataError, match="column 'shop' of the model is missing"):
        nd.evaluate(model, converted(tmp_path, frame(60).drop(columns="shop"), "other"))
    with pytest.raises(nd.DataError, match=r"has NaN or Inf in .* of the rows .*"):
        fit_of(converted(tmp_path, frame(), "gaps"), nan="error")


def test_images_and_sparse_rows_have_no_front(make_dataset: Any) -> None:
    store = make_dataset(np.zeros((40, 4, 4, 1)), np.arange(40.0))
    with pytest.raises(nd.SpecError, match=r'front = "bins" is for tables of numbers, but the rows are images'):
        fit_of(store, nan="error", preprocess=nd.Preprocess(front="bins"))


def test_odd_columns_are_harmless(tmp_path: Path) -> None:
    """A name of one row, a column without values, one without variance, and one of a single name."""
    data = frame(240).assign(void=np.nan, same=3.0, only="x")
    data.loc[0, "city"] = "Atlantis"
    found = fit_of(converted(tmp_path, data, rows_per_partition=20))
    assert set(found.report["data"]["constant_columns"]) == {"void", "same", "only"}
    assert found.cv.rmse < data["y"].std()
    assert "city=Atlantis" in found.model.preprocessing.encoding.names
