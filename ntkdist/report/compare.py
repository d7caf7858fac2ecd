"""The verb `compare`: jobs on the same rows, beside the exact kernel and models of other kinds."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist.cluster import Client
from ntkdist.cluster.connect import connect, resources
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.shards import Source, blocks
from ntkdist.cluster.tally import Tally
from ntkdist.data.dataset import Dataset, Layout, Rows
from ntkdist.data.scaling import Preprocessing
from ntkdist.errors import DataError, SpecError
from ntkdist.features import Linear, RandomFourier
from ntkdist.kernels import Gaussian
from ntkdist.planning.job import Job
from ntkdist.planning.plan import Plan
from ntkdist.report.baselines import BoostedTrees, ExactRidge, Table, median_distance, one_thread
from ntkdist.report.comparison import Comparison, Row
from ntkdist.report.measure import TIMED, Bench, cv_errors, errors_only, measure, planned, sampled
from ntkdist.ridge.fit import fit
from ntkdist.ridge.predict import target_kind
from ntkdist.ridge.prepare import verified_source
from ntkdist.sums import Metrics

LENGTHSCALES = (0.5, 1.0, 2.0)  # of the Gaussian, times the median distance of rows
TUNING_COMPONENTS = 512
GB = 1e9


def compare(
    dataset: Dataset | str,
    jobs: Sequence[Job],
    *,
    names: Sequence[str] = (),
    test: Dataset | str = "",
    seeds: int = 3,
    components: Sequence[int] = (),
    sample: int = 1000,
    exact_rows: int = 10_000,
    baselines: bool = True,
    client: Client | None = None,
    scheduler: str = "",
    watch: Watch | None = None,
) -> Comparison:
    """Kernel error, error of prediction and cost of several jobs, and of yardsticks, on one dataset.

    Each job is fitted as by `fit`, where its ``[cluster]`` says.  Its map is then redrawn (one that learns from data is
    fitted again), and the Gram of the features compared with the map's exact kernel on rows that are the same for all.
    Yardsticks are ridge on the columns, on random Fourier features of a Gaussian, and with the first job's kernel
    itself, and boosted trees; the last two hold all rows in this process.

    Parameters
    ----------
    dataset : Dataset or str
        Used instead of the jobs' own.  Of a path, arrays and weights are named as in the first job.
    jobs : sequence of Job
    names : sequence of str, optional
        One a job; by default the types of their maps.
    test : Dataset or str, optional
        Labelled rows to evaluate all models on.
    seeds, sample : int
        Redraws of a map, and rows, at most, that kernels are compared on.
    components : sequence of int, optional
        Numbers of components to fit every job with, instead of its own.
    exact_rows : int
        Training rows up to which ridge with the exact kernel is among the yardsticks.
    baselines : bool
        Whether there are yardsticks.
    client, scheduler, watch : as in `fit`

    Raises
    ------
    SpecError
        If there are no jobs, they read the dataset differently, or a number is too small.
    DataError
        If the test dataset has another kind of target.
    """
    if min(seeds, sample, *components) < 1:
        raise SpecError(f"seeds is {seeds}, sample {sample}, components {list(components)}; expected 1 or more")
    jobs = _on(dataset, jobs)
    first, layout = jobs[0], jobs[0].dataset.layout()
    sample = min(sample, layout.rows)
    tested = _tested(test, first.dataset)
    verified = functools.partial(_verified, first, client, scheduler, watch)
    tests = verified(tested) if tested else None
    bench = Bench(verified(first.dataset).skip, tests, seeds, sample, client, scheduler, watch)
    names = _distinct(names or [type(job.features).__name__ for job in jobs])
    rows, pre = measure(bench, [(n, each) for n, job in zip(names, jobs, strict=True) for each in _at(job, components)])
    notes = _protocol(sample, seeds, bool(layout.classes)) + _skipped(first.dataset.store, layout, bench.skip)
    if bench.test:
        notes += _skipped(bench.test.dataset.store, bench.test.layout, bench.test.skip)
    if baselines:
        for found, note in _yardsticks(bench, first, components, pre, exact_rows):
            rows += found
            notes += [note] if note else []
    return Comparison(
        dataset=first.dataset.store,
        rows=layout.rows,
        test=bench.test.dataset.store if bench.test else "",
        classes=bool(layout.classes),
        sample_rows=sample,
        seeds=seeds,
        models=tuple(rows),
        notes=tuple(notes),
    )


def _on(dataset: Dataset | str, jobs: Sequence[Job]) -> list[Job]:
    """The jobs on one dataset, which all read alike."""
    if not jobs:
        raise SpecError("there are no jobs to compare; give one or more")
    if isinstance(dataset, str):
        theirs = [msgspec.structs.replace(job.dataset, store=dataset) for job in jobs]
        if len(set(theirs)) > 1:
            raise SpecError(
                "the jobs read other arrays or rows than one another; give them the same x, y, weight, groups, holdout "
                "and nan in [dataset], so that they can be compared"
            )
        dataset = theirs[0]
    return [msgspec.structs.replace(job, dataset=dataset) for job in jobs]


def _tested(test: Dataset | str, dataset: Dataset) -> Dataset | None:
    if not test:
        return None
    tested = msgspec.structs.replace(dataset, store=test, groups="", holdout="") if isinstance(test, str) else test
    theirs, ours = (target_kind(d.layout().classes, d.layout().targets) for d in (tested, dataset))
    if theirs != ours:
        raise DataError(f"{tested.store}: targets are {theirs}, those of {dataset.store} are {ours}; convert alike")
    return tested


def _verified(first: Job, client: Client | None, scheduler: str, watch: Watch | None, dataset: Dataset) -> Source:
    """All rows of a dataset, less the partitions to skip, which are found once for all models."""
    source = Source(dataset, dataset.layout(), 0, 1)
    if dataset.damaged == "error":
        return source
    with connect(first.cluster, scheduler, client) as client:
        return verified_source(source, client, watch)


def _skipped(store: str, layout: Layout, skip: tuple[int, ...]) -> list[str]:
    if not skip:
        return []
    partitions = ", ".join(map(str, skip))
    return [f"{layout.rows_of(skip):,} rows of the damaged partitions {partitions} of {store} were skipped, as asked"]


def _distinct(names: Sequence[str]) -> list[str]:
    """Names with numbers where there would be two of one."""
    return [n if names.count(n) == 1 else f"{n} {list(names[: i + 1]).count(n)}" for i, n in enumerate(names)]


def _at(job: Job, components: Sequence[int]) -> list[Job]:
    """A job at each number of components; one whose number the data give stays as it is."""
    if not components or isinstance(job.features, Linear):
        return [job]
    return [_with(job, msgspec.structs.replace(job.features, n_components=m)) for m in components]


def _with(job: Job, features: Any, **changes: Any) -> Job:
    return msgspec.structs.replace(job, features=features, **changes)


def _protocol(sample: int, seeds: int, classes: bool) -> list[str]:
    """How the numbers came about, for the reader of the tables."""
    return [
        f"kernel error: Frobenius norm of K̂ − K over that of K, the map's exact kernel, on {sample:,} training rows "
        f"drawn at random; mean ± standard deviation over {seeds} redraws of the map",
        "spectral ε: the least with (1 − ε)(K + αI) ≤ K̂ + αI ≤ (1 + ε)(K + αI), where α is the model's chosen penalty "
        "times the sampled over all rows",
        "cv rmse: over the folds of the training rows"
        + (", of one-hot scores averaged over classes" if classes else ""),
        "fit s: one fit from dataset to model, choice of penalty included, wherever it ran; features s and Gram s: all "
        f"rows in one process with the threads of one task, from the median of {TIMED} blocks",
    ]


# Yardsticks: each gives rows, and a note.


def _yardsticks(
    bench: Bench, first: Job, components: Sequence[int], pre: Preprocessing, exact_rows: int
) -> Iterator[tuple[list[Row], str]]:
    yield from _feature_yardsticks(bench, first, components)
    yield from _held_yardsticks(bench, first, pre, exact_rows)


def _feature_yardsticks(bench: Bench, first: Job, components: Sequence[int]) -> Iterator[tuple[list[Row], str]]:
    """Ridge on the columns themselves, and on features of a Gaussian, as jobs on the first job's cluster."""
    chosen: dict[str, Any] = {"alphas": "auto", "alphas_per_row": None} if first.plan.folds != 1 else {}
    job = msgspec.structs.replace(first, solver=None, **chosen)
    with connect(first.cluster, bench.scheduler, bench.client) as client:
        bench = bench._replace(client=client)
        linear = _with(job, Linear(int(np.prod(job.dataset.layout().input_shape))))
        rows, pre = measure(bench, [("linear", linear)])
        yield rows, ""
        scale, note = _gaussian(bench, job, pre)
        features = RandomFourier(job.features.n_components, Gaussian(scale))
        yield measure(bench, [("gaussian rff", each) for each in _at(_with(job, features), components)])[0], note


