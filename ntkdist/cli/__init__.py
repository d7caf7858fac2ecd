"""The command line: arguments, printed results and exit codes of the public functions.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a plan that does not fit, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

import ntkdist as nd
from ntkdist import demo, report
from ntkdist.cli import init
from ntkdist.cli.support import (
    WIDEST,
    CommandGroup,
    curve_text,
    json_option,
    load_equations,
    load_model,
    parse_numbers,
    print_fit,
    print_predicted,
    print_result,
    print_written,
    scheduler_option,
    set_option,
    table_options,
)
from ntkdist.cluster import preflight
from ntkdist.cluster.connect import connect
from ntkdist.data import storage, zarr_groups
from ntkdist.data.source_files import is_raw
from ntkdist.display import aligned
from ntkdist.planning import estimate, resolve
from ntkdist.report import comparison_plots
from ntkdist.ridge import prefix_curve, run_directory
from ntkdist.ridge.fit_report import FitReport


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ntkdist")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:
    """Fit neural tangent kernel ridge regression on data larger than memory."""


@main.command("demo")
@click.option("--out", default="ntkdist-demo", show_default=True, help="Directory for all outputs.")
@click.option("--workers", default=2, show_default=True, help="Worker processes of the local cluster.")
def demo_(out: str, workers: int) -> None:
    """Run an example on real data, from raw table to model."""
    demo.run(out, workers)


@main.command("init")
@click.argument("source")
@click.option("--target", multiple=True, metavar="NAME", help="Target column; repeatable.")
@click.option("--classes", is_flag=True, help="Integer targets are class labels.")
@click.option("--out", default="", metavar="FILE", help="Job file; default: the source's name with .toml.")
@json_option
def init_(source: str, target: tuple[str, ...], classes: bool, out: str, as_json: bool) -> None:
    """Write a commented job for a table (a file, a directory, a pattern), or for a dataset."""
    out = out or f"{Path(source).name.split('.')[0]}.toml"
    job = init.start(source, target, classes, out)
    init.write(job, out)
    value = {"job": out, "task": job.task, "commands": job.commands, "columns": job.columns, "notes": job.notes}
    print_result(value, "\n".join([job.summary, *job.notes, f"Written to {out}.  Next:", *job.commands]), as_json)


@main.command()
@click.argument("source")
@click.argument("dest")
@click.option("--target", multiple=True, metavar="NAME", help="Target column, array or file; repeatable.")
@click.option("--x", "x", default="x", show_default=True, help="Input array of an .npz or a Zarr group.")
@click.option("--classes", is_flag=True, help="Integer targets are class labels.")
@click.option("--weight", default="", metavar="NAME", help="Column, array or file of sample weights.")
@click.option("--groups", default="", metavar="NAME", help="Column, array or file of groups, kept in one fold.")
@click.option("--holdout", default="", metavar="NAME", help="Column, array or file: 1 for rows to choose alpha on.")
@click.option("--drop", multiple=True, metavar="NAME", help="Column to leave out; repeatable.")
@click.option("--category", multiple=True, metavar="NAME", help="Column of integers that are categories; repeatable.")
@click.option("--rows-per-partition", type=click.IntRange(1), metavar="N", help="Rows per partition.")
@click.option("--shuffle-seed", default="0", show_default=True, metavar="S", help="A number, or none: keep the order.")
@click.option("--channels-first", is_flag=True, help="Images are (rows, channels, height, width).")
@click.option("--size", default="", metavar="WIDTHxHEIGHT", help="Resize PNG, JPEG and the like; predict repeats it.")
@click.option("--mode", default="", type=click.Choice(["", "gray", "rgb"]), metavar="gray|rgb", help="Make images so.")
@table_options
@json_option
def convert(source: str, dest: str, shuffle_seed: str, no_header: bool, as_json: bool, **options: Any) -> None:
    """Convert tables, arrays or images to a Zarr dataset; show what each column became.

    SOURCE is a file or an object: csv, tsv or JSON lines (also .gz), Parquet, Feather, npz, npy, IDX; a directory of
    tables, or of images (PNG, JPEG, …) with a folder for each class; a pattern in quotes such as
    's3://bucket/t/*.parquet'; or a Zarr group of others.
    """
    if shuffle_seed != "none" and not shuffle_seed.isdigit():
        raise click.BadParameter(f"expected a number or none, got {shuffle_seed!r}", param_hint="--shuffle-seed")
    seed = None if shuffle_seed == "none" else int(shuffle_seed)
    layout = nd.convert(source, dest, shuffle_seed=seed, header=not no_header, **options)
    shape = " x ".join(map(str, layout.input_shape))
    target = f"{len(layout.classes)} classes" if layout.classes else f"{max(layout.targets, 1)} target(s)"
    text = (
        f"{dest}: {layout.rows:,} rows of {shape} {layout.x_dtype}, {target if layout.labelled else 'no target'}, "
        f"{layout.partitions} partitions of {layout.rows_per_partition:,} rows"
    )
    found = nd.columns(dest)
    shown = {"out": dest, "partitions": layout.partitions} | msgspec.to_builtins(layout)
    print_result(shown | {"found": msgspec.to_builtins(found)}, f"{text}\n{found.table(WIDEST)}", as_json)


@main.command()
@click.argument("dataset")
@json_option
def columns(dataset: str, as_json: bool) -> None:
    """Show what each column of a dataset holds: kind, range or names, missing values."""
    found = nd.columns(dataset)
    print_result(msgspec.to_builtins(found), str(found), as_json)


@main.command()
@click.argument("job")
@set_option
@scheduler_option
@click.option("--price", type=click.FloatRange(0), default=0.0, metavar="P", help="Price of one worker node per hour.")
@json_option
def plan(job: str, settings: tuple[str, ...], scheduler: str, price: float, as_json: bool) -> None:
    """Show the plan, memory and cost of a job without running it."""
    read = nd.Job.read(job, settings=settings)
    with connect(read.cluster, scheduler) as client:
        resolved, available, cost = estimate.planned(read, client, price)
    print_result(cost, estimate.table(resolved, available, cost), as_json)
    resolve.check(resolved, available)


@main.command()
@click.argument("job", default="")
@scheduler_option
@json_option
def workers(job: str, scheduler: str, as_json: bool) -> None:
    """Show the workers of a cluster: of a job, of an address, or of the environment."""
    with connect(nd.Job.read(job).cluster if job else None, scheduler, check=False) as client:
        rows = preflight.rows(client)
        print_result({"workers": [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]}, aligned(rows), as_json)
        if client is not None:
            preflight.check(client)


@main.command()
@click.argument("job")
@set_option
@scheduler_option
@click.option("--out", default="", help="Run directory; default: the job's name with -run.")
@click.option("--resume", is_flag=True, help="Fail unless there is an interrupted run to resume.")
@click.option("--detach", is_flag=True, help="Submit the fit to a running cluster and return.")
@click.option("--performance-report", is_flag=True, help="Write Dask's performance report to performance.html.")
@json_option
def fit(
    job: str,
    settings: tuple[str, ...],
    scheduler: str,
    out: str,
    resume: bool,
    detach: bool,
    performance_report: bool,
    as_json: bool,
) -> None:
    """Fit a job; write model, equations and report to a run directory."""
    out = out or f"{Path(job).stem}-run"
    read = nd.Job.read(job, settings=settings)
    if detach:
        if performance_report:
            raise click.UsageError("--performance-report is for a fit that is waited for; leave out --detach")
        run = nd.submit(read, out, scheduler=scheduler)
        print_result({"out": run}, run, as_json)
        return
    before = run_directory.is_complete(out)
    try:
        result = nd.fit(read, out=out, resume=resume, scheduler=scheduler, performance_report=performance_report)
    except KeyboardInterrupt:
        left = f"the same command goes on from what {out} holds" if storage.exists(out) else "nothing was finished yet"
        click.echo(f"ntkdist: stopped; {left}", err=True)
        sys.exit(130)
    print_fit(out, msgspec.convert(result.report, FitReport), as_json, before)


@main.command()
@click.argument("run")
@json_option
def status(run: str, as_json: bool) -> None:
    """Show the progress of a detached run."""
    state = nd.status(run)
    print_result(msgspec.to_builtins(state), str(state), as_json)


@main.command()
@click.argument("run")
@json_option
def attach(run: str, as_json: bool) -> None:
    """Follow a detached run until it ends; Ctrl-C does not stop the run."""
    state = nd.attach(run)
    if state.state != "done":
        raise nd.NtkdistError(f"{run}: {state}")
    print_fit(run, run_directory.read_run(run)[2], as_json)


@main.command()
@click.argument("run")
@json_option
def cancel(run: str, as_json: bool) -> None:
    """Cancel a detached run; finished shards are kept, and the same fit resumes from them."""
    nd.cancel(run)
    print_result({"out": run, "cancelled": True}, f"{run} will end with the next shard", as_json)


@main.command()
@click.argument("equations", nargs=-1, required=True, metavar="EQUATIONS [+|- EQUATIONS]...")
@click.option("--alphas", default="", metavar="A,B,...", help="Penalties to choose from.")
@click.option("--alphas-per-row", default="", metavar="A,B,...", help="Penalties per unit of weight.")
@click.option("--out", default="", help="Path of the saved model.")
@click.option("--keep-factor", is_flag=True, help="Save the factor too, for standard deviations of predictions.")
@json_option
def solve(
    equations: tuple[str, ...], alphas: str, alphas_per_row: str, out: str, keep_factor: bool, as_json: bool
) -> None:
    """Choose a penalty and solve saved equations, without the data: of one run, or A + B - C of several."""
    grid = {"alphas": parse_numbers(alphas) or "auto", "alphas_per_row": parse_numbers(alphas_per_row)}
    signs = equations[1::2]
    if len(equations) % 2 == 0 or set(signs) - {"+", "-"}:
        raise click.UsageError(f"expected EQUATIONS, or several with + or - between, got: {' '.join(equations)}")
    loaded = load_equations(equations[0])
    for sign, each in zip(signs, equations[2::2], strict=True):
        loaded = loaded + load_equations(each) if sign == "+" else loaded - load_equations(each)
    if out:
        zarr_groups.refuse_existing(out)
    model, cv = nd.solve(loaded, keep_factor=keep_factor, **grid)  # type: ignore[arg-type]
    curve = prefix_curve.curve_of(loaded, cv)
    if out:
        nd.save(model, out)
    scores = {} if cv is None else {"cv_rmse": cv.rmse, "cv_r2": cv.r2, "note": cv.note}
    result = {"alpha": model.alpha.tolist()} | scores
    lines = [", ".join(f"{k} {v}" for k, v in result.items() if v), *([curve_text(curve)] if curve else [])]
    print_result(result | ({"curve": curve} if curve else {}), "\n".join(lines), as_json)


@main.command()
@click.argument("run")
@click.argument("out")
@click.option("--keep-factor", is_flag=True, help="Add the factor, for standard deviations of predictions.")
@scheduler_option
def calibrate(run: str, out: str, keep_factor: bool, scheduler: str) -> None:
    """Write a run's model with what intervals and calibrated probabilities need, by one pass over its dataset."""
    zarr_groups.refuse_existing(out)
    nd.save(nd.calibrate(run, keep_factor=keep_factor, scheduler=scheduler), out)
    click.echo(out)


