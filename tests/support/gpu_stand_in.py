"""The GPU that tests run on: a stand-in in CuPy's place, and jobs for it."""

from typing import Any

import msgspec
import numpy as np
import pytest
from strict_cupy import Module

import ntkdist as nd
from ntkdist import gpu
from ntkdist.features import base

MB = 10**6
MISSING = "CuPy is not installed; pip install 'ntkdist[gpu]'"
DEEP = nd.NTKRandomFeatures(360, depth=3)  # so wide that products are mixed by Hadamard matrices


def strict(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Module:
    """Put the stand-in in CuPy's place."""
    module = Module(**options)
    stand_in(monkeypatch, module)
    monkeypatch.setattr(base, "_drawn", {})  # another module's arrays
    monkeypatch.setattr(gpu, "_constants", {})
    return module


def stand_in(monkeypatch: pytest.MonkeyPatch, module: Module) -> None:
    """Put a module in CuPy's place."""
    monkeypatch.setattr(gpu, "_installed", lambda: True)
    monkeypatch.setattr(gpu, "cupy", lambda: module)
    monkeypatch.setattr(gpu, "_solve_triangular", lambda: module.solve_triangular)
    monkeypatch.setattr(gpu, "PROBE", 16)


def job(make_dataset: Any, device: str = "gpu", features: Any = None, **table: Any) -> nd.Job:
    """Return a small weighted job for a device."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 4))
    store = make_dataset(
        x, np.abs(x).sum(axis=1), weights=rng.uniform(size=600), name="of-a-job", rows_per_partition=30
    )
    known = {"folds": 2, "shards": 4, "dtype": "float64"} | table
    dataset = nd.Dataset(store, weight="weight")
    plan = nd.PlanTable(device=device, **known)
    return nd.Job(dataset, features or nd.ZonalFeatures(64), alphas=(0.1, 1.0), plan=plan)


def on(job: nd.Job, device: str, **table: Any) -> nd.Job:
    """Return a job with another device in its plan."""
    return msgspec.structs.replace(job, plan=msgspec.structs.replace(job.plan, device=device, **table))
