"""The verb `compare`: jobs on the same rows, beside the exact kernel and models of other kinds.

Legend: m components; x scaled rows; z features; K, K̂ exact kernel and Gram of the features on a sample of rows.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from distributed import Client
from numpy.typing import NDArray

from ntkdist import backend, store
from ntkdist.apply import evaluate, target_kind
from ntkdist.cluster import connect, resources
from ntkdist.comparison import Comparison, Row
from ntkdist.data import Dataset, Rows
from ntkdist.errors import DataError, SpecError
from ntkdist.features import AnyMap, Linear, RandomFourier
from ntkdist.fit import fit
from ntkdist.kernel_error import SpectralError, frobenius_error, gram_of
from ntkdist.kernels import Gaussian
from ntkdist.plan import Job, Plan, plan
from ntkdist.prepare import SampleOf, learnt
from ntkdist.preprocess import Preprocess, Preprocessing
from ntkdist.progress import Watch
from ntkdist.reduce import Source, reduce_all
from ntkdist.select import CVResult
from ntkdist.sums import Metrics, NormalEquations
from ntkdist.yardsticks import BoostedTrees, ExactRidge, Table, median_distance

SAMPLE_SEED = 2**31 - 1  # of the rows that kernels are compared on: not those that a map of a small seed learnt from
LENGTHSCALES = (0.5, 1.0, 2.0)  # of the Gaussian, times the median distance of rows
TUNING_COMPONENTS = 512
TIMED = 3  # repetitions, of which the median counts
GB = 1e9


class _Bench(NamedTuple):
    """What all models have in common."""

    test: Dataset | None
    seeds: int
    sample: int
    client: Client | None
    scheduler: str
    watch: Watch | None


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

    Each job is fitted as by `fit`, where its ``[cluster]`` says.  Its map is then redrawn ``seeds`` times (one that
    learns from data is fitted again each time), and the Gram of the features compared with the map's exact kernel on
    a sample of rows, the same for all.  The yardsticks are ridge on the columns, ridge on random Fourier features of a
    Gaussian, ridge with the first job's kernel itself, and boosted trees; the last two hold all rows in this process.

    Parameters
    ----------
    dataset : Dataset or str
        Used instead of the jobs' own.  Of a path, arrays and weights are named as in the first job.
    jobs : sequence of Job
    names : sequence of str, optional
        One a job; by default the types of their maps.
    test : Dataset or str, optional
        Labelled rows to evaluate all models on.
    seeds : int
    components : sequence of int, optional
        Numbers of components to fit every job with, instead of its own.
    sample : int
        Rows, at most, that kernels are compared on.
    exact_rows : int
        Training rows up to which ridge with the exact kernel is among the yardsticks.
    baselines : bool
        Whether there are yardsticks.
    client, scheduler, watch
        As in `fit`.

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
    bench = _Bench(_tested(test, first.dataset), seeds, sample, client, scheduler, watch)
    names = _distinct(names or [type(job.features).__name__ for job in jobs])
    rows, pre = _measure(
        bench, [(n, each) for n, job in zip(names, jobs, strict=True) for each in _at(job, components)]
    )
    notes = _protocol(min(sample, layout.rows), seeds, bool(layout.classes))
    if baselines:
        for yardstick in (
            _feature_yardsticks(bench, first, components),
            _held_yardsticks(bench, first, pre, exact_rows),
        ):
            for found, note in yardstick:
                rows += found
                notes += [note] if note else []
    return Comparison(
        dataset=first.dataset.store,
        rows=layout.rows,
        test=bench.test.store if bench.test else "",
        classes=bool(layout.classes),
        sample_rows=min(sample, layout.rows),
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
                "the jobs read other arrays or rows than one another; give them the same x, y, weight and nan in "
                "[dataset], so that they can be compared"
            )
        dataset = theirs[0]
    return [msgspec.structs.replace(job, dataset=dataset) for job in jobs]


def _tested(test: Dataset | str, dataset: Dataset) -> Dataset | None:
    if not test:
        return None
    tested = msgspec.structs.replace(dataset, store=test) if isinstance(test, str) else test
    theirs, ours = (target_kind(d.layout().classes, d.layout().targets) for d in (tested, dataset))
    if theirs != ours:
        raise DataError(f"{tested.store}: targets are {theirs}, those of {dataset.store} are {ours}; convert alike")
    return tested


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


# Models that are features and a ridge.


def _measure(bench: _Bench, named: Sequence[tuple[str, Job]]) -> tuple[list[Row], Preprocessing]:
    """A row for each job, and the scaling that the first learnt."""
    rows, scalings = [], []
    for cluster, some in groupby(named, key=lambda pair: pair[1].cluster):
        with connect(cluster, bench.scheduler, bench.client) as client:
            for name, job in some:
                row, pre = _measure_one(bench._replace(client=client), name, job)
                rows.append(row)
                scalings.append(pre)
    return rows, scalings[0]


def _measure_one(bench: _Bench, name: str, job: Job) -> tuple[Row, Preprocessing]:
    result = fit(job, client=bench.client, watch=bench.watch)
    model, report = result.model, result.report
    p = plan(job, threads=resources(bench.client).threads)
    per_row = min(report["alpha_per_row"])
    x = _sampled(bench, p, model.preprocessing)
    frobenius, spectral = _kernel_errors(bench, p, model.features, model.preprocessing, x, per_row)
    mapping, adding = _seconds_of(p, model.features, x)
    row = Row(
        name=name,
        kind=type(job.features).__name__,
        n_components=p.m,
        frobenius=frobenius,
        spectral=spectral,
        alpha_per_row=per_row,
        **_cv(result.cv),
        test=_errors_only(evaluate(model, bench.test, client=bench.client, watch=bench.watch)) if bench.test else {},
        feature_seconds=mapping,
        gram_seconds=adding,
        fit_seconds=report["run"]["seconds"]["total"],
        model_bytes=_saved_bytes(model),
        drawn_bytes=_nbytes(model.features.draw(p.layout.input_shape), np.dtype(p.dtype).itemsize),
    )
    return row, model.preprocessing


def _sampled(bench: _Bench, p: Plan, pre: Preprocessing) -> NDArray[np.float64]:
    """Scaled rows, the same ones for every job on a dataset."""
    summand = SampleOf(bench.sample, SAMPLE_SEED, pre, None)
    part = reduce_all(_source(p), summand, p.layout.rows_per_partition, bench.client, "sample", bench.watch)
    rows: NDArray[np.float64] = part.total.x
    return rows


def _source(p: Plan) -> Source:
    return Source(p.dataset, p.layout, p.block_rows, p.threads)


def _kernel_errors(
    bench: _Bench, p: Plan, features: AnyMap, pre: Preprocessing, x: NDArray[np.float64], per_row: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Frobenius and spectral error of the map and of its redraws; a map without a seed has none."""
    exact = p.features.kernel(x)
    spectral = SpectralError(exact, per_row * len(x))
    found = []
    for k in range(bench.seeds if hasattr(p.features, "seed") else 1):
        if k > 0:
            again = msgspec.structs.replace(p.features, seed=p.features.seed + k)  # type: ignore[union-attr]
            features = learnt(again, Preprocess(), _source(p), pre, bench.client, bench.watch)
        approximate = gram_of(features(x.astype(p.dtype)))
        found.append((frobenius_error(approximate, exact), spectral(approximate)))
    return tuple(f for f, _ in found), tuple(s for _, s in found)


