"""The straight line, end to end: the same sums however they are cut and wherever they are made."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import msgspec
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sums_compared import assert_close, assert_same_bits

import ntkdist as nd
from ntkdist.sums import NormalEquations

FEATURES = nd.NTKRandomFeatures(n_components=96, depth=2, bias=0.5)
EXACT = nd.PlanTable(folds=4, dtype="float64", threads=1)


def job_on(store: str, **changes: Any) -> nd.Job:
    return msgspec.structs.replace(nd.Job(nd.Dataset(store), FEATURES, plan=EXACT), **changes)


def total(folds: list[NormalEquations]) -> NormalEquations:
    return sum(folds[1:], folds[0])


@pytest.mark.parametrize(("rows_per_partition", "shards"), [(7, 9), (45, 4), (45, 9), (300, None)])
def test_any_chunking_and_any_shards_give_the_same_sums(
    make_dataset: Any, table: Any, rows_per_partition, shards
) -> None:
    rows = min(rows_per_partition, 225)  # four folds need four partitions
    store = make_dataset(*table, rows_per_partition=rows)
    plan = nd.plan(job_on(store, plan=msgspec.structs.replace(EXACT, shards=shards, block_rows=50 + rows)))
    x = (table[0] - table[0].mean(axis=0)) / table[0].std(axis=0)
    y = (table[1] - table[1].mean(axis=0)) / table[1].std(axis=0)
    at_once = NormalEquations.zeros(96, 2).update(FEATURES(x), y)
    assert_close(total(nd.normal_equations(plan)), at_once, 1e-12)


def test_one_plan_gives_the_same_bits_everywhere(make_dataset: Any, table: Any, two_workers: Any) -> None:
    """Synchronous, Dask threads, two processes, tasks of three threads: in float32, where another order would show."""
    plan = nd.plan(
        job_on(
            make_dataset(*table, rows_per_partition=45), plan=msgspec.structs.replace(EXACT, dtype="float32", shards=12)
        )
    )
    with dask.config.set(scheduler="synchronous"):
        here = nd.fit(plan)
    with dask.config.set(scheduler="threads", num_workers=3):
        threads = nd.fit(plan)
    there = nd.fit(plan, client=two_workers)
    fat = nd.fit(msgspec.structs.replace(plan, threads=3))
    assert len(there.report["run"]["peak_memory_bytes"]) == 2
    for other in (threads, there, fat):
        assert_same_bits(here.equations.folds, other.equations.folds)
        np.testing.assert_array_equal(here.model.coef, other.model.coef)


def test_another_order_would_show(make_dataset: Any, table: Any) -> None:
    """The test above can fail: other shards give other bits in float32, and equal sums all the same."""
    plan = nd.plan(
        job_on(
            make_dataset(*table, rows_per_partition=45), plan=msgspec.structs.replace(EXACT, dtype="float32", shards=12)
        )
    )
    a, b = (nd.normal_equations(msgspec.structs.replace(plan, shards=s)) for s in (12, 4))
    assert any((x.gram != y.gram).any() for x, y in zip(a, b, strict=True))
    assert_close(total(a), total(b), 1e-5)


def test_scores_and_model_are_those_of_scikit_learns_ridge_on_the_same_features(make_dataset: Any, table: Any) -> None:
    store = make_dataset(*table)
    result = nd.fit(job_on(store, alphas=(0.01, 1.0, 100.0)))
    x, y = table
    z = FEATURES((x - x.mean(axis=0)) / x.std(axis=0))
    target = (y - y.mean(axis=0)) / y.std(axis=0)
    layout = nd.Dataset(store).layout()
    fold = np.arange(900) // layout.rows_per_partition % 4
    for a, alpha in enumerate(result.cv.alphas):
        for k in range(4):
            ridge = Ridge(alpha=alpha, solver="cholesky").fit(z[fold != k], target[fold != k])
            mse = ((ridge.predict(z[fold == k]) - target[fold == k]) ** 2).mean(axis=0) * y.var(axis=0)
            np.testing.assert_allclose(result.cv.mse[a, k], mse, rtol=1e-8)
    ridge = Ridge(alpha=result.model.alpha[0], solver="cholesky").fit(z, y)
    np.testing.assert_allclose(result.model(x), ridge.predict(z), rtol=1e-6)
    held = np.sqrt(((result.model(x) - y) ** 2).mean(axis=0)).mean()
    assert held < result.cv.rmse < y.std(axis=0).mean()
    assert result.cv.r2 > 0.5


def test_predictions_take_raw_rows_in_the_shape_and_units_of_the_target(make_dataset: Any, table: Any) -> None:
    x, y = table
    one = nd.fit(job_on(make_dataset(x, y[:, 0]))).model
    assert one(x[:5]).shape == (5,)
    assert abs(one(x).mean() - 100) < 1
    two = nd.fit(job_on(make_dataset(x, y, name="two"))).model
    assert two(x[:5]).shape == (5, 2)
    assert np.corrcoef(two(x)[:, 1], y[:, 1])[0, 1] > 0.9
    np.testing.assert_allclose(two(x)[:3], two(x[:3]), rtol=1e-9)


def test_classes_are_restored(make_dataset: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 2))
    names = np.array(["inside", "on the rim", "outside"])[np.digitize((x**2).sum(axis=1), [0.8, 2])]
    result = nd.fit(job_on(make_dataset(x, names)))
    assert result.model.classes == ("inside", "on the rim", "outside")
    assert result.model(x).shape == (600, 3)
    np.testing.assert_allclose(result.model(x).sum(axis=1), 1, atol=1e-6)  # centred one-hot targets sum to one
    assert (result.model.predict(x) == names).mean() > 0.85  # a third by chance
    numbers = nd.fit(job_on(make_dataset(x, np.digitize(x[:, 0], [0]) * 7 + 3, name="n", classes=True))).model
    assert set(numbers.predict(x).tolist()) == {3, 10}


def test_weights_are_repeated_rows(make_dataset: Any, table: Any) -> None:
    x, y = table
    counts = np.random.default_rng(0).integers(0, 4, 900)
    weighted = nd.Dataset(make_dataset(x, y, weights=counts, rows_per_partition=45), weight="weight")
    repeat = np.repeat(np.arange(900), counts)
    repeated = make_dataset(x[repeat], y[repeat], name="repeated")
    a = nd.fit(job_on("", dataset=weighted, alphas=(1.0,)))
    b = nd.fit(job_on(repeated, alphas=(1.0,)))
    assert a.equations.total.weight == counts.sum()
    np.testing.assert_allclose(a.model(x), b.model(x), rtol=1e-8)


def test_rows_with_nan_are_dropped_only_if_asked_and_counted(make_dataset: Any, table: Any) -> None:
    x, y = table[0].copy(), table[1]
    x[[3, 500], [0, 4]] = np.nan
    store = make_dataset(x, y)
    with pytest.raises(nd.DataError, match="NaN or Inf in 1 of the rows"):
        nd.fit(job_on(store))
    result = nd.fit(job_on("", dataset=nd.Dataset(store, nan="drop")))
    assert result.report["data"]["dropped_rows"] == 2
    assert result.equations.total.weight == 898
    assert any("2 rows with NaN" in note for note in result.report["notes"])


def test_a_column_without_variance_is_harmless(make_dataset: Any, table: Any) -> None:
    x, y = table
    plus = nd.fit(job_on(make_dataset(np.hstack([x, np.full((900, 1), 7.0)]), y)))
    assert plus.report["data"]["constant_columns"] == ["column 5"]
    shifted = np.hstack([x, np.full((900, 1), 8.0)])
    assert np.isfinite(plus.model(shifted)).all()


@pytest.mark.slow
def test_scaling_can_be_reused_so_that_sums_of_other_data_add(make_dataset: Any, table: Any, tmp_path: Any) -> None:
    x, y = table
    whole = nd.fit(job_on(make_dataset(x, y, rows_per_partition=45)), out=str(tmp_path / "whole"))
    reuse = nd.Preprocess(reuse=str(tmp_path / "whole"))
    first, second = (
        nd.fit(job_on(make_dataset(x[s], y[s], name=name, rows_per_partition=45), preprocess=reuse))
        for name, s in (("first", slice(0, 540)), ("second", slice(540, 900)))
    )
    both = first.equations + second.equations
    assert_close(both.total, whole.equations.total, 1e-12)
    assert_close((both - second.equations).total, first.equations.total, 1e-10)
    model, _ = nd.solve(both, solver=nd.Cholesky(), alphas=[1.0])
    direct, _ = nd.solve(whole.equations, solver=nd.Cholesky(), alphas=[1.0])
    np.testing.assert_allclose(model(x), direct(x), rtol=1e-7)
    own = nd.fit(job_on(make_dataset(x[:540], y[:540], name="own", rows_per_partition=45)))
    with pytest.raises(nd.DataError, match="Equations of different scaling do not add"):
        own.equations + second.equations
    with pytest.raises(nd.DataError, match=r"Fold 0 does not hold the rows .*of weight 225, from 135\); subtract"):
        first.equations - whole.equations


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_sites_add_their_moments_and_then_their_sums(make_dataset: Any, table: Any, tmp_path: Path, kind: str) -> None:
    """Two sites that see each other's sums only get the scaling and the model of all rows."""
    x, y = table
    x = np.hstack([x, np.repeat([[3.0], [5.0]], [540, 360], axis=0)])
    y = y if kind == "numbers" else np.array(["a", "b", "c"])[np.digitize(y[:, 0], [100.5, 101.5])]
    w = np.random.default_rng(0).integers(0, 3, 900)
    parts, runs = {"here": slice(0, 540), "there": slice(540, 900), "all": slice(0, 900)}, {}
    for name, rows in parts.items():
        store = make_dataset(x[rows], y[rows], name=name, weights=w[rows], rows_per_partition=90)
        runs[name] = job_on("", dataset=nd.Dataset(store, weight="weight"), alphas=(1.0,))
    whole, *_ = [nd.fit(runs[name], out=str(tmp_path / f"{name}-run")) for name in ("all", "here", "there")]
    reuse = nd.Preprocess(reuse=f"{tmp_path}/here-run + {tmp_path}/there-run")
    here, there = (nd.fit(msgspec.structs.replace(runs[name], preprocess=reuse)) for name in ("here", "there"))
    for scale in ("x_mean", "x_scale", "y_mean", "y_scale"):
        mine, all_ = (getattr(each.model.preprocessing, scale) for each in (here, whole))
        np.testing.assert_allclose(mine, all_, rtol=1e-10, atol=1e-12)
    assert here.model.preprocessing.constant == ()
    model, _ = nd.solve(here.equations + there.equations, alphas=[1.0])
    np.testing.assert_allclose(model(x), whole.model(x), rtol=1e-6, atol=1e-8)
    with pytest.raises(nd.SpecError, match="what Nystrom learnt in several runs does not add; reuse one run"):
        nd.fit(msgspec.structs.replace(runs["here"], features=nd.Nystrom(16), preprocess=reuse))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["numbers", "classes"])
