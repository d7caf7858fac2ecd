"""The plots of a report, each with its caption."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from ntkdist.kernels.error import SpectralError, frobenius_error
from ntkdist.report.figures import MUTED, SERIES, SIZE, svg
from ntkdist.report.numbers import plain
from ntkdist.report.out_of_fold import ERROR_BINS, ERROR_SPAN, OutOfFold
from ntkdist.ridge.fit_report import Curve, RunReport
from ntkdist.ridge.model import Equations
from ntkdist.solvers.cv_result import CVResult

F8 = NDArray[np.float64]
ONE, OTHER = SERIES[:2]
BARS, NAME = 20, 24  # columns that are drawn one by one, characters of their names
DASHED: dict[str, Any] = {"dashes": (4, 3), "linewidth": 1}


class Picture(NamedTuple):
    """A plot and its caption."""

    name: str
    title: str
    text: str
    svg: str
    alt: str  # for readers who do not see it


def picture(
    name: str, title: str, text: str, draw: Callable[[Any], None], *, alt: str = "", height: float = SIZE[1]
) -> Picture:
    """Draw a plot on axes and add its caption, which stands for it where ``alt`` is empty."""
    return Picture(name, title, text, svg(name, draw, height), alt or f"{title}. {text}")


def of_choice(cv: CVResult, classes: tuple[str, ...]) -> Picture:
    """Draw the errors of all penalties: of each fold, and over all folds."""
    # The root of each target's error, averaged over targets, as `CVResult.rmse` is.
    folds, mean = np.sqrt(np.maximum(cv.mse, 0.0)).mean(axis=2), np.sqrt(np.maximum(cv.path, 0.0)).mean(axis=1)
    alphas, best = cv.alphas, int(cv.best[0])

    def draw(axes: Any) -> None:
        if folds.shape[1] > 1:
            axes.plot(alphas, folds, color=MUTED, linewidth=0.8, alpha=0.6)
        axes.plot(alphas, mean, color=ONE, marker="o", markersize=4)
        axes.plot(alphas[best], mean[best], "o", color=OTHER, markersize=9, label=f"chosen, {alphas[best]:.2g}")
        axes.set_xlabel("alpha, per unit of weight" if cv.per_row else "alpha")
        axes.set_ylabel("cross-validated rmse" + (" of one-hot scores" if classes else ""))
        if len(alphas) > 1 and alphas[0] > 0:
            axes.set_xscale("log")
        axes.legend()

    text = f"{len(alphas)} penalt{'ies' if len(alphas) > 1 else 'y'}, each by its error out of fold"
    text += f"; thin lines are the {folds.shape[1]} folds." if folds.shape[1] > 1 else "."
    return picture("alpha", "The penalty", text, draw)


def of_curve(curve: Curve, label: str) -> Picture:
    """Draw the error against the number of features, from one Gram."""

    def draw(axes: Any) -> None:
        axes.plot(curve.m, curve.rmse, color=ONE, marker="o", markersize=4)
        if curve.band is not None:
            low, high = np.subtract(curve.rmse, curve.band), np.add(curve.rmse, curve.band)
            axes.fill_between(curve.m, low, high, color=ONE, alpha=0.2, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(curve.m, [f"{k:,}" for k in curve.m])
        axes.minorticks_off()
        axes.set(xlabel="features m", ylabel=label)

    return picture("curve", "More features", "Prefixes of the same features, each with its own best penalty.", draw)


def of_predictions(sums: OutOfFold, equations: Equations, edges: F8, unit: str = "") -> list[Picture]:
    """Draw out-of-fold predictions against true values, and their errors or probabilities."""
    pre, summary = equations.preprocessing, sums.metrics.summary()
    if pre.classes:
        text = f"{summary['accuracy']:.2%} of {summary['rows']:,} rows are right out of fold."
        scores = "Clipped and renormalised scores as probabilities; points below the dashed line are overconfident."
        return [
            picture(
                "truth", "True and predicted classes", text, lambda axes: _confusion(axes, sums.counts, pre.classes)
            ),
            picture("calibration", "Calibration", scores, lambda axes: _reliability(axes, sums.spread)),
        ]
    text = (
        f"{summary['rows']:,} rows, out of fold: rmse {plain(summary['rmse'])}, mean absolute error "
        f"{plain(summary['mae'])}."
    )
    if pre.t > 1:
        text = f"The first of {pre.t} targets. {text}"
    text += " Rows outside the frame are counted in its outermost cells."
    label = with_unit(pre.target_names[0] if pre.target_names else "target", unit)
    within = np.linspace(0, ERROR_SPAN, ERROR_BINS + 1)[1:]
    share = np.cumsum(sums.spread)[:-1] / sums.spread.sum()
    at_two = share[np.searchsorted(within, 2.0 - 1e-9)]
    errors = f"{at_two:.1%} of rows are within two root mean squared errors; of a Gaussian, 95.4% would be."
    return [
        picture("truth", "True and predicted", text, lambda axes: _truth(axes, sums.counts, edges, label)),
        picture("calibration", "Errors", errors, lambda axes: _coverage(axes, within, share)),
    ]


def with_unit(name: str, unit: str) -> str:
    """Write a unit after a name, unless the name has it."""
    return f"{name} [{unit}]" if unit and unit not in name else name


def _truth(axes: Any, counts: F8, edges: F8, label: str) -> None:
    """Shade the weight of rows, (b, b) by bins of true and predicted values, on a logarithmic scale."""
    shade = np.log1p(counts) / max(np.log1p(counts).max(), 1e-12)
    for i, j in np.argwhere(counts > 0):
        cell = (edges[[i, i + 1, i + 1, i]], edges[[j, j, j + 1, j + 1]])
        axes.fill(*cell, color=ONE, alpha=0.08 + 0.92 * shade[i, j], linewidth=0)
    axes.plot(edges[[0, -1]], edges[[0, -1]], color=OTHER, **DASHED)
    some = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    seen = edges[[some[0], some[-1] + 1]] if len(some) else edges[[0, -1]]
    axes.set(xlabel=f"true {label}", ylabel="predicted out of fold", xlim=seen, ylim=seen)


def _confusion(axes: Any, counts: F8, classes: tuple[str, ...]) -> None:
    """Shade a confusion matrix, as shares of each true class."""
    share, k = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12), len(classes)
    for i, j in np.argwhere(counts > 0):
        x, y = np.array([j, j + 1, j + 1, j]) - 0.5, np.array([i, i, i + 1, i + 1]) - 0.5
        axes.fill(x, y, color=ONE if i == j else OTHER, alpha=0.06 + 0.7 * share[i, j], linewidth=0)
        if k <= 12:
            axes.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=8)
    ticks = range(0, k, max(1, k // 12))
    axes.set_xticks(ticks, [_short(classes[i], 12) for i in ticks], rotation=45 if max(map(len, classes)) > 3 else 0)
    axes.set_yticks(ticks, [_short(classes[i], 12) for i in ticks])
    axes.set(xlabel="predicted out of fold, % of the true class", xlim=(-0.5, k - 0.5))
    axes.set(ylabel="true", ylim=(k - 0.5, -0.5))
    axes.grid(False)


def _coverage(axes: Any, within: F8, share: F8) -> None:
    """Plot the share of rows whose error is below a multiple of the root mean squared error, beside a Gaussian's."""
    axes.plot(within, 100 * erf(within / np.sqrt(2)), color=MUTED, label="a Gaussian", **DASHED)
    axes.plot(within, 100 * share, color=ONE, label="these rows")
    axes.set(xlabel="absolute error, in root mean squared errors", ylabel="% of rows within", ylim=(0, 102))
    axes.legend(loc="lower right")


