"""Rates of this machine, for `estimate`: the code that a fit runs, timed on few rows."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

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
from ntkdist.solvers import PCG, Cholesky
from ntkdist.solvers.cross_validation import cross_validate
from ntkdist.solvers.tiled import solve_tiles, work
from ntkdist.sums import NormalEquations
from ntkdist.sums.products import add_products
from ntkdist.sums.tiles import runs as runs_of

SAMPLE_ROWS, SAMPLE_BYTES, SAMPLE_SECONDS = 512, 2**30, 0.3  # of what mapping is timed on, at most
ADDED, SOLVED = 2048, 1536  # columns that adding and solving are timed on, at most
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
    return of_solver(Rates(syrk, read, moments, mapped, added, drawn, learnt, shard, *_sent(client)), p)


def of_solver(rates: Rates, p: Plan) -> Rates:
    """Return the rates with those of the plan's solver, for a plan of the same job."""
    timed = {
        "gram": ("solved", _solved),
        "tiles": ("solved", _solved_in_tiles),
        "products": ("multiplied", _multiplied),
    }
    name, measure = timed[p.solver.sums]
    with backend.own_threads():
        return rates._replace(**{name: measure(p)})


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
    one = _seconds(lambda: equations.update(z, y))
    first = _seconds(lambda: NormalEquations.zeros(m, p.t).update(z, y))
    together = _seconds(lambda: equations.__iadd__(equations))
    # Of a longer block more rows are multiplied for every sum of matrices.
    return share * (one - together * (1 - n / p.block_rows)) / n, share * (max(first - one, 0.0) + together)


def _sent(client: Client | None) -> tuple[float, float]:
    """Time a task that does nothing, and a byte that comes from a task."""
    if client is None:
        return 0.0, 0.0

    def sent(nbytes: int) -> float:
        return _seconds(lambda: client.submit(bytes, nbytes, pure=False).result())

    nothing = sent(0)
    return nothing, max(sent(SENT) - nothing, 0.0) / SENT


def _solved(p: Plan) -> float:
    """Time a penalty as a cross-validation solves it, on all cores; two sizes separate m² from m³ operations."""
    path = p.solver.whole_path
    solver = p.solver if path else Cholesky()
    sizes, times = (min(p.m, SOLVED) // 2, min(p.m, SOLVED)), []
    for m in sizes:
        z = random.normals((2 * m, m), 0, 0, 0)
        folds = [NormalEquations.zeros(m, p.t).update(z, np.ones((2 * m, p.t))) for _ in range(2)]
        alphas = [1.0] if path else [1.0, 2.0]
        each = functools.partial(cross_validate, folds, solver, alphas, extend=False)
        times.append(_seconds(each) / (len(folds) * (1 if path else len(alphas))))
    square, cube = np.linalg.solve([[m**2, m**3] for m in sizes], times)
    if min(square, cube) < 0:
        square, cube = 0.0, times[1] / sizes[1] ** 3
    return float(square * p.m**2 + cube * p.m**3)


def _multiplied(p: Plan) -> float:
    backend.use_threads(p.threads)
    passes, mean = cast(PCG, p.solver).expected(p.penalties)
    n, left = min(p.block_rows, ADDED), max(1, round(p.sets * p.penalties * p.t * mean / passes))
    z, v, total = np.ones((n, p.m), p.dtype), np.ones((p.m, left), p.dtype), np.zeros((p.m + 1, left))
    return _seconds(lambda: add_products(total, z, None, v, np.zeros(left), np.arange(left))) / n


def _solved_in_tiles(p: Plan) -> float:
    """Time solving by three runs of columns or fewer, no longer than keep all threads at work."""
    backend.use_threads(p.threads)
    n, length = runs_of(p.m, p.tile), min(p.tile, p.m, backend.TILE * p.threads)
    few = min(n, 3)
    z = random.normals((2 * few * length, few * length), 0, 0, 0)
    gram = z.T @ z
    each = range(few)
    tiles = {(i, j): gram[i * length :, j * length :][:length, :length].copy() for i in each for j in each if j <= i}
    tiles |= {(few, j): gram[: p.t, j * length :][:, :length] for j in each}
    one = _seconds(lambda: solve_tiles(tiles, few * length, length, 1.0, lambda place, call, *args: call(*args)))
    return one * work(n).operations / work(few).operations * (p.m / n / length) ** 3


def _mapped(p: Plan) -> tuple[float, float, float] | None:
    """Time drawing, learning, and mapping a row; None where drawing takes too much for a rehearsal."""
    shape, each = p.layout.input_shape, p.features.row_bytes(p.layout.input_shape, p.dtype)
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
    one = _seconds(lambda: features(x[:few])) / few
    rows = min(rows, max(few, int(SAMPLE_SECONDS / one)))
    row = _seconds(lambda: features(x[:rows])) / rows
    return drawn, learnt + (p.features.sample_rows - p.features.rehearsal_rows) * row, row


def _rows(p: Plan, rows: int) -> Any:
    """Return normals, or for sparse rows as many non-zeros as theirs."""
    if not p.layout.sparse:
        return random.normals((rows, *p.layout.input_shape), 0, 0, 0).astype(p.dtype)
    (d,), k = p.layout.input_shape, p.layout.row_values
    places = (random.uniforms(rows * k, 0, 0, 2) * d).astype(np.int64)
    return csr_array((np.ones(rows * k, p.dtype), places, np.arange(rows + 1) * k), shape=(rows, d))


def _seconds(call: Callable[[], Any]) -> float:
    """Return the median seconds of three calls."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))
