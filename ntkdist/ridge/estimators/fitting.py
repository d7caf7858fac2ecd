"""How estimators learn: arrays by the same passes as datasets, datasets by `ntkdist.fit`; both leave the same."""

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist.cluster import progress
from ntkdist.cluster.connect import connect, resources
from ntkdist.cluster.reduce import MAP_FAN_IN, Pass, reduce
from ntkdist.cluster.shards import Source
from ntkdist.cluster.tree import evenly
from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Dataset, Shard
from ntkdist.data.scaling import Preprocess, Preprocessing
from ntkdist.errors import DataError, InputError
from ntkdist.features import AnyFeatureMap, AnyMap
from ntkdist.planning.job import Job, PlanTable
from ntkdist.planning.plan import by_fold, plan
from ntkdist.ridge.fit import fit
from ntkdist.ridge.leave_one_out import left_out
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.ridge.prepare import fitted, moments_of, scaling, verified_source
from ntkdist.ridge.residuals import fold_models, out_of_fold
from ntkdist.ridge.rowwise import Rowwise
from ntkdist.ridge.solve import solve
from ntkdist.solvers import Cholesky, TiledCholesky
from ntkdist.solvers import choose as solver_of
from ntkdist.solvers.cross_validation import AUTO_GRID
from ntkdist.solvers.cv_result import CVResult
from ntkdist.solvers.uncertainty import Factor
from ntkdist.sums.equations import EquationsOf

F8 = NDArray[np.float64]
SHARD_BYTES = 64 * 2**20  # of rows that are Dask's, at least, that one task sums


class FitSettings(NamedTuple):
    """What is asked for: a map, a scaling, and among how many folds and by which penalties to choose."""

    features: AnyFeatureMap
    preprocess: Preprocess
    alphas: Any = "auto"
    folds: int = 1
    per_target: bool = False
    balanced: bool = False


class FitOutcome(NamedTuple):
    """What was found."""

    model: RidgeModel
    cv: CVResult | None
    equations: Equations
    skip: tuple[int, ...] = ()  # partitions that were damaged

    def out_of_fold(self, rows: Arrays | Dataset, folds: int) -> Rowwise:
        """Predictions for every row that was learnt from by the model of the other folds: one more pass."""
        assert self.cv is not None
        models = fold_models(Cholesky(), self.equations, self.cv)
        with _client(rows) as client:
            if isinstance(rows, Arrays):
                source, shards = _source(rows, self.equations.features.n_components, folds, client)
            else:
                features: Any = self.equations.features.spec
                job = Job(rows, features, plan=_table(rows, folds, self.equations.dtype))
                p = msgspec.structs.replace(plan(job, threads=resources(client).threads), skip=self.skip)
                source, shards = by_fold(p)
            return out_of_fold(source, shards, models, client, _watch(rows))

    def unsure(self, rows: Arrays | Dataset, folds: int) -> tuple[RidgeModel, F8, F8]:
        """The model with its factor, residuals (n, t) by models without the row, and weights (n,): one more pass."""
        model, total = self.model, self.equations.total
        if self.cv is not None:
            seen = self.out_of_fold(rows, folds).values
            residuals = seen["y"].reshape(len(seen["y"]), -1) - seen["prediction"]
            return replace(model, factor=Factor.of(total, model.alpha, self.cv.chosen)), residuals, seen["weight"]
        factor = Factor.of(total, model.alpha, np.zeros(total.t))
        with _client(rows) as client:
            source = Source(rows, rows.layout(), 0, 1, skip=self.skip)
            seen = left_out(replace(model, factor=factor), source, client, _watch(rows)).values
        residuals, weight = seen["y"] - seen["left_out"], seen["weight"]
        factor = replace(factor, noise=weight @ residuals**2 / weight.sum())
        return replace(model, factor=factor), residuals, weight


def dealt(rows: Arrays | Dataset, found: FitOutcome) -> str:
    """Name of the array of a dataset that says which of several folds a row is in; empty if there is none."""
    return rows.fold_array if isinstance(rows, Dataset) and len(found.equations.folds) > 1 else ""


def learn(rows: Arrays | Dataset, task: FitSettings) -> FitOutcome:
    """Fit to rows."""
    if isinstance(rows, Dataset):
        return _learn_dataset(rows, task)
    return choose(sums(rows, task), task)


