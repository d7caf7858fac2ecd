"""A run as one HTML file: data, model, errors, cost, and the job that repeats it."""

import json
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist.cluster import Client
from ntkdist.cluster.connect import connect, resources
from ntkdist.cluster.progress import Watch
from ntkdist.data import storage
from ntkdist.data.scaling import Preprocessing
from ntkdist.errors import NtkdistError
from ntkdist.features import AnyMap, CNTKRandomFeatures, CNTKSketch
from ntkdist.kernels.error import gram_of
from ntkdist.planning.plan import Plan, source_of
from ntkdist.report import metric_section, pictures, residual_rows
from ntkdist.report.class_table import balanced_accuracy, class_table
from ntkdist.report.numbers import error_of_share, plain, with_error
from ntkdist.report.out_of_fold import OutOfFold, bin_edges, predict_out_of_fold
from ntkdist.report.parts import Table
from ntkdist.report.simple_models import Simple, simple_models
from ntkdist.ridge import run_directory
from ntkdist.ridge.fit_report import FitReport
from ntkdist.ridge.fitted_map import sample
from ntkdist.solvers.cv_result import CVResult
from ntkdist.spec import decode, encode
from ntkdist.sums.sample import SampleOf

F8 = NDArray[np.float64]
KERNEL_ROWS, KERNEL_SEED = 400, 2**31 - 2  # size and seed of the sample that kernels are compared on
LONG_SECONDS = 1.0  # of a pass's products, from which on their rate is worth comparing
IMAGE_WORK = 4e10  # limit of the operations for the exact kernel of images


def check() -> None:
    """Refuse to start if Matplotlib or tomli_w is not installed (NtkdistError)."""
    if missing := [name for name in ("matplotlib", "tomli_w") if find_spec(name) is None]:
        raise NtkdistError(f'A report needs {" and ".join(missing)}; pip install "ntkdist[report]"')


def write(
    run: str,
    out: str = "",
    *,
    data: bool = True,
    unit: str = "",
    trees: bool = False,
    client: Client | None = None,
    scheduler: str = "",
    watch: Watch | None = None,
) -> str:
    """Write the report of a complete run; return its path, by default ``report.html`` in the run directory.

    With the data, one pass predicts every row out of fold, one draws a sample for the exact kernel, and two or three
    fit a linear model to the same folds.  An earlier report is replaced.

    Parameters
    ----------
    run : str
        Run directory.
    out : str
    data : bool
        Read the dataset; without, the parts that need it are left out.
    unit : str
        Unit of the target, which is written beside its name.
    trees : bool
        Fit boosted trees to the same folds too; they hold all rows in this process.
    client, scheduler, watch : as in `fit`

    Raises
    ------
    StoreError
        If there is no complete run.
    DataError
        If the data are not those of the fit, or too many for trees.
    """
    check()
    import jinja2
    import tomli_w

    model, cv, report, equations = run_directory.read_run(run)
    p: Plan = decode(report.plan, Plan, f"{run}/report.json")
    shown = [pictures.of_choice(cv, model.classes)] if cv else []
    if report.curve:
        shown.append(pictures.of_curve(report.curve, "cross-validated rmse"))
    sums, simple, pre = None, list[Simple](), model.preprocessing
    target = _target(report, pre, unit)
    if data:
        with connect(p.job.cluster, scheduler, client) as client:
            p = msgspec.structs.replace(p, threads=resources(client).threads)
            if cv and equations:
                sums = predict_out_of_fold(p, equations, cv, client=client, watch=watch)
                shown += pictures.of_predictions(sums, equations, bin_edges(equations), unit)
            if cv:
                simple = list(simple_models(p, pre, trees, client, watch))
            shown.append(_kernel(p, model.preprocessing, model.features, report, client, watch))
    shown += pictures.of_run(report.run)
    template = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(
        files("ntkdist.report").joinpath("page.html").read_text("utf-8")
    )
    shape = " × ".join(map(str, p.layout.input_shape))
    what = f"{len(pre.classes)} classes" if pre.classes else f"{pre.t} target{'s' * (pre.t > 1)}"
    importances = report.metric.importances if report.metric else {}
    tables = [residual_rows.largest_errors(p, sums, pre, importances), *_tables(p, report)]
    if sums is not None and pre.classes:
        tables.insert(0, class_table(sums.counts, pre.classes))
    # TOML has no null.
    job = json.loads(encode(p.job), object_hook=lambda keys: {k: v for k, v in keys.items() if v is not None})
    page = template.render(
        title=f"{Path(run).name}: {type(p.features).__name__} on {Path(p.dataset.store).stem}",
        summary=(
            f"Ridge regression on {p.m:,} features, fitted to {report.data.rows:,} rows of {shape} with "
            f"{what}{f' ({target})' * bool(target)}, {p.folds} folds, solver {type(p.solver).__name__}."
        ),
        finished=(
            f"Finished {report.finished}; {report.run.seconds['total']:,.1f} s on {report.run.workers} worker(s)."
        ),
        numbers=list(_numbers(report, cv, sums, simple, target)),
        notes=report.notes,
        figures=shown,
        sections=[metric_section.section(report.metric)] if report.metric else [],
        tables=tables,
        job=tomli_w.dumps(job),
    )
    out = out or storage.join(run, "report.html")
    storage.write_text(out, page)
    return out