def _gaussian(bench: Bench, job: Job, pre: Preprocessing) -> tuple[float, str]:
    """The length scale of a Gaussian, and how it was chosen."""
    m = min(job.features.n_components, TUNING_COMPONENTS)
    median = median_distance(sampled(bench, planned(bench, job), pre))
    scales = [factor * median for factor in LENGTHSCALES] if median > 0 else [1.0]
    scores = []
    for scale in scales if job.plan.folds != 1 else ():
        cv = fit(_with(job, RandomFourier(m, Gaussian(scale))), client=bench.client, watch=bench.watch).cv
        assert cv is not None
        scores.append(cv.rmse)
    best = scales[int(np.argmin(scores))] if scores else median
    said = f"the best of {', '.join(f'{f:g}' for f in LENGTHSCALES)} times " if scores else ""
    how = f", by cross-validation at m = {m}" if scores else ""
    return best, f"gaussian rff: RandomFourier of length scale {best:.4g}, {said}the median distance of rows{how}"


def _held_yardsticks(bench: Bench, first: Job, pre: Preprocessing, exact_rows: int) -> Iterator[tuple[list[Row], str]]:
    """Ridge with the exact kernel, and boosted trees: models that hold all rows, in this process."""
    p, limit = planned(bench, first), resources(None).memory_bytes / 2
    n, row_bytes = p.layout.rows, 8 * int(np.prod(p.layout.input_shape))
    if (need := 4 * n * row_bytes) > limit:
        yield [], f"exact kernel and boosted trees were left out: {need / GB:.1f} GB of rows are too many for a process"
        return
    table = _table(p, pre)
    name = f"exact kernel: ridge with the kernel of {type(first.features).__name__} itself"
    if n > exact_rows:
        yield [], f"{name} was left out: {n:,} rows are more than {exact_rows:,}"
    elif (need := 3 * 8 * n**2) > limit:
        yield [], f"{name} was left out: it needs {need / GB:.1f} GB"
    else:
        note = f"{name}; its penalty per row is the best of the same grid by five folds of at most 2,000 random rows"
        yield [_held(bench, "exact kernel", lambda: ExactRidge(p.features.kernel, table, pre), pre, p.folds)], note
    note = (
        "boosted trees: scikit-learn's HistGradientBoosting, at most 2,000 rounds of rate 0.05, stopped early; fit s "
    )
    yield (
        [_held(bench, "boosted trees", lambda: BoostedTrees(table, pre), pre, p.folds)],
        note + "is one fit on all rows, on one thread as for the exact kernel",
    )


