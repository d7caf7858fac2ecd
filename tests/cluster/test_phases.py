"""What a run tells those who look from outside: log lines, spans, speeds of workers, Dask's own report and metrics."""

import logging
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from counted import CountRows

import ntkdist as nd
from ntkdist.cluster.preflight import workers_of
from ntkdist.cluster.reduce import Pass, fetch, sums_in_place
from ntkdist.planning.plan import by_fold

# Of Dask's own metrics, those that deploy/README.md says to watch.
SCHEDULER = (
    "dask_scheduler_workers",
    "dask_scheduler_workers_removed_total",
    "dask_scheduler_tasks",
    "dask_scheduler_tasks_suspicious_total",
    "dask_scheduler_tasks_compute_seconds_total",
    "dask_scheduler_tasks_transfer_seconds_total",
    "dask_scheduler_tasks_output_bytes",
)
WORKER = (
    "dask_worker_memory_bytes",
    "dask_worker_spill_bytes_total",
    "dask_worker_transfer_incoming_bytes",
    "dask_worker_transfer_outgoing_bytes_total",
    "dask_worker_latency_seconds",
)


def job_on(store: str, **options: Any) -> nd.Job:
    return nd.Job(nd.Dataset(store), nd.Nystrom(16), plan=nd.PlanTable(folds=2, shards=4), **options)


def test_phases_are_in_the_log_and_on_the_scheduler(make_dataset, table, two_workers, caplog) -> None:
    caplog.set_level(logging.INFO, "ntkdist")
    run = nd.fit(job_on(make_dataset(*table)), client=two_workers).report["run"]
    lines = [r.getMessage().split(maxsplit=3)[:3] for r in caplog.records if r.name == "ntkdist"]
    inner = ["moments", "landmarks", "equations", "solve", "curve"]
    marks = ["starts", "ended"]
    assert lines == [[run["id"], *each] for each in _nested("run", inner, marks)]
    assert all(any("ntkdist-shard" in name for name in in_span(two_workers, run, phase)) for phase in inner[:3])
    assert run["worker_rows_per_second"].keys() <= run["peak_memory_bytes"].keys()  # one may have done it all
    assert min(run["worker_rows_per_second"].values()) > 0


def in_span(client: Any, run: dict[str, Any], phase: str) -> list[str]:
    """The names of a phase's groups of tasks, once it is over on the scheduler."""
    (span,) = client.cluster.scheduler.extensions["spans"].spans_search_by_name[run["id"], phase]
    while not span.done:  # the scheduler hears of the end a moment later
        time.sleep(0.05)
    return [group.name for group in span.groups]


@pytest.mark.slow
def test_tasks_are_in_the_span_of_their_phase_while_sums_of_another_are_held(make_dataset, table, two_workers) -> None:
    """Dask counts all tasks of a group to the span of the first."""
    job = job_on(make_dataset(*table), solver=nd.TiledCholesky(tile=8))
    source, shards = by_fold(nd.plan(job))
    held = sums_in_place(Pass(source, CountRows(), shards, 8), two_workers)
    assert sum(part.total for part in fetch(two_workers, held)) == len(table[0])
    run = nd.fit(job, client=two_workers).report["run"]
    for phase, tasks in (("moments", "shard"), ("equations", "shard"), ("factorisations", "factor")):
        assert any(name.startswith(f"ntkdist-{tasks}-") for name in in_span(two_workers, run, phase))


def _nested(outer: str, inner: list[str], marks: list[str]) -> list[list[str]]:
    return [[outer, marks[0]], *([name, mark] for name in inner for mark in marks), [outer, marks[1]]]


def test_a_phase_that_fails_is_in_the_log_and_nothing_is_printed(make_dataset, table, caplog, capfd) -> None:
    caplog.set_level(logging.INFO, "ntkdist")
    store = make_dataset(*table)
    with pytest.raises(nd.DataError):
        nd.fit(_broken(store))
    said = [r.getMessage() for r in caplog.records if r.name == "ntkdist"]
    assert [line.split()[1:3] for line in said[-2:]] == [["moments", "failed"], ["run", "failed"]]
    assert capfd.readouterr() == ("", "")


def _broken(store: str) -> nd.Job:
    next(path for path in Path(store, "x").rglob("*") if path.is_file() and path.name != "zarr.json").write_bytes(b"?")
    return job_on(store)


def test_a_performance_report_that_cannot_be_is_refused(
    make_dataset, table, two_workers, tmp_path, monkeypatch
) -> None:
    job, out = job_on(make_dataset(*table)), str(tmp_path / "run")
    with pytest.raises(nd.SpecError, match="no run directory to write it to; give out"):
        nd.fit(job, performance_report=True, client=two_workers)
    monkeypatch.setattr("ntkdist.cluster.connect._active_client", lambda: None)
    with pytest.raises(nd.ClusterError, match=r"this run has none; give --scheduler or \[cluster\]"):
        nd.fit(job, performance_report=True, out=out)
    monkeypatch.setitem(sys.modules, "bokeh", None)  # the scheduler is in this process
    with pytest.raises(nd.ClusterError, match=r"needs bokeh where the scheduler runs.*ntkdist\[dashboard\]"):
        nd.fit(job, performance_report=True, out=out, client=two_workers)
    assert not Path(out).exists()


@pytest.mark.dashboard
def test_a_performance_report_is_in_the_run_directory(make_dataset, table, two_workers, tmp_path) -> None:
    nd.fit(job_on(make_dataset(*table)), performance_report=True, out=str(tmp_path / "run"), client=two_workers)
    page = (tmp_path / "run" / "performance.html").read_text()
    assert "Bokeh" in page
    assert "run_shard" in page


@pytest.mark.dashboard
def test_the_metrics_to_watch_are_those_of_dask(make_dataset, table, two_workers) -> None:
    nd.fit(job_on(make_dataset(*table)), client=two_workers)
    ports = {info["services"]["dashboard"] for info in workers_of(two_workers).values()}
    port = two_workers.cluster.scheduler.http_server.port
    assert not [name for name in SCHEDULER if f"\n{name}" not in _metrics(port)]
    for each in ports:
        assert not [name for name in WORKER if f"\n{name}" not in _metrics(each)]


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return answer.read().decode()
