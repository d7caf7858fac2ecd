"""What this machine does in a second, for `estimate`: the code that a fit runs, timed on little of it."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ntkdist import backend, draws, runs
from ntkdist.errors import DataError
from ntkdist.features import AnyMap
from ntkdist.plan import Plan
from ntkdist.preprocess import MomentsOf
from ntkdist.shards import Shard, Source, run_shard
from ntkdist.solvers import Cholesky, Eigh
from ntkdist.sums import NormalEquations

SAMPLE_ROWS, SAMPLE_BYTES = 512, 2**30  # of what mapping is timed on, where it takes no more than these bytes
ADDED, SOLVED = 2048, 768  # columns that adding and solving are timed on, at most


class Rates(NamedTuple):
    """Seconds, of one task.

    Attributes
    ----------
    syrk : float
        Operations a second of bare ``syrk``, m² a row.
    read, moments, mapped, added : float
        Of a row: reading, moments, mapping, and adding it to the equations.
    drawn : float
        Of what a map does once a process.
    learnt : float
        Of what it learns from its sample, once.
    sum : float
        Of adding the equations of two shards.
    solved : float
        Of one penalty on one training set; of all penalties, by Eigh.
    """

    syrk: float
    read: float
    moments: float
    mapped: float
    added: float
    drawn: float
    learnt: float
    sum: float
    solved: float


def measured(p: Plan) -> Rates:
    """The rates for a plan in this process.

    A map that needs a sample is timed with one of random numbers.  Mapping a row is taken to cost as much as adding it
    to the Gram where drawing the map here would take a gigabyte, and where it is sparse.
    """
    syrk = runs.product_rate(p.m, p.block_rows, p.dtype, p.threads)
    with backend.own_threads():
        solved = _solved(p)  # on the threads that this process has: it solves
        backend.use_threads(p.threads)
        read, moments = _read(p)
        added, together = _added(p)
        drawn, learnt, mapped = _mapped(p) or (0.0, 0.0, p.m**2 / syrk)
    return Rates(syrk, read, moments, mapped, added, drawn, learnt, together, solved)


def _read(p: Plan) -> tuple[float, float]:
    """Of a row of the first partition that can be read; nothing if that is damaged."""
    first = next(i for i in range(p.layout.partitions) if i not in (p.skip or ()))
    source = Source(p.dataset, p.layout, 0, p.threads)
    summand = MomentsOf(p.job.preprocess.resolve(p.layout), p.layout)
    try:
        for _ in range(2):  # the first also opens
            tally = run_shard(source, summand, Shard(0, (p.layout.span(first),))).tally
    except DataError:
        return 0.0, 0.0
    rows = max(tally.rows, 1)
    return tally.read_seconds / rows, tally.work_seconds / rows


def _added(p: Plan) -> tuple[float, float]:
    m, n = min(p.m, ADDED), min(p.block_rows, ADDED)
    share, equations = (p.m / m) ** 2, NormalEquations.zeros(m, p.t)
    z, y = np.ones((n, m), p.dtype), np.ones((n, p.t))
    equations.update(z, y)
    one = _seconds(lambda: equations.update(z, y))
    # Of a longer block more rows are multiplied for every sum of matrices.
    together = _seconds(lambda: equations.__iadd__(equations))
    return share * (one - together * (1 - n / p.block_rows)) / n, share * together


def _solved(p: Plan) -> float:
    m = min(p.m, SOLVED)
    solver = p.solver if isinstance(p.solver, Eigh) else Cholesky()
    z = draws.normals((2 * m, m), 0, 0, 0)
    equations = NormalEquations.zeros(m, p.t).update(z, np.ones((2 * m, p.t)))
    return float((p.m / m) ** 3 * _seconds(lambda: solver.solve(equations, [1.0])))


def _mapped(p: Plan) -> tuple[float, float, float] | None:
    """Of drawing, of learning, and of a row; None where drawing takes too much for a dry run."""
    shape, rows = p.layout.input_shape, min(SAMPLE_ROWS, p.layout.rows)
    needed = p.features.draw_bytes(shape, p.dtype) + rows * p.features.row_bytes(shape, p.dtype)
    if p.layout.sparse or needed > SAMPLE_BYTES:
        return None
    x = draws.normals((rows, *shape), 0, 0, 0).astype(p.dtype)
    features: AnyMap = p.features
    p.features.warm(p.dtype)  # as the workers are
    marks = [time.perf_counter()]
    if p.features.sample_rows:
        features = p.features.fit(draws.normals((p.m, *shape), 0, 0, 1))
    marks.append(time.perf_counter())
    features(x[:8])  # the draw is made once a process
    marks.append(time.perf_counter())
    learnt, drawn = np.diff(marks).tolist()
    return drawn, learnt, _seconds(lambda: features(x)) / rows


def _seconds(call: Callable[[], Any]) -> float:
    """The median of three calls."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
