"""Frames as they are in the estimators: categories by name, dates, gaps, in pandas and polars alike."""

import datetime
import re
import warnings
from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pytest
from tabular import COLUMNS, N, converted, frame

import ntkdist as nd
from ntkdist.data import frames

FEATURES = nd.NTKRandomFeatures(n_components=96, depth=1, bias=0.5)
X, Y = frame()[list(COLUMNS)].astype({"code": "category"}), frame()["y"].to_numpy()
NEW = frame(80, seed=4)[list(COLUMNS)].astype({"code": "category"})


def as_polars(data: pd.DataFrame) -> pl.DataFrame:
    """Convert, with an Enum for the integers that are categories."""
    plain = data.astype({"code": int}).astype({"code": str, "city": object, "shop": object})
    columns = {
        name: pl.Series(name, [None if pd.isna(v) else v for v in plain[name].tolist()], strict=False) for name in plain
    }
    return pl.DataFrame(columns).with_columns(pl.col("code").cast(pl.Enum(["12", "30", "7"])))


def fitted(**options: Any) -> nd.NTKRidgeCV:
    return nd.NTKRidgeCV(FEATURES, alphas=(1.0, 10.0), folds=4, **options)


def test_a_frame_is_coded_as_convert_does(tmp_path: Path) -> None:
    """Kinds, codes and seconds are those of the dataset that is converted from its csv."""
    store = converted(tmp_path, frame())
    dataset = nd.Dataset(store, nan="impute")
    layout = dataset.layout()
    for data in (X, as_polars(X)):
        found = frames.coded(data)
        assert (found.columns, found.categories, found.dates) == (layout.columns, layout.categories, layout.dates)
        np.testing.assert_array_equal(found.x, dataset.read(layout, 0, N).x)


def test_pandas_and_polars_give_the_same_model() -> None:
    one, other = fitted().fit(X, Y), fitted().fit(as_polars(X), Y)
    np.testing.assert_array_equal(one.model_.coef, other.model_.coef)
    np.testing.assert_array_equal(one.predict(NEW), other.predict(as_polars(NEW)))
    assert one.model_.preprocessing.digest() == other.model_.preprocessing.digest()
    assert one.feature_names_in_.tolist() == other.feature_names_in_.tolist() == list(COLUMNS)
    assert one.score(NEW, frame(80, seed=4)["y"]) > 0.8


def test_four_lines_of_a_notebook(tmp_path: Path) -> None:
    """From a CSV to predictions of another in their order, to a file and back, by nothing but the columns."""
    frame().to_csv(tmp_path / "train.csv", index=False)
    frame(80, seed=4).to_csv(tmp_path / "new.csv", index=False)
    train, new = pd.read_csv(tmp_path / "train.csv"), pd.read_csv(tmp_path / "new.csv")
    model = fitted().fit(train.drop(columns="y"), train["y"])
    predictions = model.predict(new.drop(columns="y"))
    nd.save(model, str(tmp_path / "model"))
    again = nd.load(str(tmp_path / "model")).predict(new.drop(columns="y"))
    assert np.corrcoef(predictions, new["y"])[0, 1] > 0.9
    np.testing.assert_array_equal(again, predictions)


def test_levels_may_be_absent_reordered_and_new_at_predict() -> None:
    model = fitted().fit(X, Y)
    whole = model.predict(NEW)
    few = NEW[(NEW["city"] == "Oslo") & (NEW["code"] == 7)]
    few = few.assign(code=few["code"].cat.remove_unused_categories().cat.add_categories([99]))
    few = few.assign(city=pd.Categorical(few["city"], categories=["Rome", "Ulm", "Oslo"]))
    np.testing.assert_allclose(model.predict(few), whole[(NEW["city"] == "Oslo") & (NEW["code"] == 7)], rtol=1e-12)
    new, gone = NEW.assign(city="Ulm"), NEW.assign(city=None)
    assert np.isfinite(model.predict(new)).all()
    assert not np.allclose(model.predict(new), model.predict(gone))  # missing is a name of its own
    assert not np.allclose(model.predict(gone), whole)


def test_a_model_takes_a_frame_by_the_names_of_its_columns(tmp_path: Path) -> None:
    estimator = fitted(keep_factor=True).fit(X, Y)
    nd.save(estimator.model_, str(tmp_path / "m"))
    model = nd.load(str(tmp_path / "m"))
    turned = NEW[[*reversed(COLUMNS)]].assign(more="x")
    np.testing.assert_array_equal(model.predict(turned), estimator.predict(NEW))
    np.testing.assert_array_equal(model(as_polars(NEW)), estimator.predict(NEW))
    np.testing.assert_array_equal(model.std(turned), estimator.predict(NEW, return_std=True)[1])
    with pytest.raises(nd.DataError, match="Column 'shop' of the model is missing"):
        model.predict(NEW.drop(columns="shop"))
    plain = nd.NTKRidge(FEATURES).fit(X[["rate"]], Y).model_
    np.testing.assert_array_equal(plain(X), plain(X[["rate"]].to_numpy()))


