"""The mapper: cutting rows into blocks and adding sums in a tree, whatever the partitions."""

import os
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from counted import CountRows
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import ThreadpoolController

import ntkdist as nd
from ntkdist import backend
from ntkdist.cluster.reduce import Pass, reduce, sums_in_place
from ntkdist.cluster.shards import Part, Source, add_parts, blocks
from ntkdist.cluster.tally import Tally
from ntkdist.cluster.tree import most_held, tree
from ntkdist.data.dataset import Shard
from ntkdist.data.partitions import evenly
from ntkdist.sums import NormalEquations


class Term:
    """A promise that remembers how it was added."""

    def __init__(self, shape: Any, leaves: list[int]) -> None:
        self.shape, self.leaves = shape, leaves


def add(terms: list[Term]) -> Term:
    assert len(terms) > 1
    return Term([t.shape for t in terms], [leaf for t in terms for leaf in t.leaves])


@given(st.integers(1, 200), st.integers(2, 9))
def test_a_tree_adds_every_leaf_once_and_in_order(count: int, fan_in: int) -> None:
    widest: list[int] = []

    def checked(terms: list[Term]) -> Term:
        widest.append(len(terms))
        return add(terms)

    total = tree((Term(i, [i]) for i in range(count)), fan_in, checked)
    assert total.leaves == list(range(count))
    assert max(widest, default=0) <= fan_in
    assert len(widest) <= count


@given(st.integers(2, 300), st.integers(2, 6))
def test_few_sums_wait_while_leaves_arrive(count: int, fan_in: int) -> None:
    """At most fan_in − 1 of each level are held, so that memory grows with the logarithm of the shards."""
    waiting, most = 0, 0

    def leaves() -> Any:
        nonlocal waiting, most
        for i in range(count):
            waiting += 1
            most = max(most, waiting)
            yield Term(i, [i])

    def counted(terms: list[Term]) -> Term:
        nonlocal waiting
        waiting -= len(terms) - 1
        return add(terms)

    tree(leaves(), fan_in, counted)
    levels = 1
    while fan_in**levels < count:
        levels += 1
    assert most <= (fan_in - 1) * levels + 1


@given(st.lists(st.integers(), min_size=1, max_size=40), st.integers(1, 50))
def test_evenly_cuts_into_runs_of_equal_length(items: list[int], count: int) -> None:
    runs = evenly(items, count)
    assert [i for run in runs for i in run] == items
    assert len(runs) == min(len(items), count)
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_every_library_gets_its_threads_back() -> None:
    """NumPy's BLAS and SciPy's, which from PyPI are two of one name."""
    libraries = [each for each in ThreadpoolController().lib_controllers if each.user_api == "blas"]
    counts = [2, *(1 for _ in libraries[1:])]
    try:
        for library, count in zip(libraries, counts, strict=True):
            library.set_num_threads(count)
        with backend.own_threads():
            backend.use_threads(1)
            assert [library.num_threads for library in libraries] == [1] * len(counts)
        assert [library.num_threads for library in libraries] == counts
    finally:
        libraries[0].set_num_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize("calm", [True, False], ids=["alone", "within a limit of the caller's"])
