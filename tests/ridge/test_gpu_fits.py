"""Fits on a GPU: the same results as on CPUs, the memory of their plans, and runs that are resumed."""

from typing import Any

import msgspec
import numpy as np
import pytest
from gpu_stand_in import DEEP, MB, job, on, stand_in, strict
from interrupted import Cut, CutAfter
from sums_compared import assert_close

import ntkdist as nd
from ntkdist import backend, gpu
from ntkdist.cluster import connect
from ntkdist.planning import resolve, resolve_gpu

pytestmark = pytest.mark.usefixtures("alone")


def test_a_fit_is_that_of_the_cpu(make_dataset: Any, device: Any) -> None:
    asked = job(make_dataset, features=nd.Nystrom(64))  # fitted to the data first
    there, here = nd.fit(asked), nd.fit(on(asked, "cpu"))
    assert (there.report["plan"]["device"], here.report["plan"]["device"]) == ("gpu", "cpu")
    for one, other in zip(there.equations.folds, here.equations.folds, strict=True):
        assert_close(one, other, 1e-12)
    x = np.random.default_rng(1).standard_normal((50, 4))
    np.testing.assert_allclose(there.model(x), here.model(x), rtol=1e-7)
    run = there.report["run"]
    seconds = run["seconds"]["equations"]
    assert run["gram_flops_per_second"] == pytest.approx(600 * backend.gram_operations(64, "gpu") / seconds)
    assert run["gram_to_syrk_ratio"] == run["gram_flops_per_second"] / run["syrk_flops_per_second"]
    assert not [note for note in there.report["notes"] if "CPU" in note]


@pytest.mark.parametrize("features", [nd.ZonalFeatures(64), DEEP])
def test_tasks_leave_nothing_on_the_gpu_but_the_drawn_map(features: Any, make_dataset: Any, device: Any) -> None:
    """Drawn maps are outside the pool, which gives all back, though a Hadamard matrix comes when blocks are free."""
    pool = device.get_default_memory_pool()
    gpu.free()
    before = pool.total_bytes()
    nd.fit(job(make_dataset, features=features))
    assert pool.total_bytes() == before


def test_blocks_wait_for_nothing(make_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task waits for its two sums only, however many blocks it has."""
    device, asked = strict(monkeypatch).gpu, job(make_dataset)
    for block_rows in (40, 150):
        p = resolve.planned(on(asked, "gpu", block_rows=block_rows), connect.resources(None, gpus=True))
        before = device.waits
        nd.normal_equations(p)
        assert device.waits - before == 2 * len(p.tasks())


@pytest.mark.parametrize(
    ("features", "dtype", "panel"),
    [
        (nd.ZonalFeatures(256), "float64", 1000),
        (nd.Nystrom(256), "float64", 1000),
        (DEEP, "float64", 100),
        (nd.RandomFourier(300), "float32", 1000),
    ],
)
def test_memory_is_as_the_plan_says(
    features: Any, dtype: str, panel: int, make_dataset: Any, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool's bytes include free blocks; the map is outside the pool."""
    gpu.free()
    pool = device.get_default_memory_pool()
    before = pool.total_bytes()

    class Peak(device.cuda.MemoryHook):
        name, nbytes = "peak", 0

        def alloc_postprocess(self, **_: Any) -> None:
            self.nbytes = max(self.nbytes, pool.total_bytes() - before)

    monkeypatch.setattr(gpu, "PIECE_BYTES", MB)
    monkeypatch.setattr(gpu, "PANEL", panel)
    asked = job(make_dataset, features=features, block_rows=180, dtype=dtype, shards=2)
    p = resolve.planned(asked, connect.resources(None, gpus=True))
    with Peak() as peak:
        nd.normal_equations(p)
    parts = resolve_gpu.memory(p)
    pooled = sum(parts.values()) - parts["map"]
    assert 0.5 * pooled < peak.nbytes <= pooled


def test_features_that_overflow_are_said(make_dataset: Any, device: Any) -> None:
    x = np.ones((40, 3))
    x[7] = 1e20
    table, none = nd.PlanTable(folds=2, device="gpu"), nd.Preprocess(inputs="none")
    asked = nd.Job(nd.Dataset(make_dataset(x, x[:, 0])), nd.Linear(3), alphas=(1.0, 2.0), plan=table, preprocess=none)
    with pytest.raises(nd.DataError, match="Squares of features overflow in float32"), np.errstate(all="ignore"):
        nd.fit(asked)
    x[7] = 1e39
    asked = msgspec.structs.replace(asked, dataset=nd.Dataset(make_dataset(x, x[:, 0], name="more")))
    with pytest.raises(nd.DataError, match="rows 4–15 are not finite in float32"), np.errstate(all="ignore"):
        nd.fit(asked)


# Going on.


def cut(asked: nd.Job, out: str) -> None:
    with pytest.raises(Cut):
        nd.fit(asked, out=out, watch=CutAfter(2))


def test_a_run_goes_on_on_the_device_that_it_began_on(make_dataset: Any, monkeypatch: Any, tmp_path: Any) -> None:
    asked, out = job(make_dataset, "auto"), str(tmp_path / "run")
    module = strict(monkeypatch)
    cut(asked, out)
    monkeypatch.undo()
    with pytest.raises(nd.ClusterError, match="no worker sees a GPU"):
        nd.fit(asked, out=out)
    stand_in(monkeypatch, module)
    went_on, at_once = nd.fit(asked, out=out), nd.fit(asked)
    assert went_on.report["plan"]["device"] == "gpu"
    assert any("taken from the checkpoint" in note for note in went_on.report["notes"])
    np.testing.assert_array_equal(went_on.model.coef, at_once.model.coef)


def test_a_run_begun_on_cpus_goes_on_there_and_says_so(make_dataset: Any, monkeypatch: Any, tmp_path: Any) -> None:
    asked, out = job(make_dataset, "auto"), str(tmp_path / "run")
    cut(asked, out)
    strict(monkeypatch)
    went_on = nd.fit(asked, out=out)
    assert went_on.report["plan"]["device"] == "cpu"
    assert "computed on the CPU: its plan was resolved for that" in went_on.report["notes"]
