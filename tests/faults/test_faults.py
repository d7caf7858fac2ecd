"""What goes wrong on a real cluster: a worker killed in the middle, a chunk that cannot be read."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from servers import local_cluster

import ntkdist as nd

pytestmark = pytest.mark.cluster


def big_job(make_dataset: Any) -> nd.Plan:
    """A plan of 20 shards that take long enough to be killed in."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 8))
    store = make_dataset(x, np.abs(x).sum(axis=1) + rng.standard_normal(len(x)), rows_per_partition=1000)
    table = nd.PlanTable(folds=4, shards=20, threads=1, fan_in=2)
    return nd.plan(nd.Job(nd.Dataset(store), nd.NTKRandomFeatures(512), plan=table, alphas=(1.0,)))


class KillOnce:
    """A watch that kills a worker with SIGKILL when some shards of the equations are done."""

    def __init__(self, client: Client, after_rows: int, worker: int) -> None:
        self.client, self.after_rows, self.worker, self.killed = client, after_rows, worker, 0

    @contextmanager
    def __call__(self, phase: str, rows: int) -> Iterator[Any]:
        finished = 0

        def done(count: int) -> None:
            nonlocal finished
            finished += count
            if phase == "equations" and finished >= self.after_rows and not self.killed:
                self.killed = sorted(self.client.run(os.getpid).values())[self.worker]
                os.kill(self.killed, signal.SIGKILL)

        yield done


@pytest.mark.parametrize("after_rows", [9_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 17_000))])
def test_a_worker_killed_in_the_middle_leaves_the_same_bits(make_dataset: Any, after_rows: int) -> None:
    plan = big_job(make_dataset)
    calm = nd.fit(plan)
    with (
        local_cluster() as cluster,
        Client(cluster) as client,
    ):
        kill = KillOnce(client, after_rows, after_rows % 2)
        shaken = nd.fit(plan, client=client, watch=kill)
        assert kill.killed
        assert kill.killed not in client.run(os.getpid).values()
    for a, b in zip(calm.equations.folds, shaken.equations.folds, strict=True):
        np.testing.assert_array_equal(a.gram, b.gram)
        np.testing.assert_array_equal(a.rhs, b.rhs)
        assert a.weight == b.weight
    np.testing.assert_array_equal(calm.model.coef, shaken.model.coef)


class Fatal:
    """A summand that kills whoever touches it."""

    def zero(self) -> int:
        return 0

    def update(self, total: int, rows: Any) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return total


@pytest.mark.slow
def test_a_task_that_kills_every_worker_is_named(make_dataset: Any) -> None:
    from ntkdist.cluster.reduce import reduce_all
    from ntkdist.cluster.shards import Source

    dataset = nd.Dataset(make_dataset(np.ones((20, 2)), np.ones(20)))
    with (
        local_cluster(1) as cluster,
        Client(cluster) as client,
        pytest.raises(nd.ClusterError, match=r"Task ntkdist-shard-.* each died"),
    ):
        reduce_all(Source(dataset, dataset.layout(), 0, 1), Fatal(), 20, client, "moments", None)


@pytest.mark.slow
def test_a_chunk_lost_after_planning_ends_the_run_with_its_name(
    make_dataset: Any, two_workers: Any, tmp_path: Path
) -> None:
    plan = big_job(make_dataset)
    shutil.move(Path(plan.dataset.store) / "x" / "c" / "7", tmp_path / "lost")
    with pytest.raises(nd.DataError, match=r"chunk x/c/7/0 is missing \(rows 7000–7999\); restore it or convert again"):
        nd.fit(plan, client=two_workers, out=str(tmp_path / "run"))
    left = {p.name for p in (tmp_path / "run").iterdir()} if (tmp_path / "run").exists() else set()
    assert left <= {"job.json", "checkpoint"}  # what other tasks had finished
    shutil.move(tmp_path / "lost", Path(plan.dataset.store) / "x" / "c" / "7")
    assert nd.fit(plan, client=two_workers, out=str(tmp_path / "run")).equations.total.weight == 20_000