def test_a_run_lends_the_moments_of_its_own_rows(make_dataset: Any, tmp_path: Path, kind: str) -> None:
    """It does so whatever it was scaled by."""
    rng, parts = np.random.default_rng(0), {"here": slice(0, 500), "there": slice(500, 900), "all": slice(0, 900)}
    x = rng.standard_normal((900, 3)) * [1, 30, 5] + np.where(np.arange(900) < 500, -2.0, 7.0)[:, None]
    y = np.stack([x[:, 0] + x[:, 1], rng.standard_normal(900)], axis=1)
    y = y if kind == "numbers" else np.digitize(y[:, 0], [-10, 10])
    runs = {}
    for name, rows in parts.items():
        store = make_dataset(x[rows], y[rows], name=name, classes=kind == "classes", rows_per_partition=100)
        runs[name] = job_on(store, alphas=(1.0,))
        nd.fit(runs[name], out=str(tmp_path / f"{name}-run"))
    reuse = nd.Preprocess(reuse=str(tmp_path / "here-run"))
    nd.fit(msgspec.structs.replace(runs["there"], preprocess=reuse), out=str(tmp_path / "scaled-run"))
    whole = nd.load(f"{tmp_path}/all-run/model.zarr").preprocessing
    np.testing.assert_allclose([whole.x_mean, whole.x_scale], [x.mean(axis=0), x.std(axis=0)])
    for name in ("there", "scaled"):
        reuse = nd.Preprocess(reuse=f"{tmp_path}/here-run + {tmp_path}/{name}-run")
        found = nd.fit(msgspec.structs.replace(runs["here"], preprocess=reuse)).model.preprocessing
        for scale in ("x_mean", "x_scale", "y_mean", "y_scale", "x_low", "x_high"):
            np.testing.assert_allclose(getattr(found, scale), getattr(whole, scale), rtol=1e-10, err_msg=scale)