@main.command()
@click.argument("model")
@click.argument("rows")
@click.argument("out")
@click.option("--keep", default="", metavar="NAME,...", help="Columns to copy to a csv or parquet file.")
@click.option("--std", is_flag=True, help="Add standard deviations.")
@click.option("--proba", is_flag=True, help="Add the probability of each class.")
@click.option("--interval", type=float, default=0.0, metavar="COVERAGE", help="Add low and high ends, such as of 0.9.")
@table_options
@scheduler_option
@json_option
def predict(
    model: str,
    rows: str,
    out: str,
    keep: str,
    std: bool,
    proba: bool,
    interval: float,
    scheduler: str,
    no_header: bool,
    as_json: bool,
    **form: Any,
) -> None:
    """Predict every row of a table as it is (a file, a directory, a pattern), or of a dataset, in the source's order.

    Of images in files, OUT has the column file, their names.  OUT ends in .csv, .parquet or .zarr.
    """
    names = [name for name in keep.split(",") if name]
    wanted: Any = {"keep": names, "std": std, "proba": proba, "interval": interval}
    if form["sep"] or is_raw(rows):
        report = nd.predict_table(load_model(model), rows, out, header=not no_header, **wanted, **form)
    else:
        report = nd.predict(load_model(model), rows, out, scheduler=scheduler, **wanted)
    print_predicted(out, report, as_json)


