"""Run directories: the model, equations and report of one job, complete or absent."""

import datetime
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import numpy as np

from ntkdist import backend
from ntkdist.cluster.connect import Resources
from ntkdist.cluster.tally import Tally
from ntkdist.data import storage
from ntkdist.data.scaling import Preprocessing
from ntkdist.errors import StoreError
from ntkdist.planning import resolve_gpu
from ntkdist.planning.job import Job, difference, identity, job_digest
from ntkdist.planning.plan import Plan
from ntkdist.ridge import metric_report, source_order, store
from ntkdist.ridge.fit_report import ChoiceReport, ClippedRow, Curve, DataReport, FitReport, MetricReport, RunReport
from ntkdist.ridge.fitted import FitStatistics
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.solvers.cv_result import CVResult
from ntkdist.spec import versions

Done = tuple[RidgeModel, CVResult | None, FitReport, Equations | None]


def existing_run(out: str, job: Job) -> Done | None:
    """Read a complete run of the same job; return None where one can be written.  Nothing is written.

    Raises StoreError for a directory that holds another run or something else, or cannot be written to.
    """
    storage.check_directory(out)
    if storage.empty(out):
        return None
    ours = identity(job, job.dataset.layout())
    try:
        _check_same(out, json.loads(storage.read_text(storage.join(out, "job.json")) or ""), ours)
    except (OSError, ValueError, LookupError, TypeError):
        raise StoreError(f"{out} holds something that is not a run; choose another --out or remove it") from None
    return read_run(out) if is_complete(out) else None


def is_complete(out: str) -> bool:
    """Return whether a directory holds a complete run."""
    return storage.exists(storage.join(out, "report.json"))


def read_run(run: str) -> Done:
    """Read a complete run; raise StoreError if there is none."""
    try:
        report = read_report(run)
    except (OSError, ValueError):
        raise StoreError(f"{run} holds no complete run: there is no report.json; fit a job with --out {run}") from None
    model = store.load(storage.join(run, "model.zarr"))
    equations = store.load(storage.join(run, "equations.zarr")) if report.formed_gram else None
    return model, CVResult.from_dict(report.cv) if report.cv else None, report, equations


def read_report(run: str) -> FitReport:
    """Read the report of a complete run; raise OSError or ValueError where there is none."""
    return msgspec.json.decode(storage.read_text(storage.join(run, "report.json")) or "", type=FitReport, strict=False)


