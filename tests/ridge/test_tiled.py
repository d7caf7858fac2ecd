"""A Gram in tiles against one that is whole: sums, solves, and fits; memory, failures and resuming."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted import Cut, CutAfter
from iterative import same_bits
from plans import plan_of

import ntkdist as nd
from ntkdist.cluster.connect import resources
from ntkdist.planning import resolve
from ntkdist.ridge.tiled import on_threads
from ntkdist.solvers.tiled import subtract_product
from ntkdist.sums import NormalEquations, TileSums
from ntkdist.sums.tiles import panels, places, run, runs

pytestmark = pytest.mark.usefixtures("alone")

FEATURES = nd.NTKRandomFeatures(n_components=96, depth=2, bias=0.5)
EXACT = nd.PlanTable(folds=4, dtype="float64", threads=1, tile=40)
ALPHAS = (0.1, 1.0, 10.0)


def job_on(store: str, **changes: Any) -> nd.Job:
    """Three tiles a column, the last of them of 16 columns."""
    job = nd.Job(nd.Dataset(store), FEATURES, alphas=ALPHAS, plan=EXACT, solver=nd.TiledCholesky())
    return msgspec.structs.replace(job, **changes)


def whole(job: nd.Job) -> nd.FitResult:
    """The fit of a Gram that is not cut."""
    return nd.fit(msgspec.structs.replace(job, solver=nd.Cholesky(), plan=msgspec.structs.replace(job.plan, tile=None)))


def assert_same(a: nd.FitResult, b: nd.FitResult) -> None:
    """To 1e-8 of the scale of each."""
    size = np.abs(b.model.coef).max(axis=0)
    np.testing.assert_allclose(a.model.coef / size, b.model.coef / size, atol=1e-8)
    np.testing.assert_allclose(a.model.intercept, b.model.intercept, rtol=1e-8)
    np.testing.assert_allclose(a.model.alpha, b.model.alpha, rtol=1e-12)
    if b.cv is not None:
        np.testing.assert_allclose(a.cv.alphas, b.cv.alphas, rtol=1e-10)
        np.testing.assert_allclose(a.cv.mse / b.cv.spread, b.cv.mse / b.cv.spread, atol=1e-8)
        np.testing.assert_allclose(a.cv.rmse, b.cv.rmse, rtol=1e-8)
        assert (a.cv.note, a.cv.scored, a.cv.best.tolist()) == (b.cv.note, b.cv.scored, b.cv.best.tolist())


def sums(m: int, t: int = 2, rows: int = 300, weighted: bool = True) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(m)
    z, y = rng.standard_normal((rows, m)) + 1, rng.standard_normal((rows, t))
    return z, y, rng.uniform(0, 2, rows) if weighted else None


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 3), st.booleans(), st.integers(1, 5))
def test_tiles_of_any_size_are_the_whole(m: int, tile: int, t: int, weighted: bool, panels: int) -> None:
    z, y, w = sums(m, t, weighted=weighted)
    e = NormalEquations.zeros(m, t).update(z, y, w)
    n, found = runs(m, tile), {}
    where = places(m, tile)
    for panel in (where[k::panels] for k in range(panels)):
        halves = [
            TileSums.zeros(m, t, tile, panel).update(z[half], y[half], w if w is None else w[half], tile)
            for half in (slice(0, 140), slice(140, None))
        ]
        total = halves[0] + halves[1]
        total += TileSums.of_arrays(TileSums.zeros(m, t, tile, panel).arrays())
        found |= total.tiles
        assert total.__sizeof__() == sum(a.nbytes for a in total.tiles.values())
    assert found.keys() == set(where)
    for (i, j), a in found.items():
        if i < n:
            b = e.gram[run(m, tile, i), run(m, tile, j)]
            a, b = (np.tril(a), np.tril(b)) if i == j else (a, b)
        elif j < n:
            b = np.column_stack([e.rhs, e.z_sum])[run(m, tile, j)].T
        else:
            b = np.block([[e.yy, e.y_sum[:, None]], [e.y_sum, e.weight]])
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-10)


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 3))
def test_solving_by_tiles_of_any_size_is_solving(m: int, tile: int, t: int) -> None:
    e = NormalEquations.zeros(m, t).update(*sums(m, t))
    pairs = zip(nd.TiledCholesky(tile).solve(e, ALPHAS), nd.Cholesky().solve(e, ALPHAS), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a.coef, b.coef, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(a.intercept, b.intercept, rtol=1e-9, atol=1e-11)


def test_tiles_larger_than_the_pieces_that_threads_take() -> None:
    z, y, w = sums(1300, rows=1500)
    e = NormalEquations.zeros(1300, 2).update(z, y, w)
    tiles = TileSums.zeros(1300, 2, 1024, places(1300, 1024)).update(z, y, w, 1024).tiles
    np.testing.assert_array_equal(np.tril(tiles[0, 0]), np.tril(e.gram[:1024, :1024]))
    np.testing.assert_array_equal(tiles[1, 0], e.gram[1024:, :1024])
    ((a,), (b,)) = (s.solve(e, [1.0]) for s in (nd.TiledCholesky(700), nd.Cholesky()))
    np.testing.assert_allclose(a.coef, b.coef, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("column", [2, 17, 49])
def test_it_names_the_pivot_that_the_whole_factorisation_names(column: int) -> None:
    gram = np.eye(50)
    gram[column, column] = -1.0
    e = NormalEquations(gram, np.zeros((50, 2)), np.diag([1.0, 50.0]))
    for solver in (nd.Cholesky(), nd.TiledCholesky(16)):
        with pytest.raises(nd.NotPositiveDefinite, match=rf"at alpha=0.5 \(pivot {column + 1} of 50\); use a larger"):
            solver.solve(e, [0.5])


def test_a_fit_is_that_of_the_whole_gram(make_dataset: Any, table: Any) -> None:
    store = make_dataset(*table)
    expected = whole(job_on(store))
    for tile in (20, 40, None):
        assert_same(nd.fit(job_on(store, plan=msgspec.structs.replace(EXACT, tile=tile))), expected)


def test_grids_grow_and_are_chosen_from_alike(make_dataset: Any, table: Any) -> None:
    store = make_dataset(*table)
    for grid in ({"alphas": "auto"}, {"alphas": "auto", "alphas_per_row": (0.1, 1.0)}):
        job = job_on(store, **grid, alpha_per_target=True)
        assert_same(nd.fit(job), whole(job))


def test_weights_classes_and_dropped_rows(make_dataset: Any, table: Any) -> None:
    x, y = table[0].copy(), np.array(["in", "out"])[(table[1][:, 1] > 0).astype(int)]
    x[[3, 500], [0, 4]] = np.nan
    store = make_dataset(x, y, weights=np.random.default_rng(0).integers(0, 4, 900), rows_per_partition=45)
    job = job_on("", dataset=nd.Dataset(store, weight="weight", nan="drop"), class_weight="balanced")
    a, b = nd.fit(job), whole(job)
    assert_same(a, b)
    assert a.report["data"] == b.report["data"]
    assert a.model.classes == ("in", "out")


def test_a_fit_in_tiles_that_threads_take_in_pieces(make_dataset: Any) -> None:
    x = np.random.default_rng(0).standard_normal((120, 8))
    job = job_on(make_dataset(x, x[:, :2] ** 2), features=nd.NTKRandomFeatures(700), alphas=(10.0,))
    job = msgspec.structs.replace(job, plan=msgspec.structs.replace(EXACT, tile=600, folds=2))
    assert_same(nd.fit(job), whole(job))


def test_errors_below_their_rounding_are_those_of_the_whole_gram(make_dataset: Any) -> None:
    x = np.random.default_rng(0).standard_normal((2000, 5))
    y = FEATURES(((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)).astype(np.float64)[:, :2]
    job = job_on(make_dataset(x, y), alphas="auto", alphas_per_row=tuple(np.geomspace(1e-9, 1e-1, 17).tolist()))
    job = msgspec.structs.replace(job, plan=msgspec.structs.replace(EXACT, dtype="float32"))
    a, b = nd.fit(job).cv, whole(job).cv
    assert (a.mse < 0).any()
    np.testing.assert_allclose(a.path_rounding, b.path_rounding, rtol=1e-2)
    solved = np.isfinite(b.path)
    assert (abs(a.path[solved] - b.path[solved]) <= b.path_rounding[solved]).all()
    for cv in (a, b):
        assert "below the rounding of its sums" in cv.note or "of 2 targets is below the rounding of its" in cv.note
        assert cv.note.endswith('use dtype = "float64" to tell more')
        assert (cv.chosen > 0).all()
    c = nd.fit(msgspec.structs.replace(job, alphas_per_row=(1e-4, 1e-2), solver=nd.PCG(), plan=nd.PlanTable(folds=4)))
    assert c.cv.rounding is None
    assert (c.cv.mse > 0).all()


@pytest.mark.parametrize("name", ["groups", "holdout"])
def test_rows_that_are_dealt_one_by_one(make_dataset: Any, table: Any, name: str) -> None:
    store = make_dataset(*table, **{name: np.arange(900) % 2 if name == "holdout" else np.arange(900) % 50})
    plan = msgspec.structs.replace(EXACT, folds=None if name == "holdout" else 3)
    job = job_on("", dataset=nd.Dataset(store, **{name: name}), plan=plan)
    a, b = nd.fit(job), whole(job)
    assert_same(a, b)
    assert a.report["data"]["fold_weights"] == b.report["data"]["fold_weights"]


def test_one_fold(make_dataset: Any, table: Any) -> None:
    job = job_on(make_dataset(*table), plan=msgspec.structs.replace(EXACT, folds=1), alphas=(1.0,))
    a = nd.fit(job)
    assert a.cv is None
    assert_same(a, whole(job))


def float32_plan(store: str, panels: int, **changes: Any) -> nd.Plan:
    """Where another order of sums would show."""
    table = msgspec.structs.replace(EXACT, dtype="float32", folds=2, shards=4, fan_in=2)
    return msgspec.structs.replace(nd.plan(job_on(store, plan=table, alphas=(1.0,), **changes)), panels=panels)


def test_panels_change_no_bits(make_dataset: Any, table: Any) -> None:
    store = make_dataset(*table)
    one, each = (nd.fit(float32_plan(store, panels)) for panels in (1, 10))
    same_bits(one, each)
    assert (one.report["plan"]["panels"], each.report["plan"]["panels"]) == (1, 10)
    assert one.report["data"] == each.report["data"]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_fit_on_workers_of_its_own_needs_no_client_of_the_caller(make_dataset: Any) -> None:
    x = np.random.default_rng(0).standard_normal((200, 4))
    job = nd.Job(
        nd.Dataset(make_dataset(x=x, y=x[:, 0])),
        nd.ZonalFeatures(24),
        alphas_per_row=(1e-2,),
        solver=nd.TiledCholesky(8),
    )
    here = nd.fit(job)
    there = nd.fit(msgspec.structs.replace(job, cluster=nd.Local(1)))
    np.testing.assert_array_equal(there.model.coef, here.model.coef)


@pytest.mark.cluster
def test_the_same_bits_on_two_workers(make_dataset: Any, table: Any, two_workers: Any) -> None:
    plan = float32_plan(make_dataset(*table), 2)
    there = nd.fit(plan, client=two_workers)
    same_bits(nd.fit(plan), there)
    assert len(there.report["run"]["peak_memory_bytes"]) == 2
    assert there.equations is None
    assert any("TiledCholesky keeps no Gram" in note for note in there.report["notes"])


@pytest.mark.parametrize("shift", [0, 4, 8])
def test_the_bits_of_a_product_do_not_depend_on_where_its_factors_are(shift: int) -> None:
    """As what another process sent may be at any address, and one array may come as two."""
    rng = np.random.default_rng(0)
    a, left, right = (rng.standard_normal((rows, 40)) for rows in (16, 16, 40))

    def moved(x: Any) -> Any:
        place = np.zeros(x.nbytes + 64, np.uint8)
        out = np.ndarray(x.shape, x.dtype, place.data, (-place.ctypes.data) % 32 + shift)
        out[:] = x
        return out

    for one, other in ((left, right), (right, right)):
        target = a if one is left else right
        here = on_threads(1, subtract_product, target, one, other)
        there = on_threads(1, subtract_product, moved(target), moved(one), moved(other))
        np.testing.assert_array_equal(here, there)


@pytest.mark.cluster
def test_a_gram_that_cannot_be_factored_is_told_from_afar(make_dataset: Any, table: Any, two_workers: Any) -> None:
    x = np.repeat(table[0], 2, axis=1)
    job = job_on(make_dataset(x, table[1]), features=nd.Linear(10), alphas=(0.0,))
    job = msgspec.structs.replace(job, plan=msgspec.structs.replace(EXACT, tile=4, folds=2))
    with pytest.raises(nd.NotPositiveDefinite, match=r"alpha=0 \(pivot \d+ of 10\); use a larger alpha, or float64$"):
        nd.fit(job, client=two_workers)


def test_an_alpha_too_small_to_factor_loses_and_does_not_fail(make_dataset: Any, table: Any) -> None:
    store = make_dataset(np.repeat(table[0], 2, axis=1), table[1])
    job = job_on(store, features=nd.Linear(10), alphas=(0.0, 1.0), plan=msgspec.structs.replace(EXACT, tile=4))
    found = nd.fit(job)
    assert np.isinf(found.cv.mse[0]).all()
    assert found.model.alpha[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 5])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(
    make_dataset: Any, table: Any, tmp_path: Path, after: int
) -> None:
    """Also with other panels: then what was kept of those before is not there, and is summed again."""
    plan, out = float32_plan(make_dataset(*table), 3), str(tmp_path / "run")
    straight = nd.fit(plan)
    with pytest.raises(Cut):
        nd.fit(plan, out=out, watch=CutAfter(after))
    kept = len(list((tmp_path / "run" / "checkpoint").glob("shard-*.zarr")))
    assert after <= kept < 12
    with pytest.raises(Cut):
        nd.fit(msgspec.structs.replace(plan, panels=4), out=out, watch=CutAfter(after))
    result = nd.fit(plan, out=out, resume=True)
    same_bits(result, straight)
    assert f"{kept} of 12 shards were finished before" in " ".join(result.report["notes"])
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["job.json", "model.zarr", "report.json"]
    again = nd.fit(plan, out=out)
    np.testing.assert_array_equal(again.cv.mse, straight.cv.mse)
    assert again.equations is None


def test_tile_is_said_once_and_to_whom_it_concerns() -> None:
    for solver, said in (
        (nd.TiledCholesky(7), "tile is 40 in the plan but 7 in the solver; give one"),
        (nd.Cholesky(), "tile is for solver TiledCholesky, not Cholesky; leave out one of them"),
    ):
        with pytest.raises(nd.SpecError, match=said):
            job_on("", solver=solver)
    assert job_on("", solver=nd.TiledCholesky(40)).plan.tile == 40


def test_a_tile_in_the_plan_is_a_solver(make_dataset: Any, table: Any) -> None:
    store = make_dataset(*table)
    assert nd.plan(job_on(store, solver=None)).solver == nd.TiledCholesky()
    by_plan, by_solver = job_on(store), job_on(store, solver=nd.TiledCholesky(40), plan=nd.PlanTable())
    assert nd.plan(by_plan).tile == nd.plan(by_solver).tile == 40
    assert nd.plan(job_on(store, plan=nd.PlanTable())).tile == 96  # one tile, which is all of it


def test_panels_are_as_few_as_fit_a_worker() -> None:
    p = msgspec.structs.replace(plan_of(m=32_768), solver=nd.TiledCholesky(), tile=2048)
    assert p.with_panels(10**12, 8).panels == 1
    tight = p.with_panels(16 * 10**9, 8)
    assert 1 < tight.panels < 152
    tight.check(16 * 10**9, 8)
    assert p.with_panels(6 * 10**9, 8).panels < 20  # solving needs 5 GB, which no panels change
    fewer = msgspec.structs.replace(tight, panels=tight.panels - 1)
    assert fewer.projected_memory_bytes(8) > 0.7 * 16e9
    assert sum(len(panel) for panel in panels(p.m, p.tile, tight.panels)) == len(places(p.m, p.tile))
    with pytest.raises(nd.PlanTooLarge, match=r"tiles 22.\d.* or use more or larger workers"):
        p.with_panels(16 * 10**9).check(16 * 10**9)


def test_without_a_solver_it_is_the_first_that_fits(make_dataset: Any, table: Any) -> None:
    job = nd.Job(
        nd.Dataset(make_dataset(*table, groups=np.arange(900) % 50)), nd.RandomFourier(20_000, nd.Gaussian(1.0))
    )
    roomy = resources(None)._replace(workers=8, tasks_at_once=1, memory_bytes=10**12, driver_memory_bytes=10**12)
    small = roomy._replace(memory_bytes=8 * 10**9, driver_memory_bytes=8 * 10**9)
    assert resolve.planned(job, roomy).solver == nd.Cholesky()
    tiled = resolve.planned(job, small)
    assert (tiled.solver, tiled.tile, tiled.job) == (nd.TiledCholesky(), 2048, job)
    assert tiled.panels > 1
    alone = small._replace(workers=1)
    grouped = msgspec.structs.replace(job, dataset=msgspec.structs.replace(job.dataset, groups="groups"))
    assert resolve.planned(job, alone).solver == resolve.planned(grouped, alone).solver == nd.InPlaceCholesky()
    worker = alone._replace(here=False)
    assert resolve.planned(job, worker).solver == nd.PCG()
    assert resolve.planned(grouped, worker).solver == nd.Cholesky()  # which is refused by its memory
    named = msgspec.structs.replace(job, solver=nd.Cholesky())
    assert resolve.planned(named, small).solver == nd.Cholesky()


def test_a_checkpoint_tells_which_solver_was_chosen(make_dataset: Any, table: Any, tmp_path: Path) -> None:
    job = job_on(make_dataset(*table), solver=None, plan=nd.PlanTable(folds=2, checkpoint=str(tmp_path / "kept")))
    tiled = msgspec.structs.replace(nd.plan(job), solver=nd.TiledCholesky(), tile=40, block_rows=300)
    first, again = nd.fit(tiled), nd.fit(job)
    same_bits(first, again)
    assert again.report["plan"]["solver"]["type"] == "TiledCholesky"


def test_memory_falls_with_workers_and_no_process_holds_the_gram() -> None:
    p = msgspec.structs.replace(plan_of(m=65_536), solver=nd.TiledCholesky(), tile=2048)
    few, many = p.with_panels(48 * 10**9, 4), p.with_panels(48 * 10**9, 32)
    assert many.panels <= few.panels / 2
    assert many.memory(32)["tiles"] < few.memory(4)["tiles"] / 7
    assert many.memory(1)["tiles"] > 8 * p.m**2 * 5 / 2 > few.driver_memory_bytes()
    assert p.driver_memory_bytes() < 1e9
