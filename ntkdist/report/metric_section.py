"""The section of a page on a learned metric: its rounds, the columns and the directions that weigh most in it."""

from collections.abc import Iterator

from ntkdist.report import pictures
from ntkdist.report.parts import Section, Table
from ntkdist.ridge.fit_report import MetricReport

NO_BREAK = "\N{NO-BREAK SPACE}"
SMALLEST = 0.005  # weight of a column in a direction that is shown
ENDED = {
    "rounds": "all rounds that were asked for were done",
    "gain": "the last gained less than a thousandth",
    "gradients": "the gradients do not vary, as those of a linear function",
}


def section(metric: MetricReport) -> Section:
    """Return the section on a metric."""
    shape = "matrix" if metric.form == "full" else "factor for every column"
    text = f"A {shape} that scaled inputs are multiplied by, learned from the gradients of small fits in rounds."
    if not metric.directions:
        text += " No round lowered the error, so round 0 was kept, where all columns weigh the same."
    if metric.reused:
        text += f" It is that of {metric.reused}."
    figures = [pictures.of_importances(metric.importances)] if metric.directions else []
    return Section("Metric", text, figures, list(_tables(metric)))


def _tables(metric: MetricReport) -> Iterator[Table]:
    rounds = [
        (f"{i},{NO_BREAK}kept" if one.kept else i, f"{one.scale:g}", f"{one.rmse:.4g}", f"{one.alpha_per_row:.2g}")
        for i, one in enumerate(metric.rounds)
    ]
    if rounds:
        fits = f" of fits on {metric.n_components:,} features" if metric.n_components else ""
        text = f"The error{fits} on rows that no gradient has seen, at the best length of a row; round 0 has no metric."
        if metric.ended:
            text += f" The rounds ended because {ENDED[metric.ended]}."
        if (kept := metric.rounds[metric.best]).last_rmse is not None:
            text += f" With the features of the fit, rows {kept.stretch:.3g} times as long have the least error, "
            text += f"{kept.last_rmse:.4g} on some of the rows."
        yield Table("Rounds", rounds, ("round", "length", "rmse held out", "alpha per row"), text)
    if metric.directions:
        text = "Combinations of scaled columns along which the function changes most."
        rows = [(f"{one.share:.1%}", _combination(one.columns)) for one in metric.directions]
        yield Table("Leading directions", rows, ("share", "largest columns"), text)


def _combination(columns: dict[str, float]) -> str:
    """Write a sum of columns with their weights, less those of 0.00; a line does not break a term."""
    shown = {name: weight for name, weight in columns.items() if abs(weight) >= SMALLEST}
    terms = (f"{'−' if weight < 0 else '+'} {abs(weight):.2f} {name}" for name, weight in shown.items())
    return " ".join(term.replace(" ", NO_BREAK) for term in terms).removeprefix(f"+{NO_BREAK}")
