"""The function `compare`: several jobs on the same rows, beside baseline models."""

from collections.abc import Sequence

import msgspec

from ntkdist.cluster import Client
from ntkdist.cluster.connect import connect
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.shards import Source
from ntkdist.data.dataset import Dataset
from ntkdist.errors import DataError, SpecError
from ntkdist.planning.job import Job
from ntkdist.report.baseline_rows import at_components, baseline_rows
from ntkdist.report.comparison import Comparison
from ntkdist.report.measure import TIMED, Bench, measure
from ntkdist.ridge.predict import target_kind
from ntkdist.ridge.prepare import verified_source


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
    """Measure kernel error, prediction error and cost of several jobs and baselines on one dataset.

    Each job is fitted as by `fit`, on the cluster of its ``[cluster]``.  Its map is then redrawn (one that learns from
    data is fitted again), and the features' Gram is compared with the map's exact kernel on one sample of rows.  The
    baselines are ridge regression on the columns, on random Fourier features of a Gaussian and with the first job's
    exact kernel, and boosted trees; the last two hold all rows in this process.

    Parameters
    ----------
    dataset : Dataset or str
        Replaces the jobs' own.  For a path, arrays and weights are named as in the first job.
    jobs : sequence of Job
    names : sequence of str, optional
        One per job; by default the types of their maps.
    test : Dataset or str, optional
        Labelled rows to evaluate all models on.
    seeds : int
        Number of draws of each map.
    components : sequence of int, optional
        Numbers of components to fit every job with, instead of its own.
    sample : int
        Rows, at most, that kernels are compared on.
    exact_rows : int
        Training rows above which exact kernel ridge is skipped.
    baselines : bool
        Whether to measure baselines.
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
    datasets = [first.dataset, *_tested(test, first.dataset)]
    sources = [Source(each, each.layout(), 0, 1) for each in datasets]
    if any(each.damaged == "skip" for each in datasets):  # damaged partitions are found once for all models
        with connect(first.cluster, scheduler, client) as cluster:
            sources = [verified_source(source, cluster, watch) for source in sources]
    train, tests = sources[0], (*sources[1:], None)[0]
    bench = Bench(train.skip, tests, seeds, sample, client, scheduler, watch)
    names = _distinct(names or [type(job.features).__name__ for job in jobs])
    named = [(n, each) for n, job in zip(names, jobs, strict=True) for each in at_components(job, components)]
    rows, pre = measure(bench, named)
    notes = _protocol(sample, seeds, bool(layout.classes))
    notes += [
        f"{s.layout.rows_of(s.skip):,} rows of the damaged partitions {', '.join(map(str, s.skip))} of "
        f"{s.dataset.store} were skipped, as asked"
        for s in sources
        if s.skip
    ]
    if baselines:
        for more, note in baseline_rows(bench, first, components, pre, exact_rows):
            rows += more
            notes += [note] if note else []
    store, tested = first.dataset.store, tests.dataset.store if tests else ""
    return Comparison(store, layout.rows, tested, bool(layout.classes), sample, seeds, tuple(rows), tuple(notes))


def _on(dataset: Dataset | str, jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with one dataset; refuse jobs that read it differently."""
    if not jobs:
        raise SpecError("there are no jobs to compare; give one or more")
    if isinstance(dataset, str):
        datasets = [msgspec.structs.replace(job.dataset, store=dataset) for job in jobs]
        if len(set(datasets)) > 1:
            raise SpecError(
                "the jobs read other arrays or rows than one another; give them the same x, y, weight, groups, holdout "
                "and nan in [dataset], so that they can be compared"
            )
        dataset = datasets[0]
    return [msgspec.structs.replace(job, dataset=dataset) for job in jobs]


def _tested(test: Dataset | str, dataset: Dataset) -> list[Dataset]:
    """Return the test dataset, if there is one; refuse one with another kind of target."""
    if not test:
        return []
    tested = msgspec.structs.replace(dataset, store=test, groups="", holdout="") if isinstance(test, str) else test
    theirs, ours = (target_kind(d.layout().classes, d.layout().targets) for d in (tested, dataset))
    if theirs != ours:
        raise DataError(f"{tested.store}: targets are {theirs}, those of {dataset.store} are {ours}; convert alike")
    return [tested]


def _distinct(names: Sequence[str]) -> list[str]:
    """Number the names that occur more than once."""
    return [n if names.count(n) == 1 else f"{n} {list(names[: i + 1]).count(n)}" for i, n in enumerate(names)]


def _protocol(sample: int, seeds: int, classes: bool) -> list[str]:
    """Return the notes that define the measured numbers."""
    return [
        f"kernel error: Frobenius norm of K̂ − K over that of K, the map's exact kernel, on {sample:,} training rows "
        f"drawn at random; mean ± standard deviation over {seeds} redraws of the map",
        "spectral ε: the least with (1 − ε)(K + αI) ≤ K̂ + αI ≤ (1 + ε)(K + αI), where α is the model's chosen penalty "
        "times the sampled over all rows; from 1 on it bounds nothing from below",
        "cv rmse: over the folds of the training rows"
        + (", of one-hot scores averaged over classes" if classes else ""),
        "fit s: one fit from dataset to model, choice of penalty included, wherever it ran, with its code compiled "
        "before; features s and Gram s: all "
        f"rows in one process with the threads of one task, from the median of {TIMED} blocks",
    ]
