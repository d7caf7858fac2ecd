"""Maps and sums on a GPU: on CuPy where there is one, and anywhere on an array module that is as strict."""

import inspect
from typing import Any

import numpy as np
import pytest
from gpu_stand_in import DEEP, MISSING, job, strict
from maps import CASES, MAPS, ROUNDING, both_dtypes, rows
from strict_cupy import UNIT, Array, Gpu, Module
from sums_compared import assert_close

import ntkdist as nd
from ntkdist import NTK, backend, gpu
from ntkdist.features import nystrom
from ntkdist.sums import NormalEquations

pytestmark = pytest.mark.usefixtures("alone")

ON_THE_CPU = (
    "images",
    "patches",
    "imported",
    "paper",
    "sketch",
    "nystrom-gaussian",
    "cntk-sketch",
)  # maps that have no form for GPUs, by their first words
SUPPORTED = [name for name in CASES if not name.startswith(ON_THE_CPU)]
WIDE = nd.CNTKRandomFeatures(64, 2, filter_size=2, padding="valid", pool=(2, 1))
LARGER: dict[str, Any] = {"deep": (DEEP, (40,)), "wide": (WIDE, (9, 8, 3))}
every_map = pytest.mark.parametrize("name", [*SUPPORTED, *LARGER])


def of(name: str, n: int, dtype: Any) -> tuple[Any, np.ndarray]:
    """Return a map, and rows for it."""
    features, shape = LARGER[name] if name in LARGER else (MAPS[name], CASES[name].shape)
    return features, rows(n, shape).astype(dtype)


def same_features(z: np.ndarray, expected: np.ndarray, steps: bool = False) -> None:
    """Compare features to the rounding of a row; with steps, rounding may turn signs in one row, for few columns."""
    assert z.dtype == expected.dtype
    off, norms = np.linalg.norm(z - expected, axis=1), np.linalg.norm(expected, axis=1)
    far = off > 10 * ROUNDING[z.dtype.type] * norms
    assert far.sum() <= steps
    assert (off[far] < 0.01 * norms[far]).all()


# Maps.


@pytest.mark.parametrize("name", CASES)
def test_a_map_says_whether_it_runs_there(name: str) -> None:
    assert CASES[name].spec.runs_on_gpu(CASES[name].shape) == (name in SUPPORTED)


def test_few_dimensions_are_for_the_cpu() -> None:
    plain = nd.ZonalFeatures(64, NTK(2))
    assert [plain.runs_on_gpu((d,)) for d in (1, 2, 3)] == [False, False, True]
    assert nd.ZonalFeatures(64, NTK(2, bias=1.0)).runs_on_gpu((2,))


