"""Runs that are cut off: what was finished is added once, and the result has the bits of an undisturbed run."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from command_line import EXECUTABLE, write_job
from interrupted import Cut, CutAfter, same

import ntkdist as nd


def job(make_dataset: Any, seed: int = 0, name: str = "data", **options: Any) -> nd.Job:
    """Ten shards in two folds."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((600, 4))
    store = make_dataset(x, np.abs(x).sum(axis=1), name=name)
    table = nd.PlanTable(folds=2, shards=10, fan_in=2, **options)
    return nd.Job(nd.Dataset(store), nd.NTKRandomFeatures(64), plan=table, alphas=(0.1, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(make_dataset: Any, tmp_path: Path, after: int) -> None:
    asked, out = job(make_dataset), str(tmp_path / "run")
    straight = nd.fit(asked)
    with pytest.raises(Cut):
        nd.fit(asked, out=out, watch=CutAfter(after))
    with pytest.raises(Cut):  # and once more
        nd.fit(asked, out=out, watch=CutAfter(after + 1))
    kept = len(list((tmp_path / "run" / "checkpoint").glob("shard-*.zarr")))
    assert after + 1 <= kept <= 10
    result = nd.fit(asked, out=out, resume=True)
    same(result, straight)
    assert f"{kept} of 10 shards were finished before" in " ".join(result.report["notes"])
    assert result.report["data"]["rows"] == 600
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        *("equations.zarr", "job.json", "model.zarr", "report.json")
    ]


def test_what_was_resolved_is_read_back(make_dataset: Any, tmp_path: Path) -> None:
    """A plan made elsewhere, with other shards and blocks, takes those of the checkpoint."""
    asked = job(make_dataset, checkpoint=str(tmp_path / "kept"))
    before = msgspec.structs.replace(nd.plan(asked), shards=6, block_rows=50, fan_in=3)
    straight = nd.fit(msgspec.structs.replace(before, job=job(make_dataset, name="again")))
    with pytest.raises(Cut):
        nd.fit(before, watch=CutAfter(3))
    result = nd.fit(asked)
    same(result, straight)
    assert (result.report["plan"]["shards"], result.report["plan"]["block_rows"]) == (6, 50)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["truncated", "flipped", "missing", "unfinished"])
