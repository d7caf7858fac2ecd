"""A learned metric: that it finds the directions that matter, honestly, and to the same bits however it is run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import msgspec
import numpy as np
import pytest
from interrupted import Cut, CutAfter, same

import ntkdist as nd
from ntkdist import random
from ntkdist.planning.plan import of_metric
from ntkdist.ridge import checkpoint
from ntkdist.ridge.importances import directions, importances, sensitivities

D, ROWS = 6, 1500
DIRECTION = np.array([1.0, -1.0, 0.5, 0, 0, 0])
DIRECTION /= np.linalg.norm(DIRECTION)
FEATURES = nd.Nystrom(96, nd.NTK(2, 1.0))
ROUNDS = nd.Metric(rounds=2, n_components=64, scales=(1.0, 3.0))


def ridge_function(rows: int = ROWS, seed: int = 0) -> tuple[Any, Any]:
    """Draw a target that varies along one direction of six columns."""
    x = np.random.default_rng(seed).standard_normal((rows, D))
    return x, np.sin(3 * x @ DIRECTION)


def job(make_dataset: Any, metric: nd.Metric = ROUNDS, *, y: Any = None, name: str = "data", **options: Any) -> nd.Job:
    x, target = ridge_function()
    plan = nd.PlanTable(**{"folds": 3, "shards": 9, **options.pop("plan", {})})
    settings = {"features": FEATURES, **options.pop("settings", {})}
    store = make_dataset(x, target if y is None else y, name=name, **options)
    return nd.Job(nd.Dataset(store), plan=plan, metric=metric, **settings)


def test_the_metric_finds_the_direction_that_matters_and_cuts_the_error(make_dataset: Any) -> None:
    plain, learned = nd.fit(job(make_dataset, nd.Metric())), nd.fit(job(make_dataset, name="again"))
    pre = learned.model.preprocessing
    values, vectors = np.linalg.eigh(pre.metric @ pre.metric.T)
    assert abs(vectors[:, -1] @ DIRECTION) > 0.99
    assert values[-1] > 10 * values[-2]
    assert learned.cv.rmse < 0.5 * plain.cv.rmse
    x, y = ridge_function(seed=1)
    error = np.sqrt(np.mean((learned.model(x) - y) ** 2))
    assert error == pytest.approx(learned.cv.rmse, rel=0.25)  # the reported one is honest


def test_a_diagonal_metric_drops_the_columns_that_do_not_matter(make_dataset: Any) -> None:
    x, _ = ridge_function()
    result = nd.fit(job(make_dataset, msgspec.structs.replace(ROUNDS, form="diagonal"), y=np.sin(3 * x[:, 1])))
    metric = result.model.preprocessing.metric
    assert metric.shape == (D,)
    assert metric.argmax() == 1
    assert np.sort(metric)[-2] < 0.2 * metric[1]


def test_no_rounds_learn_nothing_to_the_bit(make_dataset: Any) -> None:
    one = nd.fit(job(make_dataset, nd.Metric()))
    other = nd.fit(job(make_dataset, nd.Metric(form="diagonal", scales=(5.0,)), name="again"))
    same(one, other)
    assert one.model.preprocessing.metric.size == 0


def test_the_last_fold_is_scored_and_never_learned_from(make_dataset: Any) -> None:
    """With one length and a penalty that the targets do not move, its targets do not change the metrics."""
    asked = job(make_dataset, nd.Metric(rounds=1, n_components=64, scales=(1.0,)))
    result = nd.fit(asked)
    assert result.cv.scored == (2,)
    _, y = ridge_function()
    fold = np.concatenate([nd.plan(asked).folds_of(i) for i in range(10)])
    noisy = np.where(fold == 2, y + 1e-3 * np.random.default_rng(0).standard_normal(ROWS), y)
    other = nd.fit(job(make_dataset, asked.metric, y=noisy, name="noisy"))
    one, two = (each.model.preprocessing for each in (result, other))
    assert [r.alpha for r in one.rounds] == pytest.approx([r.alpha for r in two.rounds], rel=1e-6)
    assert [r.kept for r in one.rounds] == [r.kept for r in two.rounds] == [False, True]
    # The targets' scale is of all folds, and moves by a millionth.
    np.testing.assert_allclose(one.metric, two.metric, rtol=1e-4, atol=1e-6)
    trained = np.where(fold == 1, y + 0.5 * np.random.default_rng(0).standard_normal(ROWS), y)
    third = nd.fit(job(make_dataset, asked.metric, y=trained, name="trained")).model.preprocessing
    assert np.abs(third.metric - one.metric).max() > 1e-3


def test_each_round_is_reported_and_the_best_is_kept(make_dataset: Any) -> None:
    result = nd.fit(job(make_dataset, nd.Metric(rounds=6, n_components=64, scales=(1.0,))))
    rounds = result.model.preprocessing.rounds
    errors = [one.rmse for one in rounds]
    assert [one.kept for one in rounds] == [i == int(np.argmin(errors)) for i in range(len(errors))]
    gains = [after < 0.999 * min(errors[: i + 1]) for i, after in enumerate(errors[1:])]
    assert all(gains[:-1])
    assert len(rounds) == 7 or not gains[-1]


def test_the_report_has_rounds_and_what_they_found(make_dataset: Any, tmp_path: Path) -> None:
    result = nd.fit(job(make_dataset), out=str(tmp_path / "run"))
    pre, found = result.model.preprocessing, result.report["metric"]
    assert (found["form"], found["fold"], found["n_components"], found["reused"]) == ("full", 2, 64, "")
    assert [(r["scale"], r["rmse"], r["alpha_per_row"], r["kept"]) for r in found["rounds"]] == [
        (r.scale, r.rmse, r.alpha, r.kept) for r in pre.rounds
    ]
    names = [f"column {i}" for i in range(D)]
    assert found["importances"] == dict(zip(names, importances(pre).tolist(), strict=True))
    assert found["sensitivities"] == dict(zip(names, sensitivities(pre).tolist(), strict=True))
    assert [(d["share"], d["columns"]) for d in found["directions"]] == directions(pre, 3)
    (note,) = (note for note in result.report["notes"] if "metric" in note)
    (best,) = (i for i, one in enumerate(pre.rounds) if one.kept)
    last, stretch = len(pre.rounds) - 1, pre.rounds[best].stretch
    assert note == (
        f"the metric of round {best} of {last} was kept: rmse {pre.rounds[best].rmse:.4g}, and "
        f"{pre.rounds[0].rmse:.4g} without it, in fits with 64 features, on fold 2, which no gradient has seen; "
        + f"for the fit's own features rows are {stretch:.3g} times as long; " * (stretch != 1)
        + "the reported error is of fold 2 too, which chose penalty, round and length"
    )
    again = nd.fit(job(make_dataset, name="copy"), out=str(tmp_path / "run"))  # is read
    assert again.report["metric"] == found


def test_the_report_of_a_reused_metric_says_where_it_is_from(make_dataset: Any, tmp_path: Path) -> None:
    first, run = nd.fit(job(make_dataset), out=str(tmp_path / "first")), str(tmp_path / "first")
    again = msgspec.structs.replace(job(make_dataset, nd.Metric(), name="more"), preprocess=nd.Preprocess(reuse=run))
    found = nd.fit(again).report
    expected = {"reused": run, "fold": None, "n_components": None}
    assert found["metric"] == first.report["metric"] | expected
    said = f"the metric is that of {run}, which may have seen the folds whose error is reported"
    assert [note for note in found["notes"] if "metric" in note] == [said]


@pytest.mark.parametrize(
    ("target", "rounds", "ended"),
    [("sin", 1, "rounds"), ("noise", 6, "gain"), ("linear", 2, "gradients")],
)
def test_the_report_says_why_the_rounds_ended(make_dataset: Any, target: str, rounds: int, ended: str) -> None:
    x, y = ridge_function()
    ys = {"sin": y, "noise": random.normals((ROWS,), 1, 0, 0), "linear": x[:, 0]}
    settings = {"features": nd.Linear(D)} if target == "linear" else {}
    metric = nd.Metric(rounds=rounds, n_components=None if settings else 64, scales=(1.0,))
    found = nd.fit(job(make_dataset, metric, y=ys[target], settings=settings)).report
    assert found["metric"]["ended"] == ended
    errors = [one["rmse"] for one in found["metric"]["rounds"]]
    if ended == "gain":
        assert errors[-1] > 0.999 * min(errors[:-1])
        assert len(errors) <= rounds
    else:
        assert len(errors) == (rounds + 1 if ended == "rounds" else 1)
    if ended == "gradients":
        assert found["metric"]["directions"] == []
        assert list(found["metric"]["importances"].values()) == pytest.approx([1 / D] * D)
        kept = "no metric was kept, for none lowered the rmse, "
        assert any(note.startswith(kept + f"{errors[0]:.4g} in fits") for note in found["notes"])


@pytest.mark.parametrize(
    "cut",
    [
        "gradients 0",
        *(pytest.param(cut, marks=pytest.mark.slow) for cut in ("round 0", "round 1", "length", "equations")),
    ],
)
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(make_dataset: Any, tmp_path: Path, cut: str) -> None:
    asked, out = job(make_dataset), str(tmp_path / "run")
    straight = nd.fit(asked)
    with pytest.raises(Cut):
        nd.fit(asked, out=out, watch=CutAfter(2, cut))
    result = nd.fit(asked, out=out, resume=cut in ("round 1", "length", "equations"))
    same(result, straight)
    assert result.model.preprocessing.rounds == straight.model.preprocessing.rounds
    saved = nd.load(f"{out}/model.zarr").preprocessing
    assert saved.rounds == straight.model.preprocessing.rounds
    np.testing.assert_array_equal(saved.metric, straight.model.preprocessing.metric)


def test_rounds_that_are_kept_are_not_done_again(make_dataset: Any, tmp_path: Path) -> None:
    asked = job(make_dataset, plan={"checkpoint": str(tmp_path / "kept")})
    with pytest.raises(Cut):
        nd.fit(asked, watch=CutAfter(2, "round 1"))
    phases = list[str]()

    class Noted(CutAfter):
        def __call__(self, phase: str, rows: int) -> Any:
            phases.append(phase)
            return super().__call__(phase, rows)

    nd.fit(asked, watch=Noted(-1))
    assert "round 0" not in phases
    assert phases.count("round 1") == 2  # one for each length


@pytest.mark.slow
def test_a_damaged_round_is_done_again(make_dataset: Any, tmp_path: Path) -> None:
    asked = job(make_dataset, plan={"checkpoint": str(tmp_path / "kept")})
    straight = nd.fit(job(make_dataset, name="again"))
    with pytest.raises(Cut):
        nd.fit(asked, watch=CutAfter(2, "round 1"))
    rounds = checkpoint.KeptRounds(str(tmp_path / "kept"))
    assert rounds.load("0") is not None
    (group,) = (tmp_path / "kept").glob("round-0-*.zarr")
    chunk = next(p for p in (group / "following").rglob("*") if p.is_file() and p.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:-3])
    same(nd.fit(asked), straight)


@pytest.mark.slow
def test_the_bits_are_those_of_any_scheduler(make_dataset: Any, two_workers: Any) -> None:
    asked = job(make_dataset)
    straight = nd.fit(asked)
    with dask.config.set(scheduler="threads"):
        same(nd.fit(asked), straight)
    far = nd.fit(asked, client=two_workers)
    same(far, straight)
    np.testing.assert_array_equal(far.model.preprocessing.metric, straight.model.preprocessing.metric)


@pytest.mark.parametrize("solver", [nd.TiledCholesky(), nd.InPlaceCholesky(), nd.PCG(sample_rows=64)])
def test_other_solvers_fit_on_the_same_metric(make_dataset: Any, solver: Any) -> None:
    rounds = msgspec.structs.replace(ROUNDS, n_components=96)  # without a Gram, the length is for their features
    dense = nd.fit(job(make_dataset, rounds, settings={"alphas": (1e-3, 1e-1)}))
    other = nd.fit(job(make_dataset, rounds, name="again", settings={"alphas": (1e-3, 1e-1), "solver": solver}))
    np.testing.assert_array_equal(other.model.preprocessing.metric, dense.model.preprocessing.metric)
    assert other.cv.scored == (2,)
    x, _ = ridge_function(50, seed=2)
    np.testing.assert_allclose(other.model(x), dense.model(x), atol=2e-3)


def test_a_reused_metric_is_not_learned_again_and_the_sums_add(make_dataset: Any, tmp_path: Path) -> None:
    first = nd.fit(job(make_dataset), out=str(tmp_path / "first"))
    x, y = ridge_function(seed=5)
    store = make_dataset(x, y, name="more")
    again = msgspec.structs.replace(
        job(make_dataset, name="copy"),
        dataset=nd.Dataset(store),
        preprocess=nd.Preprocess(reuse=str(tmp_path / "first")),
    )
    phases = CutAfter(1, "round 0")  # would end the run
    more = nd.fit(again, watch=phases)
    np.testing.assert_array_equal(more.model.preprocessing.metric, first.model.preprocessing.metric)
    both = first.equations + more.equations
    _, cv = nd.solve(both)
    assert cv.rmse < first.cv.rmse
    assert cv.scored == (2,)
    rest = both - more.equations
    np.testing.assert_allclose(rest.total.rhs, first.equations.total.rhs, rtol=1e-6, atol=1e-3)
    other = replace(first.equations, preprocessing=replace(first.equations.preprocessing, metric=np.ones(D)))
    with pytest.raises(nd.DataError, match="different scaling"):
        other + more.equations


def test_reuse_of_a_run_without_a_metric_is_refused(make_dataset: Any, tmp_path: Path) -> None:
    plain = job(make_dataset, nd.Metric())
    nd.fit(plain, out=str(tmp_path / "plain"))
    again = msgspec.structs.replace(plain, metric=ROUNDS, preprocess=nd.Preprocess(reuse=str(tmp_path / "plain")))
    with pytest.raises(nd.DataError, match=r"holds no metric, but this job has metric\.rounds = 2"):
        nd.fit(again)


def test_classes_weights_and_groups_are_respected(make_dataset: Any) -> None:
    x, y = ridge_function()
    labels = (y > 0).astype(np.int64)
    result = nd.fit(job(make_dataset, y=labels, classes=True))
    pre = result.model.preprocessing
    assert abs(np.linalg.eigh(pre.metric @ pre.metric.T)[1][:, -1] @ DIRECTION) > 0.95
    assert (result.model.predict(x) == labels).mean() > 0.95


def test_a_row_of_weight_two_counts_as_two() -> None:
    x, y = ridge_function(400)
    weight = np.where(np.arange(400) % 3 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(400), weight.astype(int))
    features, metric = nd.ZonalFeatures(64, nd.NTK(2, 1.0)), nd.Metric(rounds=1, scales=(1.0,))
    weighted = nd.NTKRidgeCV(features, metric=metric).fit(x, y, sample_weight=weight)
    repeated = nd.NTKRidgeCV(features, metric=metric).fit(x[twice], y[twice])
    one, two = (each.model_.preprocessing for each in (weighted, repeated))
    np.testing.assert_allclose(one.metric, two.metric, rtol=1e-6, atol=1e-8)
    assert one.rounds[0].alpha == pytest.approx(two.rounds[0].alpha)


def test_rows_held_out_choose_the_round(make_dataset: Any) -> None:
    x, y = ridge_function()
    held = (np.arange(ROWS) % 4 == 0).astype(np.uint8)
    store = make_dataset(x, y, holdout=held)
    one = nd.Job(nd.Dataset(store, holdout="holdout"), FEATURES, metric=ROUNDS)
    result = nd.fit(one)
    assert result.cv.scored == (1,)
    assert result.model.preprocessing.rounds[-1].rmse < result.model.preprocessing.rounds[0].rmse
    assert result.report["metric"]["fold"] == 1
    assert any("on the rows held out by 'holdout', which no gradient has seen" in n for n in result.report["notes"])


def test_the_length_is_chosen_once_more_for_the_features_of_the_fit(make_dataset: Any) -> None:
    """Rows that are longer or shorter have larger errors, by a dense solve with landmarks of its own."""
    x, _ = ridge_function()
    y = np.sin(x @ DIRECTION) + 0.05 * np.random.default_rng(5).standard_normal(ROWS)
    held = np.arange(ROWS) % 4 == 0
    asked = nd.Job(
        nd.Dataset(make_dataset(x, y, holdout=held.astype(np.uint8)), holdout="holdout"),
        nd.Nystrom(300, nd.Gaussian(1.0)),
        metric=nd.Metric(rounds=1, n_components=24, scales=(2.0,)),
    )
    found = nd.fit(asked)
    kept = next(one for one in found.model.preprocessing.rounds if one.kept)
    assert kept.stretch < 1
    assert kept.last_rmse is not None
    assert kept.last_rmse < kept.rmse / 2
    assert kept.last_rmse == pytest.approx(found.cv.rmse, rel=0.05)  # which has tried more penalties
    u = found.model.preprocessing.inputs(x, np.float64)

    def error(factor: float) -> float:
        z = asked.map.fit(factor * u[~held][:300])(factor * u)
        gram, rhs = z[~held].T @ z[~held], z[~held].T @ y[~held]
        fits = (z[held] @ np.linalg.solve(gram + alpha * np.eye(300), rhs) for alpha in 10.0 ** np.arange(-7, 1))
        return min(float(np.sqrt(np.mean((fit - y[held]) ** 2))) for fit in fits)

    assert error(1.0) < 1.02 * min(error(1.5), error(1 / 1.5))


def test_the_length_of_a_fit_without_a_gram_is_chosen_for_the_features_of_the_rounds(make_dataset: Any) -> None:
    p = nd.plan(job(make_dataset, settings={"solver": nd.PCG()}))
    assert [q.m for q in of_metric(p) or ()] == [64, 64]
    dense = nd.plan(job(make_dataset, name="again"))
    assert [q.m for q in of_metric(dense) or ()] == [64, 96]
    assert of_metric(nd.plan(job(make_dataset, nd.Metric(), name="third"))) is None


def test_a_share_of_the_rows_is_enough_for_the_rounds(make_dataset: Any) -> None:
    asked = job(make_dataset, msgspec.structs.replace(ROUNDS, rows=700))
    pre = nd.fit(asked).model.preprocessing
    assert abs(np.linalg.eigh(pre.metric @ pre.metric.T)[1][:, -1] @ DIRECTION) > 0.95


def test_lengths_are_tried_only_where_the_kernel_depends_on_them(make_dataset: Any) -> None:
    homogeneous = nd.Nystrom(96, nd.NTK(2))
    result = nd.fit(job(make_dataset, settings={"features": homogeneous}))
    assert [one.scale for one in result.model.preprocessing.rounds] == [1.0] * len(result.model.preprocessing.rounds)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"plan": nd.PlanTable(folds=1), "alphas": (1.0,)}, "folds = 1 leaves no rows to choose a metric by"),
        ({"preprocess": nd.Preprocess(reuse="a + b")}, "the metrics of several runs do not add"),
        ({"metric": nd.Metric(rounds=1, n_components=97)}, "metric.n_components is 97, more than the 96"),
        ({"features": nd.NTKRandomFeatures(96)}, "NTKRandomFeatures has no gradient"),
        ({"features": nd.CNTKRandomFeatures(96)}, "CNTKRandomFeatures has no gradient"),
    ],
)
def test_a_metric_that_cannot_be_learned_is_refused_in_a_sentence(settings: Any, said: str) -> None:
    values = {"dataset": nd.Dataset("none.zarr"), "features": FEATURES, "metric": ROUNDS, **settings}
    with pytest.raises(nd.SpecError, match=said):
        nd.Job(**values)


def test_a_table_of_equal_rows_is_refused_in_a_sentence() -> None:
    with pytest.raises(nd.DataError, match=r"two or more folds with rows.* give rows that are not all equal"):
        nd.NTKRidgeCV(nd.Nystrom(20), metric=ROUNDS).fit(np.ones((60, 3)), np.arange(60.0))


def test_no_length_is_refused() -> None:
    with pytest.raises(nd.SpecError, match=r"metric\.scales is empty"):
        nd.Metric(scales=())


def test_a_target_without_curvature_keeps_the_identity(make_dataset: Any) -> None:
    """A map whose gradients are the same everywhere gives no direction, and no error."""
    x, _ = ridge_function()
    result = nd.fit(job(make_dataset, nd.Metric(rounds=2), y=x[:, 0], settings={"features": nd.Linear(D)}))
    assert len(result.model.preprocessing.rounds) == 1
    assert np.ptp(result.model.preprocessing.metric) == 0