def test_rows_of_later_calls_have_the_codes_of_the_first() -> None:
    first, later = X[:400], X[400:][X["city"][400:] != "Bern"]
    y_later = Y[later.index]
    model = fitted(clip="none").partial_fit(first, Y[:400]).partial_fit(later, y_later)
    alone = fitted(clip="none").partial_fit(first, Y[:400])
    rows = frames.coded(later, frames.Known.of(alone.model_.preprocessing.encoding))
    before = alone.equations_.total
    assert model.equations_.total.weight == 400 + len(later)
    assert (model.model_.preprocessing.digest()) == alone.model_.preprocessing.digest()
    z = model.model_.features(alone.model_.preprocessing.inputs(rows.x, "float64"))
    np.testing.assert_allclose(
        model.equations_.total.z_sum - before.z_sum, z.sum(axis=0), rtol=0.3, atol=0.15 * len(later)
    )


def test_classes_and_features_take_frames() -> None:
    data = frame(classes=True)
    model = nd.NTKRidgeClassifier(FEATURES, alphas=(1.0, 10.0), folds=4).fit(X, data["y"])
    assert model.classes_.tolist() == ["high", "low"]
    assert model.score(NEW, frame(80, seed=4, classes=True)["y"]) > 0.75
    np.testing.assert_allclose(model.predict_proba(NEW).sum(axis=1), 1, rtol=1e-12)
    turned = nd.FeatureTransformer(FEATURES, one_hot=64).fit(X)
    assert turned.transform(NEW).shape == (80, 96)
    np.testing.assert_array_equal(turned.transform(NEW), turned.transform(as_polars(NEW)))


def test_residuals_of_one_fold_leave_a_rows_own_target_out() -> None:
    """Targets that are noise are not predicted by names that are learnt of them."""
    rng = np.random.default_rng(0)
    noise = pd.DataFrame({"shop": rng.integers(0, 150, N).astype(str), "rate": rng.normal(size=N)})
    y = rng.normal(size=N)
    model = nd.NTKRidge(nd.Linear(3), alpha=1e-6, keep_factor=True).fit(noise, y)
    assert np.mean(model.residuals_**2) == pytest.approx(np.var(y), rel=0.1)


@pytest.mark.parametrize("kind", ["NumPy", "pandas", "polars"])
def test_missing_numbers_are_filled_in(kind: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    y = x[:, 0] + 2 * (x[:, 1] > 1) + 0.1 * rng.normal(size=300)
    x[x[:, 1] > 1, 1] = np.nan
    make = {"NumPy": np.asarray, "pandas": pd.DataFrame, "polars": pl.DataFrame}[kind]
    model = fitted().fit(make(x), y)
    assert model.model_.preprocessing.encoding.names[-1] == "column 1 missing" if kind == "NumPy" else True
    assert model.score(make(x), y) > 0.95
    assert np.isfinite(model.predict(make(np.full((2, 3), np.nan)))).all()
    with pytest.raises(ValueError, match="contains infinity"):
        model.predict(make(np.full((2, 3), np.inf)))


def test_numbers_without_gaps_are_fitted_as_before() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 3)), rng.normal(size=300)
    strict, model = fitted(nan="error").fit(x, y), fitted().fit(x, y)
    np.testing.assert_array_equal(model.model_.coef, strict.model_.coef)
    assert model.model_.preprocessing.encoding is None
    gap = np.array([[np.nan, 0.0, 0.0]])
    for each in (strict, model):
        with pytest.raises(ValueError, match="contains NaN"):
            each.predict(gap)
        with pytest.raises(ValueError, match="contains NaN"):
            each.partial_fit(gap, y[:1])
    with pytest.raises(ValueError, match="contains NaN"):
        fitted(nan="error").fit(np.vstack([gap, x]), np.append(y, 0))


@pytest.mark.parametrize(
    ("values", "kind", "codes"),
    [
        (pd.Series(["b", None, "a"], dtype=object), "category", [2, 0, 1]),
        (pd.Series(["b", pd.NA, "a"], dtype="string"), "category", [2, 0, 1]),
        (pd.Series([7.0, np.nan, 30.0]).astype("category"), "category", [2, 0, 1]),
        (pd.Series([True, None, False], dtype=object), "number", [1, np.nan, 0]),
        (pd.Series([True, pd.NA, False], dtype="boolean"), "number", [1, np.nan, 0]),
        (pd.Series([1, pd.NA, 3], dtype="Int64"), "number", [1, np.nan, 3]),
        (pd.Series([datetime.date(1970, 1, 2), None, datetime.date(1970, 1, 1)]), "date", [86400, np.nan, 0]),
        (
            pd.Series(pd.to_datetime(["1970-01-02T01:00+01:00", None], utc=True)),
            "date",
            [86400, np.nan],
        ),
        (pl.Series([datetime.datetime(1970, 1, 2), None, datetime.datetime(1970, 1, 1)]), "date", [86400, np.nan, 0]),
        (pl.Series(["b", None, "a"], dtype=pl.Categorical), "category", [2, 0, 1]),
        (pd.Series([datetime.time(13, 45, 7, 500_000), None]), "number", [49507.5, np.nan]),
        (pd.Series([pd.Timedelta("1h"), pd.NaT]), "number", [3600, np.nan]),
        (pl.Series([datetime.time(13, 45), None]), "number", [49500, np.nan]),
        (pl.Series([datetime.timedelta(milliseconds=1500), None]), "number", [1.5, np.nan]),
    ],
    ids=str,
)
def test_columns_of_every_type(values: Any, kind: str, codes: list[float]) -> None:
    data = pl.DataFrame({"c": values}) if isinstance(values, pl.Series) else pd.DataFrame({"c": values})
    found = frames.coded(data)
    np.testing.assert_array_equal(found.x[:, 0], codes)
    assert (bool(found.categories), bool(found.dates)) == (kind == "category", kind == "date")


