"""What runs on a GPU: the same tests on CuPy, where there is one, and anywhere on an array module that is as strict."""

import inspect
from typing import Any

import msgspec
import numpy as np
import pytest
from strict_cupy import Array, Module
from test_checkpoint import Cut, CutAfter
from test_features import ROUNDING
from test_fit import assert_close
from test_maps import CASES, MAPS, both_dtypes, rows

import ntkdist as nd
from ntkdist import NTK, backend, cluster, devices, gpu_plan, machine
from ntkdist.features import base
from ntkdist.features.base import mapped_on_gpu
from ntkdist.sums import NormalEquations

pytestmark = pytest.mark.usefixtures("alone")

ON_THE_CPU = (
    "paper",
    "sketch",
    "nystrom-gaussian",
    "nystrom-laplace",
    "cntk-sketch",
)  # maps that have no form for GPUs, by their first words
SUPPORTED = [name for name in CASES if not name.startswith(ON_THE_CPU)]
MB = 10**6
SMALLEST = 512  # bytes of an array of CuPy's
MISSING = "CuPy is not installed; pip install 'ntkdist[gpu]'"


@pytest.fixture(params=["strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """CuPy on a GPU, or what stands in for both."""
    if request.param == "cupy":
        pytest.importorskip("cupy", reason=MISSING)
        if devices.gpu() is None:
            pytest.skip("CuPy sees no GPU here")
        return devices.cupy()
    return strict(monkeypatch)


def strict(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Module:
    """The stand-in, in CuPy's place."""
    module = Module(**options)
    stand_in(monkeypatch, module)
    monkeypatch.setattr(base, "_drawn", {})  # another module's arrays
    return module


def stand_in(monkeypatch: pytest.MonkeyPatch, module: Module) -> None:
    monkeypatch.setattr(devices, "_installed", lambda: True)
    monkeypatch.setattr(devices, "cupy", lambda: module)
    monkeypatch.setattr(devices, "solve_lower", module.solve_lower)
    monkeypatch.setattr(devices, "PROBE", 16)


def same_features(z: np.ndarray, expected: np.ndarray) -> None:
    """To the rounding that a row's features have anyway."""
    assert z.dtype == expected.dtype
    off = np.linalg.norm(z - expected, axis=1)
    assert (off <= 10 * ROUNDING[z.dtype.type] * np.linalg.norm(expected, axis=1)).all()


# Maps.


@pytest.mark.parametrize("name", CASES)
def test_a_map_says_whether_it_runs_there(name: str) -> None:
    assert CASES[name].spec.runs_on_gpu(CASES[name].shape) == (name in SUPPORTED)


def test_few_dimensions_are_for_the_cpu() -> None:
    assert [nd.ZonalFeatures(64).runs_on_gpu((d,)) for d in (1, 2, 3)] == [False, False, True]
    assert nd.ZonalFeatures(64, NTK(2, bias=1.0)).runs_on_gpu((2,))


@pytest.mark.parametrize("name", SUPPORTED)
@both_dtypes
def test_features_are_those_of_the_cpu(name: str, dtype: type, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the piece; a zero row, rows along landmarks, and none."""
    features, x = MAPS[name], rows(23, CASES[name].shape).astype(dtype)
    x[3] = 0
    if "landmarks" in features.arrays:
        x[4:7] = features.arrays["landmarks"][:3] * np.array([[2.0], [-1.0], [1.001]])
    for piece in (2**30, 7 * features.spec.gpu_row_bytes(x.shape[1:], dtype)):
        monkeypatch.setattr(devices, "PIECE_BYTES", piece)
        z = mapped_on_gpu(features, x)
        assert isinstance(z, gpu.ndarray)
        same_features(devices.taken(z), features(x))
    assert mapped_on_gpu(features, x[:0]).shape == (0, features.n_components)


DEEP = nd.NTKRandomFeatures(700, depth=3)  # so wide that products are mixed by Hadamard matrices
WIDE = nd.CNTKRandomFeatures(64, 2, filter_size=2, padding="valid", pool=(2, 1))


@pytest.mark.parametrize(("features", "shape"), [(DEEP, (40,)), (WIDE, (9, 8, 3))])
def test_features_of_larger_maps_are_those_of_the_cpu(features: Any, shape: tuple[int, ...], gpu: Any) -> None:
    assert any("signs" in v for v in DEEP.draw((40,)).values() if isinstance(v, dict))
    x = rows(11, shape)
    same_features(devices.taken(mapped_on_gpu(features, x)), features(x))


@pytest.mark.parametrize("name", SUPPORTED)
def test_mapping_takes_the_memory_that_it_promises(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = strict(monkeypatch)
    features, x, dtype = MAPS[name], rows(200, CASES[name].shape).astype(np.float32), np.float32
    out = mapped_on_gpu(features, x[:1])  # draws
    before = module.memory.peak = module.memory.used
    del out
    mapped_on_gpu(features, x)
    took = module.memory.peak - before
    promised = len(x) * (features.spec.gpu_row_bytes(x.shape[1:], dtype) + features.n_components * x.itemsize)
    assert 0.1 * promised < took <= promised


# Sums.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_are_those_of_the_cpu(dtype: str, weighted: bool, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "PANEL", 40)
    rng = np.random.default_rng(0)
    z, y, w = rng.standard_normal((300, 97)).astype(dtype), rng.standard_normal((300, 2)), rng.uniform(size=300)
    here, there = NormalEquations.zeros(97, 2), NormalEquations.zeros(97, 2, on_gpu=True)
    for block in (slice(0, 200), slice(200, 300)):
        weight = w[block] if weighted else None
        here.update(z[block], y[block], weight)
        there.update(devices.put(z[block]), y[block], weight)
    there.taken()
    assert isinstance(there.gram, np.ndarray)
    assert_close(there, here, 1e-5 if dtype == "float32" else 1e-12)
    np.testing.assert_array_equal(there.yy, here.yy)
    assert there.weight == here.weight
    assert isinstance((there + here).z_sum, np.ndarray)


# Fits.


def job(make_dataset: Any, device: str = "gpu", features: Any = None, **table: Any) -> nd.Job:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 4))
    store = make_dataset(x, np.abs(x).sum(axis=1), weights=rng.uniform(size=600), name="of-a-job")
    known = {"folds": 2, "shards": 4, "dtype": "float64"} | table
    dataset = nd.Dataset(store, weight="weight")
    plan = nd.PlanTable(device=device, **known)
    return nd.Job(dataset, features or nd.ZonalFeatures(64), alphas=(0.1, 1.0), plan=plan)


def on(job: nd.Job, device: str, **table: Any) -> nd.Job:
    return msgspec.structs.replace(job, plan=msgspec.structs.replace(job.plan, device=device, **table))


def test_a_fit_is_that_of_the_cpu(make_dataset: Any, gpu: Any) -> None:
    asked = job(make_dataset, features=nd.Nystrom(64))  # which learns from the data first
    there, here = nd.fit(asked), nd.fit(on(asked, "cpu"))
    assert (there.report["plan"]["device"], here.report["plan"]["device"]) == ("gpu", "cpu")
    for one, other in zip(there.equations.folds, here.equations.folds, strict=True):
        assert_close(one, other, 1e-12)
    x = rows(50, (4,))
    np.testing.assert_allclose(there.model(x), here.model(x), rtol=1e-7)
    assert there.report["run"]["gram_to_syrk_ratio"] > 0
    assert not [note for note in there.report["notes"] if "CPU" in note]


def test_tasks_leave_nothing_on_the_gpu_but_the_drawn_map(make_dataset: Any, gpu: Any) -> None:
    pool = gpu.get_default_memory_pool()
    before = pool.total_bytes()
    nd.fit(job(make_dataset))
    drawn = [a.nbytes for params in base._drawn.values() for a in params.values() if not isinstance(a, np.ndarray)]
    assert 0 < pool.total_bytes() - before <= sum(drawn) + SMALLEST * len(drawn)


def test_memory_is_as_the_plan_says(make_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = strict(monkeypatch)
    monkeypatch.setattr(devices, "PIECE_BYTES", MB)
    asked = job(make_dataset, features=nd.ZonalFeatures(256), block_rows=200)
    p = machine.planned(asked, cluster.resources(None, gpus=True))
    nd.fit(p)
    assert 0.5 * sum(gpu_plan.memory(p).values()) < module.memory.peak <= sum(gpu_plan.memory(p).values())


def test_features_that_overflow_are_said(make_dataset: Any, gpu: Any) -> None:
    x = np.ones((40, 3))
    x[7] = 1e20
    table, none = nd.PlanTable(folds=2, device="gpu"), nd.preprocess.Preprocess(inputs="none")
    asked = nd.Job(nd.Dataset(make_dataset(x, x[:, 0])), nd.Linear(3), alphas=(1.0, 2.0), plan=table, preprocess=none)
    with pytest.raises(nd.DataError, match="Squares of features overflow in float32"), np.errstate(all="ignore"):
        nd.fit(asked)
    x[7] = 1e39
    asked = msgspec.structs.replace(asked, dataset=nd.Dataset(make_dataset(x, x[:, 0], name="more")))
    with pytest.raises(nd.DataError, match="not finite in float32"), np.errstate(all="ignore"):
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


# CuPy itself, which can be asked without a GPU.


def test_all_that_is_called_is_in_cupy(monkeypatch: pytest.MonkeyPatch, make_dataset: Any) -> None:
    cupy = pytest.importorskip("cupy", reason=MISSING)
    module = strict(monkeypatch)
    for name in SUPPORTED:
        mapped_on_gpu(MAPS[name], rows(3, CASES[name].shape))
    nd.fit(job(make_dataset))
    assert len(module.called) > 15
    for name, arguments in module.called.items():
        function = getattr(cupy, name)
        if not isinstance(function, cupy.ufunc):
            assert arguments <= inspect.signature(function).parameters.keys()
    assert {name for name in vars(Module) if name.startswith("get_")} <= vars(cupy).keys()
    for name in vars(Array).keys() - vars(object).keys() - {"__dict__", "__weakref__", "__init__", "_new"}:
        assert hasattr(cupy.ndarray, name)


def test_cupy_without_a_gpu_is_no_gpu() -> None:
    cupy = pytest.importorskip("cupy", reason=MISSING)
    if cupy.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        cupy.cuda.runtime.getDeviceCount()
    assert devices.gpu() is None
    assert backend.gpus() == ()
