"""Runs without a Gram: cut off and gone on with, the same bits anywhere, memory, and what has not converged."""

import shutil
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from command_line import Command, write_job
from interrupted import CutAfter
from iterative import EXACT, job_on, same_bits, with_gram
from plans import plan_of

import ntkdist as nd
from ntkdist.data.dataset import Rows, Shard
from ntkdist.data.scaling import Preprocessing
from ntkdist.planning.job import sums_digest
from ntkdist.sums.mapped_rows import RowMapper, forget, row_bytes


def test_a_run_that_was_cut_off_before_its_iterations(make_dataset: Any, table: Any, tmp_path: Path) -> None:
    job, out = job_on(make_dataset(*table), alphas=(1.0,)), str(tmp_path / "run")

    @contextmanager
    def cut(phase: str, rows: int) -> Iterator[Any]:
        if phase == "iterations":
            shutil.copytree(out, tmp_path / "killed")  # what a process that is killed here leaves
            raise InterruptedError
        phases.append(phase)
        yield lambda done: None

    phases: list[str] = []
    with pytest.raises(InterruptedError):
        nd.fit(job, out=out, watch=cut)
    assert phases == ["moments", "sums", "sample"]
    assert not (tmp_path / "run").exists()
    (tmp_path / "killed").rename(out)
    with pytest.raises(InterruptedError):
        nd.fit(job, out=out, watch=cut, resume=True)
    assert phases[3:] == ["sums", "sample"]
    (tmp_path / "killed").rename(out)
    same_bits(nd.fit(job, out=out, resume=True), nd.fit(job))
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_a_run_that_was_cut_off_goes_on_from_the_iterate_kept_last(
    make_dataset: Any, table: Any, tmp_path: Path, dtype: str
) -> None:
    """Cut off early in its first grid of penalties, and late in one that grew: the bits of an undisturbed run."""
    plan = msgspec.structs.replace(EXACT, dtype=dtype, shards=4)
    job = job_on(make_dataset(*table), alphas="auto", alphas_per_row=(0.1, 1.0), plan=plan)
    straight = nd.fit(job)
    before = straight.report["run"]["products"]
    assert "grew" in straight.cv.note
    kept = msgspec.structs.replace(plan, checkpoint=str(tmp_path / "kept"))
    for passes in (8, before["passes"] - 10):
        with pytest.raises(InterruptedError):
            nd.fit(msgspec.structs.replace(job, plan=kept), watch=CutAfter(4 * passes + 2, "iterations"))
        marks, states = (len(list((tmp_path / "kept").glob(f"iterate-*.{end}"))) for end in ("kept", "zarr"))
        assert marks == states > 0
    result = nd.fit(msgspec.structs.replace(job, plan=kept), resume=True)
    same_bits(result, straight)
    after = result.report["run"]["products"]
    assert after["iterations"] == before["iterations"]
    assert after["passes"] < before["passes"] / 2


@pytest.mark.slow
def test_an_iterate_serves_only_the_iterations_that_it_is_of(make_dataset: Any, table: Any, tmp_path: Path) -> None:
    """A larger number of them goes on; another penalty, preconditioner or tolerance begins anew; so does damage."""
    plan = msgspec.structs.replace(EXACT, shards=4, checkpoint=str(tmp_path / "kept"))
    job = job_on(make_dataset(*table), alphas=(1.0,), plan=plan, solver=nd.PCG(sample_rows=64, max_iterations=8))

    def repeated(**changes: Any) -> int:
        """Iterations that were not done before; beside them stand a pass for sums and one for errors."""
        counts = nd.fit(msgspec.structs.replace(job, **changes)).report["run"]["products"]
        return counts["passes"] - 2 - counts["iterations"]

    more = nd.PCG(sample_rows=64)
    with pytest.raises(nd.NotConverged):
        nd.fit(job)
    (mark,) = (tmp_path / "kept").glob("iterate-*.kept")
    few = mark.read_text()
    for other in (
        {"alphas": "auto", "alphas_per_row": (1.0,)},
        {"solver": nd.PCG(sample_rows=65)},
        {"solver": nd.PCG(sample_rows=64, tol=1e-4)},
    ):
        assert repeated(**({"solver": more} | other)) == 0
    assert mark.read_text() == few
    assert repeated(solver=more) == -5
    assert repeated(solver=more) < -10
    chunk = next(p for p in (tmp_path / "kept" / mark.read_text() / "x" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-3])
    assert repeated(solver=more) == 0
    with pytest.raises(nd.StoreError, match="is the checkpoint of another job or of other data"):
        nd.fit(msgspec.structs.replace(job, features=nd.NTKRandomFeatures(n_components=96, depth=1, bias=0.5)))


