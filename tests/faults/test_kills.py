"""Long proofs that what is killed, paused or spilled at random moments changes no bit."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from command_line import Command, assert_one_line, start, write_job
from distributed import Client
from interrupted import same
from servers import local_cluster, scheduler_and_worker

import ntkdist as nd
from ntkdist.cluster.preflight import workers_of

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def data(make_dataset: Any, rows: int = 10_000) -> str:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 8))
    store: str = make_dataset(x, np.abs(x).sum(axis=1) + rng.standard_normal(rows), rows_per_partition=rows // 20)
    return store


def plan(make_dataset: Any, m: int = 256, **options: Any) -> nd.Plan:
    """Of 20 shards."""
    table = nd.PlanTable(**({"folds": 4, "shards": 20, "threads": 1, "fan_in": 2} | options))
    return nd.plan(nd.Job(nd.Dataset(data(make_dataset)), nd.NTKRandomFeatures(m), plan=table, alphas=(1.0,)))


class After:
    """A watch that calls something, once, when some rows of a phase are done."""

    def __init__(self, phase: str, rows: int, call: Callable[[], Any]) -> None:
        self.phase, self.left, self.call = phase, rows, call

    @contextmanager
    def __call__(self, phase: str, rows: int) -> Iterator[Any]:
        def done(count: int) -> None:
            if phase == self.phase and self.left > 0:
                self.left -= count
                if self.left <= 0:
                    self.call()

        yield done


@pytest.mark.parametrize("seed", range(20))
def test_workers_killed_at_random_moments(make_dataset: Any, seed: int) -> None:
    """SIGKILL to one worker or both, while they map, add or send."""
    p, chance, killed = plan(make_dataset), random.Random(seed), []
    with local_cluster() as cluster, Client(cluster) as client:

        def kill() -> None:
            time.sleep(0.1 * chance.random())
            for nanny in chance.sample(list(cluster.workers.values()), chance.choice([1, 1, 2])):
                killed.append(nanny.pid)
                os.kill(nanny.pid, signal.SIGKILL)

        phase = chance.choice(["moments", "equations", "equations", "equations"])
        shaken = nd.fit(p, client=client, watch=After(phase, chance.randrange(1, 8_000), kill))
    assert killed
    same(shaken, nd.fit(p))


KILLED_AT_A_WRITE = """
import os, signal, sys, uuid
import ntkdist as nd
from zarr.storage import LocalStore

left, write = int(sys.argv[1]), LocalStore.set

async def cut_off(self, key, value):
    global left
    left -= 1
    if left == 0:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(f".{uuid.uuid4().hex}.partial").write_bytes(value.to_bytes()[: len(value) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    await write(self, key, value)

LocalStore.set = cut_off
nd.fit(nd.Job.read("job.toml"), out="run")
"""


@pytest.mark.timeout(600)
def test_killed_in_the_middle_of_writes(command: Command, make_dataset: Any) -> None:
    """Half of a file written, under the name that Zarr gives it first, the process is killed; and so on from there."""
    job = write_job(
        store=data(make_dataset, 2000), top="alphas = [1.0]", tables="[plan]\nfolds = 2\nshards = 10\nthreads = 1"
    )
    straight = nd.fit(nd.Job.read(job))
    chance = random.Random(0)
    for at in [1, *(chance.randrange(2, 40) for _ in range(7))]:
        run = subprocess.run([sys.executable, "-c", KILLED_AT_A_WRITE, str(at)], check=False)
        assert run.returncode == -signal.SIGKILL
        kept = list(Path("run/checkpoint").glob("shard-*.kept"))
    assert kept
    result = nd.fit(nd.Job.read(job), out="run", resume=True)
    assert f"{len(kept)} of 10 shards were finished before" in " ".join(result.report["notes"])
    same(result, straight)
    same(nd.fit(nd.Job.read(job), out="run"), straight)


@pytest.mark.timeout(600)
def test_a_scheduler_that_is_killed(command: Command, make_dataset: Any) -> None:
    features = 'type = "ZonalFeatures"\nn_components = 512'
    tables = "[plan]\nfolds = 2\nshards = 20\nthreads = 1"
    job = write_job(store=data(make_dataset, 40_000), top="alphas = [1.0]", features=features, tables=tables)
    straight = nd.fit(nd.Job.read(job))
    with scheduler_and_worker() as address:
        with Client(address, set_as_default=False) as client:
            pid = client.run_on_scheduler(os.getpid)
        process, deadline = start("fit", job, "--scheduler", address, "--out", "run"), time.monotonic() + 200
        while len(kept := list(Path("run/checkpoint").glob("shard-*.kept"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        stderr = process.communicate(timeout=200)[1]
    assert process.returncode == 1
    assert_one_line(stderr, ["The connection to the Dask scheduler was lost", "see that it runs and run again"])
    assert len(kept) >= 3
    Path("scheduler.json").unlink()
    with scheduler_and_worker() as address:
        result = nd.fit(nd.Job.read(job), out="run", resume=True, scheduler=address)
    assert "of 20 shards were finished before" in " ".join(result.report["notes"])
    same(result, straight)


def hog(nbytes: int) -> None:
    """Fill a worker's memory with what is not Dask's."""
    sys.modules["ntkdist"].hog = np.ones(nbytes, np.uint8) if nbytes else None  # type: ignore[attr-defined]


def spilled(dask_worker: Any) -> float:
    return sum(v for (what, unit), v in dask_worker.data.cumulative_metrics.items() if (what, unit) == WRITES)


WRITES = ("disk-write", "count")


def test_workers_that_pause_and_spill(make_dataset: Any) -> None:
    """One is paused by memory that is not Dask's until half of the work is done; sums wait on disk."""
    p = plan(make_dataset, 512, fan_in=20)
    calm = nd.fit(p)
    memory = {"target": 0.004, "spill": False, "pause": 0.7, "terminate": False}
    with (
        dask.config.set({f"distributed.worker.memory.{key}": value for key, value in memory.items()}),
        local_cluster(memory_limit=10**9) as cluster,
        Client(cluster) as client,
    ):
        first = next(iter(client.nthreads()))
        client.run(hog, 700 * 10**6, workers=[first])

        def status() -> str:
            found: str = workers_of(client)[first]["status"]
            return found

        deadline = time.monotonic() + 60
        while status() != "paused":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        seen: list[str] = []

        def release() -> None:
            seen.append(status())
            client.run(hog, 0, workers=[first])

        same(nd.fit(p, client=client, watch=After("equations", 5_000, release)), calm)
        assert seen == ["paused"]
        assert sum(client.run(spilled).values()) > 0
