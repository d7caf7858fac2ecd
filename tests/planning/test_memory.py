"""The memory of a worker: what was projected, and the same for ten times the rows."""

from typing import Any

import numpy as np
import pytest

import ntkdist as nd


def peak_and_projection(store: str, m: int, **table: Any) -> tuple[int, int]:
    """Of the one worker process of a cluster of its own."""
    plan = nd.PlanTable(**table)
    job = nd.Job(nd.Dataset(store), nd.NTKRandomFeatures(m), alphas=(1.0,), plan=plan, cluster=nd.Local(workers=1))
    run = nd.fit(job).report["run"]
    (peak,) = run["peak_memory_bytes"].values()
    return peak, sum(run["projected_memory_bytes"].values())


@pytest.mark.slow
@pytest.mark.cluster
def test_memory_does_not_grow_with_rows(make_dataset: Any) -> None:
    x = np.random.default_rng(0).standard_normal((600_000, 8), dtype=np.float32)
    peaks = []
    for rows in (60_000, 600_000):
        peak, projected = peak_and_projection(make_dataset(x[:rows], x[:rows, 0], name=str(rows)), 512)
        assert 0.87 * projected <= peak <= 1.1 * projected
        peaks.append(peak)
    assert peaks[1] <= 1.1 * peaks[0]


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("m", "table"),
    [
        (1024, {}),
        (1024, {"block_rows": 20_000, "folds": 2, "shards": 2}),
        pytest.param(2048, {"dtype": "float64"}, marks=pytest.mark.slow),
    ],
)
def test_the_peak_is_projected(make_dataset: Any, m: int, table: Any) -> None:
    x = np.random.default_rng(0).standard_normal((20_000, 16), dtype=np.float32)
    peak, projected = peak_and_projection(make_dataset(x, x[:, 0]), m, **table)
    assert 0.87 * projected <= peak <= 1.1 * projected