@main.command()
@click.argument("model")
@click.argument("dataset")
@scheduler_option
@json_option
def evaluate(model: str, dataset: str, scheduler: str, as_json: bool) -> None:
    """Compute a model's errors on a labelled dataset."""
    errors = nd.evaluate(load_model(model), dataset, scheduler=scheduler)
    print_result(errors, "  ".join(f"{k} {v:.6g}" for k, v in errors.items()), as_json)


@main.command()
@click.argument("job")
@click.argument("out")
@set_option
@scheduler_option
@json_option
def featurize(job: str, out: str, settings: tuple[str, ...], scheduler: str, as_json: bool) -> None:
    """Compute the features of a job's dataset; write them to a new dataset."""
    read = nd.Job.read(job, settings=settings)
    with connect(read.cluster, scheduler) as client:
        nd.featurize(read.dataset, read.map, out, preprocess=read.preprocess, dtype=read.plan.dtype, client=client)
    print_written(out, as_json)


@main.command()
@click.argument("dataset")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB.toml...")
@click.option("--test", default="", metavar="DATASET", help="Labelled rows to evaluate on.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Draws of each feature map.")
@click.option("--components", default="", metavar="M,M,...", help="Numbers of components to fit every job with.")
@click.option("--sample", type=click.IntRange(1), default=1000, show_default=True, help="Rows to compare kernels on.")
@click.option(
    "--exact-rows",
    type=click.IntRange(0),
    default=10_000,
    show_default=True,
    help="Skip exact kernel ridge above this many rows.",
)
@click.option("--out", default="", metavar="DIR", help="Directory for compare.md, compare.json and plots.")
@click.option("--no-baselines", is_flag=True, help="Leave out the baseline models.")
@set_option
@scheduler_option
@json_option
def compare(
    dataset: str,
    jobs: tuple[str, ...],
    components: str,
    out: str,
    no_baselines: bool,
    settings: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Compare jobs on a dataset: kernel error, prediction error and seconds."""
    if out:
        zarr_groups.refuse_existing(out)
        comparison_plots.check()
    counts = components.replace(" ", "").split(",") if components else []
    if not all(m.isdigit() and int(m) for m in counts):
        raise click.BadParameter(f"expected whole numbers from 1 on, got {components!r}", param_hint="--components")
    comparison = nd.compare(
        dataset,
        [nd.Job.read(path, dataset, settings) for path in jobs],
        names=[Path(path).stem for path in jobs],
        components=[int(m) for m in counts],
        baselines=not no_baselines,
        **options,
    )
    if out:
        comparison_plots.write(comparison, out)
    print_result(comparison.to_dict(), comparison.to_text() + (f"\n\nWritten to {out}." if out else ""), as_json)


@main.command("report")
@click.argument("run")
@click.option("--out", default="", metavar="FILE", help="Output file; default: report.html in the run directory.")
@click.option("--no-data", is_flag=True, help="Do not read the dataset; omit the parts that need it.")
@click.option("--unit", default="", metavar="TEXT", help="Unit of the target, such as EUR.")
@click.option("--trees", is_flag=True, help="Fit boosted trees to the same folds too.")
@scheduler_option
@json_option
def report_(run: str, out: str, no_data: bool, unit: str, trees: bool, scheduler: str, as_json: bool) -> None:
    """Write a run's report: one HTML file with its plots."""
    written = report.write(run, out, data=not no_data, unit=unit, trees=trees, scheduler=scheduler)
    print_result({"out": written}, written, as_json)
