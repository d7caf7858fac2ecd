"""Copies of images as rows: what they are, that they stay in the fold of their image, and what is fitted to them."""

import re
from pathlib import Path
from typing import Any

import dask.array as da
import msgspec
import numpy as np
import pytest
from command_line import Command, write_job
from interrupted import Cut, CutAfter, same
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from stored import MakeDataset
from sums_compared import assert_close

import ntkdist as nd
from ntkdist import random
from ntkdist.cluster.connect import resources
from ntkdist.data.dataset import Rows
from ntkdist.planning import estimate

N, SHAPE = 120, (6, 5, 2)
BOTH = nd.Augment(flips=True, crops=3, shift=2, seed=4)
FEATURES = nd.ZonalFeatures(48, nd.NTK(1, 0.5))
PLAN = nd.PlanTable(dtype="float64", folds=5, threads=1)
AS_THEY_ARE = nd.Preprocess(inputs="none", clip="none")
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, *SHAPE))
Y = np.abs(X).sum(axis=(1, 2, 3)) + X[:, 0, 0, 0]
W = RNG.uniform(0.5, 2.0, N)


def copied(x: NDArray[Any], augment: nd.Augment) -> NDArray[Any]:
    """Return every copy of each image, (n, copies, *shape): padded, cut out and mirrored one by one."""

    def drawn(copy: int, role: int) -> NDArray[np.float64]:
        return random.uniforms_of(np.arange(len(x)), augment.seed, 1004, 3 * copy + role)

    s = augment.shift
    out = [[image] for image in x]
    for copy in range(1, augment.copies):
        for i, image in enumerate(x):
            if augment.flips and copy == 1:
                out[i].append(image[:, ::-1])
                continue
            down, across = (int(drawn(copy, role)[i] * (2 * s + 1)) - s for role in (0, 1))
            mirrored = augment.flips and drawn(copy, 2)[i] < 0.5
            wide = np.pad(image[:, ::-1] if mirrored else image, ((s, s), (s, s), (0, 0)), mode="reflect")
            out[i].append(wide[s + down :, s + across :][: x.shape[1], : x.shape[2]])
    return np.array(out)


def job_on(store: str, **changes: Any) -> nd.Job:
    job = nd.Job(nd.Dataset(store), FEATURES, alphas=(0.3, 3.0), plan=PLAN, preprocess=AS_THEY_ARE, augment=BOTH)
    return msgspec.structs.replace(job, **changes)


@pytest.mark.parametrize("augment", [BOTH, nd.Augment(flips=True), nd.Augment(crops=4, shift=4), nd.Augment()])
def test_copies_are_those_that_padding_and_cutting_out_make(augment: nd.Augment) -> None:
    every = np.arange(N)
    expected = copied(X, augment)
    found = list(augment.each(Rows(X, Y, None, every), range(augment.copies)))
    assert len(found) == augment.copies == expected.shape[1]
    for copy, rows in enumerate(found):
        np.testing.assert_array_equal(rows.x, expected[:, copy])
        np.testing.assert_array_equal(rows.weight, np.full(N, 1 / augment.copies))
        np.testing.assert_array_equal(rows.y, Y)
    some = every[40:70]  # of another task
    for copy, rows in enumerate(augment.each(Rows(X[some], Y[some], W[some], some), range(augment.copies))):
        np.testing.assert_array_equal(rows.x, expected[some, copy])
        np.testing.assert_array_equal(rows.weight, W[some] / augment.copies)


