"""Plans of a dataset that is not there."""

import ntkdist as nd
from ntkdist.data.dataset import Layout


def plan_of(partitions: int = 30, m: int = 64, **table: object) -> nd.Plan:
    """Return a plan of partitions of 100 rows, with some of its settings changed."""
    layout = Layout(
        rows=partitions * 100, rows_per_partition=100, input_shape=(8,), x_dtype="float32", fingerprint="none"
    )
    known = {"folds": 5, "shards": 10, "fan_in": 4, "block_rows": 512, "threads": 1, "dtype": "float32"}
    job = nd.Job(nd.Dataset("nowhere.zarr"), nd.NTKRandomFeatures(m))
    return nd.Plan(job=job, layout=layout, solver=nd.Cholesky(), **(known | table))
