"""Plans for GPUs: where they compute, on what precision, and in what blocks."""

from typing import Any

import msgspec
import numpy as np
import pytest
from gpu_stand_in import MB, job, on, strict
from maps import PAPER
from strict_cupy import Array

import ntkdist as nd
from ntkdist import gpu
from ntkdist.cluster import connect
from ntkdist.cluster.connect import Resources
from ntkdist.gpu import Gpu
from ntkdist.planning import resolve, resolve_gpu

pytestmark = pytest.mark.usefixtures("alone")


def found(*gpus: Gpu | None) -> Resources:
    return Resources(max(1, len(gpus)), 1, 1, 10**12, 10**12, 10**8, 10**8, gpus)


def one(free_bytes: int = 10**11, tf32: bool = False) -> Gpu:
    return Gpu("a GPU", "0000:01:00.0", free_bytes, tf32)


def test_auto_takes_gpus_where_all_workers_have_one(make_dataset: Any) -> None:
    asked = job(make_dataset, "auto")
    assert resolve.planned(asked, found(one(), one())).device == "gpu"
    assert resolve.planned(asked, found(None, None)).device == "cpu"
    assert resolve.planned(on(asked, "cpu"), found(one(), one())).device == "cpu"
    with pytest.raises(nd.ClusterError, match=r'device is "auto" but only 1 of 2 workers see a GPU .*; make workers'):
        resolve.planned(asked, found(one(), None))
    with pytest.raises(nd.ClusterError, match=r'device is "gpu" but no worker sees a GPU through CuPy; run where all'):
        resolve.planned(on(asked, "gpu"), found(None))


def test_tf32_is_off_unless_asked_for(make_dataset: Any) -> None:
    asked = job(make_dataset, "auto")
    with pytest.raises(nd.ClusterError, match="CuPy rounds products to TF32 on a worker; unset CUPY_TF32"):
        resolve.planned(asked, found(one(), one(tf32=True)))
    assert resolve.planned(on(asked, "gpu-tf32"), found(one(tf32=True))).device == "gpu-tf32"
    with pytest.raises(nd.ClusterError, match="CuPy does not round products to TF32 on a worker; set CUPY_TF32"):
        resolve.planned(on(asked, "gpu-tf32"), found(one()))


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_measured(tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    strict(monkeypatch, tf32=tf32, free_bytes=3 * MB)
    assert gpu.gpu() == Gpu("a strict GPU", "0000:01:00.0", 3 * MB, tf32)


def test_what_cannot_be_seen_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    strict(monkeypatch, count=0)
    assert gpu.gpu() is None
    assert connect.resources(None, gpus=True).gpus == (None,)


def test_a_gpu_that_does_not_compute_is_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    strict(monkeypatch)
    monkeypatch.setattr(Array, "__matmul__", lambda *_: exec("raise ImportError('libcublas.so.12: not there')"))
    with pytest.raises(nd.ClusterError, match=r"sees a strict GPU but cannot compute on it \(ImportError: libcublas"):
        gpu.gpu()


def test_workers_and_tasks_share_the_memory_of_a_gpu() -> None:
    seen = {"a": one(1200), "b": one(1200), "c": one(1200), "d": None}
    workers = {"a": ("host", 1), "b": ("host", 2), "c": ("other", 1), "d": ("other", 1)}
    shared = [one and one.free_bytes for one in connect._shared(seen, workers)]
    assert shared == [400, 400, 1200, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"features": nd.NTKSketch(64)}, r"NTKSketch maps rows of shape \(4,\) on the CPU only"),
        ({"features": nd.NTKRandomFeatures(64, **PAPER)}, "NTKRandomFeatures maps rows"),
        ({"solver": nd.PCG()}, "solver PCG computes on the CPU only"),
        ({"solver": nd.TiledCholesky()}, "solver TiledCholesky computes on the CPU only"),
        ({"solver": nd.InPlaceCholesky()}, "solver InPlaceCholesky computes on the CPU only"),
    ],
)
def test_what_has_no_form_for_gpus_is_said(changes: dict[str, Any], what: str, make_dataset: Any) -> None:
    asked = msgspec.structs.replace(job(make_dataset), **changes)
    with pytest.raises(nd.SpecError, match=what):
        resolve.planned(asked, found(one()))
    with pytest.raises(nd.SpecError, match=what):
        resolve.check(nd.plan(asked), found(one()))
    p = resolve.planned(on(asked, "auto"), found(one()))
    assert p.device == "cpu"
    assert resolve_gpu.table(p, found(one())).startswith(f"cpu: {resolve_gpu.why_not(p, found(one()))}")
    assert resolve_gpu.table(p, found(None)) == "cpu"


def test_shards_are_longer(make_dataset: Any) -> None:
    x = np.arange(400.0)[:, None]
    dataset = nd.Dataset(make_dataset(x, x[:, 0], rows_per_partition=5))
    asked = nd.Job(dataset, nd.Linear(1), plan=nd.PlanTable(folds=2, device="gpu"))
    here, there = resolve.planned(on(asked, "cpu"), found(one())), resolve.planned(asked, found(one()))
    assert (here.shards, there.shards) == (80, 5)
    assert resolve.planned(on(asked, "gpu", shards=20), found(one())).shards == 20


def test_blocks_are_as_large_as_fit(make_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PIECE_BYTES", MB)
    monkeypatch.setattr(resolve_gpu, "LEAST_ROWS", 64)
    asked = job(make_dataset, "auto", nd.ZonalFeatures(512))
    p = resolve.planned(asked, found(one()))
    assert (p.device, p.block_rows) == ("gpu", 600)
    need = sum(resolve_gpu.memory(p).values())
    smaller = resolve.planned(asked, found(one(need)))
    assert (smaller.device, smaller.block_rows) == ("gpu", 150)
    assert sum(resolve_gpu.memory(smaller).values()) <= 0.7 * need
    said = f"gpu (speed and time are a CPU's), a task {sum(resolve_gpu.memory(smaller).values()) / 1e9:.2f} GB (map"
    assert resolve_gpu.table(smaller, found(one(need))).startswith(said)
    none = resolve.planned(asked, found(one(2 * MB)))
    assert (none.device, none.block_rows) == ("cpu", 600)
    assert "the plan needs 0.0" in resolve_gpu.why_not(none, found(one(2 * MB)))
    with pytest.raises(
        nd.PlanTooLarge, match=r"needs 0\.0\d GB \(map .*\) of a GPU where a task has 0\.00 GB free; lower"
    ):
        resolve.planned(on(asked, "gpu"), found(one(2 * MB)))
    with pytest.raises(nd.PlanTooLarge):
        resolve.check(p, found(one(2 * MB)))
