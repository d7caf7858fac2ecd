"""A run as one HTML file: what was fitted on what, how well, what it cost, and how to do it again."""

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
from ntkdist.report import pictures
from ntkdist.report.held_out import edges_of, held_out
from ntkdist.report.largest_errors import HeldOut
from ntkdist.report.pictures import Picture
from ntkdist.ridge import run_directory
from ntkdist.ridge.prepare import sample
from ntkdist.solvers.cv_result import CVResult
from ntkdist.spec import decode
from ntkdist.sums.sample import SampleOf

F8 = NDArray[np.float64]
KERNEL_ROWS, KERNEL_SEED = 400, 2**31 - 2  # of the sample that kernels are compared on
IMAGE_WORK = 4e10  # operations that the exact kernel of images may take


def check() -> None:
    """Refuse to begin where nothing could be drawn.

    Raises
    ------
    NtkdistError
        If what draws is not installed.
    """
    if missing := [name for name in ("matplotlib", "tomli_w") if find_spec(name) is None]:
        raise NtkdistError(f'A report needs {" and ".join(missing)}; pip install "ntkdist[report]"')


def write(
    run: str,
    out: str = "",
    *,
    data: bool = True,
    client: Client | None = None,
    scheduler: str = "",
    watch: Watch | None = None,
) -> str:
    """Write the report of a complete run; returns where.

    With the data, one pass predicts every row by the model that has not seen its fold, and one draws a sample.

    Parameters
    ----------
    run : str
        Run directory.
    out : str
        By default ``report.html`` in the run directory; an earlier report is replaced.
    data : bool
        Whether to read the dataset again; without, what needs it is left out.
    client, scheduler, watch
        As in `fit`.

    Raises
    ------
    StoreError, DataError
        If the run is not complete, or its data are not what they were.
    """
    check()
    model, cv, report, equations = run_directory.read_run(run)
    p: Plan = decode(report["plan"], Plan, f"{run}/report.json")
    shown = [pictures.of_choice(cv, model.classes)] if cv else []
    if report.get("curve"):
        shown.append(pictures.of_curve(report["curve"], "cross-validated rmse"))
    found = None
    if data:
        with connect(p.job.cluster, scheduler, client) as client:
            p = msgspec.structs.replace(p, threads=resources(client).threads)
            if cv and equations:
                found = held_out(p, equations, cv, client=client, watch=watch)
                shown += pictures.of_held_out(found, equations, edges_of(equations))
            shown.append(_kernel(p, model.preprocessing, model.features, report, client, watch))
    shown += pictures.of_run(report["run"])
    out = out or storage.join(run, "report.html")
    storage.write_text(out, render(run, p, report, cv, found, model.preprocessing, shown))
    return out


def render(
    run: str,
    p: Plan,
    report: dict[str, Any],
    cv: CVResult | None,
    found: HeldOut | None,
    pre: Preprocessing,
    shown: list[Picture],
) -> str:
    """The page, from facts."""
    import jinja2
    import tomli_w

    template = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(
        files("ntkdist.report").joinpath("page.html").read_text("utf-8")
    )
    shape = " × ".join(map(str, p.layout.input_shape))
    target = f"{len(pre.classes)} classes" if pre.classes else f"{pre.t} target{'s' * (pre.t > 1)}"
    return template.render(
        title=f"{Path(run).name}: {type(p.features).__name__} on {Path(p.dataset.store).stem}",
        summary=(
            f"A ridge on {p.m:,} features, fitted to {report['data']['rows']:,} rows of {shape} with {target}, "
            f"{p.folds} folds, solver {type(p.solver).__name__}."
        ),
        finished=(
            f"Finished {report['finished']}; {report['run']['seconds']['total']:,.1f} s on "
            f"{report['run']['workers']} worker(s)."
        ),
        numbers=_numbers(report, cv, found, pre),
        notes=report["notes"],
        figures=shown,
        tables=[_worst(p, found, pre), _read(report), _seconds(report), _versions(p, report)],
        job=tomli_w.dumps(_without_none(msgspec.to_builtins(p.job))),
    )


