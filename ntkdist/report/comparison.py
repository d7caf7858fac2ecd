"""The results of a comparison, as plain values and as text tables."""

import html
import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

Cells = list[list[str]]
WIDTH = 80  # columns of a terminal


@dataclass(frozen=True)
class Row:
    """One model: a job at one number of components, or a baseline, which may have no features."""

    name: str
    kind: str  # type of the feature map or of the baseline model
    n_components: int | None = None
    frobenius: tuple[float, ...] = ()  # errors of the features' Gram against the exact kernel, one per draw of the map
    spectral: tuple[float, ...] = ()
    alpha_per_row: float | None = None  # the chosen penalty divided by the weight of the training rows
    cv_rmse: float | None = None  # of one-hot scores for classes
    cv_standard_error: float | None = None  # of cv_rmse, over folds
    test: dict[str, float] = field(default_factory=dict)  # errors as of `evaluate`; empty without a test dataset
    feature_seconds: float | None = None  # to map all rows in one process, extrapolated from a few blocks
    gram_seconds: float | None = None  # to add them to the Gram, likewise
    fit_seconds: float = 0.0  # from the dataset to the model, including the choice of the penalty
    model_bytes: int = 0  # saved
    drawn_bytes: int = 0  # of the arrays that the map draws or learns, and holds while it maps

    def error(self) -> float | None:
        """Return the error on the test dataset (1 − accuracy for classes), or without one, the cross-validated rmse."""
        if self.test:
            return 1 - self.test["accuracy"] if "accuracy" in self.test else self.test["rmse"]
        return self.cv_rmse


@dataclass(frozen=True)
class Comparison:
    """Results of several models on the same rows.

    Attributes
    ----------
    dataset : str
    rows : int
        Number of training rows.
    test : str
        Path of the test dataset, or "".
    classes : bool
    sample_rows, seeds : int
        Rows that kernels were compared on, and draws of each map.
    models : tuple of Row
        Jobs first, then baselines.
    notes : tuple of str
        How the numbers were measured, and which models were left out.
    """

    dataset: str
    rows: int
    test: str
    classes: bool
    sample_rows: int
    seeds: int
    models: tuple[Row, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain objects, with mean and standard deviation of the kernel errors."""
        plain = asdict(self)
        for each in plain["models"]:
            for name in ("frobenius", "spectral"):
                each[f"{name}_mean"], each[f"{name}_std"] = mean_std(each[name])
        return plain

    def error_name(self) -> str:
        """Return the name of `Row.error` in this comparison."""
        if not self.test:
            return "cv rmse"
        return "test error" if self.classes else "test rmse"

    def to_text(self) -> str:
        """Return two tables of at most 80 columns, errors and costs, and the notes."""
        notes = [textwrap.fill(f"{note}.", WIDTH, initial_indent="* ", subsequent_indent="  ") for note in self.notes]
        return "\n\n".join([_aligned(self._errors()), _aligned(self._costs()), "\n".join(notes)])

    def __repr__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.to_text())}</pre>"

    def to_markdown(self) -> str:
        """Return the tables and notes in Markdown."""
        head = f"# {self.dataset}, {self.rows:,} rows\n"
        notes = (f"* {note}." for note in self.notes)
        return "\n".join([head, _markdown(self._errors()), _markdown(self._costs()), *notes, ""])

    def _errors(self) -> Cells:
        scored = ["accuracy" if self.classes else "test rmse"] if self.test else []
        cells = [["model", "m", "kernel error", "spectral ε", "cv rmse", *scored]]
        for row in self.models:
            line = [row.name, _count(row.n_components), _spread(row.frobenius), _spread(row.spectral)]
            line.append(_number(row.cv_rmse))
            if scored:
                line.append(f"{row.test['accuracy']:.4f}" if self.classes else _number(row.test["rmse"]))
            cells.append(line)
        return cells

    def _costs(self) -> Cells:
        cells = [["model", "m", "features s", "Gram s", "fit s", "model", "drawn"]]
        for row in self.models:
            seconds = (row.feature_seconds, row.gram_seconds, row.fit_seconds)
            line = [row.name, _count(row.n_components), *(_number(s, 3) for s in seconds)]
            cells.append([*line, _size(row.model_bytes), _size(row.drawn_bytes)])
        return cells


def mean_std(values: tuple[float, ...]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation; None where there are too few values."""
    if not values:
        return None, None
    if len(values) == 1 or not np.isfinite(values).all():
        return float(np.mean(values)), None
    return float(np.mean(values)), float(np.std(values, ddof=1))


def _spread(values: tuple[float, ...]) -> str:
    mean, std = mean_std(values)
    if mean is None:
        return "–"
    return _number(mean, 3) if std is None else f"{_number(mean, 3)}±{_number(std, 1)}"


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return "–"
    if not np.isfinite(value):
        return "∞" if value > 0 else "–"
    return f"{value:.{digits}g}" if abs(value) < 1e5 else f"{value:.{digits - 1}e}"


def _count(m: int | None) -> str:
    return "–" if m is None else f"{m:,}"


def _size(nbytes: int) -> str:
    power = min((len(str(nbytes)) - 1) // 3, 3)
    return f"{nbytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}" if nbytes else "–"


def _aligned(cells: Cells) -> str:
    """Align columns right and names left; cut names that would make a line too long."""
    first, *widths = (max(map(len, column)) for column in zip(*cells, strict=True))
    first = max(8, min(first, WIDTH - sum(w + 2 for w in widths)))
    names = (name if len(name) <= first else name[: first - 1] + "…" for name, *_ in cells)
    rest = ["".join(f"  {c:>{w}}" for c, w in zip(line[1:], widths, strict=True)) for line in cells]
    return "\n".join(f"{name:<{first}}{line}" for name, line in zip(names, rest, strict=True))


def _markdown(cells: Cells) -> str:
    head, *body = ["| " + " | ".join(line).replace("\n", " ") + " |" for line in cells]
    return "\n".join([head, "|---" + "|---:" * (len(cells[0]) - 1) + "|", *body]) + "\n"
