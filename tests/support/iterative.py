"""Jobs that conjugate gradients fit, and the same jobs with a Gram."""

from typing import Any

import msgspec
import numpy as np

import ntkdist as nd

FEATURES = nd.NTKRandomFeatures(n_components=96, depth=2, bias=0.5)
EXACT = nd.PlanTable(folds=4, dtype="float64", threads=1)
ALPHAS = (0.1, 1.0, 10.0)


def job_on(store: str, **changes: Any) -> nd.Job:
    job = nd.Job(nd.Dataset(store), FEATURES, alphas=ALPHAS, plan=EXACT, solver=nd.PCG(sample_rows=256))
    return msgspec.structs.replace(job, **changes)


def with_gram(job: nd.Job) -> nd.FitResult:
    return nd.fit(msgspec.structs.replace(job, solver=nd.Cholesky()))


def same_bits(a: nd.FitResult, b: nd.FitResult) -> None:
    np.testing.assert_array_equal(a.model.coef, b.model.coef)
    np.testing.assert_array_equal(a.model.intercept, b.model.intercept)
    np.testing.assert_array_equal(a.cv.mse, b.cv.mse)
