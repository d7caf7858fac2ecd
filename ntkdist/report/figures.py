"""The plots of a report, as SVG that takes its colours from the page: one picture serves light, dark and print.

Matplotlib draws with fixed colours; each is replaced by a variable of the page's style sheet.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

F8 = NDArray[np.float64]
# Okabe and Ito's colours, which readers with any colour vision can distinguish; the page defines the first five again.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
SERIES = COLOURS[:5]
INK, MUTED, GRID = "#010203", "#020304", "#030405"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {c: f"series-{i}" for i, c in enumerate(SERIES)}
SIZE = (5.6, 3.4)  # inches; the page keeps the ratio only
PLAIN: dict[Any, Any] = {  # the style of every plot; SVG of the page adds its colours
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
STYLE: dict[Any, Any] = PLAIN | {
    "svg.fonttype": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def svg(name: str, draw: Callable[[Any], None]) -> str:
    """Return one plot as the text of an SVG element; ``draw`` is given the axes."""
    import matplotlib
    from matplotlib.figure import Figure

    text = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name, "svg.id": name}):
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.subplots())
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    element = text.getvalue()
    head, body = element[element.index("<svg") :].split(">", 1)  # the page sets the size; the view box keeps the ratio
    element = re.sub(r' (width|height)="[^"]*"', "", head) + ">" + body
    for colour, variable in VARIABLES.items():
        element = element.replace(colour, f"var(--{variable})")
    return re.sub(r"(font: [^;\"']*?)'DejaVu Sans'[^;\"]*", r"\1inherit", element)


def alpha_path(axes: Any, alphas: F8, folds: F8, mean: F8, best: int, unit: str, label: str) -> None:
    """Plot the error of every penalty: of each fold (a, k), and over all folds (a,)."""
    if folds.shape[1] > 1:
        axes.plot(alphas, folds, color=MUTED, linewidth=0.8, alpha=0.6)
    axes.plot(alphas, mean, color=SERIES[0], marker="o", markersize=4)
    axes.plot(alphas[best], mean[best], "o", color=SERIES[1], markersize=9, label=f"chosen, {alphas[best]:.2g}")
    axes.set(xlabel=unit, ylabel=label)
    if len(alphas) > 1 and alphas[0] > 0:
        axes.set_xscale("log")
    axes.legend()


def curve(axes: Any, m: Sequence[int], error: Sequence[float], band: Sequence[float] | None, label: str) -> None:
    """Plot the error against the number of features."""
    axes.plot(m, error, color=SERIES[0], marker="o", markersize=4)
    if band is not None:
        low, high = np.subtract(error, band), np.add(error, band)
        axes.fill_between(m, low, high, color=SERIES[0], alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(m, [f"{k:,}" for k in m])
    axes.minorticks_off()
    axes.set(xlabel="features m", ylabel=label)


def truth(axes: Any, counts: F8, edges: F8, label: str) -> None:
    """Shade the weight of rows, (b, b) by bins of true and predicted values, on a logarithmic scale."""
    shade = np.log1p(counts) / max(np.log1p(counts).max(), 1e-12)
    for i, j in np.argwhere(counts > 0):
        cell = (edges[[i, i + 1, i + 1, i]], edges[[j, j, j + 1, j + 1]])
        axes.fill(*cell, color=SERIES[0], alpha=0.08 + 0.92 * shade[i, j], linewidth=0)
    axes.plot(edges[[0, -1]], edges[[0, -1]], color=SERIES[1], linewidth=1, dashes=(4, 3))
    axes.set(xlabel=f"true {label}", ylabel="predicted out of fold", xlim=edges[[0, -1]], ylim=edges[[0, -1]])


def confusion(axes: Any, counts: F8, classes: Sequence[str]) -> None:
    """Shade a confusion matrix, as shares of each true class."""
    share, k = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12), len(classes)
    for i, j in np.argwhere(counts > 0):
        x, y = np.array([j, j + 1, j + 1, j]) - 0.5, np.array([i, i, i + 1, i + 1]) - 0.5
        axes.fill(x, y, color=SERIES[0 if i == j else 1], alpha=0.06 + 0.7 * share[i, j], linewidth=0)
        if k <= 12:
            axes.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=8)
    ticks = range(0, k, max(1, k // 12))
    axes.set_xticks(ticks, [classes[i][:10] for i in ticks], rotation=45 if max(map(len, classes)) > 3 else 0)
    axes.set_yticks(ticks, [classes[i][:10] for i in ticks])
    axes.set(
        xlabel="predicted out of fold, % of the true class", ylabel="true", xlim=(-0.5, k - 0.5), ylim=(k - 0.5, -0.5)
    )
    axes.grid(False)


def coverage(axes: Any, within: F8, share: F8, gauss: F8) -> None:
    """Plot the share of rows whose error is below a multiple of the root mean squared error, beside a Gaussian's."""
    axes.plot(within, 100 * gauss, color=MUTED, dashes=(4, 3), linewidth=1.2, label="a Gaussian")
    axes.plot(within, 100 * share, color=SERIES[0], label="these rows")
    axes.set(xlabel="absolute error, in root mean squared errors", ylabel="% of rows within", ylim=(0, 102))
    axes.legend(loc="lower right")


def reliability(axes: Any, probability: F8, accuracy: F8, weight: F8) -> None:
    """Plot accuracy by the probability of the predicted class; a point's area grows with its weight."""
    axes.plot([0, 100], [0, 100], color=MUTED, dashes=(4, 3), linewidth=1.2)
    axes.plot(100 * probability, 100 * accuracy, color=SERIES[0], linewidth=1)
    axes.scatter(100 * probability, 100 * accuracy, s=8 + 120 * weight / weight.max(), color=SERIES[0], linewidths=0)
    axes.set(xlabel="score of the predicted class, %", ylabel="correct, %", ylim=(0, 104))


def kernel(axes: Any, exact: F8, approximate: F8) -> None:
    """Plot entries of the features' Gram against those of the exact kernel."""
    axes.plot(exact, approximate, ".", color=SERIES[0], markersize=3, alpha=0.5, markeredgewidth=0)
    ends = np.array([exact.min(), exact.max()])
    axes.plot(ends, ends, color=SERIES[1], linewidth=1, dashes=(4, 3))
    axes.set(xlabel="exact kernel", ylabel="features' inner product")


def speed(axes: Any, seconds: F8, rate: F8) -> None:
    """Plot rows per second over the time of the pass."""
    axes.step(seconds, rate, where="pre", color=SERIES[0])
    axes.set(xlabel="seconds into the pass", ylabel="rows per second", ylim=(0, 1.1 * rate.max()))


def memory(axes: Any, projected: Mapping[str, int], measured: Mapping[str, int]) -> None:
    """Plot the memory projected for a worker, by part, above the measured peak of each worker."""
    left = 0.0
    for i, (part, nbytes) in enumerate(projected.items()):
        axes.barh(0, nbytes / 1e9, left=left, color=SERIES[i % len(SERIES)], alpha=0.75, label=part)
        left += nbytes / 1e9
    peaks = list(measured.values())[:8]
    axes.barh(range(1, 1 + len(peaks)), [p / 1e9 for p in peaks], color=MUTED, alpha=0.75)
    axes.set_yticks(range(1 + len(peaks)), ["projected", *(f"worker {i}" for i in range(1, 1 + len(peaks)))])
    axes.set(xlabel="GB", ylim=(len(peaks) + 0.6, -1.6))
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper left", ncols=3, fontsize=8)
