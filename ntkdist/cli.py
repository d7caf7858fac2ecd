"""The command line: a face over the verbs, with no mathematics in it.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a plan that does not fit, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

import signal
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

import ntkdist as nd
from ntkdist import demo, report
from ntkdist.cluster import preflight
from ntkdist.cluster.connect import connect
from ntkdist.data import storage, zarr_groups
from ntkdist.data.dataset import FORMAT
from ntkdist.planning import estimate, resolve
from ntkdist.report import comparison_plots
from ntkdist.ridge import detach as detached
from ntkdist.ridge import prefix_curve, run_directory
from ntkdist.ridge.predict import PREDICTIONS


class _Command(click.Group):
    """Errors as one line on standard error; a traceback only with --debug, before or after the command's name."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        cmd.params.append(
            click.Option(["--debug"], is_flag=True, expose_value=False, callback=_debug, help="Show tracebacks.")
        )
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds: a cluster that was started ends
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # wrong usage and --help have click's own answers
        except KeyboardInterrupt:
            click.echo("ntkdist: stopped; outputs that were not finished are not there", err=True)
            ctx.exit(130)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            said = " ".join(str(error).split())
            if not isinstance(error, nd.NtkdistError):
                said = f"{type(error).__name__}: {said}; --debug shows where"
            click.echo(f"ntkdist: {said}", err=True)
            ctx.exit(3 if isinstance(error, nd.PlanTooLarge) else 1)


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.find_root().params["debug"] |= value


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ntkdist")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:
    """Neural tangent kernels on data that nobody else can load."""