@pytest.mark.parametrize("name", SUPPORTED)
@both_dtypes
def test_features_are_those_of_the_cpu(name: str, dtype: type, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of any size; with a zero row, rows along landmarks, and no rows."""
    features, x = MAPS[name], rows(23, CASES[name].shape).astype(dtype)
    x[3] = 0
    if "landmarks" in features.arrays:
        x[4:7] = features.arrays["landmarks"][:3] * np.array([[2.0], [-1.0], [1.001]])
    for piece in (2**30, 7 * features.spec.gpu_row_bytes(x.shape[1:], dtype)):
        monkeypatch.setattr(gpu, "PIECE_BYTES", piece)
        z = features.on_gpu(x)
        assert isinstance(z, device.ndarray)
        same_features(gpu.to_host(z), features(x), steps=dtype == np.float32 and name.startswith("cntk"))
    assert features.on_gpu(x[:0]).shape == (0, features.n_components)


@pytest.mark.parametrize(("features", "shape"), LARGER.values())
def test_features_of_larger_maps_are_those_of_the_cpu(features: Any, shape: tuple[int, ...], device: Any) -> None:
    assert any("signs" in v for v in DEEP.draw((40,)).values() if isinstance(v, dict))
    x = rows(11, shape)
    same_features(gpu.to_host(features.on_gpu(x)), features(x))


@every_map
@both_dtypes
def test_mapping_takes_the_memory_that_it_promises(name: str, dtype: type, monkeypatch: Any) -> None:
    took, promised = peak_of(strict(monkeypatch).gpu, *of(name, 200, dtype))
    assert 0.1 * promised < took <= promised


def peak_of(device: Gpu, features: Any, x: np.ndarray) -> tuple[int, int]:
    """Measure the bytes that mapping rows in one piece takes beside the drawn map, and count how many it may."""
    features.on_gpu(x[:1])  # draws
    before = device.peak = device.used
    features.on_gpu(x)
    promised = len(x) * (features.spec.gpu_row_bytes(x.shape[1:], x.dtype) + features.n_components * x.itemsize)
    return device.peak - before, promised


@pytest.mark.parametrize("d", [3, 50, 400])
@both_dtypes
def test_a_nystrom_of_float64_and_close_rows_takes_no_more(d: int, dtype: type, monkeypatch: Any) -> None:
    """All pairs of rows and landmarks are close, and float32 would show; L is kept, too."""
    device = strict(monkeypatch).gpu
    monkeypatch.setattr(nystrom, "SINGLE", -1.0)
    x = (1 + 0.05 * np.random.default_rng(0).standard_normal((500, d))).astype(dtype)
    features = nd.Nystrom(300).fit(x)
    assert len(features.arrays["landmarks"]) == 300
    took, promised = peak_of(device, features, x)
    assert 0.5 * promised < took <= promised
    assert 0.8 * features.spec.gpu_draw_bytes((d,), dtype) < device.beside <= features.spec.gpu_draw_bytes((d,), dtype)


def test_a_factor_in_rows_is_not_copied(device: Any) -> None:
    pool, rng = device.get_default_memory_pool(), np.random.default_rng(0)
    lower, k = np.tril(rng.uniform(size=(40, 40))) + 9 * np.eye(40), rng.standard_normal((50, 40))
    a, b = gpu.to_device(lower), gpu.to_device(k)
    gpu.free()
    before = pool.total_bytes()
    solved = gpu.solve_lower(a, b.T).T
    assert pool.total_bytes() == before
    np.testing.assert_allclose(gpu.to_host(solved) @ lower.T, k, rtol=1e-9, atol=1e-12)


def test_what_is_kept_is_no_part_of_the_pool(device: Any) -> None:
    """A part of a free block of the pool would keep the pool from freeing the block."""
    pool = device.get_default_memory_pool()
    gpu.free()
    before = pool.total_bytes()
    large = gpu.to_device(np.ones(10**5))
    del large
    assert pool.total_bytes() > before
    kept = gpu.keep({"a": np.arange(5)})
    assert pool.total_bytes() == before
    np.testing.assert_array_equal(gpu.to_host(kept["a"]), np.arange(5))


@every_map
@both_dtypes
def test_a_drawn_map_takes_what_it_promises(name: str, dtype: type, monkeypatch: Any) -> None:
    """With its constants, such as Hadamard matrices; nothing of it is in blocks of the pool."""
    device, (features, x) = strict(monkeypatch).gpu, of(name, 9, dtype)
    features.on_gpu(x)
    gpu.free()
    promised = features.spec.gpu_draw_bytes(x.shape[1:], dtype) + features.spec.learnt_bytes(x.shape[1:], dtype)
    assert (device.beside > 0) == (type(features) is not nd.Linear)
    assert device.beside <= promised + UNIT * len(device.seen)
    assert device.pool.total == 0


@every_map
def test_a_piece_of_rows_is_all_that_is_sent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, (features, x) = strict(monkeypatch).gpu, of(name, 23, np.float64)
    features.on_gpu(x[:1])
    sent, waits = device.sent, device.waits
    monkeypatch.setattr(gpu, "PIECE_BYTES", 7 * features.spec.gpu_row_bytes(x.shape[1:], np.float64))
    features.on_gpu(x)
    assert device.sent - sent == 4
    close = 4 * isinstance(features.spec, nd.Nystrom)  # whose close pairs have to be counted
    assert device.waits - waits == close


# Sums.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_are_those_of_the_cpu(dtype: str, weighted: bool, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PANEL", 40)
    rng = np.random.default_rng(0)
    z, y, w = rng.standard_normal((300, 97)).astype(dtype), rng.standard_normal((300, 2)), rng.uniform(size=300)
    here, there = NormalEquations.zeros(97, 2), NormalEquations.zeros(97, 2, on_gpu=True)
    for block in (slice(0, 200), slice(200, 300)):
        weight = w[block] if weighted else None
        here.update(z[block], y[block], weight)
        there.update(gpu.to_device(z[block]), y[block], weight)
    there = there.to_host()
    assert isinstance(there.gram, np.ndarray)
    assert_close(there, here, 1e-5 if dtype == "float32" else 1e-12)
    np.testing.assert_array_equal(there.yy, here.yy)
    assert there.weight == here.weight
    assert isinstance((there + here).z_sum, np.ndarray)


@pytest.mark.parametrize(("m", "operations"), [(30, 2 * 30**2), (97, 2 * (40 * 40 + 40 * 80 + 17 * 97))])
def test_operations_are_those_that_are_done(m: int, operations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    device = strict(monkeypatch).gpu
    monkeypatch.setattr(gpu, "PANEL", 40)
    z, y = gpu.to_device(np.ones((50, m))), gpu.to_device(np.ones((50, 1)))
    backend.add_products(gpu.to_device(np.zeros((m, m))), gpu.to_device(np.zeros((m, 1))), z, y)
    assert device.operations == 50 * (operations + 2 * m)
    assert backend.gram_operations(m, "gpu") == operations
    device.operations = 0
    z.T @ z  # as `product_rate` counts it
    assert device.operations == 50 * 2 * m**2


# CuPy itself, without a GPU.


def test_all_that_is_called_is_in_cupy(monkeypatch: pytest.MonkeyPatch, make_dataset: Any) -> None:
    cupy = pytest.importorskip("cupy", reason=MISSING)
    module = strict(monkeypatch)
    for name in SUPPORTED:
        MAPS[name].on_gpu(rows(3, CASES[name].shape))
    nd.fit(job(make_dataset))
    assert len(module.called) > 15
    for name, arguments in module.called.items():
        function = getattr(cupy, name)
        if not isinstance(function, cupy.ufunc):
            assert arguments <= inspect.signature(function).parameters.keys()
    assert {name for name in vars(Module) if name.startswith("get_")} <= vars(cupy).keys()
    assert vars(module.cuda).keys() <= vars(cupy.cuda).keys()
    for name in vars(Array).keys() - vars(object).keys() - {"__dict__", "__weakref__", "__init__", "_new"}:
        assert hasattr(cupy.ndarray, name)


def test_cupy_without_a_gpu_is_no_gpu() -> None:
    cupy = pytest.importorskip("cupy", reason=MISSING)
    if cupy.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        cupy.cuda.runtime.getDeviceCount()
    assert gpu.gpu() is None
    assert backend.gpus() == ()