def _kernel(
    p: Plan, pre: Preprocessing, features: AnyMap, report: dict[str, Any], client: Client | None, watch: Watch | None
) -> Picture:
    """The kernel of a sample of rows; of images, as few as the exact kernel's cost allows."""
    rows, shape = KERNEL_ROWS, p.layout.input_shape
    if isinstance(p.features, CNTKRandomFeatures | CNTKSketch):
        pair = (shape[0] * shape[1]) ** 2 * p.features.depth * p.features.filter_size**2
        rows = int(np.clip(np.sqrt(IMAGE_WORK / pair), 4, KERNEL_ROWS))
    summand = SampleOf(rows, KERNEL_SEED, pre, sparse=p.layout.sparse)
    x = sample(summand, source_of(p)._replace(block_rows=0), client, watch, "sample")
    exact = features.kernel(x)
    return pictures.of_kernel(exact, gram_of(features(x)), min(report["alpha_per_row"]))


def _numbers(
    report: dict[str, Any], cv: CVResult | None, found: HeldOut | None, pre: Preprocessing
) -> list[tuple[str, str]]:
    numbers = []
    if found is not None and pre.classes:
        summary = found.metrics.summary()
        accuracy, n = summary["accuracy"], summary["rows"]
        band = np.sqrt(accuracy * (1 - accuracy) / n)
        numbers.append((f"{accuracy:.2%} ± {100 * band:.2f}", "accuracy out of fold ± its standard error"))
    if cv is not None:
        band = cv.standard_error / (2 * cv.rmse) if cv.rmse else 0.0
        what = "rmse of one-hot scores" if pre.classes else "rmse"
        numbers += [
            (f"{cv.rmse:.4g} ± {band:.1g}", f"cross-validated {what} ± its standard error"),
            (f"{cv.r2:.3f}", "r²"),
        ]
    alphas = sorted(set(report["alpha_per_row"]))
    alpha = f"{alphas[0]:.2g}" + (f" – {alphas[-1]:.2g}" if len(alphas) > 1 else "")
    return [*numbers, (alpha, "alpha per row"), (f"{report['run']['rows_per_second']:,.0f}", "rows a second")]


def _table(title: str, rows: list[tuple[Any, ...]], head: tuple[str, ...] = (), text: str = "") -> dict[str, Any]:
    return {"title": title, "rows": rows, "head": head, "text": text}


def _worst(p: Plan, found: HeldOut | None, pre: Preprocessing) -> dict[str, Any]:
    """The rows that are furthest off, by their place in the source where that is known."""
    if found is None:
        return _table("Largest residuals", [("not looked at: they need the data, folds and equations",)])
    source = "row" in p.dataset.others()
    rows = []
    for error, place, y, guess in zip(*found.off, strict=True):
        row = p.dataset.column(p.layout, "row", int(place), int(place) + 1)[0] if source else place
        said = (pre.classes[int(y)], pre.classes[int(guess)]) if pre.classes else (f"{y:.6g}", f"{guess:.6g}")
        rows.append((f"{row:,}", *said, f"{error:.4g}"))
    head = ("row of the source" if source else "row", "true", "predicted out of fold", "wrong by")
    text = "How far the wrong class's score leads." if pre.classes else ""
    return _table("Largest residuals", rows, head, text)


def _read(report: dict[str, Any]) -> dict[str, Any]:
    data, run = report["data"], report["run"]
    plan = report["plan"]
    rows = [
        ("dataset", data["store"]),
        ("fingerprint", plan["layout"]["fingerprint"]),
        ("rows added", f"{data['rows']:,} of {plan['layout']['rows']:,}"),
        ("rows dropped for NaN or Inf", f"{data['dropped_rows']:,}"),
        ("rows clipped to the range reused", f"{data.get('clipped_rows', 0):,}"),
        ("read and verified by checksum", f"{run['bytes_read'] / 1e6:,.1f} MB, {run['read_share']:.1%} of the pass"),
        ("weight of each fold", ", ".join(f"{w:,.6g}" for w in data["fold_weights"])),
    ]
    return _table("What was read", rows)


def _seconds(report: dict[str, Any]) -> dict[str, Any]:
    run = report["run"]
    rows = [(phase, f"{seconds:,.2f} s") for phase, seconds in run["seconds"].items()]
    if "gram_to_syrk_ratio" in run:
        rows.append(("rate of the pass beside bare syrk", f"{run['gram_to_syrk_ratio']:.2f}"))
    return _table("Time", rows)


def _versions(p: Plan, report: dict[str, Any]) -> dict[str, Any]:
    seeds = [("seed of the features", getattr(p.features, "seed", "none"))]
    return _table("Versions and seeds", [*report["versions"].items(), *seeds, ("digest of the job", report["digest"])])


def _without_none(value: Any) -> Any:
    """TOML has no null: what is absent is left out."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value