def _seconds_of(p: Plan, features: AnyMap, x: NDArray[np.float64]) -> tuple[float, float]:
    """Seconds for mapping all rows of a dataset, and for adding them to a Gram, in this process."""
    block = np.resize(x, (p.block_rows, *x.shape[1:])).astype(p.dtype)
    y, times = np.zeros((len(block), p.t)), []
    total = NormalEquations.zeros(p.m, p.t)
    with backend.own_threads():
        backend.use_threads(p.threads)
        for _ in range(1 + TIMED):
            marks = [time.perf_counter()]
            z = features(block)
            marks.append(time.perf_counter())
            total.update(z, y)
            marks.append(time.perf_counter())
            times.append(np.diff(marks))
    mapping, adding = np.median(times[1:], axis=0) * p.layout.rows / len(block)  # the first also draws
    return float(mapping), float(adding)


def _cv(cv: CVResult | None) -> dict[str, Any]:
    if cv is None:
        return {"cv_rmse": None, "cv_standard_error": None}
    rmse = cv.rmse
    return {"cv_rmse": rmse, "cv_standard_error": cv.standard_error / (2 * rmse) if rmse > 0 else 0.0}  # of the root


def _errors_only(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if name not in ("rows", "seconds")}


def _saved_bytes(model: Any) -> int:
    with tempfile.TemporaryDirectory() as place:
        store.save(model, f"{place}/model.zarr")
        return sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file())


def _nbytes(drawn: Any, itemsize: int) -> int:
    """Of arrays, and of dictionaries of them, with floats cast to a type."""
    if isinstance(drawn, dict):
        return sum(_nbytes(each, itemsize) for each in drawn.values())
    return int(drawn.size * (itemsize if drawn.dtype.kind == "f" else drawn.itemsize))


# Yardsticks: each gives rows, and a note.