def test_shifts_are_all_equally_likely_and_an_eighth_of_the_side_at_most() -> None:
    x = np.arange(16 * 32).reshape(1, 16, 32, 1).repeat(5000, 0)
    (rows,) = nd.Augment(crops=1).each(Rows(x, None, None, np.arange(5000)), [1])
    down, across = np.divmod(rows.x[:, 8, 16, 0] - x[0, 8, 16, 0] + 4, 32)
    _, counts = np.unique(np.stack([down, across]), axis=1, return_counts=True)
    assert (down.min(), down.max(), across.min(), across.max()) == (-2, 2, 0, 8)
    assert len(counts) == 5 * 9
    assert counts.min() > 60  # 111 in the mean
    (flipped,) = nd.Augment(True, crops=1, shift=1).each(Rows(x, None, None, np.arange(5000)), [2])
    assert 0.45 < np.mean(flipped.x[:, 8, 16, 0] > flipped.x[:, 8, 17, 0]) < 0.55


@pytest.mark.parametrize("alphas", [(0.3,), (0.3, 3.0)])  # "auto" follows sums that differ by the copies held out
def test_one_gram_in_place_has_the_copies_of_a_gram_for_every_fold(make_dataset: MakeDataset, alphas: Any) -> None:
    store = make_dataset(X, Y, weights=W, holdout=np.arange(N) % 4 == 1)
    changes = {"dataset": nd.Dataset(store, weight="weight", holdout="holdout"), "alphas": alphas}
    job = job_on(store, **changes, plan=msgspec.structs.replace(PLAN, folds=None))
    one, every = (nd.fit(msgspec.structs.replace(job, solver=each)) for each in (nd.InPlaceCholesky(), nd.Cholesky()))
    np.testing.assert_allclose(one.model.coef, every.model.coef, atol=1e-8 * np.abs(every.model.coef).max())
    assert one.cv is not None
    assert every.cv is not None
    np.testing.assert_allclose(one.cv.mse, every.cv.mse, rtol=1e-8)
    assert one.model.augment == BOTH
    assert one.report["data"] == every.report["data"]


@pytest.mark.parametrize(
    ("solver", "augment", "weight"),
    [
        (nd.Cholesky(), BOTH, W),
        (nd.Cholesky(), nd.Augment(flips=True), np.ones(N)),
        (nd.TiledCholesky(20), BOTH, W),
        (nd.PCG(64, tol=1e-12), BOTH, W),
    ],
)
def test_a_fit_is_that_to_copies_which_were_written_as_rows(
    make_dataset: MakeDataset, solver: Any, augment: nd.Augment, weight: NDArray[np.float64]
) -> None:
    """And the errors are those on the images, of a ridge on the copies of the other folds."""
    count = augment.copies
    x, y, w = copied(X, augment).reshape(-1, *SHAPE), Y.repeat(count), weight.repeat(count) / count
    few = make_dataset(X, Y, weights=weight)
    many = make_dataset(x, y, weights=w, name="all", rows_per_partition=12 * count)
    stores = {few: augment, many: nd.Augment()}
    mine, theirs = (
        nd.fit(job_on(store, dataset=nd.Dataset(store, weight="weight"), alphas=(0.3,), solver=solver, augment=by))
        for store, by in stores.items()
    )
    if mine.equations:
        for one, another in zip(mine.equations.folds, theirs.equations.folds, strict=True):
            assert_close(one, another, 1e-12)
    np.testing.assert_allclose(mine.model.coef, theirs.model.coef, atol=1e-9 * np.abs(theirs.model.coef).max())
    z, fold = FEATURES(x).reshape(N, count, -1), np.arange(N) // 12 % 5
    for k, (error,) in enumerate(mine.cv.mse[0]):
        train, test = fold != k, fold == k
        ridge = Ridge(0.3).fit(z[train].reshape(-1, 48), Y[train].repeat(count), weight[train].repeat(count) / count)
        off = Y[test] - ridge.predict(z[test, 0])
        np.testing.assert_allclose(error, np.average(off**2, weights=weight[test]), rtol=1e-6)
        np.testing.assert_allclose(mine.cv.weights[k], weight[test].sum())


