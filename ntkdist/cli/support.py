"""Shared parts of the commands: the group with its error handling, options, inputs and printed results."""

import signal
import sys
from dataclasses import asdict
from typing import Any

import click

import ntkdist as nd
from ntkdist.data import zarr_groups
from ntkdist.data.dataset import FORMAT
from ntkdist.ridge import run_directory, store
from ntkdist.ridge.fit_report import Curve, FitReport, MetricReport
from ntkdist.ridge.outputs import PredictionReport

IMPORTANT = 5  # columns whose importance is printed
scheduler_option = click.option("--scheduler", default="", metavar="ADDRESS", help="Dask scheduler to run on.")
WIDEST = 40  # columns that are shown after a conversion
set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set a key of the job: features.seed=1; repeatable."
)
TABLE_OPTIONS = (
    click.option("--sep", default="", metavar="C", help="What is between the columns of csv: a character, or tab."),
    click.option("--decimal", default=".", show_default=True, metavar="C", help="Decimal mark of csv; a comma may be."),
    click.option("--encoding", default="utf-8", show_default=True, help="Encoding of csv."),
    click.option("--no-header", is_flag=True, help="csv has no row of names: columns are column_1, column_2, …"),
    click.option("--missing", multiple=True, metavar="TEXT", help="Text that stands for a missing value; repeatable."),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def table_options(command: Any) -> Any:
    """Add the options that say how tables of text are written."""
    for option in reversed(TABLE_OPTIONS):
        command = option(command)
    return command


class CommandGroup(click.Group):
    """A group that prints errors as one line; --debug, before or after the command's name, shows the traceback."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command with the option --debug."""
        help_text = "Show tracebacks."
        cmd.params.append(click.Option(["--debug"], is_flag=True, expose_value=False, callback=_debug, help=help_text))
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; turn errors into one line and an exit code."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds: a started cluster is closed
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # click prints wrong usage and --help itself
        except KeyboardInterrupt:
            click.echo("ntkdist: stopped; outputs that were not finished are not there", err=True)
            ctx.exit(130)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            message = " ".join(str(error).split())
            if not isinstance(error, nd.NtkdistError):
                message = f"{type(error).__name__}: {message}; --debug shows where"
            click.echo(f"ntkdist: {message}", err=True)
            ctx.exit(3 if isinstance(error, nd.PlanTooLarge) else 1)


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.find_root().params["debug"] |= value


def print_result(value: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result as text or as one JSON object."""
    click.echo(run_directory.as_json(value) if as_json else text)


def print_fit(out: str, report: FitReport, as_json: bool, before: bool = False) -> None:
    """Print the summary of a fit, and whether it was complete ``before``, so that nothing was done."""
    summary = report.summary()
    lines = ["  ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in summary.items())]
    lines += [curve_text(report.curve)] if report.curve else []
    lines += [rounds_text(report.metric)] if report.metric and not report.metric.reused else []
    lines += [f"Note: {note}." for note in report.notes]
    lines += [f"{out} was complete already; nothing was done." if before else f"Written to {out}."]
    print_result(summary | {"out": out, "complete_before": before}, "\n".join(lines), as_json)


def load_equations(url: str) -> nd.Equations:
    """Load equations from their path or a run directory."""
    if run_directory.without_equations(url):
        raise nd.DataError(f"{url} has no equations: its solver kept no Gram; fit again, with other alphas or solver")
    loaded = store.load(zarr_groups.find(url, "equations.zarr"))
    if not isinstance(loaded, nd.Equations):
        raise nd.DataError(f"{url} holds a {type(loaded).__name__}; expected equations, or a run directory")
    return loaded


def load_model(url: str) -> nd.RidgeModel:
    """Load a model from its path or a run directory."""
    loaded = store.load(zarr_groups.find(url, "model.zarr"))
    if not isinstance(loaded, nd.RidgeModel):
        raise nd.DataError(f"{url} holds {type(loaded).__name__}; expected a model, or a run directory")
    return loaded


def print_predicted(out: str, report: PredictionReport, as_json: bool) -> None:
    """Print the path of predictions, the number of rows, and what was odd in them."""
    text = "\n".join([f"{out}: {report.rows:,} rows", *(f"Note: {note}." for note in report.notes())])
    print_result({"out": out} | asdict(report), text, as_json)


def print_written(out: str, as_json: bool) -> None:
    """Print the path of written rows, and the number of clipped ones."""
    _, attrs = zarr_groups.read_attributes(out, (FORMAT,))
    clipped, text = int(attrs["clipped_rows"]), out
    if clipped:
        text += f"\nNote: {clipped:,} rows had values outside the range that the model has seen, clipped to it."
    print_result({"out": out, "clipped_rows": clipped}, text, as_json)


def curve_text(curve: Curve) -> str:
    """Format the error by number of features."""
    points = zip(curve.m, curve.rmse, strict=True)
    return "rmse against features  " + "  ".join(f"{m:,}: {error:.4g}" for m, error in points)


def rounds_text(metric: MetricReport) -> str:
    """Format the error by round of a metric, and the columns that weigh most in it."""
    rounds = "  ".join(f"{i}: {one.rmse:.4g}{', kept' * one.kept}" for i, one in enumerate(metric.rounds))
    most = sorted(metric.importances.items(), key=lambda item: -item[1])[:IMPORTANT]
    return f"rmse by round of the metric  {rounds}\nimportances  " + "  ".join(f"{k}: {v:.1%}" for k, v in most)


def parse_numbers(text: str) -> list[float] | None:
    """Parse numbers separated by commas."""
    try:
        return [float(part) for part in text.split(",")] if text else None
    except ValueError:
        raise click.BadParameter(f"expected numbers with commas between, got {text!r}") from None