def test_what_another_solver_resolved_is_not_gone_on_from(make_dataset: Any, table: Any) -> None:
    job = job_on(make_dataset(*table))
    gram = [sums_digest(msgspec.structs.replace(job, solver=s)) for s in (None, nd.Cholesky(), nd.Eigh())]
    ours = [sums_digest(msgspec.structs.replace(job, solver=s)) for s in (nd.PCG(), nd.PCG(7, tol=0.1))]
    assert (len(set(gram)), len(set(ours)), len({*gram, *ours})) == (1, 1, 2)


def test_rows_that_were_dropped(make_dataset: Any, table: Any) -> None:
    x = table[0].copy()
    x[[3, 500], [0, 4]] = np.nan
    job = job_on("", dataset=nd.Dataset(make_dataset(x, table[1]), nan="drop"))
    a, b = nd.fit(job), with_gram(job)
    np.testing.assert_allclose(a.cv.mse, b.cv.mse, rtol=1e-4)
    assert (a.report["data"]["rows"], a.report["data"]["dropped_rows"]) == (898, 2)


def test_one_fold_and_one_alpha(make_dataset: Any, table: Any) -> None:
    job = job_on(make_dataset(*table), plan=msgspec.structs.replace(EXACT, folds=1), alphas=(1.0,))
    a = nd.fit(job)
    assert a.cv is None
    error = np.abs(a.model(table[0]) - with_gram(job).model(table[0])).max(axis=0) / table[1].std(axis=0)
    assert error.max() < 1e-3


def float32_plan(store: str) -> nd.Plan:
    """Where another order of sums would show."""
    return nd.plan(job_on(store, plan=msgspec.structs.replace(EXACT, dtype="float32", shards=8), alphas=(1.0,)))


@pytest.mark.slow
@pytest.mark.cluster
def test_the_same_bits_on_two_workers(make_dataset: Any, table: Any, two_workers: Any) -> None:
    plan = float32_plan(make_dataset(*table))
    here, there = nd.fit(plan), nd.fit(plan, client=two_workers)
    same_bits(here, there)
    assert len(there.report["run"]["peak_memory_bytes"]) == 2
    alone, most = (one.report["run"]["projected_memory_bytes"]["remembered rows"] for one in (here, there))
    assert alone == plan.layout.rows * row_bytes(plan.m, plan.t, plan.dtype)
    assert alone / 2 <= most < alone  # of the two, each has its own shards


@pytest.mark.slow
def test_the_same_bits_from_memory_and_mapped_anew_on_any_threads(make_dataset: Any, table: Any) -> None:
    """One fit has a share of the memory that holds nothing."""
    plan = float32_plan(make_dataset(*table))
    kept, anew = nd.fit(plan), nd.fit(msgspec.structs.replace(plan, solver=nd.PCG(sample_rows=256, cache=0.0)))
    for other in (anew, nd.fit(msgspec.structs.replace(plan, threads=3))):
        same_bits(kept, other)
    passes, layout = kept.report["run"]["products"]["passes"], plan.layout
    once = kept.report["run"]["bytes_read"]
    assert once == layout.rows * (layout.row_bytes + 16)  # read for the sums, remembered from then on
    assert anew.report["run"]["bytes_read"] == passes * once
    other = nd.fit(msgspec.structs.replace(plan, shards=4))
    assert (other.model.coef != kept.model.coef).any()


def test_memory_keeps_what_fits_of_one_run_and_forgets_the_last() -> None:
    scaling = Preprocessing((1,), np.zeros(1), np.ones(1), np.zeros(1), np.ones(1))
    x = np.arange(10.0)[:, None]
    read: list[int] = []

    def pass_over(run: str, limit: int) -> Any:
        mapped = RowMapper(nd.Linear(1), scaling, "float64", run, limit)
        for start in (0, 5):

            def rows(start: int = start) -> Any:
                read.append(start)
                yield Rows(x[start : start + 5], x[start : start + 5, 0], None, np.arange(start, start + 5))

            (block,) = mapped.blocks(Shard(0, ((start, start + 5),)), rows())
            np.testing.assert_array_equal(block.x, nd.Linear(1)(x[start : start + 5]))

    forget()
    for run, limit in (("a", 170), ("a", 170), ("b", 1000), ("b", 1000), ("a", 0)):
        pass_over(run, limit)
        read.append(-1)
    forget()
    assert read == [0, 5, -1, 5, -1, 0, 5, -1, -1, 0, 5, -1]


