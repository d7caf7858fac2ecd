"""Measurements of jobs on one dataset: kernel error, prediction error and cost.

Legend: m components; x scaled rows; z features; K, K̂ exact kernel and Gram of the features on a sample of rows.
"""

import functools
import tempfile
import timeit
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.cluster import Client
from ntkdist.cluster.connect import connect, resources
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import on_each_worker, reduce_all
from ntkdist.cluster.shards import Source
from ntkdist.data.scaling import Preprocess, Preprocessing
from ntkdist.features import AnyMap
from ntkdist.kernels.error import SpectralError, frobenius_error, gram_of
from ntkdist.planning.job import Job
from ntkdist.planning.plan import Plan, plan, source_of
from ntkdist.report.comparison import Row
from ntkdist.ridge import store
from ntkdist.ridge.fit import fit
from ntkdist.ridge.fit_report import FitReport
from ntkdist.ridge.fitted_map import fitted
from ntkdist.ridge.model import RidgeModel
from ntkdist.ridge.predict import errors_on
from ntkdist.solvers.cv_result import CVResult
from ntkdist.sums import NormalEquations
from ntkdist.sums.sample import SampleOf

SAMPLE_SEED = 2**31 - 1  # for the rows that kernels are compared on; a map with a small seed learns from others
WARM_ROWS, OTHER_SEED = 8, 2**20  # of a draw that is mapped once so that fits are timed without compilation
TIMED = 3  # repetitions, whose median is taken


class Bench(NamedTuple):
    """The settings that all models share; ``skip`` lists the damaged partitions of the training dataset."""

    skip: tuple[int, ...]
    test: Source | None
    seeds: int
    sample: int
    client: Client | None
    scheduler: str
    watch: Watch | None


def planned(bench: Bench, job: Job) -> Plan:
    """Return the plan of a job without the skipped partitions."""
    return msgspec.structs.replace(plan(job, threads=resources(bench.client).threads), skip=bench.skip)


def measure(bench: Bench, named: Sequence[tuple[str, Job]]) -> tuple[list[Row], Preprocessing]:
    """Return a row for each job, and the first job's scaling."""
    measured = []
    for cluster, some in groupby(named, key=lambda pair: pair[1].cluster):
        with connect(cluster, bench.scheduler, bench.client) as client:
            measured += [_measure_one(bench._replace(client=client), name, job) for name, job in some]
    return [row for row, _ in measured], measured[0][1]


def _measure_one(bench: Bench, name: str, job: Job) -> tuple[Row, Preprocessing]:
    """Fit and measure one job, in processes that have loaded and compiled what it needs."""
    on_each_worker(bench.client, functools.partial(_warm, job))
    result = fit(job, client=bench.client, watch=bench.watch)
    model, report = result.model, msgspec.convert(result.report, FitReport)
    p = planned(bench, job)
    per_row = min(report.alpha_per_row)
    x = sampled(bench, p, model.preprocessing)
    frobenius, spectral = _kernel_errors(bench, p, model.features, model.preprocessing, x, per_row)
    mapping, adding = _seconds_of(p, model.features, x)
    row = Row(
        name=name,
        kind=type(job.features).__name__,
        n_components=p.m,
        frobenius=frobenius,
        spectral=spectral,
        alpha_per_row=per_row,
        **cv_errors(result.cv),
        test=errors_only(errors_on(model, bench.test, bench.client, bench.watch)) if bench.test else {},
        feature_seconds=mapping,
        gram_seconds=adding,
        fit_seconds=report.run.seconds["total"],
        model_bytes=_saved_bytes(model),
        drawn_bytes=_nbytes(model.features.draw(p.mapped_shape), np.dtype(p.dtype).itemsize),
    )
    return row, model.preprocessing


def _warm(job: Job) -> None:
    """Map some rows by another draw of a job's map, in this process: the draw of the map itself is part of its fit."""
    job.warm()
    spec, layout = job.map, job.dataset.layout()
    if hasattr(spec, "seed") and not spec.sample_rows and not layout.sparse and not layout.categories:
        msgspec.structs.replace(spec, seed=spec.seed + OTHER_SEED)(
            np.ones((WARM_ROWS, *layout.input_shape), job.plan.dtype)
        )


def sampled(bench: Bench, p: Plan, pre: Preprocessing) -> NDArray[np.float64]:
    """Sample scaled rows, the same for every job on a dataset."""
    summand = SampleOf(bench.sample, SAMPLE_SEED, pre, None)
    part = reduce_all(source_of(p), summand, p.layout.rows_per_partition, bench.client, "sample", bench.watch)
    rows: NDArray[np.float64] = part.total.x
    return rows


def _kernel_errors(
    bench: Bench, p: Plan, features: AnyMap, pre: Preprocessing, x: NDArray[np.float64], per_row: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return Frobenius and spectral errors of the map and its redraws; a map without a seed has no redraws."""
    redraws: list[AnyMap] = [features]
    for k in range(1, bench.seeds if hasattr(p.features, "seed") else 1):
        again = msgspec.structs.replace(p.features, seed=p.features.seed + k)  # type: ignore[union-attr]
        redraws.append(fitted(again, Preprocess(), source_of(p), pre, bench.client, bench.watch))
    with backend.own_threads():
        backend.use_threads(p.threads)
        exact = p.features.kernel(x)
        spectral = SpectralError(exact, per_row * len(x))
        grams = (gram_of(each(x.astype(p.dtype))) for each in redraws)
        frobenius, spectra = zip(*((frobenius_error(gram, exact), spectral(gram)) for gram in grams), strict=True)
    return frobenius, spectra


def _seconds_of(p: Plan, features: AnyMap, x: NDArray[np.float64]) -> tuple[float, float]:
    """Time mapping all rows of a dataset and adding them to a Gram, in this process; extrapolated from one block."""
    block = np.resize(x, (p.block_rows, *x.shape[1:])).astype(p.dtype)
    y, total = np.zeros((len(block), p.t)), NormalEquations.zeros(p.m, p.t)

    def seconds(call: Callable[[], object]) -> float:
        once = timeit.repeat(call, number=1, repeat=1 + TIMED)[1:]  # the first also draws
        return float(np.median(once)) * p.layout.rows / len(block)

    with backend.own_threads():
        backend.use_threads(p.threads)
        z = features(block)
        return seconds(lambda: features(block)), seconds(lambda: total.update(z, y))


def cv_errors(cv: CVResult | None) -> dict[str, Any]:
    """Return the cross-validated rmse and its standard error, where there are such."""
    error = None
    if cv and len(cv.weights) > 1:
        error = cv.rmse_standard_error
    return {"cv_rmse": cv.rmse if cv else None, "cv_standard_error": error}


def errors_only(summary: dict[str, float]) -> dict[str, float]:
    """Drop the counts of rows."""
    return {name: value for name, value in summary.items() if name not in ("rows", "clipped_rows")}


def _saved_bytes(model: RidgeModel) -> int:
    """Return the size of a saved model."""
    with tempfile.TemporaryDirectory() as place:
        store.save(model, f"{place}/model.zarr")
        return sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file())


def _nbytes(drawn: Any, itemsize: int) -> int:
    """Return the size of arrays, or of dictionaries of arrays, with floats of ``itemsize`` bytes."""
    if isinstance(drawn, dict):
        return sum(_nbytes(each, itemsize) for each in drawn.values())
    return int(drawn.size * (itemsize if drawn.dtype.kind == "f" else drawn.itemsize))