def test_the_same_rows_are_not_added_twice(make_dataset: Any, table: Any, tmp_path: Path) -> None:
    x, y = table
    a = nd.fit(job_on(make_dataset(x, y), alphas=(1.0,)), out=str(tmp_path / "a")).equations
    reuse = nd.Preprocess(reuse=str(tmp_path / "a"))
    part = job_on(make_dataset(x[:450], y[:450], name="part"), preprocess=reuse, alphas=(1.0,))
    b = nd.fit(part, out=str(tmp_path / "b")).equations
    both = nd.load(str(tmp_path / "a" / "equations.zarr")) + b
    for mine, theirs in ((a, a), (both, b), (a, both)):
        with pytest.raises(nd.DataError, match=r"the rows of one dataset \(fingerprint \w+\).* added twice; add each"):
            mine + theirs
    assert (both - b + b).datasets == both.datasets
    assert both.moments.rows == 1350
    with pytest.raises(nd.DataError, match="would be subtracted twice; subtract each run once"):
        (a - b) - b
    for again in (f"{tmp_path}/b + {tmp_path}/a/../b/", f"{tmp_path}/b + {tmp_path}/b/equations.zarr"):
        with pytest.raises(nd.DataError, match=r"the rows of one dataset .* would be added twice"):
            nd.fit(msgspec.structs.replace(part, preprocess=nd.Preprocess(reuse=again)))


