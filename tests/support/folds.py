"""A job whose rows are in folds, the groups of those rows, and their scaling."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import ntkdist as nd

FEATURES = nd.NTKRandomFeatures(n_components=64, depth=2, bias=0.5)
ALPHAS = (0.01, 1.0, 100.0)
STRICT: dict[str, Any] = {"dtype": "float64", "threads": 1}
GROUPS = np.random.default_rng(3).integers(-40, 40, 900)


def job_on(store: str, plan: dict[str, Any] | None = None, alphas: Any = ALPHAS, **dataset: str) -> nd.Job:
    """Return a job of one thread in float64 on a dataset."""
    return nd.Job(nd.Dataset(store, **dataset), FEATURES, plan=nd.PlanTable(**(STRICT | (plan or {}))), alphas=alphas)


def scaled(x: NDArray[Any]) -> NDArray[Any]:
    """Scale columns to mean 0 and deviation 1."""
    return (x - x.mean(axis=0)) / x.std(axis=0)
