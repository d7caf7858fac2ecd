"""Fixtures that several files share."""

import functools
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
from servers import local_cluster
from stored import F8, MakeDataset, regression, write_dataset

from ntkdist import gpu
from ntkdist.cluster import connect

threadpoolctl.threadpool_limits(1)  # of a NumPy that a plugin of pytest has loaded before
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Write arrays as a dataset in the test's directory, and return its path."""
    return functools.partial(write_dataset, tmp_path)


@pytest.fixture
def table() -> tuple[F8, F8]:
    """900 rows, which a test may change."""
    return regression()


@pytest.fixture
def xy(table: Any) -> tuple[F8, F8]:
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