def _feature_yardsticks(bench: _Bench, first: Job, components: Sequence[int]) -> Iterator[tuple[list[Row], str]]:
    """Ridge on the columns themselves, and on features of a Gaussian, as jobs on the first job's cluster."""
    chosen: dict[str, Any] = {"alphas": "auto", "alphas_per_row": None} if first.plan.folds > 1 else {}
    job = msgspec.structs.replace(first, solver=None, **chosen)
    with connect(first.cluster, bench.scheduler, bench.client) as client:
        bench = bench._replace(client=client)
        linear = _with(job, Linear(int(np.prod(job.dataset.layout().input_shape))))
        rows, pre = _measure(bench, [("linear", linear)])
        yield rows, ""
        scale, note = _gaussian(bench, job, pre)
        features = RandomFourier(job.features.n_components, Gaussian(scale))
        yield _measure(bench, [("gaussian rff", each) for each in _at(_with(job, features), components)])[0], note


def _gaussian(bench: _Bench, job: Job, pre: Preprocessing) -> tuple[float, str]:
    """The length scale of a Gaussian, and how it was chosen."""
    m = min(job.features.n_components, TUNING_COMPONENTS)
    median = median_distance(_sampled(bench, plan(job), pre))
    scales = [factor * median for factor in LENGTHSCALES] if median > 0 else [1.0]
    scores = []
    for scale in scales if job.plan.folds > 1 else ():
        cv = fit(_with(job, RandomFourier(m, Gaussian(scale))), client=bench.client, watch=bench.watch).cv
        assert cv is not None
        scores.append(cv.rmse)
    best = scales[int(np.argmin(scores))] if scores else median
    said = f"the best of {', '.join(f'{f:g}' for f in LENGTHSCALES)} times " if scores else ""
    how = f", by cross-validation at m = {m}" if scores else ""
    return best, f"gaussian rff: RandomFourier of length scale {best:.4g}, {said}the median distance of rows{how}"


def _held_yardsticks(bench: _Bench, first: Job, pre: Preprocessing, exact_rows: int) -> Iterator[tuple[list[Row], str]]:
    """Ridge with the exact kernel, and boosted trees: models that hold all rows, in this process."""
    p, limit = plan(first), resources(None).memory_bytes / 2
    n, row_bytes = p.layout.rows, 8 * int(np.prod(p.layout.input_shape))
    if (need := 4 * n * row_bytes) > limit:
        yield [], f"exact kernel and boosted trees were left out: {need / GB:.1f} GB of rows are too many for a process"
        return
    table = _table(p)
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
        note + "is one fit on all rows",
    )


def _held(
    bench: _Bench, name: str, make: Callable[[], ExactRidge | BoostedTrees], pre: Preprocessing, folds: int
) -> Row:
    start = time.perf_counter()
    model = make()
    seconds = time.perf_counter() - start
    return Row(
        name=name,
        kind=type(model).__name__,
        n_components=None,
        frobenius=(),
        spectral=(),
        alpha_per_row=model.alpha_per_row if isinstance(model, ExactRidge) else None,
        **_cv(model.out_of_fold() if folds > 1 else None),
        test=_errors_only(_test_errors(model, bench.test, pre)) if bench.test else {},
        feature_seconds=None,
        gram_seconds=None,
        fit_seconds=seconds,
        model_bytes=model.nbytes,
        drawn_bytes=0,
    )


def _table(p: Plan) -> Table:
    """All rows of positive weight, with the fold of each."""
    parts = [p.dataset.read(p.layout, *p.layout.span(i)) for i in range(p.layout.partitions)]
    fold = np.concatenate([np.full(len(rows.x), i % p.folds) for i, rows in enumerate(parts)])
    weight = np.concatenate([_weight(rows) for rows in parts])
    x, y = (np.concatenate([rows[i] for rows in parts]) for i in (0, 1))  # type: ignore[misc]
    kept = weight > 0
    return Table(x[kept], y[kept], weight[kept], fold[kept])


def _weight(rows: Rows) -> NDArray[np.float64]:
    return np.ones(len(rows.x)) if rows.weight is None else rows.weight


def _test_errors(model: Callable[[NDArray[Any]], Any], test: Dataset, pre: Preprocessing) -> dict[str, float]:
    layout = test.layout()
    matching, total = pre.match(layout, test.store), None
    for i in range(layout.partitions):
        rows = matching(test.read(layout, *layout.span(i)))
        assert rows.y is not None
        if pre.classes:
            part = Metrics.of_classes(rows.y, model(rows.x), rows.weight)
        else:
            part = Metrics.of_regression(rows.y.reshape(len(rows.y), -1), model(rows.x), rows.weight)
        total = part if total is None else total + part
    assert total is not None
    return total.summary()