def test_blas_gets_one_thread_whichever_thread_asks(calm: bool) -> None:
    """In a process of its own, in which no other library has changed BLAS before."""
    code = """
import sys, threading
from contextlib import nullcontext
import scipy.linalg
from threadpoolctl import ThreadpoolController, threadpool_limits
from ntkdist import backend

libraries = ThreadpoolController().select(user_api="blas")
counts = lambda: {library.num_threads for library in libraries.lib_controllers}
seen = []

def task():
    backend.use_threads(1)
    seen.append(counts())

with nullcontext() if sys.argv[1] == "True" else threadpool_limits(2):
    for _ in range(3):
        with backend.own_threads():
            if sys.argv[1] != "True":
                backend.use_threads(1)
            another = threading.Thread(target=task)
            another.start()
            another.join()
        seen.append(counts())
        with backend.own_threads():
            task()
print(seen == 3 * [{1}, {2}, {1}])
"""
    environment = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    done = subprocess.run([sys.executable, "-c", code, str(calm)], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.slow
def test_fits_at_once_leave_the_threads_of_the_process(make_dataset: Any, table: Any) -> None:
    """In a process of its own: the one that began first ends first, ends last, or fails, while the other is inside.

    The other has one BLAS thread all the time, and the same bits as alone.
    """
    code = """
import contextlib, sys, threading
import numpy as np
import ntkdist as nd
from threadpoolctl import ThreadpoolController

libraries = ThreadpoolController().select(user_api="blas").lib_controllers
counts = lambda: {library.num_threads for library in libraries}

def fit(threads, meet=lambda: None):
    @contextlib.contextmanager
    def watch(phase, rows):
        yield lambda rows: meet() if phase == "equations" else None

    job = nd.Job(nd.Dataset(sys.argv[1]), nd.ZonalFeatures(64), plan=nd.PlanTable(folds=2, threads=threads))
    return nd.fit(job, watch=watch).model.coef

def at_once(how):
    inside, ended = ({name: threading.Event() for name in ("first", "second")} for _ in range(2))
    seen, found = [], {}

    def first():
        inside["first"].set()
        (ended if how == "last" else inside)["second"].wait()
        seen.append(counts())
        if how == "fails":
            raise KeyError

    def second():
        inside["second"].set()
        if how != "last":
            ended["first"].wait()
        seen.append(counts())

    def run(name, *args):
        try:
            found[name] = fit(*args)
        except KeyError:
            pass
        ended[name].set()

    calls = [threading.Thread(target=run, args=args) for args in (("first", 1, first), ("second", 2, second))]
    calls[0].start()
    inside["first"].wait()
    calls[1].start()
    for call in calls:
        call.join()
    assert ("first" in found) == (how != "fails")
    return seen == [{1}] * len(seen), counts(), np.array_equal(found["second"], alone)

alone = fit(2)
print(*map(at_once, ("first", "last", "fails")))
"""
    environment = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2")
    command = [sys.executable, "-c", code, make_dataset(*table)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == (" ".join(3 * ["(True, {2}, True)"]) + "\n", "")


@pytest.mark.slow
def test_a_piece_may_be_cut_again() -> None:
    """A kernel of images inside a map: pieces that wait for pieces would hold all threads for ever."""
    code = """
import numpy as np
import ntkdist as nd
from ntkdist import backend

x = np.random.default_rng(0).standard_normal((2400, 2, 2, 1))
features = nd.Nystrom(16, nd.CNTK(2, 3)).fit(x[:16])
alone = features(x)
backend.use_threads(2)
print(np.array_equal(features(x), alone))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize("block_rows", [0, 1, 7, 50, 1000])
def test_blocks_have_equal_size_whatever_the_partitions(make_dataset: Any, block_rows: int) -> None:
    x = np.arange(200.0).reshape(100, 2)
    dataset = nd.Dataset(make_dataset(x, x[:, 0], rows_per_partition=9))
    layout, tally = dataset.layout(), Tally()
    spans = [layout.span(p) for p in range(layout.partitions)]
    found = list(blocks(Source(dataset, layout, block_rows, 1), spans, tally))
    np.testing.assert_array_equal(np.concatenate([rows.x for rows in found]), x)
    if block_rows:
        assert {len(rows.x) for rows in found[:-1]} <= {block_rows}
    else:
        assert [(rows.start, rows.start + len(rows.x)) for rows in found] == spans
    assert (tally.rows, tally.nbytes) == (100, x.nbytes + 800)


def part_of(seed: int) -> Part:
    rng = np.random.default_rng(seed)
    total = NormalEquations.zeros(5, 1).update(rng.standard_normal((20, 5)), rng.standard_normal(20))
    return Part(total, Tally(rows=20, workers={"one": seed}, worked={"one": (20, 0.5)}))


def bits(part: Part) -> bytes:
    return pickle.dumps((part.total.arrays(), part.tally))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_sums_that_are_added_stay_as_they_are(count: int, two_workers: Any) -> None:
    """They are results of Dask's: a task that is tried again is given the same ones."""
    parts = [part_of(seed) for seed in range(count)]
    before = [bits(part) for part in parts]
    right = bits(add_parts(parts))
    assert [bits(part) for part in parts] == before
    assert bits(add_parts(parts)) == right
    held = two_workers.map(part_of, range(count), workers=min(two_workers.nthreads()), pure=False)
    for _ in range(2):
        assert bits(two_workers.submit(add_parts, held, pure=False).result()) == right
    assert [bits(part) for part in two_workers.gather(held)] == before


def test_additions_are_dealt_to_the_workers(make_dataset: Any, two_workers: Any) -> None:
    """As the projected memory counts them."""
    dataset = nd.Dataset(make_dataset(np.zeros((120, 2)), np.zeros(120), rows_per_partition=10))
    shards = [Shard(k, ((30 * k + a, 30 * k + a + 10),)) for k in range(4) for a in (0, 10, 20)]
    held = sums_in_place(Pass(Source(dataset, dataset.layout(), 8, 1), CountRows(), shards, 4), two_workers)
    places = two_workers.who_has(held)
    assert sorted(Counter(place for (place, *_) in places.values()).values()) == [2, 2]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(2, 6), st.integers(1, 3))
def test_one_worker_holds_all_that_is_alive(counts: list[int], fan_in: int, ahead: int) -> None:
    made, alive, most = 0, 0, 0

    def leaves(count: int) -> Iterator[int]:
        nonlocal made, alive, most
        for _ in range(count):
            made, alive = made + 1, alive + 1
            most = max(most, alive)
            yield 1

    def add(parts: list[int]) -> int:
        nonlocal alive, most
        most = max(most, alive + min(ahead, sum(counts) - made))
        alive -= len(parts) - 1
        return 1

    for count in counts:
        tree(leaves(count), fan_in, add)
    assert most_held(counts, fan_in, ahead, 1) == most
    assert most_held(counts, fan_in, ahead, 2) <= most + 1


def test_progress_is_told_every_row_once(make_dataset: Any, two_workers: Any) -> None:
    dataset = nd.Dataset(make_dataset(np.ones((60, 2)), np.ones(60)))
    layout = dataset.layout()
    shards = [Shard(p % 3, (layout.span(p),)) for g in range(3) for p in range(g, layout.partitions, 3)]
    for client in (None, two_workers):
        told: list[int] = []
        parts = reduce(Pass(Source(dataset, layout, 8, 1), CountRows(), shards, 2, told.append), client)
        assert sum(told) == 60
        assert sum(part.total for part in parts) == 60
        assert sum(part.tally.rows for part in parts) == 60