def test_what_has_not_converged_is_said_and_is_an_error_where_it_was_chosen(make_dataset: Any, table: Any) -> None:
    store = make_dataset(*table)
    few = {"sample_rows": 1, "max_iterations": 5}
    job = job_on(store, alphas=(1e-3, 1.0, 1e4), solver=nd.PCG(**few))
    with pytest.raises(nd.NotConverged, match=r"The chosen alpha \S+ did not converge in 5 iterations \(relative resi"):
        nd.fit(job)
    kept = nd.fit(msgspec.structs.replace(job, solver=nd.PCG(**few, unconverged="keep")))
    assert "alphas of 0.001–1 did not converge in 5 iterations" in kept.cv.note
    assert kept.cv.note in kept.report["notes"]
    assert kept.report["run"]["products"]["unconverged"] == [0.001, 1.0]
    assert np.isfinite(kept.model.coef).all()
    well = nd.fit(job_on(store, alphas=(1e-3, 1e6), solver=nd.PCG(sample_rows=1, max_iterations=5, unconverged="keep")))
    assert "alpha 0.001 did not converge" in well.cv.note


def test_a_fit_takes_less_memory_than_one_byte_for_every_entry_of_the_gram(make_dataset: Any) -> None:
    m = 6000
    x = np.random.default_rng(0).standard_normal((300, 60))
    plan = nd.PlanTable(folds=2, block_rows=100)
    job = nd.Job(
        nd.Dataset(make_dataset(x, x[:, 0])),
        nd.NTKRandomFeatures(m),
        alphas=(1.0,),
        plan=plan,
        solver=nd.PCG(100, tol=0.1),
    )
    nd.fit(msgspec.structs.replace(job, features=nd.NTKRandomFeatures(64)))  # what is imported on the way
    tracemalloc.start()
    nd.fit(job)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < m**2


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("cache", [0.0, 0.5])
def test_the_peak_of_a_worker_is_projected(make_dataset: Any, cache: float) -> None:
    x = np.random.default_rng(0).standard_normal((20_000, 16), dtype=np.float32)
    solver = nd.PCG(cache=cache, max_iterations=10, unconverged="keep")
    job = nd.Job(nd.Dataset(make_dataset(x, x[:, :4])), nd.NTKRandomFeatures(2048), solver=solver, cluster=nd.Local())
    run = nd.fit(job).report["run"]
    (peak,), projected = run["peak_memory_bytes"].values(), sum(run["projected_memory_bytes"].values())
    assert 0.85 * projected <= peak <= projected


def test_the_projection_does_not_grow_with_the_square_of_m() -> None:
    p, half = (msgspec.structs.replace(plan_of(m=m), solver=nd.PCG()) for m in (50_000, 25_000))
    assert p.projected_memory_bytes() < 4e9
    assert p.driver_memory_bytes() < 4e9
    assert p.projected_memory_bytes() < 2.2 * half.projected_memory_bytes()
    assert p.columns == 6 * 13
    with pytest.raises(nd.PlanTooLarge, match=r"Solving needs .* \(process .* columns .* preconditioner"):
        p.check_driver(10**9)


def test_the_command_line_and_a_run_directory_without_equations(
    command: Command, make_dataset: Any, table: Any, tmp_path: Path
) -> None:
    make_dataset(*table, name="train")
    job = write_job(
        features='type = "NTKRandomFeatures"\nn_components = 64',
        tables='[plan]\nfolds = 4\n[solver]\ntype = "PCG"\nsample_rows = 64',
    )
    planned = command("plan", job)
    assert planned.exit_code == 0
    assert "solver PCG" in planned.stdout
    assert "preconditioner" in planned.stdout
    fitted = command("fit", job, "--out", "run")
    assert fitted.exit_code == 0, fitted.stderr
    assert "PCG forms no Gram" in fitted.stdout
    assert sorted(p.name for p in Path("run").iterdir()) == ["job.json", "model.zarr", "report.json"]
    again = command("fit", job, "--out", "run")
    assert again.exit_code == 0, again.stderr
    assert nd.fit(nd.Job.read(job), out="run").cv.scored == (0, 1, 2, 3)
    solved = command("solve", "run")
    assert solved.exit_code == 1
    assert solved.stderr == (
        "ntkdist: run has no equations: its solver kept no Gram; fit again, with other alphas or solver\n"
    )
