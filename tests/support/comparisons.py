"""Jobs to compare, and the rows of a comparison."""

from typing import Any

import msgspec

import ntkdist as nd
from ntkdist.report.comparison import Comparison, Row

NTK, ZONAL = nd.NTKRandomFeatures(64, bias=1.0), nd.ZonalFeatures(96, nd.NTK(2, 1.0), seed=5)


def job(features: Any, store: str = "elsewhere.zarr", **changes: Any) -> nd.Job:
    plan = nd.PlanTable(folds=4, dtype="float64", threads=1)
    return msgspec.structs.replace(nd.Job(nd.Dataset(store), features, plan=plan), **changes)


def by_name(found: Comparison) -> dict[str, Row]:
    return {row.name: row for row in found.models}