def test_gaps_of_rows_without_weight_are_harmless() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 3)), rng.normal(size=300)
    rows, weight = np.vstack([x, np.full((1, 3), np.nan)]), np.append(np.ones(300), 0.0)
    model = fitted().fit(rows, np.append(y, 0.0), weight)
    np.testing.assert_allclose(model.predict(x), fitted().fit(x, y).predict(x), rtol=1e-6, atol=1e-6)
    assert np.isfinite(model.predict(rows)).all()


# refused


def test_the_remedy_for_strings_in_dask_frames_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence's own line of Python, and the fit that it names."""
    monkeypatch.chdir(tmp_path)
    lazy = dd.from_pandas(frame(), npartitions=4)
    with pytest.raises(ValueError, match=r"Dask frame with strings or dates") as caught:
        fitted().fit(lazy[list(COLUMNS)], lazy["y"])
    (call,) = re.findall(r"ntkdist\.(convert\(.*\)), and fit", str(caught.value))
    assert call == 'convert(frame, "rows.zarr", target="y")'
    nd.convert(lazy, "rows.zarr", target=["y"], category=["code"])
    model = fitted().fit("rows.zarr")
    assert model.score(NEW, frame(80, seed=4)["y"]) > 0.8


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("rate", "x", "Column 'rate' holds categories, but numbers in training"),
        ("city", 1.0, "Column 'city' holds numbers, but categories in training"),
        ("day", 1.0, "Column 'day' holds numbers, but dates in training"),
        ("size", pd.Timestamp(0), "Column 'size' holds dates, but numbers in training"),
    ],
)
def test_a_column_of_another_kind_is_refused(column: str, values: Any, sentence: str) -> None:
    model = fitted().fit(X, Y)
    with pytest.raises(ValueError, match=sentence):
        model.predict(NEW.assign(**{column: values}))
    with pytest.raises(ValueError, match=sentence):
        model.partial_fit(NEW.assign(**{column: values}), np.zeros(80))


def test_bad_frames_are_refused_in_a_sentence() -> None:
    lists = pd.DataFrame({"c": [[1], [2]]})
    with pytest.raises(ValueError, match="Column 'c' holds list; expected numbers, strings"):
        frames.coded(lists)
    many = pd.DataFrame({"c": [f"s{i}" for i in range(2**16 + 1)]})
    with pytest.raises(ValueError, match="Column 'c' has more than 65,536 distinct names"):
        frames.coded(many)
    with pytest.raises(ValueError, match="feature names should match"):
        fitted().fit(X, Y).predict(NEW.drop(columns="shop"))
    with pytest.raises(ValueError, match=r'nan is .drop.; expected "impute" or "error"'):
        fitted(nan="drop").fit(X[["rate"]], Y)
    with pytest.raises(ValueError, match="could not convert string to float"):
        fitted().fit(X.to_numpy(), Y)


# images


@pytest.mark.parametrize("lazy", [False, True])
def test_images_in_bytes_are_computed_in_float32(lazy: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 6, 6, 3), dtype=np.uint8)
    y, features = images.mean(axis=(1, 2, 3)), nd.CNTKRandomFeatures(64, depth=2)
    model = nd.NTKRidge(features=features).fit(da.from_array(images, chunks=(20, 6, 6, 3)) if lazy else images, y)
    same = nd.NTKRidge(features=features).fit(images.astype(np.float32), y)
    assert model.equations_.dtype == "float32"
    np.testing.assert_allclose(model.predict(images), same.predict(images.astype(np.float32)), rtol=1e-6)


def test_images_with_their_channels_first_are_noticed() -> None:
    images, y = np.random.default_rng(0).normal(size=(60, 3, 6, 6)), np.arange(60.0)
    model = nd.NTKRidge(features=nd.CNTKRandomFeatures(64, depth=2))
    with pytest.warns(UserWarning, match=r"6 channels; if the channels come first, give X.transpose\(0, 2, 3, 1\)"):
        model.fit(images, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(images.transpose(0, 2, 3, 1), y)
    with pytest.raises(ValueError, match="features"):
        model.predict(images)