def _kernel(
    p: Plan, pre: Preprocessing, features: AnyMap, report: FitReport, client: Client | None, watch: Watch | None
) -> pictures.Picture:
    """Draw both kernels of a sample of rows; for images, of as few rows as the exact kernel's cost allows."""
    rows, shape = KERNEL_ROWS, p.mapped_shape
    if isinstance(p.features, CNTKRandomFeatures | CNTKSketch):
        pair = (shape[0] * shape[1]) ** 2 * p.features.depth * p.features.filter_size**2
        rows = int(np.clip(np.sqrt(IMAGE_WORK / pair), 4, KERNEL_ROWS))
    summand = SampleOf(rows, KERNEL_SEED, pre, sparse=p.layout.sparse)
    x = sample(summand, source_of(p)._replace(block_rows=0), client, watch, "sample")
    exact = features.kernel(x)
    return pictures.of_kernel(exact, gram_of(features(x)), min(report.alpha_per_row))


def _numbers(
    report: FitReport, cv: CVResult | None, sums: OutOfFold | None, simple: list[Simple], target: str
) -> Iterator[tuple[str, str]]:
    """Yield the numbers of a run, each with its name: its errors beside those of simple models, then the rest."""
    of = f" of {target}" if target else ""
    classes = bool(report.data.classes)
    if sums is not None and classes:
        summary = sums.metrics.summary()
        yield (
            _percent(summary["accuracy"], error_of_share(summary["accuracy"], summary["rows"])),
            ("accuracy out of fold ± its standard error"),
        )
        yield _percent(*balanced_accuracy(sums.counts)), "balanced accuracy: the mean recall of the classes"
    if cv is not None:
        error = "rmse of one-hot scores" if classes else f"rmse{of}"
        if np.isfinite(cv.rmse_standard_error):
            yield with_error(cv.rmse, cv.rmse_standard_error), f"cross-validated {error} ± its standard error"
        else:  # one fold was scored
            yield plain(cv.rmse), f"{error} on the rows held out"
    if classes and (share := report.baselines.get("majority_accuracy")):
        yield f"{share:.1%}", "accuracy of always naming the largest class"
    if not classes and (error_of_mean := report.baselines.get("mean_rmse")) is not None:
        yield plain(error_of_mean), "rmse of always predicting the mean"
    for each in simple:
        shown = _percent(each.value, each.error) if classes else with_error(each.value, each.error)
        yield shown, f"{'accuracy' if classes else 'rmse'} of {each.name} on the same folds"
    if cv is not None:
        yield f"{cv.r2:.3f}", "r²" + (" of one-hot scores" if classes else "")
    least, most = min(report.alpha_per_row), max(report.alpha_per_row)
    yield f"{least:.2g}" + (f" – {most:.2g}" if most > least else ""), "alpha per row"
    yield f"{report.run.rows_per_second:,.0f}", "rows per second"


def _percent(share: float, error: float) -> str:
    value, sign, band = with_error(100 * share, 100 * error).partition(" ± ")
    return f"{value}%{sign}{band}"


def _target(report: FitReport, pre: Preprocessing, unit: str) -> str:
    """Return the name of a single target, and its unit if one was given; "" if it has neither."""
    name = pre.target_names[0] if len(pre.target_names) == 1 else "the targets" if pre.t > 1 else ""
    if report.data.classes:
        return name
    return pictures.with_unit(name or "the target", unit) if unit else name


def _tables(p: Plan, report: FitReport) -> Iterator[Table]:
    data, run, layout = report.data, report.run, report.plan["layout"]
    limits = "quantiles" if p.job.preprocess.quantiles else "range reused"
    rows = [
        ("dataset", data.store),
        ("fingerprint", layout["fingerprint"]),
        ("rows added", f"{data.rows:,} of {layout['rows']:,}"),
        ("rows dropped for NaN or Inf", f"{data.dropped_rows:,}"),
        (f"rows clipped to the {limits}", f"{data.clipped_rows:,}"),
        ("read and verified by checksum", f"{run.bytes_read / 1e6:,.1f} MB, {run.read_share:.1%} of the pass"),
        ("weight of each fold", ", ".join(f"{w:,.6g}" for w in data.fold_weights)),
    ]
    yield Table("Data", rows)
    if data.clipped_first:
        counts = ", ".join(f"{count:,} in {name}" for name, count in data.clipped_columns.items())
        first = [(f"{one.row:,}", ", ".join(one.columns)) for one in data.clipped_first]
        text = f"{data.clipped_rows:,} rows, by column: {counts}.  Some of them, counted from 0:"
        yield Table("Rows clipped", first, ("row of the source, if known", "columns"), text)
    ordered = sorted(run.seconds.items(), key=lambda item: (item[0] == "total", item[0] != "prepare"))
    rows = [(phase, f"{seconds:,.2f} s") for phase, seconds in ordered]
    bare = (run.gram_to_syrk_ratio or 0.0) * run.seconds.get("equations", 0.0)  # seconds of the products alone
    if run.gram_to_syrk_ratio and run.gram_to_syrk_ratio <= 1 and bare >= LONG_SECONDS:
        rows.append(("rate of the pass over that of syrk alone", f"{run.gram_to_syrk_ratio:.2f}"))
    yield Table("Time", rows)
    seed = ("seed of the features", getattr(p.features, "seed", "none"))
    yield Table("Versions and seeds", [*report.versions.items(), seed, ("digest of the job", report.digest)])
