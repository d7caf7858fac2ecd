"""The baselines of a comparison: each is measured to rows of its tables, with a note on how it was made."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from ntkdist.cluster.connect import connect, resources
from ntkdist.cluster.reduce import reduce_all
from ntkdist.data.scaling import Preprocessing
from ntkdist.features import Linear, RandomFourier
from ntkdist.kernels import Gaussian
from ntkdist.planning.job import Job, Metric
from ntkdist.planning.plan import Plan
from ntkdist.report.baselines import BoostedTrees, ExactRidge, Table, median_distance, one_thread
from ntkdist.report.comparison import Row
from ntkdist.report.measure import Bench, cv_errors, errors_only, measure, planned, sampled
from ntkdist.ridge.fit import fit
from ntkdist.sums.metrics import MetricsOf

LENGTHSCALES = (0.5, 1.0, 2.0)  # of the Gaussian, times the median distance of rows
TUNING_COMPONENTS = 512
GB = 1e9
RowsAndNote = tuple[list[Row], str]


def baseline_rows(
    bench: Bench, first: Job, components: Sequence[int], pre: Preprocessing, exact_rows: int
) -> Iterator[RowsAndNote]:
    """Yield the rows of each baseline, and a note or ""."""
    yield from _feature_rows(bench, first, components, pre)
    yield from _in_memory_rows(bench, first, pre, exact_rows)


def at_components(job: Job, components: Sequence[int]) -> list[Job]:
    """Return a job at each number of components; a job whose number is given by the data stays as it is."""
    if not components or isinstance(job.features, Linear):
        return [job]
    return [replace(job, features=replace(job.map, n_components=m)) for m in components]


def _feature_rows(bench: Bench, first: Job, components: Sequence[int], pre: Preprocessing) -> Iterator[RowsAndNote]:
    """Yield ridge regression on the columns and on features of a Gaussian, fitted on the first job's cluster."""
    chosen: dict[str, Any] = {"alphas": "auto", "alphas_per_row": None} if first.plan.folds != 1 else {}
    job = replace(first, solver=None, metric=Metric(), **chosen)
    with connect(first.cluster, bench.scheduler, bench.client) as client:
        bench = bench._replace(client=client)
        linear = replace(job, features=Linear(int(np.prod(pre.mapped_shape))))
        rows, pre = measure(bench, [("linear", linear)])
        yield rows, ""
        scale, note = _gaussian(bench, job, pre)
        fourier = replace(job, features=RandomFourier(job.map.n_components, Gaussian(scale)))
        yield measure(bench, [("gaussian rff", each) for each in at_components(fourier, components)])[0], note


def _gaussian(bench: Bench, job: Job, pre: Preprocessing) -> tuple[float, str]:
    """Choose the length scale of a Gaussian; return it with a note on how."""
    m = min(job.map.n_components, TUNING_COMPONENTS)
    median = median_distance(sampled(bench, planned(bench, job), pre))
    scales = [factor * median for factor in LENGTHSCALES] if median > 0 else [1.0]
    scores = []
    for scale in scales if job.plan.folds != 1 else ():
        cv = fit(replace(job, features=RandomFourier(m, Gaussian(scale))), client=bench.client, watch=bench.watch).cv
        assert cv is not None
        scores.append(cv.rmse)
    best = scales[int(np.argmin(scores))] if scores else median
    how = "the median distance of rows"
    if scores:
        factors = ", ".join(f"{factor:g}" for factor in LENGTHSCALES)
        how = f"the best of {factors} times {how}, by cross-validation at m = {m}"
    return best, f"gaussian rff: RandomFourier of length scale {best:.4g}, {how}"


def _in_memory_rows(bench: Bench, first: Job, pre: Preprocessing, exact_rows: int) -> Iterator[RowsAndNote]:
    """Yield exact kernel ridge and boosted trees, which hold all rows in this process."""
    p, limit = planned(bench, first), resources(None).memory_bytes / 2
    n, row_bytes = p.layout.rows, 8 * int(np.prod(p.layout.input_shape))
    if (need := 4 * n * row_bytes) > limit:
        yield [], f"exact kernel and boosted trees were left out: {need / GB:.1f} GB of rows are too many for a process"
        return
    table = table_of(p, pre)
    name = f"exact kernel: ridge with the kernel of {type(first.features).__name__} itself"
    if n > exact_rows:
        yield [], f"{name} was left out: {n:,} rows are more than {exact_rows:,}"
    elif (need := 3 * 8 * n**2) > limit:
        yield [], f"{name} was left out: it needs {need / GB:.1f} GB"
    else:
        note = f"{name}; its penalty per row is the best of the same grid by five folds of at most 2,000 random rows"
        yield [_row(bench, "exact kernel", lambda: ExactRidge(p.features.kernel, table, pre), pre, p.folds)], note
    note = (
        "boosted trees: scikit-learn's HistGradientBoosting, at most 2,000 rounds of rate 0.05, stopped early; fit s "
        "is one fit on all rows, on one thread as for the exact kernel"
    )
    yield [_row(bench, "boosted trees", lambda: BoostedTrees(table, pre), pre, p.folds)], note


def _row(bench: Bench, name: str, make: Callable[[], ExactRidge | BoostedTrees], pre: Preprocessing, folds: int) -> Row:
    """Fit a baseline on one thread, cross-validate and test it."""
    with one_thread():
        start = time.perf_counter()
        model = make()
        seconds = time.perf_counter() - start
        cv = model.out_of_fold() if folds > 1 else None
        test: dict[str, float] = {}
        if bench.test:
            layout = bench.test.layout
            summand = MetricsOf(model, pre.match(layout, bench.test.dataset.store))
            part = reduce_all(bench.test, summand, layout.rows_per_partition, None, "evaluate", bench.watch)
            test = errors_only(part.total.summary())
    return Row(
        name=name,
        kind=type(model).__name__,
        alpha_per_row=model.alpha_per_row if isinstance(model, ExactRidge) else None,
        **cv_errors(cv),
        test=test,
        fit_seconds=seconds,
        model_bytes=model.nbytes,
    )


def table_of(p: Plan, pre: Preprocessing) -> Table:
    """Read all rows of positive weight, with the fold of each."""
    kept = [i for i in range(p.layout.partitions) if i not in (p.skip or ())]
    parts = [p.dataset.read(p.layout, *p.layout.span(i)) for i in kept]
    read = zip(kept, parts, strict=True)
    fold = np.concatenate([p.folds_of(i)[rows.places - p.layout.span(i)[0]] for i, rows in read])
    if p.scored is not None:
        fold[~np.isin(fold, p.scored)] = -1
    weight = np.concatenate([np.ones(len(r.x)) if (w := pre.weights(r)) is None else w for r in parts])
    x, y = (np.concatenate([rows[i] for rows in parts]) for i in (0, 1))
    some = weight > 0
    return Table(x[some], y[some], weight[some], fold[some])
