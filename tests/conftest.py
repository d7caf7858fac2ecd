"""Fixtures that several files share."""

import os

for library in ("OPENBLAS", "OMP", "MKL"):  # tests run two at a time, and threads that wait for each other spin
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import converted
import numpy as np
import pytest
import threadpoolctl
from command_line import Command, in_process
from distributed import Client
from gpu_stand_in import MISSING, strict
from hypothesis import settings
from numpy.typing import NDArray
from servers import local_cluster
from stored import MakeDataset

import ntkdist as nd
from ntkdist import gpu
from ntkdist.cluster import connect

threadpoolctl.threadpool_limits(1)  # of a NumPy that a plugin of pytest has loaded before
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Write arrays as a dataset in source order, and return its path."""

    def make(x: NDArray[Any], y: NDArray[Any] | None = None, name: str = "data", **options: Any) -> str:
        source = tmp_path / f"{name}.npz"
        weight = options.pop("weights", None)
        arrays = {"x": x} | ({} if y is None else {"y": y}) | ({} if weight is None else {"w": weight})
        beside = {role: options.pop(role) for role in ("groups", "holdout") if role in options}
        np.savez(source, **arrays, **beside)
        options = {"target": () if y is None else ["y"], "shuffle_seed": None} | options
        options |= {role: role for role in beside}
        if weight is not None:
            options["weight"] = "w"
        nd.convert(str(source), str(tmp_path / f"{name}.zarr"), **options)
        return str(tmp_path / f"{name}.zarr")

    return make


@pytest.fixture
def table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A regression problem that a line cannot solve: 900 rows, 5 columns of very different scales, 2 targets."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((900, 5))
    signal = np.stack([np.abs(x[:, 0]) + x[:, 1] * x[:, 2], np.abs(x[:, 3]) - x[:, 4]], axis=1)
    y = signal + 0.1 * rng.standard_normal((900, 2))
    return x * [1, 10, 100, 1e-3, 1] + [0, 5, -2000, 0, 1], y * [1, 30] + [100, -4]


@pytest.fixture
def xy(table: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """600 rows of the table, with its first target."""
    return table[0][:600], table[1][:600, 0]


@pytest.fixture(scope="session")
def two_workers() -> Any:
    """A client of a cluster of two worker processes of one thread each, which only those use that are given it."""
    with local_cluster() as cluster, Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """A source of rows of all kinds."""
    arrays = {"x": converted.X, "y": converted.Y, "w": converted.W, "images": converted.IMAGES}
    others = {"digits": converted.DIGITS, "cities": converted.CITIES, "flags": converted.Y > 0}
    np.savez(tmp_path / "a.npz", **arrays, **others)
    return tmp_path / "a.npz"


@pytest.fixture
def few_rounds_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small fits of trees, which on a machine that others use too would wait for their own threads."""
    few = {"max_iter": 25, "learning_rate": 0.2, "early_stopping": True, "random_state": 0}
    monkeypatch.setattr("ntkdist.report.baselines.TREES", few)
    with threadpoolctl.threadpool_limits(1):
        yield


@pytest.fixture
def alone() -> Iterator[None]:
    """Unless a test says where, in this process: not on the cluster of other tests."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo what it patches itself
        patch.setattr(connect, "_active_client", lambda: None)
        yield


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: None) -> Command:
    """The command line in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return in_process


@pytest.fixture(params=["strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return CuPy on a GPU, or the stand-in for both."""
    if request.param == "cupy":
        pytest.importorskip("cupy", reason=MISSING)
        if gpu.gpu() is None:
            pytest.skip("CuPy sees no GPU here")
        return gpu.cupy()
    return strict(monkeypatch)