def _reliability(axes: Any, spread: F8) -> None:
    """Plot accuracy by the probability of the predicted class; a point's area grows with its weight."""
    weight, probability, correct = spread[spread[:, 0] > 0].T
    x, y = 100 * probability / weight, 100 * correct / weight
    axes.plot([0, 100], [0, 100], color=MUTED, **DASHED)
    axes.plot(x, y, color=ONE, linewidth=1)
    axes.scatter(x, y, s=8 + 120 * weight / weight.max(), color=ONE, linewidths=0)
    low = max(0.0, 10 * np.floor(min(x.min(), y.min()) / 10 - 0.5))
    axes.set(xlabel="score of the predicted class, %", ylabel="correct, %", xlim=(low, 103), ylim=(low, 104))


def of_kernel(exact: F8, approximate: F8, alpha_per_row: float) -> Picture:
    """Draw some thousand entries of both Grams of a sample, and state the errors of the whole Gram."""
    n, below = len(exact), np.tril_indices(len(exact))
    step = max(1, len(below[0]) // 4000)
    epsilon = SpectralError(exact, alpha_per_row * n)(approximate)
    text = (
        f"{n} rows: relative Frobenius error {frobenius_error(approximate, exact):.3g}; spectral error "
        f"{epsilon:.2g} at the chosen penalty"
    )
    text += ", which bounds nothing from below, as none from 1 on does." if epsilon >= 1 else "."

    def draw(axes: Any) -> None:
        x, y = exact[below][::step], approximate[below][::step]
        axes.plot(x, y, ".", color=ONE, markersize=3, alpha=0.5, markeredgewidth=0)
        axes.plot([x.min(), x.max()], [x.min(), x.max()], color=OTHER, **DASHED)
        axes.set(xlabel="exact kernel", ylabel="features' inner product")

    return picture("kernel", "The exact kernel and the features", text, draw)


def of_importances(shares: dict[str, float]) -> Picture:
    """Draw the shares of columns in a metric, the largest first; those beyond the first 20 are summed."""
    most = sorted(shares.items(), key=lambda item: -item[1])
    bars = [(_short(name), share) for name, share in most[:BARS]]
    if rest := most[BARS:]:
        bars.append((f"{len(rest):,} other{'s' * (len(rest) > 1)}", sum(share for _, share in rest)))
    text = "Shares of the columns in the metric, for steps of one standard deviation of each."
    alt = f"Bars of importances: {', '.join(f'{name} {share:.1%}' for name, share in bars)}."
    height = max(1.4, 0.5 + 0.21 * len(bars))

    def draw(axes: Any) -> None:
        for i, (_, share) in enumerate(bars):
            axes.barh(i, 100 * share, color=MUTED if i >= BARS else ONE, alpha=0.85)
            axes.annotate(f"{share:.1%}", (100 * share, i), (3, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.set(
            xlabel="% of the metric", xlim=(0, 112 * max(share for _, share in bars)), ylim=(len(bars) - 0.4, -0.6)
        )
        axes.grid(axis="y", visible=False)

    return picture("importances", "Importances", text, draw, alt=alt, height=height)


def _short(name: str, most: int = NAME) -> str:
    """Cut the middle out of a long name."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}"


def of_run(run: RunReport) -> list[Picture]:
    """Draw memory, and speed over time where it was recorded."""
    peak, total = max(run.peak_memory_bytes.values(), default=0), sum(run.projected_memory_bytes.values())
    text = f"Projected {total / 1e9:.2f} GB per worker; measured at most {peak / 1e9:.2f} GB."
    drawn = [picture("memory", "Memory", text, lambda axes: _memory(axes, run))]
    marks = np.array(run.timeline).reshape(-1, 2)
    if len(marks) > 1:
        text = f"{marks[:, 1].sum():,.0f} rows in {marks[-1, 0]:.1f} s, counted as blocks and shards end."
        drawn.append(picture("speed", "Speed of the pass", text, lambda axes: _speed(axes, marks)))
    return drawn


def _memory(axes: Any, run: RunReport) -> None:
    """Plot the memory projected for a worker, by part, above the measured peak of each worker."""
    left = 0.0
    for i, (part, nbytes) in enumerate(run.projected_memory_bytes.items()):
        axes.barh(0, nbytes / 1e9, left=left, color=SERIES[i % len(SERIES)], alpha=0.75, label=part)
        left += nbytes / 1e9
    peaks = [peak / 1e9 for peak in run.peak_memory_bytes.values()][:8]
    axes.barh(range(1, 1 + len(peaks)), peaks, color=MUTED, alpha=0.75)
    axes.set_yticks(range(1 + len(peaks)), ["projected", *(f"worker {i}" for i in range(1, 1 + len(peaks)))])
    axes.set(xlabel="GB", ylim=(len(peaks) + 0.6, -1.6))
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper left", ncols=3, fontsize=8)


def _speed(axes: Any, marks: F8, bins: int = 40) -> None:
    """Plot rows per second in equal spans of the pass, from (second, rows) of finished shards.

    A shard's rows are spread over the time since the shard before it ended.
    """
    ends = np.linspace(0, marks[-1, 0], min(bins, len(marks)) + 1)
    done = np.interp(ends, np.append(0, marks[:, 0]), np.append(0, np.cumsum(marks[:, 1])))
    rate = np.diff(done) / np.diff(ends)
    axes.step(ends, np.append(rate[0], rate), where="pre", color=ONE)
    axes.set(xlabel="seconds into the pass", ylabel="rows per second", ylim=(0, 1.1 * rate.max()))
