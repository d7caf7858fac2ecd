"""Simple models beside a run: fitted to the same rows and folds, to be read beside its own error."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec
import numpy as np

from ntkdist.cluster import Client
from ntkdist.cluster.connect import resources
from ntkdist.cluster.progress import Watch
from ntkdist.data.scaling import Preprocessing
from ntkdist.errors import DataError
from ntkdist.features import Linear
from ntkdist.planning.job import Metric
from ntkdist.planning.plan import Plan, plan
from ntkdist.report.baseline_rows import table_of
from ntkdist.report.baselines import BoostedTrees, one_thread
from ntkdist.report.numbers import error_of_share
from ntkdist.report.out_of_fold import predict_out_of_fold
from ntkdist.ridge.fit import fit
from ntkdist.solvers.cv_result import CVResult


class Simple(NamedTuple):
    """A simple model and its error out of fold: the accuracy for classes, else the root mean squared error."""

    name: str
    value: float
    error: float  # standard error of ``value``


def simple_models(
    p: Plan, pre: Preprocessing, trees: bool, client: Client | None, watch: Watch | None
) -> Iterator[Simple]:
    """Fit a linear model in two passes, unless it has more columns than the run has features, and trees if asked for.

    Raises
    ------
    DataError
        If trees are asked for and the rows are too many for a process.
    """
    columns = int(np.prod(pre.mapped_shape))
    if columns <= p.m:
        yield _linear(p, columns, client, watch)
    if trees:
        yield _trees(p, pre)


def _linear(p: Plan, columns: int, client: Client | None, watch: Watch | None) -> Simple:
    table = msgspec.structs.replace(p.job.plan, tile=None, block_rows=None, checkpoint="", device="cpu")
    other = {"features": Linear(columns), "metric": Metric(), "solver": None, "plan": table}
    job = msgspec.structs.replace(p.job, alphas="auto", alphas_per_row=None, **other)
    result = fit(job, client=client, watch=watch)
    assert result.cv is not None
    assert result.equations is not None
    cv = _on_folds(result.cv, p.scored)
    if not p.layout.classes:
        return Simple("a linear model", cv.rmse, cv.rmse_standard_error)
    same = msgspec.structs.replace(plan(job, threads=p.threads), skip=p.skip)
    sums = predict_out_of_fold(same, result.equations, cv, client=client, watch=watch)
    return _accuracy("a linear model", sums.metrics.summary()["accuracy"], sums.metrics.rows)


def _on_folds(cv: CVResult, scored: Sequence[int] | None) -> CVResult:
    """Return the errors on some of the folds: a run with a metric scores only one."""
    if scored is None:
        return cv
    some = np.isin(cv.scored, scored)
    rounding = None if cv.rounding is None else cv.rounding[:, some]
    folds = tuple(np.asarray(cv.scored)[some].tolist())
    return replace(cv, mse=cv.mse[:, some], weights=cv.weights[some], scored=folds, rounding=rounding)


def _trees(p: Plan, pre: Preprocessing) -> Simple:
    need, limit = 32 * p.layout.rows * int(np.prod(p.layout.input_shape)), resources(None).memory_bytes / 2
    if need > limit or p.layout.sparse:
        raise DataError(
            f"Boosted trees hold all rows of {p.dataset.store} in this process, which would be {need / 1e9:.1f} GB of "
            f"dense numbers, of {limit / 1e9:.1f} GB; leave out --trees"
        )
    table = table_of(p, pre)
    with one_thread():
        model = BoostedTrees(table, pre)
        if pre.classes:
            return _accuracy("boosted trees", *model.accuracy_out_of_fold())
        cv = model.out_of_fold()
    return Simple("boosted trees", cv.rmse, cv.rmse_standard_error)


def _accuracy(name: str, share: float, rows: int) -> Simple:
    return Simple(name, share, error_of_share(share, rows))
