"""Curves of a comparison, and the directory that holds them beside its tables: the only file that knows Matplotlib."""

from collections.abc import Callable
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ntkdist.data.storage import new_directory
from ntkdist.data.zarr_groups import refuse_existing
from ntkdist.errors import NtkdistError
from ntkdist.report.comparison import Comparison, Row, mean_std
from ntkdist.ridge.run_directory import as_json

# Okabe and Ito's colours, which people of any colour vision tell apart; markers and dashes say the same again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "osD^vP*X"
DASHES = ((), (4, 2), (1, 1.5), (6, 2, 1, 2))
Series = list[tuple[str, list[Row]]]
Errors = Callable[[Row], tuple[float | None, float | None]]  # a value, and half the width of its band


def check() -> None:
    """Refuse to begin where nothing could be drawn.

    Raises
    ------
    NtkdistError
        If Matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise NtkdistError('Plots need Matplotlib, which is not installed; pip install "ntkdist[bench]", or drop --out')


def write(found: Comparison, out: str) -> None:
    """Write ``compare.json``, ``compare.md`` and two plots, each as SVG and PNG, to a new directory.

    Raises
    ------
    StoreError
        If ``out`` exists.
    """
    check()
    refuse_existing(out)
    with new_directory(out) as place:
        (place / "compare.json").write_text(as_json(found.to_dict(), indent=1))
        pictures = "\n".join(f"![{name.replace('_', ' ')}]({name}.svg)\n" for name in _draw(found, place))
        (place / "compare.md").write_text(f"{found.to_markdown()}\n{pictures}")


def _draw(found: Comparison, place: Path) -> list[str]:
    """Both plots; returns their names."""
    import matplotlib

    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        _error_against_m(found, place / "error_against_m")
        _error_against_seconds(found, place / "error_against_seconds")
    return ["error_against_m", "error_against_seconds"]


def _error_against_m(found: Comparison, path: Path) -> None:
    """Kernel errors and error of prediction, by the number of components; what has none is a line across."""
    curves, others = _series(found)
    figure, axes = _figure(3)
    for axis, errors, title in (
        (axes[0], _frobenius, "Kernel error, ‖K̂ − K‖ / ‖K‖"),
        (axes[1], _spectral, "Spectral error ε at the chosen ridge"),
        (axes[2], _predicted(found), _title(found)),
    ):
        for i, (_, rows) in enumerate(curves):
            _curve(axis, i, rows, lambda row: row.n_components, errors)
        if axis is axes[2]:
            for i, (_, rows) in enumerate(others):
                _line(axis, len(curves), i, errors(rows[0])[0])
        _finish(axis, title, "features m")
        axis.set_xticks(sorted({row.n_components for _, rows in curves for row in rows if row.n_components}))
    _legend(figure, curves, others)
    _save(figure, path, f"{_name(found)}: error against the number of features")


def _error_against_seconds(found: Comparison, path: Path) -> None:
    """Kernel error and error of prediction, by the seconds of a fit; what has no features is a point."""
    curves, others = _series(found)
    figure, axes = _figure(2)
    for axis, errors, title, all_of_them in (
        (axes[0], _frobenius, "Kernel error, ‖K̂ − K‖ / ‖K‖", curves),
        (axes[1], _predicted(found), _title(found), curves + others),
    ):
        for i, (_, rows) in enumerate(all_of_them):
            _curve(axis, i, rows, lambda row: row.fit_seconds, errors)
        _finish(axis, title, "seconds of a fit")
    _legend(figure, curves, others, points=True)
    _save(figure, path, f"{_name(found)}: error against time")


def _series(found: Comparison) -> tuple[Series, Series]:
    """Curves over m, one a name, and what is not a curve: yardsticks without features, or with as many as columns."""
    named = [(name, list(rows)) for name, rows in groupby(found.models, key=lambda row: row.name)]
    flat = [n for n, rows in named if rows[0].n_components is None or rows[0].kind == "Linear"]
    return [(n, rows) for n, rows in named if n not in flat], [(n, rows) for n, rows in named if n in flat]


def _frobenius(row: Row) -> tuple[float | None, float | None]:
    return mean_std(row.frobenius)


def _spectral(row: Row) -> tuple[float | None, float | None]:
    return mean_std(row.spectral)


def _predicted(found: Comparison) -> Errors:
    """The error that counts; its band is the standard error over folds if it is cross-validated."""
    return lambda row: (row.error(), None if found.test else row.cv_standard_error)


def _title(found: Comparison) -> str:
    if not found.test:
        return "Cross-validated rmse" + (" of one-hot scores" if found.classes else ", target units")
    return "Share of wrong answers on test rows" if found.classes else "Test rmse, target units"


def _name(found: Comparison) -> str:
    return f"{Path(found.dataset).stem}, {found.rows:,} rows"


def _figure(panels: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * panels, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels)


def _curve(axis: Any, i: int, rows: list[Row], place: Callable[[Row], float | None], errors: Errors) -> None:
    """Values with their band as shading, or as a bar where there is a single one; what is not positive has no place."""
    points = [(place(row), *errors(row)) for row in rows]
    points = sorted((x, y, half or 0.0) for x, y, half in points if x and y and np.isfinite(y))
    if not points:
        return
    x, y, half = np.array(points).T
    colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
    axis.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.4)
    low = np.maximum(y - half, y / 10)
    if len(x) > 1:
        axis.fill_between(x, low, y + half, color=colour, alpha=0.2, linewidth=0)
    elif half[0] > 0:
        axis.errorbar(x, y, yerr=[y - low, half], color=colour, capsize=3, linewidth=1)


def _line(axis: Any, curves: int, i: int, y: float | None) -> None:
    if y and np.isfinite(y):
        axis.axhline(y, **_across(curves, i))


def _across(curves: int, i: int) -> dict[str, Any]:
    return {"color": COLOURS[(curves + i) % len(COLOURS)], "dashes": DASHES[1 + i % 3], "linewidth": 1.2}


def _finish(axis: Any, title: str, across: str) -> None:
    axis.set_title(title, loc="left", fontsize=9)
    axis.set_xlabel(across)
    axis.grid(True, which="both", color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)
    for which in (axis.xaxis, axis.yaxis):
        _log(which)


def _log(axis: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5, or where it spans little, wherever a few fit."""
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


def _legend(figure: Any, curves: Series, others: Series, points: bool = False) -> None:
    from matplotlib.lines import Line2D

    entries = []
    for i, (name, _) in enumerate(curves + others):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        if i >= len(curves):
            across = _across(len(curves), i - len(curves))
            style = {**style, "linestyle": "none"} if points else across
        entries.append(Line2D([], [], label=name, **style))
    columns = min(len(entries), 2 * len(figure.axes))
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, frameon=False)


def _save(figure: Any, path: Path, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=150)