def sums(rows: Arrays, task: FitSettings, before: Equations | None = None) -> Equations:
    """Sum the equations of every fold of some rows; with the scaling and the map of others if they shall be added.

    Warns of rows that are clipped to the range of the others.
    """
    folds = _table(rows, task.folds, rows.dtype).folds or 1
    with _client(rows) as client:
        source, shards = _source(rows, task.features.n_components, folds, client)
        task.features.check_shape(source.layout.input_shape, rows.store)
        plain = source._replace(folds=0)
        if before is None:
            pre, moments = scaling(task.preprocess, plain, client, progress.silent, task.balanced)
            ready = fitted(task.features, task.preprocess, plain, pre, client, progress.silent)
        else:
            pre, ready = before.preprocessing, before.features
            moments = moments_of(plain, pre, client, progress.silent)
            source = source._replace(range=pre.range)
        summand = EquationsOf(ready, pre, rows.dtype if before is None else before.dtype)
        parts = reduce(Pass(source, summand, shards, MAP_FAN_IN), client)
    if clipped := sum(part.tally.clipped for part in parts):
        warnings.warn(
            f"{clipped:,} of {source.layout.rows:,} new rows have values outside the range of the first rows and were "
            'clipped to it; fit all rows at once, or set clip="none"',
            stacklevel=3,
        )
    return Equations([part.total for part in parts], ready, pre, summand.dtype, moments=moments)


def prepared(rows: Arrays | Dataset, features: AnyFeatureMap, preprocess: Preprocess) -> tuple[Preprocessing, AnyMap]:
    """The scaling of rows, and a map that is ready to use."""
    with _client(rows) as client:
        if isinstance(rows, Arrays):
            source = _source(rows, features.n_components, 1, client)[0]
        else:
            layout = rows.layout(labelled=False)
            source = Source(rows, layout, max(1024, features.n_components), resources(client).threads)
            source = verified_source(source, client, _watch(rows))
        features.check_shape(source.layout.input_shape, rows.store)
        pre, _ = scaling(preprocess, source, client, _watch(rows))
        return pre, fitted(features, preprocess, source, pre, client, _watch(rows))


def choose(equations: Equations, task: FitSettings) -> FitOutcome:
    """Choose a penalty, if there is something to choose by, and solve; folds that got no rows are not scored."""
    present = tuple(k for k, fold in enumerate(equations.folds) if fold.weight > 0)
    if task.folds > 1 and len(present) < 2:
        raise DataError(
            f"All rows are in one of {task.folds} folds, for they are few or equal: of one sample there is nothing to "
            "choose alpha by; give more rows, or use NTKRidge with an alpha"
        )
    alphas: Sequence[float] | str = task.alphas
    model, cv = solve(
        replace(equations, scored=present),
        alphas=alphas if isinstance(alphas, str) else [float(a) for a in alphas],
        per_target=task.per_target,
    )
    return FitOutcome(model, cv, equations)


def _learn_dataset(dataset: Dataset, task: FitSettings) -> FitOutcome:
    dtype = "float32" if dataset.layout().x_dtype == "float32" else "float64"
    solver = solver_of(task.features.n_components, len(AUTO_GRID if isinstance(task.alphas, str) else task.alphas))
    if isinstance(solver, TiledCholesky):
        raise InputError(
            f"n_components is {task.features.n_components}, of which sums are too large for an estimator to keep; use "
            "ntkdist.fit with solver TiledCholesky or PCG, or fewer"
        )
    job = Job(
        dataset,
        task.features,
        alphas=task.alphas,
        alpha_per_target=task.per_target,
        class_weight="balanced" if task.balanced else None,
        plan=_table(dataset, task.folds, dtype),
        preprocess=task.preprocess,
        solver=solver,  # else one that forms no equations may be taken where these do not fit
    )
    found = fit(job)
    assert found.equations is not None
    return FitOutcome(found.model, found.cv, found.equations, tuple(found.report["data"]["skipped_partitions"]))


def _table(rows: Arrays | Dataset, folds: int, dtype: Any) -> PlanTable:
    """The plan of a task; beside a holdout the number of folds gives way, for the rows held out are scored once."""
    return PlanTable(folds=None if isinstance(rows, Dataset) and rows.holdout else folds, dtype=dtype)


def _source(rows: Arrays, m: int, folds: int, client: Any) -> tuple[Source, list[Shard]]:
    """Where rows come from, and tasks, the folds as groups: one a fold, several where rows are Dask's."""
    layout = rows.layout()
    block_rows = max(1024, m)
    threads = 1 if layout.rows <= block_rows else resources(client).threads  # which take longer to start than a block
    source = Source(rows, layout, block_rows, threads, folds=folds if folds > 1 else 0)
    spans = [layout.span(i) for i in range(layout.partitions)]
    count = math.ceil(layout.rows * layout.row_bytes / max(SHARD_BYTES, 8 * m**2)) if rows.lazy else 1
    return source, [Shard(k, tuple(some)) for k in range(folds) for some in evenly(spans, count)]


def _client(rows: Arrays | Dataset) -> Any:
    """The cluster that there is, for rows that its workers can reach."""
    return connect() if isinstance(rows, Dataset) or rows.lazy else nullcontext()


def _watch(rows: Arrays | Dataset) -> Any:
    return None if isinstance(rows, Dataset) else progress.silent
