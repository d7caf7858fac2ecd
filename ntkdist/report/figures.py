"""The style of all plots, and SVG that takes its colours from the page: one picture serves light, dark and print.

Matplotlib draws with fixed colours; each is replaced by a variable of the page's style sheet.
"""

import io
import re
from collections.abc import Callable
from typing import Any

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


def svg(name: str, draw: Callable[[Any], None], height: float = SIZE[1]) -> str:
    """Return one plot as the text of an SVG element; ``draw`` is given the axes, ``height`` is in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    text = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name, "svg.id": name}):
        figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        draw(figure.subplots())
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    element = text.getvalue()
    head, body = element[element.index("<svg") :].split(">", 1)  # the page sets the size; the view box keeps the ratio
    element = re.sub(r' (width|height)="[^"]*"', "", head) + ">" + body
    for colour, variable in VARIABLES.items():
        element = element.replace(colour, f"var(--{variable})")
    return re.sub(r"(font: [^;\"']*?)'DejaVu Sans'[^;\"]*", r"\1inherit", element)
