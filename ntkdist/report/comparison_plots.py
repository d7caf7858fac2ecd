"""The plots of a comparison, and the directory that holds them with its tables."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ntkdist.data.storage import new_directory
from ntkdist.data.zarr_groups import refuse_existing
from ntkdist.errors import NtkdistError
from ntkdist.report.comparison import Comparison, Row, mean_std
from ntkdist.report.figures import COLOURS, PLAIN
from ntkdist.ridge.run_directory import as_json

MARKERS = "osD^vP*X"  # with the dashes, for readers who do not distinguish the colours
NAME, LEGEND, HANDLE = 36, 56, 8  # characters of a name, of a legend below a panel, and of a handle
CLOSEST = 0.14  # of the axis, between two of its labels
DASHES = ((4, 2), (1, 1.5), (6, 2, 1, 2))
PLOTS = ("error_against_m", "error_against_seconds")
Panel = tuple[str, Callable[[Row], tuple[float | None, float | None]]]  # title; value and half its band


def check() -> None:
    """Refuse to start if Matplotlib is not installed (NtkdistError)."""
    if find_spec("matplotlib") is None:
        raise NtkdistError('Plots need Matplotlib, which is not installed; pip install "ntkdist[bench]", or drop --out')


def write(comparison: Comparison, out: str) -> None:
    """Write ``compare.json``, ``compare.md`` and two plots, each as SVG and PNG, to a new directory."""
    check()
    refuse_existing(out)
    with new_directory(out) as place:
        (place / "compare.json").write_text(as_json(comparison.to_dict(), indent=1))
        _draw(comparison, place)
        images = "\n".join(f"![{name.replace('_', ' ')}]({name}.svg)\n" for name in PLOTS)
        (place / "compare.md").write_text(f"{comparison.to_markdown()}\n{images}")


def _draw(comparison: Comparison, place: Path) -> None:
    """Draw errors against the number of features, and against the seconds of a fit."""
    import matplotlib

    frobenius: Panel = ("Kernel error, ‖K̂ − K‖ / ‖K‖", lambda row: mean_std(row.frobenius))
    vacuous = any(epsilon >= 1 for row in comparison.models for epsilon in row.spectral)
    title = "Spectral error ε" + (" (from 1 on, no bound from below)" if vacuous else " at the chosen penalty")
    spectral: Panel = (title, lambda row: mean_std(row.spectral))
    folds = not comparison.test  # the band of a cross-validated error is its standard error over folds
    if folds:
        title = "Cross-validated rmse" + (" of one-hot scores" if comparison.classes else ", target units")
    else:
        title = "Share of wrong answers on test rows" if comparison.classes else "Test rmse, target units"
    prediction: Panel = (title, lambda row: (row.error(), row.cv_standard_error if folds else None))
    against = (("the number of features", (frobenius, spectral, prediction)), ("time", (frobenius, prediction)))
    with matplotlib.rc_context(PLAIN | {"font.size": 9}):
        for name, (what, panels) in zip(PLOTS, against, strict=True):
            figure = _figure(comparison, panels, seconds=what == "time")
            title = f"{Path(comparison.dataset).stem}, {comparison.rows:,} rows: error against {what}"
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
            figure.savefig(place / f"{name}.svg", metadata={"Date": None})
            figure.savefig(place / f"{name}.png", dpi=150)


def _figure(comparison: Comparison, panels: tuple[Panel, ...], seconds: bool) -> Any:
    """Draw one panel per error; in the last, models without a number of features are lines, or points over seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(panels), 4.2), layout="constrained")
    named = [(name, list(rows)) for name, rows in groupby(comparison.models, key=lambda row: row.name)]
    handles: dict[str, Any] = {}
    for axes, (title, error) in zip(all_axes := figure.subplots(1, len(panels)), panels, strict=True):
        for i, (name, rows) in enumerate(named):
            style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "label": name}
            flat = rows[0].n_components is None or rows[0].kind == "Linear"
            if not flat or (seconds and axes is all_axes[-1]):
                values = [(row.fit_seconds if seconds else row.n_components, *error(row)) for row in rows]
                style |= {"marker": MARKERS[i % len(MARKERS)], "markersize": 5, "linestyle": "none" if flat else "-"}
                _curve(axes, values, style)
            elif axes is all_axes[-1] and (y := error(rows[0])[0]) and np.isfinite(y):
                axes.axhline(y, dashes=DASHES[i % len(DASHES)], linewidth=1.2, **style)
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel("seconds of a fit" if seconds else "features m")
        _log(axes.xaxis)
        _log(axes.yaxis)
        if not seconds:
            numbers = {row.n_components for row in comparison.models if row.kind != "Linear" and row.n_components}
            axes.set_xticks(_apart(sorted(numbers)))
        handles |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = [_short(name) for name in handles]
    fitting = int(LEGEND * len(panels) / (max(map(len, names)) + HANDLE))
    columns = max(1, min(len(names), 2 * len(panels), fitting))
    figure.legend(handles.values(), names, loc="outside lower center", ncols=columns)
    return figure


def _apart(numbers: Sequence[int]) -> list[int]:
    """Return the numbers whose labels do not touch on a logarithmic axis: the last, and others with room before it."""
    room = CLOSEST * np.log(numbers[-1] / numbers[0]) if numbers else 0.0
    shown: list[int] = []
    for number in reversed(numbers):
        if not shown or np.log(shown[-1] / number) >= room:
            shown.append(number)
    return shown[::-1]


def _short(name: str) -> str:
    """Cut the middle out of a long name."""
    return name if len(name) <= NAME else f"{name[: NAME // 2]}…{name[1 - NAME // 2 :]}"


def _curve(axes: Any, values: Sequence[tuple[float | None, ...]], style: dict[str, Any]) -> None:
    """Plot (x, y, half width) with a shaded band, or a bar for a single point; drop what has no logarithm."""
    points = sorted((x, y, half or 0.0) for x, y, half in values if x and y and np.isfinite(y))
    if not points:
        return
    x, y, half = np.array(points).T
    low = np.maximum(y - half, y / 10)
    axes.plot(x, y, **style)
    if len(x) > 1:
        axes.fill_between(x, low, y + half, color=style["color"], alpha=0.2, linewidth=0)
    elif half[0] > 0:
        axes.errorbar(x, y, yerr=[y - low, half], color=style["color"], capsize=3, linewidth=1)


def _log(axis: Any) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5, or over a short range, wherever a few fit."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    low, high = axis.get_view_interval()
    if low == high:
        return
    wide = high / low > 4
    decades = np.log10(high / low)
    axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0)) if wide else MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