def test_copies_are_in_the_fold_of_their_image(make_dataset: MakeDataset) -> None:
    """By groups and by a holdout, of which only the rows held out are summed apart."""
    groups = RNG.integers(0, 30, N)
    x, y, count = copied(X, BOTH).reshape(-1, *SHAPE), Y.repeat(BOTH.copies), BOTH.copies
    w = np.full(len(y), 1 / count)
    for role, values, scored in (("groups", groups, 5), ("holdout", groups % 3 == 0, 1)):
        plan = msgspec.structs.replace(PLAN, folds=None if role == "holdout" else 5)
        store = make_dataset(X, Y, name=role, **{role: values.astype(np.int64)})
        written = make_dataset(x, y, name=f"{role}-all", weights=w, **{role: values.astype(np.int64).repeat(count)})
        few, many = nd.Dataset(store, **{role: role}), nd.Dataset(written, weight="weight", **{role: role})
        mine = nd.fit(job_on("", dataset=few, plan=plan, alphas=(0.3,)))
        theirs = nd.fit(job_on("", dataset=many, plan=plan, alphas=(0.3,), augment=nd.Augment()))
        assert mine.report["data"]["rows"] == N
        for one, another in zip(mine.equations.folds, theirs.equations.folds, strict=True):
            assert_close(one, another, 1e-12)
        assert len(mine.equations.originals) == scored
        dealt = few.folds(few.layout(), 0, N, len(mine.equations.folds))
        z = FEATURES(X)
        for k, own in mine.equations.originals.items():
            np.testing.assert_allclose(own.gram, z[dealt == k].T @ z[dealt == k] / count, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_bits_do_not_depend_on_threads_workers_or_interruptions(
    make_dataset: MakeDataset, tmp_path: Path, two_workers: Any, dtype: Any
) -> None:
    plan = nd.PlanTable(folds=2, shards=6, dtype=dtype, block_rows=50)
    asked, out = job_on(make_dataset(X, Y), plan=plan, alphas=(0.3,)), str(tmp_path / "run")
    straight = nd.fit(asked)
    threads = msgspec.structs.replace(asked, plan=msgspec.structs.replace(plan, threads=3))
    for other in (nd.fit(threads), nd.fit(asked, client=two_workers)):
        same(other, straight)
        np.testing.assert_array_equal(other.cv.mse, straight.cv.mse)
    with pytest.raises(Cut):
        nd.fit(asked, out=out, watch=CutAfter(7))
    resumed = nd.fit(asked, out=out, resume=True)
    same(resumed, straight)
    np.testing.assert_array_equal(resumed.cv.mse, straight.cv.mse)
    notes = " ".join(resumed.report["notes"])
    assert re.search(r"\d+ of 12 shards were finished before", notes)
    assert "each image is 5 rows of its fold" in notes
    assert (resumed.report["data"]["rows"], sum(resumed.report["data"]["fold_weights"])) == (N, pytest.approx(N))
    cut = msgspec.structs.replace(asked, plan=msgspec.structs.replace(plan, shards=10, block_rows=24))
    for one, another in zip(nd.fit(cut).equations.folds, straight.equations.folds, strict=True):
        assert_close(one, another, 1e-12 if dtype == "float64" else 1e-5)


def test_sums_with_copies_are_saved_solved_and_added(make_dataset: MakeDataset, tmp_path: Path) -> None:
    half = [make_dataset(X[i], Y[i], name=str(i.start)) for i in (slice(0, 60), slice(60, N))]
    first = nd.fit(job_on(half[0], alphas=(0.3,)), out=str(tmp_path / "run"))
    loaded = nd.load(str(tmp_path / "run" / "equations.zarr"))
    errors = nd.calibrate(str(tmp_path / "run"), keep_factor=True).calibration.residuals
    np.testing.assert_allclose(np.mean(errors**2), first.cv.chosen[0], rtol=1e-7)  # row by row, as from the sums
    assert (loaded.augment, sorted(loaded.originals)) == (BOTH, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(nd.solve(loaded, alphas=(0.3,))[1].mse, first.cv.mse)
    few = {"alphas": (0.3,), "preprocess": nd.Preprocess(reuse=str(tmp_path / "run"))}
    second = nd.fit(job_on(half[1], **few)).equations
    both = loaded + second
    np.testing.assert_allclose(both.originals[3].gram, (both - second).originals[3].gram + second.originals[3].gram)
    assert nd.solve(both, alphas=(0.3, 3.0))[1].weights.sum() == pytest.approx(N)
    plain = nd.fit(job_on(half[1], augment=nd.Augment(), **few)).equations
    with pytest.raises(nd.DataError, match="Equations of different augmentation do not add"):
        loaded + plain
    assert nd.load(str(tmp_path / "run" / "model.zarr")).augment == BOTH


def test_deviations_are_those_of_n_images(make_dataset: MakeDataset) -> None:
    """Copies that are all alike would make no difference to the model without them: it is the same."""
    x = np.ones((N, 4, 4, 1)) * RNG.standard_normal((N, 1, 1, 1))
    y = np.abs(x[:, 0, 0, 0]) + 0.1 * RNG.standard_normal(N)
    store = make_dataset(x, y)
    mine, plain = (nd.fit(job_on(store, augment=by)) for by in (BOTH, nd.Augment()))
    models = [nd.solve(fit.equations, alphas=(0.3, 3.0), keep_factor=True)[0] for fit in (mine, plain)]
    assert models[0].factor.weight == pytest.approx(N)
    np.testing.assert_allclose(mine.cv.mse, plain.cv.mse, rtol=1e-8)
    np.testing.assert_allclose(models[0].std(x), models[1].std(x), rtol=1e-6)
    np.testing.assert_allclose(mine.model.alpha, plain.model.alpha)
    assert mine.report["alpha_per_row"] == pytest.approx(plain.report["alpha_per_row"])
    with pytest.raises(nd.SpecError, match="fitted to copies of each row, too"):
        nd.leave_one_out(models[0], store)
    curves = [nd.prefix_curve(fit.equations, fit.cv, [24]).rmse for fit in (mine, plain)]
    np.testing.assert_allclose(*curves, rtol=1e-8)


def test_a_plan_counts_the_copies(make_dataset: MakeDataset, command: Command) -> None:
    store = make_dataset(X, Y)
    p, plain = (nd.plan(job_on(store, augment=by)) for by in (BOTH, nd.Augment()))
    assert (p.copies, p.rows_mapped, p.groups, plain.groups) == (5, 5 * N, 10, 5)
    cost, before = (estimate.cost(each, resources(None)) for each in (p, plain))
    assert (cost["rows"], cost["copies"], before["copies"]) == (N, 5, 1)
    assert cost["gram_flops"] == 5 * before["gram_flops"]
    assert cost["bytes_read"] * 2 == 3 * before["bytes_read"]  # scored folds are read twice, after the moments
    assert cost["shards"] == 2 * before["shards"]
    assert p.driver_memory()["folds"] == 2 * plain.driver_memory()["folds"]
    assert p.memory()["batch"] > plain.memory()["batch"]
    write_job("job.toml", store, tables="[augment]\nflips = true\ncrops = 3\n")
    said = command("plan", "job.toml")
    assert "augment    5 rows of each image, of which one is as it is: 600 rows" in said.output
    assert "copies" in nd.plan(job_on(store)).facts()


@pytest.mark.parametrize(
    ("shape", "augment", "says"),
    [
        ((5,), BOTH, r"augment makes copies of images .* but .* has rows of shape \(5,\); leave it out"),
        ((5, 4, 1), nd.Augment(crops=1, shift=4), r"augment.shift is 4, but .* have 5 x 4 pixels.* less than 4"),
    ],
)
def test_what_cannot_be_augmented_is_refused(
    make_dataset: MakeDataset, shape: tuple[int, ...], augment: nd.Augment, says: str
) -> None:
    x, y = RNG.standard_normal((60, *shape)), np.arange(60.0)
    store = make_dataset(x, y)
    with pytest.raises(nd.SpecError, match=says):
        nd.plan(job_on(store, augment=augment))
    for rows in ((x, y), (store,)):
        with pytest.raises(nd.SpecError, match=says):
            nd.NTKRidgeCV(FEATURES, augment=augment).fit(*rows)


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(nd.SpecError, match=r"augment.shift is 2, but there are no crops to shift"):
        nd.Augment(flips=True, shift=2)
    with pytest.raises(nd.SpecError, match=r"metric.rounds and augment are both given"):
        job_on("nowhere", metric=nd.Metric(rounds=1))
    with pytest.raises(nd.SpecError, match=r"metric.rounds and augment are both given"):
        nd.NTKRidgeCV(FEATURES, metric=nd.Metric(rounds=1), augment=BOTH).fit(X, Y)
    with pytest.raises(ValueError, match=r"keep_factor needs .* use NTKRidgeCV"):
        nd.NTKRidge(FEATURES, keep_factor=True, augment=BOTH).fit(X, Y)


@pytest.mark.parametrize("lazy", [False, True])
def test_estimators_fit_to_copies(lazy: bool, tmp_path: Path) -> None:
    rows = da.from_array(X, chunks=(50, *SHAPE)) if lazy else X
    ridge = nd.NTKRidge(FEATURES, alpha=0.3, inputs="none", clip="none", augment=BOTH).fit(rows, Y)
    z = FEATURES(copied(X, BOTH).reshape(-1, *SHAPE))
    by_hand = Ridge(0.3).fit(z, Y.repeat(BOTH.copies), np.full(len(z), 1 / BOTH.copies))
    np.testing.assert_allclose(ridge.model_(X), by_hand.predict(FEATURES(X)), rtol=1e-6)
    chosen = nd.NTKRidgeCV(FEATURES, keep_factor=True, augment=BOTH).fit(rows, Y)
    errors = chosen.residuals_[:, 0] if not lazy else chosen.residuals_.ravel()
    np.testing.assert_allclose(np.mean(errors**2), chosen.cv_.chosen[0], rtol=1e-7)  # row by row, as from the sums
    nd.save(chosen, str(tmp_path / "saved.zarr"))
    assert nd.load(str(tmp_path / "saved.zarr")).get_params()["augment__crops"] == 3


def test_copies_teach_what_they_show() -> None:
    """Digits are read better where they are shifted or mirrored, as their copies were, than without copies."""
    x, y = load_digits(return_X_y=True)
    x = x.reshape(-1, 8, 8, 1)[:900]
    y = y[:900]
    train, test = slice(0, 600), slice(600, 900)
    shifted, mirrored = np.roll(x, (1, -1), (1, 2)), x[:, :, ::-1]
    score = {}
    for name, augment in (("plain", None), ("crops", nd.Augment(crops=3)), ("flips", nd.Augment(flips=True))):
        model = nd.NTKRidgeClassifier(nd.ZonalFeatures(256), calibrated=False, augment=augment).fit(x[train], y[train])
        score[name] = [model.score(images[test], y[test]) for images in (x, shifted, mirrored)]
    assert score["crops"][1] > score["plain"][1] + 0.1
    assert score["flips"][2] > score["plain"][2] + 0.2
    assert min(score["crops"][0], score["flips"][0]) > 0.85


@pytest.mark.usefixtures("alone")
def test_copies_on_a_gpu(make_dataset: MakeDataset, device: Any) -> None:
    job = job_on(make_dataset(X, Y), alphas=(0.3,))
    here, there = nd.fit(job), nd.fit(msgspec.structs.replace(job, plan=msgspec.structs.replace(PLAN, device="gpu")))
    assert there.report["plan"]["device"] == "gpu"
    np.testing.assert_allclose(there.cv.mse, here.cv.mse, rtol=1e-9)
    np.testing.assert_allclose(there.model.coef, here.model.coef, atol=1e-9 * np.abs(here.model.coef).max())