def test_moments_of_other_columns_are_refused(make_dataset: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (200, 2, 2, 3)).astype(np.uint8)
    job = job_on(make_dataset(images, images[:, 0, 0, 0] / 9))
    nd.fit(msgspec.structs.replace(job, preprocess=nd.Preprocess("columns")), out=str(tmp_path / "run"))
    with pytest.raises(nd.DataError, match=r"moments of 13 input and target columns, expected 4; fit it with the same"):
        nd.fit(msgspec.structs.replace(job, preprocess=nd.Preprocess(reuse=f"{tmp_path}/run + {tmp_path}/run")))


def test_a_solution_in_float32_is_close_to_that_in_float64(make_dataset: Any, table: Any) -> None:
    store = make_dataset(*table)
    single = msgspec.structs.replace(EXACT, dtype="float32")
    a, b = (nd.fit(job_on(store, plan=p, alphas=(1.0,))) for p in (single, EXACT))
    error = np.abs(a.model(table[0]) - b.model(table[0])).max(axis=0) / table[1].std(axis=0)
    assert error.max() < 1e-3


def test_images_are_scaled_by_channel(make_dataset: Any) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (200, 4, 4, 3)).astype(np.uint8)
    result = nd.fit(job_on(make_dataset(images, images[..., 0].mean(axis=(1, 2)))))
    assert result.model.preprocessing.x_mean.shape == (3,)
    by_pixel = nd.fit(
        job_on(make_dataset(images, images[:, 0, 0, 0] / 9, name="p"), preprocess=nd.Preprocess("columns"))
    )
    assert by_pixel.model.preprocessing.x_mean.shape == (48,)
    assert by_pixel.model(images).shape == (200,)
    none = nd.fit(job_on(make_dataset(images, images[:, 0, 0, 0] / 9, name="q"), preprocess=nd.Preprocess("none")))
    assert (none.model.preprocessing.x_scale == 1).all()