def _held(
    bench: Bench, name: str, make: Callable[[], ExactRidge | BoostedTrees], pre: Preprocessing, folds: int
) -> Row:
    with one_thread():
        start = time.perf_counter()
        model = make()
        seconds = time.perf_counter() - start
        cv = model.out_of_fold() if folds > 1 else None
    return Row(
        name=name,
        kind=type(model).__name__,
        n_components=None,
        frobenius=(),
        spectral=(),
        alpha_per_row=model.alpha_per_row if isinstance(model, ExactRidge) else None,
        **cv_errors(cv),
        test=errors_only(_test_errors(model, bench.test, pre)) if bench.test else {},
        feature_seconds=None,
        gram_seconds=None,
        fit_seconds=seconds,
        model_bytes=model.nbytes,
        drawn_bytes=0,
    )


def _table(p: Plan, pre: Preprocessing) -> Table:
    """All rows of positive weight, with the fold of each."""
    kept = [i for i in range(p.layout.partitions) if i not in (p.skip or ())]
    parts = [p.dataset.read(p.layout, *p.layout.span(i)) for i in kept]
    fold = np.concatenate(
        [p.folds_of(i)[rows.places - p.layout.span(i)[0]] for i, rows in zip(kept, parts, strict=True)]
    )
    if p.scored is not None:
        fold[~np.isin(fold, p.scored)] = -1
    weight = np.concatenate([_weight(pre, rows) for rows in parts])
    x, y = (np.concatenate([rows[i] for rows in parts]) for i in (0, 1))
    some = weight > 0
    return Table(x[some], y[some], weight[some], fold[some])


def _weight(pre: Preprocessing, rows: Rows) -> NDArray[np.float64]:
    return np.ones(len(rows.x)) if (weight := pre.weights(rows)) is None else weight


def _test_errors(model: Callable[[NDArray[Any]], Any], test: Source, pre: Preprocessing) -> dict[str, float]:
    layout = test.layout
    matching, total = pre.match(layout, test.dataset.store), None
    for rows in map(matching, blocks(test, map(layout.span, range(layout.partitions)), Tally())):
        assert rows.y is not None
        if pre.classes:
            part = Metrics.of_classes(rows.y, model(rows.x), rows.weight)
        else:
            part = Metrics.of_regression(rows.y.reshape(len(rows.y), -1), model(rows.x), rows.weight)
        total = part if total is None else total + part
    assert total is not None
    return total.summary()