def test_a_damaged_sum_is_made_again(make_dataset: Any, tmp_path: Path, what: str) -> None:
    asked = job(make_dataset, checkpoint=str(tmp_path / "kept"))
    straight = nd.fit(asked)
    one = sorted((tmp_path / "kept").glob("shard-*.zarr"))[3]
    chunk = next(p for p in (one / "triangle").rglob("*") if p.is_file() and p.name != "zarr.json")
    content = bytearray(chunk.read_bytes())
    if what == "truncated":
        chunk.write_bytes(content[: len(content) // 2])
    elif what == "flipped":
        content[len(content) // 3] ^= 4
        chunk.write_bytes(content)
    elif what == "missing":
        shutil.rmtree(one)
    else:
        attrs = json.loads((one / "zarr.json").read_text())
        del attrs["attributes"]["complete"]
        (one / "zarr.json").write_text(json.dumps(attrs))
    again = nd.fit(asked)
    same(again, straight)
    assert "9 of 10 shards were finished before" in " ".join(again.report["notes"])


@pytest.mark.slow
def test_another_job_or_other_data_is_refused(make_dataset: Any, tmp_path: Path) -> None:
    asked = job(make_dataset, checkpoint=str(tmp_path / "kept"))
    nd.fit(asked)
    others = [
        msgspec.structs.replace(asked, features=nd.NTKRandomFeatures(64, seed=1)),
        msgspec.structs.replace(asked, plan=msgspec.structs.replace(asked.plan, dtype="float64")),
        msgspec.structs.replace(asked, dataset=job(make_dataset, 1, "other").dataset),
    ]
    for other in others:
        with pytest.raises(nd.StoreError, match="is the checkpoint of another job or of other data"):
            nd.fit(other)
    nd.fit(msgspec.structs.replace(asked, cluster=nd.Local(1)))  # where it runs is not what it is


@pytest.mark.parametrize("what", ["checkpoint", "run"])
def test_a_directory_with_something_else_in_it_is_refused_and_left(
    make_dataset: Any, tmp_path: Path, what: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    mine = str(tmp_path / "mine")
    asked = job(make_dataset, checkpoint=mine) if what == "checkpoint" else job(make_dataset)
    with pytest.raises(nd.StoreError, match=rf"mine holds something that is not a {what}"):
        nd.fit(asked, out=mine if what == "run" else "")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_what_a_kill_in_the_middle_of_a_write_leaves_is_no_obstacle_and_goes(make_dataset: Any, tmp_path: Path) -> None:
    asked, out = job(make_dataset), tmp_path / "run"
    straight = nd.fit(asked)
    out.mkdir()
    (out / ".job.json.partial1").write_text('{"dig')
    with pytest.raises(Cut):
        nd.fit(asked, out=str(out), watch=CutAfter(2))
    kept = out / "checkpoint"
    for name in (".shard-1.zarr.partial2", ".prepared.zarr.partial3"):
        shutil.copytree(next(kept.glob("shard-*.zarr")), kept / name)
    with pytest.raises(Cut):
        nd.fit(asked, out=str(out), watch=CutAfter(3))
    assert not [p.name for place in (out, kept) for p in place.iterdir() if "partial" in p.name]
    same(nd.fit(asked, out=str(out)), straight)


def test_a_damaged_scaling_is_made_again_and_a_damaged_plan_is_refused(make_dataset: Any, tmp_path: Path) -> None:
    asked = job(make_dataset, checkpoint=str(tmp_path / "kept"))
    straight = nd.fit(asked)
    chunk = next((tmp_path / "kept").glob("prepared*.zarr/x_mean/c/*"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    again = nd.fit(asked)
    same(again, straight)
    assert "10 of 10 shards were finished before" in " ".join(again.report["notes"])
    (tmp_path / "kept" / "plan.json").write_text("")
    with pytest.raises(nd.StoreError, match=r"plan\.json is damaged; remove the checkpoint and start anew"):
        nd.fit(asked)


def test_nothing_to_resume(make_dataset: Any, tmp_path: Path) -> None:
    with pytest.raises(nd.StoreError, match=r"Nothing to resume: there is no checkpoint .*run/checkpoint"):
        nd.fit(job(make_dataset), out=str(tmp_path / "run"), resume=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_sum_that_cannot_be_written_is_one_sentence(make_dataset: Any, tmp_path: Path) -> None:
    """The system refuses files beyond a size, as it refuses any on a full disk."""
    asked = job(make_dataset, checkpoint=str(tmp_path / "kept"))
    straight = nd.fit(job(make_dataset, name="again"))
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(Cut):
            nd.fit(asked, watch=CutAfter(2))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
        with pytest.raises(nd.StoreError, match=r"cannot be kept .*make room, or give another .* what was kept is not"):
            nd.fit(asked)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    same(nd.fit(asked), straight)
    assert not list((tmp_path / "kept").glob(".shard*"))  # one that was still being written is swept by the next run


@pytest.mark.cluster
@pytest.mark.slow
def test_a_process_killed_at_any_moment(make_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with its workers, killed with SIGKILL some times, then left alone."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40_000, 6))
    store = make_dataset(x, np.abs(x).sum(axis=1), rows_per_partition=2000)
    tables = "[plan]\nfolds = 2\nshards = 20\n[cluster]\nworkers = 2"
    path = write_job(
        store=store, top="alphas = [1.0]", features='type = "ZonalFeatures"\nn_components = 512', tables=tables
    )
    subprocess.run([EXECUTABLE, "fit", path, "--out", "straight"], check=True)
    chance, kept = random.Random(1), []
    for _ in range(4):
        command = subprocess.Popen([EXECUTABLE, "fit", path, "--out", "run"], start_new_session=True)
        before, deadline = set(kept), time.monotonic() + 60
        while command.poll() is None and time.monotonic() < deadline:
            kept = [p.name for p in (tmp_path / "run" / "checkpoint").glob("shard-*.zarr")]
            if set(kept) - before:
                time.sleep(chance.random() * 0.3)
                break
            time.sleep(0.01)
        os.killpg(command.pid, signal.SIGKILL)
        command.wait()
        assert before <= set(kept)
    assert kept
    subprocess.run([EXECUTABLE, "fit", path, "--out", "run"], check=True)
    both = [
        nd.FitResult(nd.load(f"{run}/model.zarr"), None, {}, nd.load(f"{run}/equations.zarr"))
        for run in ("run", "straight")
    ]
    same(*both)