SOLVED = [nd.Cholesky(), nd.Eigh(), nd.TiledCholesky(40), nd.PCG(256, tol=1e-9), nd.InPlaceCholesky()]


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVED)
def test_every_target_has_its_own_penalty_if_asked(make_dataset: Any, solver: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 5))
    y = np.stack([x[:, 0] + 0.2 * rng.standard_normal(600), x[:, 1] + 2 * rng.standard_normal(600)], axis=1)
    grid = (1e-3, 1.0, 1e3, 1e6)
    job = job_on(make_dataset(x, y), solver=solver, alphas=grid)
    each, both = nd.fit(msgspec.structs.replace(job, alpha_per_target=True)), nd.fit(job)
    assert each.model.alpha.tolist() == [grid[i] for i in each.cv.path[: len(grid)].argmin(axis=0)]
    assert each.model.alpha[0] < each.model.alpha[1]
    assert len(set(both.model.alpha)) == 1
    for j, alpha in enumerate(each.model.alpha):
        alone = nd.fit(msgspec.structs.replace(job, alphas=(alpha,))).model
        np.testing.assert_allclose(each.model.coef[:, j], alone.coef[:, j], rtol=1e-5, atol=1e-7)
    if each.equations is not None:
        model, cv = nd.solve(each.equations, solver=solver, alphas=grid, per_target=True)
        assert cv.alpha.tolist() == model.alpha.tolist() == each.model.alpha.tolist()
        np.testing.assert_array_equal(model.coef, each.model.coef)


@pytest.mark.parametrize(("solver", "folds"), [*zip(SOLVED, (2, 1, 2, 1, 2), strict=True), (SOLVED[3], 2)])
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_squares_that_overflow_are_refused_by_every_solver(make_dataset: Any, solver: Any, folds: int) -> None:
    x = 1e20 * np.random.default_rng(0).standard_normal((80, 4))
    job = job_on(make_dataset(x, x[:, 0] / 1e20), features=nd.Linear(4), solver=solver, alphas=(1.0, 10.0)[:folds])
    plan, none = msgspec.structs.replace(EXACT, dtype="float32", folds=folds), nd.Preprocess("none")
    with pytest.raises(nd.NotPositiveDefinite, match=r"^Gram has values that are not finite, .* or use dtype float64$"):
        nd.fit(msgspec.structs.replace(job, plan=plan, preprocess=none))
    nd.fit(msgspec.structs.replace(job, preprocess=none))


def test_a_complete_run_comes_back_with_its_cross_validation(make_dataset: Any, table: Any, tmp_path: Any) -> None:
    job, out = job_on(make_dataset(*table)), str(tmp_path / "run")
    first, again = nd.fit(job, out=out), nd.fit(job, out=out)
    for name, value in vars(first.cv).items():
        np.testing.assert_array_equal(getattr(again.cv, name), value)
    assert again.cv.rmse == first.cv.rmse
    single = msgspec.structs.replace(job, alphas=(1.0,), plan=msgspec.structs.replace(EXACT, folds=1))
    for _ in range(2):
        assert nd.fit(single, out=str(tmp_path / "single")).cv is None


LEVERAGE = nd.Nystrom(32, nd.NTK(2), landmarks="leverage")


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({}, {"moments": 1, "equations": 1}),
        ({"features": nd.Nystrom(32, nd.NTK(2))}, {"moments": 1, "landmarks": 1, "equations": 1}),
        ({"features": LEVERAGE}, {"moments": 1, "landmarks": 2, "equations": 1}),
        ({"solver": nd.TiledCholesky(32)}, {"moments": 1, "equations": 6}),
        ({"solver": nd.InPlaceCholesky()}, {"moments": 1, "equations": 1}),
        ({"damaged": "skip"}, {"verify": 1, "moments": 1, "equations": 1}),
        ({"groups": "groups"}, {"moments": 1, "equations": 4}),
    ],
    ids=["dense", "landmarks", "leverage", "panels", "in place", "skip", "groups"],
)
def test_the_data_are_read_as_often_as_is_promised(
    make_dataset: Any, table: Any, changes: dict[str, Any], reads: dict[str, int]
) -> None:
    store = make_dataset(*table, rows_per_partition=90, groups=np.arange(900) % 30)
    named = {name: changes[name] for name in ("damaged", "groups") if name in changes}
    job = job_on(store, dataset=nd.Dataset(store, **named), alphas=(1.0,))
    plan = nd.plan(msgspec.structs.replace(job, **{k: v for k, v in changes.items() if k not in named}))
    if plan.tile:
        plan = msgspec.structs.replace(plan, panels=6)
    done: Counter[str] = Counter()

    @contextmanager
    def watch(phase: str, rows: int) -> Iterator[Any]:
        yield lambda count: done.update({phase: count})

    nd.fit(plan, watch=watch)
    assert done == {phase: 900 * count for phase, count in reads.items()}