scheduler_option = click.option("--scheduler", default="", metavar="ADDRESS", help="Dask scheduler to run on.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@main.command("demo")
@click.option("--out", default="ntkdist-demo", show_default=True, help="Directory for everything that it makes.")
@click.option("--workers", default=2, show_default=True, help="Worker processes of the local cluster.")
def demo_(out: str, workers: int) -> None:
    """Run the main job on real data, from raw table to model."""
    demo.run(out, workers)


@main.command()
@click.argument("source")
@click.argument("dest")
@click.option("--target", multiple=True, metavar="NAME", help="Target column, array or file; may be repeated.")
@click.option("--x", "x", default="x", show_default=True, help="Input array of an .npz.")
@click.option("--classes", is_flag=True, help="Integer targets are class labels.")
@click.option("--weight", default="", metavar="NAME", help="Column, array or file of sample weights.")
@click.option("--groups", default="", metavar="NAME", help="Column, array or file of what keeps rows in one fold.")
@click.option("--holdout", default="", metavar="NAME", help="Column, array or file of 1 for rows to choose alpha by.")
@click.option("--drop", multiple=True, metavar="NAME", help="Column to leave out; may be repeated.")
@click.option("--rows-per-partition", type=click.IntRange(1), metavar="N")
@click.option("--shuffle-seed", default="0", show_default=True, metavar="S", help="A number, or none to keep order.")
def convert(source: str, dest: str, shuffle_seed: str, **options: Any) -> None:
    """Turn npz, npy, csv, parquet or IDX into a dataset in Zarr."""
    if shuffle_seed != "none" and not shuffle_seed.isdigit():
        raise click.BadParameter(f"expected a number or none, got {shuffle_seed!r}", param_hint="--shuffle-seed")
    seed = None if shuffle_seed == "none" else int(shuffle_seed)
    layout = nd.convert(source, dest, shuffle_seed=seed, **options)
    shape = " x ".join(map(str, layout.input_shape))
    target = f"{len(layout.classes)} classes" if layout.classes else f"{max(layout.targets, 1)} target(s)"
    click.echo(
        f"{dest}: {layout.rows:,} rows of {shape} {layout.x_dtype}, {target if layout.labelled else 'no target'}, "
        f"{layout.partitions} partitions of {layout.rows_per_partition:,} rows"
    )


@main.command()
@click.argument("job")
@scheduler_option
@click.option("--price", type=click.FloatRange(0), default=0.0, metavar="P", help="Of a worker's node for an hour.")
@json_option
def plan(job: str, scheduler: str, price: float, as_json: bool) -> None:
    """Say what a job will cost, without running it."""
    read = nd.Job.read(job)
    with connect(read.cluster, scheduler) as client:
        resolved, found, cost = estimate.planned(read, client, price)
    if as_json:
        click.echo(run_directory.as_json(cost))
    else:
        click.echo(estimate.table(resolved, found, cost))
    resolve.check(resolved, found)


@main.command()
@click.argument("job", default="")
@scheduler_option
def workers(job: str, scheduler: str) -> None:
    """Show what a cluster's workers are: that of a job, an address, or the environment."""
    with connect(nd.Job.read(job).cluster if job else None, scheduler, check=False) as client:
        click.echo(preflight.table(client))
        if client is not None:
            preflight.check(client)


@main.command()
@click.argument("job")
@scheduler_option
@click.option("--out", default="", help="Run directory; by default the job's name with -run.")
@click.option("--resume", is_flag=True, help="Insist on going on from a run that was cut off (a plain rerun does too).")
@click.option("--detach", is_flag=True, help="Leave the fit to a cluster that goes on without this command.")
@click.option("--performance-report", is_flag=True, help="Write Dask's view of the cluster to performance.html.")
@json_option
def fit(
    job: str, scheduler: str, out: str, resume: bool, detach: bool, performance_report: bool, as_json: bool
) -> None:
    """Fit a job; writes model, equations and report to a run directory."""
    out = out or f"{Path(job).stem}-run"
    if detach:
        if performance_report:
            raise click.UsageError("--performance-report is for a fit that is waited for; leave out --detach")
        run = nd.submit(nd.Job.read(job), out, scheduler=scheduler)
        click.echo(run_directory.as_json({"out": run}) if as_json else run)
        return
    try:
        read = nd.Job.read(job)
        result = nd.fit(read, out=out, resume=resume, scheduler=scheduler, performance_report=performance_report)
    except KeyboardInterrupt:
        left = f"the same command goes on from what {out} holds" if storage.exists(out) else "nothing was finished yet"
        click.echo(f"ntkdist: stopped; {left}", err=True)
        sys.exit(130)
    _fitted(out, result.report, as_json)


def _fitted(out: str, report: dict[str, Any], as_json: bool) -> None:
    found = run_directory.summary(report)
    if as_json:
        click.echo(run_directory.as_json(found | {"out": out}))
        return
    click.echo("  ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()))
    if curve := report.get("curve"):
        click.echo(_curve(curve))
    for note in report["notes"]:
        click.echo(f"Note: {note}.")
    click.echo(f"Written to {out}.")


@main.command()
@click.argument("run")
@json_option
def status(run: str, as_json: bool) -> None:
    """Say how far a detached run is."""
    at = detached.status(run)
    click.echo(run_directory.as_json(msgspec.to_builtins(at)) if as_json else str(at))


@main.command()
@click.argument("run")
@json_option
def attach(run: str, as_json: bool) -> None:
    """Show the progress of a detached run until it is over; Ctrl-C leaves the run alone."""
    at = detached.attach(run)
    if at.state != "done":
        raise nd.NtkdistError(f"{run}: {at}")
    _fitted(run, run_directory.read_run(run)[2], as_json)


@main.command()
@click.argument("run")
def cancel(run: str) -> None:
    """End a detached run; what it finished is kept, and the same fit goes on from it."""
    detached.cancel(run)
    click.echo(f"{run} will end with the next shard")


@main.command()
@click.argument("equations", nargs=-1, required=True, metavar="EQUATIONS [+|- EQUATIONS]...")
@click.option("--alphas", default="", metavar="A,B,...", help="Penalties to choose from.")
@click.option("--alphas-per-row", default="", metavar="A,B,...", help="Penalties per unit of weight.")
@click.option("--out", default="", help="Where to save the model.")
@click.option("--keep-factor", is_flag=True, help="Save with it what standard deviations of predictions need.")
@json_option
def solve(
    equations: tuple[str, ...], alphas: str, alphas_per_row: str, out: str, keep_factor: bool, as_json: bool
) -> None:
    """Choose a penalty and solve again from saved equations, without the data: of one run, or A + B - C of several."""
    grid = {"alphas": _numbers(alphas) or "auto", "alphas_per_row": _numbers(alphas_per_row)}
    signs = equations[1::2]
    if len(equations) % 2 == 0 or set(signs) - {"+", "-"}:
        raise click.UsageError(f"expected EQUATIONS, or several with + or - between, got: {' '.join(equations)}")
    loaded = _equations(equations[0])
    for sign, each in zip(signs, equations[2::2], strict=True):
        loaded = loaded + _equations(each) if sign == "+" else loaded - _equations(each)
    if out:
        zarr_groups.refuse_existing(out)
    model, cv = nd.solve(loaded, keep_factor=keep_factor, **grid)  # type: ignore[arg-type]
    curve = prefix_curve.curve_of(loaded, cv)
    if out:
        nd.save(model, out)
    found = {"alpha": model.alpha.tolist()}
    if cv is not None:
        found |= {"cv_rmse": cv.rmse, "cv_r2": cv.r2, "note": cv.note}
    text = ", ".join(f"{k} {v}" for k, v in found.items() if v)
    if curve:
        text = f"{text}\n{_curve(curve)}"
        found |= {"curve": curve}
    click.echo(run_directory.as_json(found) if as_json else text)


@main.command()
@click.argument("model")
@click.argument("dataset")
@click.argument("out")
@scheduler_option
def predict(model: str, dataset: str, out: str, scheduler: str) -> None:
    """Write predictions for every row of a dataset, in the order of its source."""
    nd.predict(_model(model), dataset, out, scheduler=scheduler)
    _written(out)


@main.command()
@click.argument("model")
@click.argument("dataset")
@scheduler_option
@json_option
def evaluate(model: str, dataset: str, scheduler: str, as_json: bool) -> None:
    """Measure a model's errors on a labelled dataset."""
    found = nd.evaluate(_model(model), dataset, scheduler=scheduler)
    click.echo(run_directory.as_json(found) if as_json else "  ".join(f"{k} {v:.6g}" for k, v in found.items()))


@main.command()
@click.argument("job")
@click.argument("out")
@scheduler_option
def featurize(job: str, out: str, scheduler: str) -> None:
    """Write the features of a job's dataset to a new dataset."""
    read = nd.Job.read(job)
    with connect(read.cluster, scheduler) as client:
        nd.featurize(read.dataset, read.features, out, preprocess=read.preprocess, dtype=read.plan.dtype, client=client)
    _written(out)


@main.command()
@click.argument("dataset")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB.toml...")
@click.option("--test", default="", metavar="DATASET", help="Labelled rows to evaluate on.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Redraws of every map.")
@click.option("--components", default="", metavar="M,M,...", help="Components to fit every job with, for curves.")
@click.option("--sample", type=click.IntRange(1), default=1000, show_default=True, help="Rows to compare kernels on.")
@click.option("--exact-rows", type=click.IntRange(0), default=10_000, show_default=True, help="Most for exact ridge.")
@click.option("--out", default="", metavar="DIR", help="Where to write compare.md, compare.json and plots.")
@click.option("--no-baselines", is_flag=True, help="Leave out the yardsticks.")
@scheduler_option
@json_option
def compare(
    dataset: str, jobs: tuple[str, ...], components: str, out: str, no_baselines: bool, as_json: bool, **options: Any
) -> None:
    """Compare jobs on a dataset: errors against the exact kernel, errors of prediction, and seconds."""
    if out:
        zarr_groups.refuse_existing(out)
        comparison_plots.check()
    counts = components.replace(" ", "").split(",") if components else []
    if not all(m.isdigit() and int(m) for m in counts):
        raise click.BadParameter(f"expected whole numbers from 1 on, got {components!r}", param_hint="--components")
    found = nd.compare(
        dataset,
        [nd.Job.read(path, dataset) for path in jobs],
        names=[Path(path).stem for path in jobs],
        components=[int(m) for m in counts],
        baselines=not no_baselines,
        **options,
    )
    if out:
        comparison_plots.write(found, out)
    click.echo(run_directory.as_json(found.to_dict()) if as_json else found.to_text())
    if out and not as_json:
        click.echo(f"\nWritten to {out}.")


@main.command("report")
@click.argument("run")
@click.option("--out", default="", metavar="FILE", help="Where to write; report.html in the run directory by default.")
@click.option("--no-data", is_flag=True, help="Do not read the dataset again; leaves out what needs it.")
@scheduler_option
def report_(run: str, out: str, no_data: bool, scheduler: str) -> None:
    """Write a run's report: one HTML file with its plots."""
    click.echo(report.write(run, out, data=not no_data, scheduler=scheduler))


def _equations(url: str) -> nd.Equations:
    if run_directory.without_equations(url):
        raise nd.DataError(f"{url} has no equations: its solver kept no Gram; fit again, with other alphas or solver")
    loaded = nd.load(zarr_groups.find(url, "equations.zarr"))
    if not isinstance(loaded, nd.Equations):
        raise nd.DataError(f"{url} holds a {type(loaded).__name__}; expected equations, or a run directory")
    return loaded


def _model(url: str) -> nd.RidgeModel:
    loaded = nd.load(zarr_groups.find(url, "model.zarr"))
    if not isinstance(loaded, nd.RidgeModel):
        raise nd.DataError(f"{url} holds {type(loaded).__name__}; expected a model, or a run directory")
    return loaded


def _written(out: str) -> None:
    """Say where rows were written, and if some were clipped."""
    click.echo(out)
    _, attrs = zarr_groups.read_attributes(out, (PREDICTIONS, FORMAT))
    if clipped := attrs["clipped_rows"]:
        click.echo(f"Note: {clipped:,} rows had values outside the range that the model has seen, clipped to it.")


def _curve(curve: dict[str, Any]) -> str:
    points = zip(curve["m"], curve["rmse"], strict=True)
    return "rmse against features  " + "  ".join(f"{m:,}: {error:.4g}" for m, error in points)


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")] if text else None
    except ValueError:
        raise click.BadParameter(f"expected numbers with commas between, got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
