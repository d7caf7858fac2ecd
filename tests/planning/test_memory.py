"""The memory of a worker: at most what was projected, and not much less."""

from typing import Any

import numpy as np
import pytest
from scipy.sparse import random_array, save_npz

import ntkdist as nd

LEAST = 0.85  # of its projection that a peak may be
ROUND = nd.Metric(rounds=1, n_components=256, scales=(1.0,))
DIAGONAL = nd.Metric(rounds=1, form="diagonal", n_components=512, scales=(1.0,))
COPIES = nd.Augment(flips=True, crops=2)
PCG = nd.PCG(256, max_iterations=5, unconverged="keep")


def peak_and_projection(
    store: str, features: Any, workers: int = 1, options: dict[str, Any] | None = None, weight: str = "", **table: Any
) -> tuple[int, int]:
    """Of the worker that needs most, of a cluster of its own."""
    chosen = {"alphas": (1.0,)} | (options or {})
    job = nd.Job(
        nd.Dataset(store, weight=weight), features, plan=nd.PlanTable(**table), cluster=nd.Local(workers), **chosen
    )
    run = nd.fit(job).report["run"]
    return max(run["peak_memory_bytes"].values()), sum(run["projected_memory_bytes"].values())


def normals(rows: int, *shape: int) -> Any:
    return np.random.default_rng(0).standard_normal((rows, *shape), dtype=np.float32)


@pytest.mark.slow
@pytest.mark.cluster
def test_memory_does_not_grow_with_rows(make_dataset: Any) -> None:
    x = normals(600_000, 8)
    peaks = []
    for rows in (60_000, 600_000):
        store = make_dataset(x[:rows], x[:rows, 0], name=str(rows), rows_per_partition=None)
        peak, projected = peak_and_projection(store, nd.NTKRandomFeatures(512))
        assert LEAST * projected <= peak <= projected
        peaks.append(peak)
    assert peaks[1] <= 1.1 * peaks[0]


SLOW: dict[str, tuple[int, int, Any, dict[str, Any]]] = {
    "float64": (20_000, 16, nd.NTKRandomFeatures(2048), {"dtype": "float64"}),
    "sums of less than a heap's": (30_000, 8, nd.NTKRandomFeatures(1536), {}),
    "zonal": (20_000, 16, nd.ZonalFeatures(1024), {}),
    "deep": (20_000, 30, nd.NTKRandomFeatures(1024, depth=3), {"threads": 2}),
    "landmarks": (20_000, 9, nd.Nystrom(768), {"folds": 4}),
    "sketch": (20_000, 50, nd.NTKSketch(768), {"block_rows": 4096}),
    "fan-in": (40_000, 8, nd.NTKRandomFeatures(1024), {"fan_in": 2, "shards": 20}),
    "workers": (80_000, 8, nd.NTKRandomFeatures(1024), {"workers": 2, "shards": 20}),
    "tiles": (10_000, 16, nd.NTKRandomFeatures(2048), {"options": {"solver": nd.TiledCholesky(512)}, "folds": 2}),
    "products": (20_000, 16, nd.NTKRandomFeatures(2048), {"options": {"solver": PCG}}),
    "a full metric": (12_000, 1000, nd.Nystrom(256), {"options": {"metric": ROUND}}),
    "a diagonal metric": (20_000, 100, nd.ZonalFeatures(1024), {"options": {"metric": DIAGONAL}}),
    "images": (200, (16, 16, 3), nd.CNTKSketch(256), {"folds": 2}),
    "copies": (6000, (12, 12, 3), nd.ZonalFeatures(1024), {"options": {"augment": COPIES}, "folds": 2}),
    "a block": (20_000, 16, nd.NTKRandomFeatures(1024), {"block_rows": 20_000, "folds": 2, "shards": 2}),
    "wide rows": (20_000, 400, nd.Linear(400), {"folds": 2, "rows_per_partition": 5000}),
}
QUICK: dict[str, tuple[int, int, Any, dict[str, Any]]] = {
    "few": (2000, 8, nd.NTKRandomFeatures(64), {}),
    "sums": (20_000, 16, nd.NTKRandomFeatures(1024), {}),
}


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("rows", "shape", "features", "options"),
    [*QUICK.values(), *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW.values())],
    ids=[*QUICK, *SLOW],
)
def test_the_peak_is_at_most_what_was_projected(
    make_dataset: Any, rows: int, shape: Any, features: Any, options: dict[str, Any]
) -> None:
    x, options = normals(rows, *np.atleast_1d(shape)), dict(options)
    size = options.pop("rows_per_partition", None)  # as many as are chosen unless told otherwise
    store = make_dataset(x, x.reshape(rows, -1)[:, 0], rows_per_partition=size)
    peak, projected = peak_and_projection(store, features, **options)
    assert LEAST * projected <= peak <= projected


@pytest.mark.slow
@pytest.mark.cluster
def test_the_peak_of_weighted_and_of_sparse_rows(make_dataset: Any, tmp_path: Any) -> None:
    x = normals(30_000, 16)
    store = make_dataset(x, x[:, 0], weights=np.abs(x[:, 1]), rows_per_partition=None)
    peak, projected = peak_and_projection(store, nd.NTKRandomFeatures(1024), weight="weight")
    assert LEAST * projected <= peak <= projected
    rows = random_array((20_000, 2000), density=0.01, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    save_npz(tmp_path / "x.npz", rows)
    np.save(tmp_path / "y.npy", np.asarray(rows.sum(axis=1)).ravel())
    nd.convert(str(tmp_path / "x.npz"), str(tmp_path / "sparse.zarr"), target=[str(tmp_path / "y.npy")])
    peak, projected = peak_and_projection(str(tmp_path / "sparse.zarr"), nd.NTKSketch(1024))
    assert LEAST * projected <= peak <= projected
