"""Inputs are clipped to the range that was learnt from: what that spares, what it leaves alone, and who is told."""

import json
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zarr
from command_line import Command, columns, write_csv, write_job
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array, random_array, save_npz
from stored import MakeDataset

import ntkdist as nd
from ntkdist.data.moments import Moments
from ntkdist.data.ranges import FEW, Range, SeenRange, first_outside

F8 = NDArray[np.float64]
ZONAL = nd.ZonalFeatures(64, nd.NTK(depth=2, bias=1.0))
PLAN = nd.PlanTable(folds=3, dtype="float64")


def job_on(store: str, clip: str = "range", reuse: str = "", **changes: Any) -> nd.Job:
    job = nd.Job(nd.Dataset(store), ZONAL, alphas=(1.0,), plan=PLAN, preprocess=nd.Preprocess(reuse=reuse, clip=clip))  # type: ignore[arg-type]
    return msgspec.structs.replace(job, **changes)


def outliers(x: F8) -> F8:
    """The first 20 rows, of which rows 3 and 7 have values far outside, row 3 two of them."""
    far = x[:20].copy()
    far[3, [0, 2]], far[7, 2] = [1e4, -1e9], 1e9
    return far


@given(st.integers(0, 2**32), st.sampled_from([(7,), (3, 2, 2), (1,)]), st.sampled_from(["float64", "float32"]))
def test_a_range_holds_clips_and_counts_as_naive_loops_do(seed: int, shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((11, *shape)).astype(dtype)
    low, high = -rng.uniform(0.5, 2, shape[-1]).astype(dtype), rng.uniform(0.5, 2, shape[-1]).astype(dtype)
    limits, expected = Range(low.astype(float), high.astype(float)), np.minimum(np.maximum(x, low), high)
    outside = (expected != x).reshape(11, -1, shape[-1]).any(axis=1)
    rows, each = limits.rows_outside(x)
    assert (rows, each.tolist()) == (outside.any(axis=1).sum(), outside.sum(axis=0).tolist())
    assert limits.holds(x) == (not outside.any())
    if len(shape) == 1:
        sparse = csr_array(x)
        assert limits.rows_outside(sparse)[0] == rows
        limits.clip(sparse)
        np.testing.assert_array_equal(sparse.toarray(), expected)
    for order in ("C", "F"):
        clipped = np.array(x, order=order)  # type: ignore[call-overload]
        limits.clip(clipped)
        np.testing.assert_array_equal(clipped, expected)


def test_rows_without_weight_and_cuts_do_not_change_a_range(table: tuple[F8, F8]) -> None:
    x, weight = table[0].copy(), np.ones(900)
    x[5], weight[5] = 1e9, 0
    parts = [Moments.of(x[cut], weight[cut], None, 0) for cut in (slice(4), slice(4, 6), slice(6, None))]
    total = parts[0] + parts[1] + parts[2] + Moments.zeros(5)
    rest = np.delete(x, 5, axis=0)
    np.testing.assert_array_equal([total.low, total.high], [rest.min(axis=0), rest.max(axis=0)])
    np.testing.assert_array_equal((total - parts[2]).high, total.high)  # the wider one


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "images", "unscaled"])
def test_clipping_changes_no_bit_of_a_fit(make_dataset: MakeDataset, table: tuple[F8, F8], kind: str) -> None:
    x, y = (table[0].astype(np.float32), table[1][:, 0])
    if kind == "images":
        x = np.random.default_rng(0).integers(0, 255, (900, 3, 3, 2)).astype(np.uint8)
    store, how = make_dataset(x, y), {"inputs": "none"} if kind == "unscaled" else {}
    plan = nd.PlanTable(folds=3, dtype="float64" if how else "float32")
    clipped, plain = (
        nd.fit(job_on(store, plan=plan, preprocess=nd.Preprocess(clip=clip, **how)))  # type: ignore[arg-type]
        for clip in ("range", "none")
    )
    assert clipped.equations is not None
    assert plain.equations is not None
    for mine, theirs in zip(clipped.equations.folds, plain.equations.folds, strict=True):
        for name in ("gram", "rhs", "z_sum", "yy", "y_sum"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    np.testing.assert_array_equal(clipped.model(x), plain.model(x))
    assert clipped.report["data"]["clipped_rows"] == 0
    assert nd.evaluate(clipped.model, store)["clipped_rows"] == 0
    assert clipped.model.preprocessing.digest() != plain.model.preprocessing.digest()


def test_a_row_far_outside_is_predicted_as_the_one_at_the_border(
    make_dataset: MakeDataset, table: tuple[F8, F8], tmp_path: Path
) -> None:
    x, y = table
    store, far = make_dataset(x, y), outliers(x)
    model, plain = (nd.fit(job_on(store, clip)).model for clip in ("range", "none"))
    border = np.clip(far, x.min(axis=0), x.max(axis=0))
    np.testing.assert_array_equal(model(far), model(border))
    np.testing.assert_allclose(model(border), plain(border))
    assert np.abs(plain(far) - y[:20]).max() > 100 * np.abs(model(far) - y[:20]).max()
    test = make_dataset(far, y[:20], name="far", weights=np.ones(20))
    assert nd.evaluate(model, test)["clipped_rows"] == 2
    assert nd.evaluate(plain, test)["clipped_rows"] == 0
    nd.predict(model, test, str(tmp_path / "predicted.zarr"))
    group = zarr.open_group(tmp_path / "predicted.zarr", mode="r")
    assert group.attrs["clipped_rows"] == 2
    np.testing.assert_allclose(group["prediction"][:], model(far))
    with pytest.raises(nd.DataError, match="not finite"), np.errstate(all="ignore"):
        model(np.where(far == 1e9, np.inf, far))  # an error, however far the range reaches


def test_one_wild_row_does_not_spoil_the_test_error(make_dataset: MakeDataset) -> None:
    """A column whose tail is heavy: one row of 400 lies 100 deviations out, with a target like the others."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((1000, 4))
    y = np.abs(x[:, 0]) + x[:, 1] + 0.1 * rng.standard_normal(1000)
    wild = x[600:].copy()
    wild[17, 3] = 100
    train, test = make_dataset(x[:600], y[:600]), make_dataset(wild, y[600:], name="test")
    clean = make_dataset(x[600:], y[600:], name="clean")
    clipped, plain = (nd.fit(job_on(train, clip)).model for clip in ("range", "none"))
    expected = nd.evaluate(plain, clean)["rmse"]
    assert nd.evaluate(clipped, test)["rmse"] == pytest.approx(expected, rel=0.05)
    assert nd.evaluate(plain, test)["rmse"] > 1.5 * expected


@pytest.mark.slow
def test_images_are_clipped_by_channel_unless_scaled_by_pixel(make_dataset: MakeDataset) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(20, 200, (200, 3, 3, 2)).astype(np.uint8)
    images[:, 0, 0] = 100
    y, far = images[:, 1, 1, 0] / 50, images.copy()
    far[0, 0, 0] = [255, 100]  # outside its channel
    far[1, 0, 0] = 120  # outside its pixel
    shape = {"auto": (2,), "none": (18,), "columns": (18,)}
    for how, clipped in (("auto", 1), ("none", 1), ("columns", 2)):
        store = make_dataset(images, y, name=how)
        model = nd.fit(job_on(store, preprocess=nd.Preprocess(inputs=how))).model  # type: ignore[arg-type]
        assert model.preprocessing.x_high.shape == shape[how]
        border = far.copy()
        border[0, 0, 0, 0] = 100 if how == "columns" else images[..., 0].max()
        border[1, 0, 0] = 100 if how == "columns" else 120
        np.testing.assert_array_equal(model(far), model(border))
        assert nd.evaluate(model, make_dataset(far, y, name=f"far-{how}"))["clipped_rows"] == clipped


@pytest.mark.slow
def test_sparse_rows_stay_sparse(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = csr_array(random_array((300, 50), density=0.1, format="csr", rng=rng, data_sampler=rng.standard_normal))
    y = np.abs(x @ rng.standard_normal(50))
    save_npz(tmp_path / "x.npz", x)
    np.save(tmp_path / "y.npy", y)
    nd.convert(str(tmp_path / "x.npz"), str(tmp_path / "x.zarr"), target=[str(tmp_path / "y.npy")])
    job = job_on(str(tmp_path / "x.zarr"), features=nd.NTKSketch(64))
    clipped, plain = (nd.fit(msgspec.structs.replace(job, preprocess=nd.Preprocess(clip=c))) for c in ("range", "none"))
    np.testing.assert_array_equal(clipped.model.coef, plain.model.coef)
    pre, far = clipped.model.preprocessing, x.copy()
    np.testing.assert_array_equal([pre.x_low, pre.x_high], [x.min(axis=0).toarray(), x.max(axis=0).toarray()])
    far.data[far.indptr[4]] = 1e6
    scaled = pre.inputs(far, "float64")
    assert isinstance(scaled, csr_array)
    border = csr_array((np.clip(far.data, pre.x_low[far.indices], pre.x_high[far.indices]), far.indices, far.indptr))
    np.testing.assert_array_equal(scaled.toarray(), pre.inputs(border, "float64").toarray())
    save_npz(tmp_path / "far.npz", far)
    nd.convert(str(tmp_path / "far.npz"), str(tmp_path / "far.zarr"), target=[str(tmp_path / "y.npy")])
    assert nd.evaluate(clipped.model, str(tmp_path / "far.zarr"))["clipped_rows"] == 1
    with pytest.raises(nd.DataError, match="range without 0, which would fill sparse rows"):
        Range(np.ones(50), np.full(50, 2.0)).clip(far)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [None, nd.TiledCholesky(tile=40), nd.PCG(), nd.InPlaceCholesky()])
def test_a_fit_that_reuses_a_range_tells_what_it_clips(
    make_dataset: MakeDataset, table: tuple[F8, F8], tmp_path: Path, solver: Any
) -> None:
    x, y = table
    nd.fit(job_on(make_dataset(x, y)), out=str(tmp_path / "run"))
    far = np.vstack([outliers(x), x[20:300]])
    job = job_on(make_dataset(far, y[:300], name="far"), reuse=str(tmp_path / "run"), solver=solver)
    data = nd.fit(job).report
    assert (data["data"]["rows"], data["data"]["clipped_rows"]) == (300, 2)
    assert data["data"]["clipped_columns"] == {"column 0": 1, "column 2": 2}
    first = [{"row": 3, "columns": ["column 0", "column 2"]}, {"row": 7, "columns": ["column 2"]}]
    assert data["data"]["clipped_first"] == first
    assert "2 rows had values outside the range reused, clipped to it: 2 in column 2, 1 in column 0" in data["notes"]
    with pytest.raises(nd.DataError, match=r'clip is "none" but .*run clips inputs; leave out clip, or reuse'):
        nd.fit(job_on(job.dataset.store, "none", reuse=str(tmp_path / "run")))


def test_partial_fit_warns_once_of_rows_that_it_clips(table: tuple[F8, F8]) -> None:
    x, y = table
    far, labels = outliers(x), np.arange(900) % 2
    for each, targets in ((nd.NTKRidge(ZONAL), y[:, 0]), (nd.NTKRidgeClassifier(ZONAL, folds=2), labels)):
        fitted = each.fit(x, targets)
        with pytest.warns(UserWarning, match="2 of 20 new rows have values outside the range of the first") as told:
            fitted.partial_fit(far, targets[:20])
        assert (len(told), told[0].filename) == (1, __file__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nd.NTKRidge(ZONAL).fit(x, y).partial_fit(x[:300], y[:300]).predict(far.astype(np.float32))
        nd.NTKRidge(ZONAL, clip="none").fit(x, y).partial_fit(far, y[:20])
    clipped, plain = (nd.FeatureTransformer(ZONAL, clip=clip).fit(x) for clip in ("range", "none"))
    border = np.clip(far, x.min(axis=0), x.max(axis=0))
    np.testing.assert_array_equal(clipped.transform(far), plain.transform(border))
    with pytest.raises(ValueError, match="clip is 'off'"):
        nd.NTKRidge(ZONAL, clip="off").fit(x, y)


def test_rows_in_less_precision_are_within_the_range_of_themselves(
    make_dataset: MakeDataset, table: tuple[F8, F8]
) -> None:
    x, y = table
    model = nd.fit(job_on(make_dataset(x, y))).model
    single = make_dataset(x.astype(np.float32), y, name="single")
    assert (x.astype(np.float32) > x.max(axis=0)).any()
    assert nd.evaluate(model, single)["clipped_rows"] == 0


@pytest.mark.slow
def test_the_command_line_tells_of_clipped_rows(command: Command) -> None:
    """By name, where the new rows have their columns in another order and one more."""
    table = columns()
    far = {k: v[:20].copy() for k, v in table.items()} | {"more": np.full(20, 1e9)}
    far["b"][[2, 5]], far["c"][5] = 1e9, -1e9
    write_csv("train.csv", table, *"abcy")
    write_csv("far.csv", far, "more", *"cbay")
    for name in ("train", "far"):
        assert command("convert", f"{name}.csv", f"{name}.zarr", "--target", "y").exit_code == 0
    assert command("fit", write_job(), "--out", "run").exit_code == 0
    note = "Note: 2 rows had values outside the range that the model has seen, clipped to it.\n"
    said = (
        "2 of 20 rows had values or names outside those of training ('b' 2, 'c' 1); "
        "among them row 2 (b), row 5 (c, b), counted from 0"
    )
    found = command("predict", "run", "far.zarr", "predicted.zarr").stdout
    ignored = "1 columns are not the model's, and were ignored: 'more'"
    assert found == f"predicted.zarr: 20 rows\nNote: {said}.\nNote: {ignored}.\n"
    assert command("predict", "run", "train.zarr", "all.zarr").stdout == "all.zarr: 240 rows\n"
    assert json.loads(command("evaluate", "run", "far.zarr", "--json").stdout)["clipped_rows"] == 2
    write_csv("far.csv", far, *"abcy")
    assert command("convert", "far.csv", "again.zarr", "--target", "y").exit_code == 0
    write_job("again.toml", "again.zarr", tables='[preprocess]\nreuse = "run"')
    assert command("featurize", "again.toml", "features.zarr").stdout == f"features.zarr\n{note}"
    fitted = command("fit", "again.toml", "--out", "again")
    assert "Note: 2 rows had values outside the range reused, clipped to it: 2 in b, 1 in c." in fitted.stdout
    assert "Note: some of the rows that were clipped, counted from 0: 2 (b), 5 (b, c)." in fitted.stdout
    assert command("report", "again", "--no-data").exit_code == 0
    page = Path("again", "report.html").read_text()
    assert "2 rows had values outside the range reused" in page
    assert "rows clipped to the range reused" in page
    assert "<td>5</td><td>b, c</td>" in page


@given(st.integers(0, 2**32), st.integers(0, 40))
def test_the_first_rows_outside_are_those_of_a_loop(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.stack([rng.standard_normal(rows), rng.standard_normal(rows), rng.integers(-1, 3, rows)], axis=1)
    limits = Range(np.array([-1.0, -1.0, -np.inf]), np.array([1.0, 1.0, np.inf]))
    seen = [np.ones(0, bool), np.ones(0, bool), np.array([1, 1, 0], bool)]
    table = SeenRange(limits, ((), (), ("p", "q", "r")), seen, np.ones(3, bool))
    numbers = np.column_stack([np.abs(x[:, :2]) > 1, np.zeros(rows, bool)])
    names = np.column_stack([numbers[:, :2], (x[:, 2] < 0) | (x[:, 2] == 2)])
    for range_, outside in ((limits, numbers), (table, names)):
        found = [(i, columns.tolist()) for i, columns in first_outside(range_, x)]
        every = [(int(i), np.flatnonzero(outside[i]).tolist()) for i in np.flatnonzero(outside.any(axis=1))]
        assert found == every[:FEW]
    assert [i for i, _ in first_outside(limits, csr_array(x))] == [i for i, _ in first_outside(limits, x)]


def wild(rng: np.random.Generator, rows: int = 600) -> tuple[F8, F8]:
    """Rows of which two have values a million deviations out, a rare flag, and a column with gaps."""
    x = np.column_stack([rng.standard_normal((rows, 3)), np.arange(rows) == 50])
    y = np.abs(x[:, 0]) + x[:, 1]
    x[5, 0], x[77, 2] = 1e6, -1e7
    return x, y


def test_quantiles_withstand_wild_training_rows(make_dataset: MakeDataset) -> None:
    """Limits and scale are those of clipped values, and the rows outside are named; the range keeps the error."""
    rng = np.random.default_rng(2)
    (x, y), new = wild(rng), np.column_stack([rng.standard_normal((300, 3)), np.zeros(300)])
    truth = np.abs(new[:, 0]) + new[:, 1]
    store = make_dataset(x, y)
    ranged, robust = (
        nd.fit(nd.Job(nd.Dataset(store), ZONAL, plan=PLAN, preprocess=nd.Preprocess(clip=clip)))
        for clip in ("range", (0.01, 0.99))
    )
    errors = [float(np.sqrt(np.mean((one.model(new) - truth) ** 2))) for one in (ranged, robust)]
    assert errors[1] < 0.3 < 0.5 < errors[0]
    pre = robust.model.preprocessing
    limits = np.quantile(x, [0.01, 0.99], axis=0)
    limits[:, 3] = 0, 1  # equal quantiles: the range
    np.testing.assert_allclose([pre.x_low, pre.x_high], limits)
    inside = x[:, :3].clip(*limits[:, :3])
    np.testing.assert_allclose([pre.x_mean[:3], pre.x_scale[:3]], [inside.mean(axis=0), inside.std(axis=0)])
    outside = (x < limits[0]) | (x > limits[1])
    data = robust.report["data"]
    assert data["clipped_rows"] == outside.any(axis=1).sum()
    assert data["clipped_columns"] == {f"column {j}": int(outside[:, j].sum()) for j in range(3)}
    assert [row["row"] for row in data["clipped_first"]] == np.flatnonzero(outside.any(axis=1))[:FEW].tolist()
    assert any("outside the quantiles of clip, clipped to them" in note for note in robust.report["notes"])
    np.testing.assert_array_equal(robust.model(x), robust.model(x.clip(*limits)))


def test_quantiles_are_those_of_any_cut_and_of_estimators(make_dataset: MakeDataset, tmp_path: Path) -> None:
    x, y = wild(np.random.default_rng(2))
    clip, limits = (0.01, 0.99), []
    for name, size in (("one", 600), ("many", 40)):
        store = make_dataset(x, y, name=name, rows_per_partition=size)
        job = nd.Job(nd.Dataset(store), ZONAL, alphas=(1.0,), plan=nd.PlanTable(folds=1, dtype="float64"))
        model = nd.fit(msgspec.structs.replace(job, preprocess=nd.Preprocess(clip=clip))).model
        limits.append([model.preprocessing.x_low, model.preprocessing.x_high])
    estimator = nd.NTKRidge(ZONAL, clip=clip).fit(x, y)
    limits.append([estimator.model_.preprocessing.x_low, estimator.model_.preprocessing.x_high])
    np.testing.assert_array_equal(limits[0], limits[1])
    np.testing.assert_array_equal(limits[0], limits[2])
    nd.save(estimator.model_, str(tmp_path / "model.zarr"))
    np.testing.assert_array_equal(nd.load(str(tmp_path / "model.zarr"))(x), estimator.predict(x))
    gaps = np.where(np.arange(600)[:, None] % 9 == np.arange(4), np.nan, x)
    encoding = nd.NTKRidge(ZONAL, clip=clip).fit(gaps, y).model_.preprocessing.encoding
    assert encoding is not None
    expected = np.nanquantile(gaps[:, :3], clip, axis=0)
    np.testing.assert_allclose([encoding.low[:3], encoding.high[:3]], expected)


def test_quantiles_are_refused_where_they_cannot_be(make_dataset: MakeDataset, tmp_path: Path) -> None:
    for shares in ((0.9, 0.1), (-0.1, 0.9), (0.5, 0.5)):
        with pytest.raises(nd.SpecError, match="expected two shares, ascending and between 0 and 1"):
            nd.Preprocess(clip=shares)
    with pytest.raises(nd.SpecError, match="but run has the range that is reused; leave out clip"):
        nd.Preprocess(clip=(0.1, 0.9), reuse="run")
    rng = np.random.default_rng(0)
    images = make_dataset(rng.integers(0, 255, (60, 3, 3, 2)).astype(np.uint8), rng.standard_normal(60), name="images")
    with pytest.raises(
        nd.SpecError, match=r'clip = \[0\.1, 0\.9\] is for tables, but the rows are images; use "range"'
    ):
        nd.fit(nd.Job(nd.Dataset(images), ZONAL, plan=PLAN, preprocess=nd.Preprocess(clip=(0.1, 0.9))))
    with pytest.raises(ValueError, match="is for tables, but the rows are sparse"):
        nd.NTKRidge(nd.NTKSketch(64), clip=(0.1, 0.9)).fit(csr_array(np.eye(30)), np.arange(30.0))
    (tmp_path / "job.toml").write_text('[dataset]\nstore = "x"\n[preprocess]\nclip = [0.001, 0.999]\n')
    assert nd.Job.read(str(tmp_path / "job.toml")).preprocess.quantiles == (0.001, 0.999)
