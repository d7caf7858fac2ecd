"""Rates of this machine, for `estimate`: the code that a fit runs, timed on few rows."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from ntkdist import backend, random
from ntkdist.cluster import Client
from ntkdist.cluster.shards import run_shard
from ntkdist.data.dataset import Shard
from ntkdist.data.moments import MomentsOf
from ntkdist.errors import DataError
from ntkdist.features import AnyMap
from ntkdist.planning.plan import Plan, source_of
from ntkdist.sums import NormalEquations

SAMPLE_ROWS, SAMPLE_BYTES, SAMPLE_SECONDS = 512, 2**30, 0.3  # of what mapping is timed on, at most
ADDED = 2048  # columns that adding is timed on, at most
SENT = 2**24  # bytes


class Rates(NamedTuple):
    """Seconds of one task, and the rate of bare ``syrk``."""

    syrk: float  # operations a second, m² a row
    read: float  # a row
    moments: float  # of a row
    mapped: float  # a row
    added: float  # a row, to the equations
    drawn: float  # a map's draw, once a process
    learnt: float  # from a map's sample, once
    shard: float  # beside its rows: memory for its sum, and adding that to another
    task: float  # that does nothing; 0 without a cluster
    moved: float  # a byte, from a task to this process; 0 without a cluster
    solved: float = 0.0  # a penalty on a training set, while others are solved; a path by Eigh; tiles on one worker
    multiplied: float = 0.0  # a mapped row, with as many columns as conjugate gradients have left in the mean


def measured(p: Plan, client: Client | None = None) -> Rates:
    """Measure the rates for a plan in this process, and of a cluster's tasks.

    A map that needs a sample is timed with one of random numbers.  Mapping a row is taken to cost as much as adding it
    to the Gram where drawing the map here would take a gigabyte.
    """
    syrk = backend.product_rate(p.m, p.block_rows, p.dtype, p.threads)
    with backend.own_threads():
        backend.use_threads(p.threads)
        read, moments = _read(p)
        added, shard = _added(p)
        drawn, learnt, mapped = _mapped(p) or (0.0, 0.0, p.m**2 / syrk)
    return Rates(syrk, read, moments, mapped, added, drawn, learnt, shard, *_sent(client))


def _read(p: Plan) -> tuple[float, float]:
    """Time a row of the first partition that is not skipped: reading it, and its moments; 0 if the partition is
    damaged.
    """
    first = next(i for i in range(p.layout.partitions) if i not in (p.skip or ()))
    source = source_of(p)._replace(block_rows=0)
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
    share, z, y = (p.m / m) ** 2, np.ones((n, m), p.dtype), np.ones((n, p.t))
    equations = NormalEquations.zeros(m, p.t).update(z, y)
    one = median_seconds(lambda: equations.update(z, y))
    first = median_seconds(lambda: NormalEquations.zeros(m, p.t).update(z, y))
    together = median_seconds(lambda: equations.__iadd__(equations))
    # Of a longer block more rows are multiplied for every sum of matrices.
    return share * (one - together * (1 - n / p.block_rows)) / n, share * (max(first - one, 0.0) + together)


def _sent(client: Client | None) -> tuple[float, float]:
    """Time a task that does nothing, and a byte that comes from a task."""
    if client is None:
        return 0.0, 0.0

    def sent(nbytes: int) -> float:
        return median_seconds(lambda: client.submit(bytes, nbytes, pure=False).result())

    nothing = sent(0)
    return nothing, max(sent(SENT) - nothing, 0.0) / SENT


def _mapped(p: Plan) -> tuple[float, float, float] | None:
    """Time drawing, learning, and mapping a row; None where drawing takes too much for a rehearsal."""
    shape, each = p.mapped_shape, p.features.row_bytes(p.mapped_shape, p.dtype)
    room = SAMPLE_BYTES - p.features.draw_bytes(shape, p.dtype)
    if p.layout.sparse:
        each = p.features.sparse_row_bytes(shape, p.dtype, p.layout.row_values)
    rows = min(SAMPLE_ROWS, p.layout.rows, room // each)
    if rows < 1:
        return None
    x = _rows(p, rows)
    features: AnyMap = p.features
    p.features.warm(p.dtype)  # as the workers are
    marks = [time.perf_counter()]
    if p.features.sample_rows:
        features = p.features.fit(random.normals((p.features.rehearsal_rows, *shape), 0, 0, 1))
    marks.append(time.perf_counter())
    features(x[:1])  # the draw is made once a process
    marks.append(time.perf_counter())
    learnt, drawn = np.diff(marks).tolist()
    few = min(rows, 8 * p.threads)
    one = median_seconds(lambda: features(x[:few])) / few
    rows = min(rows, max(few, int(SAMPLE_SECONDS / one)))
    row = median_seconds(lambda: features(x[:rows])) / rows
    return drawn, learnt + (p.features.sample_rows - p.features.rehearsal_rows) * row, row


def _rows(p: Plan, rows: int) -> Any:
    """Return normals, or for sparse rows as many non-zeros as theirs."""
    if not p.layout.sparse:
        return random.normals((rows, *p.mapped_shape), 0, 0, 0).astype(p.dtype)
    (d,), k = p.mapped_shape, p.layout.row_values
    places = (random.uniforms(rows * k, 0, 0, 2) * d).astype(np.int64)
    return csr_array((np.ones(rows * k, p.dtype), places, np.arange(rows + 1) * k), shape=(rows, d))


def median_seconds(call: Callable[[], Any]) -> float:
    """Return the median seconds of three calls."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
