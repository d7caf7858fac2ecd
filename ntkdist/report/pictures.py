"""The plots of a report, each with its caption."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from ntkdist.kernels.error import SpectralError, frobenius_error
from ntkdist.report import figures
from ntkdist.report.out_of_fold import ERROR_BINS, ERROR_SPAN, OutOfFold
from ntkdist.ridge.fit_report import Curve, RunReport
from ntkdist.ridge.model import Equations
from ntkdist.solvers.cv_result import CVResult

F8 = NDArray[np.float64]


class Picture(NamedTuple):
    """A plot and its caption."""

    name: str
    title: str
    text: str
    svg: str


def picture(name: str, title: str, text: str, draw: Callable[..., None], *arguments: Any) -> Picture:
    """Draw a plot and add its caption."""
    return Picture(name, title, text, figures.svg(name, lambda axes: draw(axes, *arguments)))


def of_choice(cv: CVResult, classes: tuple[str, ...]) -> Picture:
    """Draw the errors of all penalties."""
    folds, mean = (np.sqrt(np.maximum(mse, 0.0)) for mse in (cv.mse.mean(axis=2), cv.path.mean(axis=1)))
    unit = "alpha, per unit of weight" if cv.per_row else "alpha"
    label = "cross-validated rmse" + (" of one-hot scores" if classes else "")
    text = f"{len(cv.alphas)} penalties; thin lines are the {folds.shape[1]} folds."
    return picture(
        "alpha", "The penalty", text, figures.alpha_path, cv.alphas, folds, mean, int(cv.best[0]), unit, label
    )


def of_predictions(sums: OutOfFold, equations: Equations, edges: F8) -> list[Picture]:
    """Draw out-of-fold predictions against true values, and their errors or probabilities."""
    pre, summary = equations.preprocessing, sums.metrics.summary()
    if pre.classes:
        text = f"{summary['accuracy']:.2%} of {summary['rows']:,} rows are right out of fold."
        first = picture("truth", "True and predicted classes", text, figures.confusion, sums.counts, pre.classes)
        weight, probability, correct = sums.spread[sums.spread[:, 0] > 0].T
        text = "Clipped and renormalised scores as probabilities; points below the dashed line are overconfident."
        arguments = (probability / weight, correct / weight, weight)
        return [first, picture("calibration", "Calibration", text, figures.reliability, *arguments)]
    label = pre.target_names[0] if pre.target_names else "target"
    text = (
        f"{summary['rows']:,} rows, out of fold: rmse {summary['rmse']:.5g}, mean absolute error {summary['mae']:.5g}."
    )
    if pre.t > 1:
        text = f"The first of {pre.t} targets. {text}"
    text += " Rows outside the frame are counted in its outermost cells."
    within = np.linspace(0, ERROR_SPAN, ERROR_BINS + 1)[1:]
    share = np.cumsum(sums.spread)[:-1] / sums.spread.sum()
    at_two = share[np.searchsorted(within, 2.0 - 1e-9)]
    errors = f"{at_two:.1%} of rows are within two root mean squared errors; of a Gaussian, 95.4% would be."
    return [
        picture("truth", "True and predicted", text, figures.truth, sums.counts, edges, label),
        picture("calibration", "Errors", errors, figures.coverage, within, share, erf(within / np.sqrt(2))),
    ]


def of_kernel(exact: F8, approximate: F8, alpha_per_row: float) -> Picture:
    """Draw some thousand entries of both Grams of a sample, and state the errors of the whole Gram."""
    n, below = len(exact), np.tril_indices(len(exact))
    step = max(1, len(below[0]) // 4000)
    epsilon = SpectralError(exact, alpha_per_row * n)(approximate)
    text = (
        f"{n} rows: relative Frobenius error {frobenius_error(approximate, exact):.3g}; spectral error "
        f"{epsilon:.2g} at the chosen penalty."
    )
    arguments = (exact[below][::step], approximate[below][::step])
    return picture("kernel", "The exact kernel and the features", text, figures.kernel, *arguments)


def of_run(run: RunReport) -> list[Picture]:
    """Draw memory, and speed over time where it was recorded."""
    projected, measured = run.projected_memory_bytes, run.peak_memory_bytes
    peak = max(measured.values(), default=0)
    text = f"Projected {sum(projected.values()) / 1e9:.2f} GB per worker; measured at most {peak / 1e9:.2f} GB."
    drawn = [picture("memory", "Memory", text, figures.memory, projected, measured)]
    marks = np.array(run.timeline).reshape(-1, 2)
    if len(marks) > 1:
        seconds, rate = over_time(marks)
        text = f"{marks[:, 1].sum():,.0f} rows in {marks[-1, 0]:.1f} s, counted when each shard ends."
        drawn.append(picture("speed", "Speed of the pass", text, figures.speed, seconds, rate))
    return drawn


def of_curve(curve: Curve, label: str) -> Picture:
    """Draw the error against the number of features, from one Gram."""
    text = "Prefixes of the same features, each with its own best penalty."
    return picture("curve", "More features", text, figures.curve, curve.m, curve.rmse, curve.band, label)


def over_time(marks: F8, bins: int = 40) -> tuple[F8, F8]:
    """Return the ends of equal spans of time and the rows per second in each, from (second, rows) of finished shards.

    A shard's rows are spread over the time since the shard before it ended.
    """
    ends = np.linspace(0, marks[-1, 0], min(bins, len(marks)) + 1)
    done = np.interp(ends, np.concatenate([[0], marks[:, 0]]), np.concatenate([[0], np.cumsum(marks[:, 1])]))
    rate = np.diff(done) / np.diff(ends)
    return ends, np.concatenate([rate[:1], rate])