def _check_same(out: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    if theirs["digest"] != ours["digest"]:
        raise StoreError(f"{out} holds another run{difference(theirs, ours)}; choose another --out or remove it")


@contextmanager
def open_run(out: str, job: Job) -> Iterator[None]:
    """Create a run directory with its job before anything runs; remove it if the run fails and nothing was kept.

    Raises StoreError if another job began there meanwhile.
    """
    if not out:
        yield
        return
    made, mine = not storage.exists(out), storage.join(out, "job.json")
    ours = identity(job, job.dataset.layout())
    storage.sweep(out)
    try:
        _check_same(out, json.loads(storage.claim(mine, as_json(ours))), ours)
        yield
    except BaseException:
        with suppress(StoreError):  # the store may be what failed
            if set(storage.names(out)) <= {"job.json"}:
                storage.remove(out if made else mine)
        raise


def write_run(out: str, model: RidgeModel, equations: Equations | None, report: FitReport) -> None:
    """Write a run's results, in place of those of an interrupted run; the report comes last and marks it complete."""
    for name, value in (("model.zarr", model), ("equations.zarr", equations)):
        storage.remove(storage.join(out, name))
        if value is not None:
            store.save(value, storage.join(out, name))
    storage.write_text(storage.join(out, "report.json"), as_json(report, indent=1))


def without_equations(out: str) -> bool:
    """Return whether a directory is a complete run without equations, of a solver that tiles the Gram or forms none."""
    try:
        return not read_report(out).formed_gram
    except (OSError, ValueError):
        return False


def as_json(value: Any, indent: int = 0) -> str:
    """Encode as strict JSON, with null for NaN, such as r2 of constant targets."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=float), indent=indent).decode()


def report(
    p: Plan,
    machines: Resources,
    statistics: FitStatistics,
    model: RidgeModel,
    cv: CVResult | None,
    curve: Curve | None,
    run: str,
    choice: list[ChoiceReport],
) -> FitReport:
    """Return the report of a fit."""
    tally, pre, skip = statistics.tally, statistics.preprocessing, p.skip or ()
    metric = metric_report.report(p, pre)
    first = [ClippedRow(*one) for one in source_order.first_rows(p.dataset, p.layout, tally.clipped_first)]
    return FitReport(
        digest=job_digest(p.job),
        notes=_choice_note(choice) + _notes(p, machines, statistics, cv, metric) + _first_note(first),
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        plan=msgspec.to_builtins(p),
        data=DataReport(
            store=p.dataset.store,
            rows=tally.rows,
            dropped_rows=tally.dropped,
            clipped_rows=tally.clipped,
            clipped_columns=tally.clipped_in,
            clipped_first=first,
            skipped_rows=p.layout.rows_of(skip),
            skipped_partitions=list(skip),
            constant_columns=list(pre.constant),
            targets=list(pre.target_names),
            classes=list(pre.classes),
            class_counts=_class_counts(pre, sum(statistics.fold_weights)),
            class_weight=list(pre.class_weight),
            folds={"count": p.folds, "dealt_by": p.dataset.fold_array, "contiguous": p.job.plan.contiguous},
            fold_weights=statistics.fold_weights,
        ),
        cv=None if cv is None else cv.to_dict(),
        alpha=model.alpha.tolist(),
        alpha_per_row=(model.alpha / sum(statistics.fold_weights)).tolist(),
        run=RunReport(
            id=run,
            seconds=statistics.seconds,
            bytes_read=tally.nbytes,
            timeline=list(statistics.timeline),
            read_share=tally.read_seconds / max(tally.read_seconds + tally.work_seconds, 1e-9),
            workers=machines.workers,
            peak_memory_bytes=tally.workers,
            worker_rows_per_second=tally.rates(),
            projected_memory_bytes=p.memory(*machines.shape) | statistics.remembered,
            **_rates(p, statistics),
        ),
        versions=versions(),
        curve=curve,
        metric=metric,
        choice=choice,
        baselines=_baselines(pre, cv),
    )


def _class_counts(pre: Preprocessing, weight: float) -> list[float]:
    """Return the weight of the rows of each class; ``weight`` is that of all, with class weights."""
    if not pre.classes:
        return []
    share = np.asarray(pre.class_weight or np.ones(pre.t)) @ pre.y_mean
    return (pre.y_mean * weight / share).tolist()


def _baselines(pre: Preprocessing, cv: CVResult | None) -> dict[str, float]:
    """Return the error that predicts without inputs: by the mean of each target, or by the largest class."""
    if pre.classes:
        return {"majority_accuracy": float(pre.y_mean.max())}
    return {} if cv is None else {"mean_rmse": float(np.sqrt(cv.spread).mean())}


def _notes(
    p: Plan, machines: Resources, statistics: FitStatistics, cv: CVResult | None, metric: MetricReport | None
) -> list[str]:
    """List what a reader should know of a run, a sentence each."""
    tally = statistics.tally
    notes = [cv.note] if cv is not None and cv.note else []
    if why := resolve_gpu.why_not(p, machines):
        notes.append(f"computed on the CPU: {why}")
    if p.solver.sums != "gram":
        does = "forms" if p.solver.sums == "products" else "keeps"
        notes.append(f"solver {type(p.solver).__name__} {does} no Gram: there are no equations to save or solve again")
    if metric:
        notes.append(metric_report.note(p, metric))
    if constant := statistics.preprocessing.constant:
        notes.append(f"columns without variance, kept and harmless: {', '.join(constant[:8])}")
    if tally.resumed:
        notes.append(
            f"{tally.resumed} of {p.task_count * p.panels} shards were finished before and taken from the checkpoint"
        )
    if p.copies > 1:
        notes.append(
            f"each image is {p.copies} rows of its fold: itself and {p.copies - 1} mirrored or shifted; together they "
            "weigh as one row, and errors are of images as they are"
        )
    if p.solver.scores_one_fold and p.folds > 1 and not p.dataset.holdout:
        notes.append(f"alpha was chosen by the error on the last of {p.folds} folds alone, then all rows were used")
    if p.dataset.holdout:
        notes.append(f"alpha was chosen by the error on the rows held out by '{p.dataset.holdout}', then all were used")
    if p.skip:
        damaged = ", ".join(map(str, p.skip))
        notes.append(f"{p.layout.rows_of(p.skip):,} rows of the damaged partitions {damaged} were skipped, as asked")
    if tally.dropped:
        notes.append(f"{tally.dropped:,} rows with NaN or Inf were dropped, as asked")
    if tally.clipped:
        limits = "quantiles of clip, clipped to them" if p.job.preprocess.quantiles else "range reused, clipped to it"
        notes.append(f"{tally.clipped:,} rows had values outside the {limits}: {_most(tally)}")
    return notes


def _choice_note(choice: list[ChoiceReport]) -> list[str]:
    """Describe the choice among trials, if there was one."""
    if not choice:
        return []
    best = min(choice, key=lambda trial: trial.rmse)
    return [
        f"features, columns and metric were chosen among {len(choice)} kinds by their errors on rows of a sample that "
        f"were held out: from {max(trial.rmse for trial in choice):,.5g} to {best.rmse:,.5g}"
    ]


def _first_note(first: list[ClippedRow]) -> list[str]:
    """Name some of the rows that were clipped, with a few of their columns."""
    named = [f"{one.row:,} ({', '.join(one.columns[:3])}{', …' * (len(one.columns) > 3)})" for one in first]
    return [f"some of the rows that were clipped, counted from 0: {', '.join(named)}"] if first else []


def _most(tally: Tally) -> str:
    """Name the three columns in which most rows were clipped."""
    most = sorted(tally.clipped_in, key=lambda name: (-tally.clipped_in[name], name))
    said = ", ".join(f"{tally.clipped_in[name]:,} in {name}" for name in most[:3])
    return said if len(most) <= 3 else f"{said}, fewer in {len(most) - 3:,} others"


def _rates(p: Plan, statistics: FitStatistics) -> dict[str, Any]:
    """Compute the rate of the pass over the rows, and that of bare products on the same machines."""
    rows, seconds = statistics.tally.rows, statistics.seconds
    if statistics.products:
        per_second = rows * statistics.products.passes / (seconds["sums"] + seconds["iterations"])
        return {"rows_per_second": per_second, "products": statistics.products}
    operations = rows * p.copies * backend.gram_operations(p.m, p.device)
    gram, syrk = operations / seconds["equations"], sum(statistics.syrk_rates)
    return {
        "rows_per_second": rows / seconds["equations"],
        "syrk_flops_per_second": syrk,
        "gram_flops_per_second": gram,
        "gram_to_syrk_ratio": gram / syrk,
    }
