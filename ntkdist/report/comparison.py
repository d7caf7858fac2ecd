"""The results of a comparison, as plain values and as text tables."""

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Cells = list[list[str]]
WIDTH = 80  # columns of a terminal


@dataclass(frozen=True)
class Row:
    """One model: a job at one number of components, or a baseline.

    Attributes
    ----------
    name : str
    kind : str
        Type of the feature map or of the baseline model.
    n_components : int or None
        None for a baseline without features.
    frobenius, spectral : tuple of float
        Errors of the features' Gram against the map's exact kernel, one per draw of the map; empty without features.
    alpha_per_row : float or None
        The chosen penalty divided by the weight of the training rows.
    cv_rmse, cv_standard_error : float or None
        Cross-validated root mean squared error (of one-hot scores for classes), and its standard error over folds.
    test : dict
        Errors on the test dataset, as `evaluate` returns them; empty without one.
    feature_seconds, gram_seconds : float or None
        For mapping all rows, and for adding them to the Gram, in one process; extrapolated from a few blocks.
    fit_seconds : float
        From the dataset to the model, including the choice of the penalty.
    model_bytes : int
        Size of the saved model.
    drawn_bytes : int
        Size of the arrays that the map draws or learns, and holds while it maps.
    """

    name: str
    kind: str
    n_components: int | None
    frobenius: tuple[float, ...]
    spectral: tuple[float, ...]
    alpha_per_row: float | None
    cv_rmse: float | None
    cv_standard_error: float | None
    test: dict[str, float]
    feature_seconds: float | None
    gram_seconds: float | None
    fit_seconds: float
    model_bytes: int
    drawn_bytes: int

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
        for row, each in zip(self.models, plain["models"], strict=True):
            for name in ("frobenius", "spectral"):
                mean, std = mean_std(getattr(row, name))
                each |= {f"{name}_mean": mean, f"{name}_std": std}
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

    def to_markdown(self) -> str:
        """Return the tables and notes in Markdown."""
        head = f"# {self.dataset}, {self.rows:,} rows\n"
        notes = (f"* {note}." for note in self.notes)
        return "\n".join([head, _markdown(self._errors()), _markdown(self._costs()), *notes, ""])

    def _errors(self) -> Cells:
        scored = ("accuracy" if self.classes else "test rmse") if self.test else ""
        cells = [["model", "m", "kernel error", "spectral ε", "cv rmse", *([scored] if scored else [])]]
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
    value, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if nbytes else "–"


def _aligned(cells: Cells) -> str:
    """Align columns right and names left; cut names that would make a line too long."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    widths[0] = max(8, min(widths[0], WIDTH - sum(w + 2 for w in widths[1:])))
    names = [name if len(name) <= widths[0] else name[: widths[0] - 1] + "…" for name, *_ in cells]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for name, line in zip(names, cells, strict=True)
    )


def _markdown(cells: Cells) -> str:
    head, *body = ["| " + " | ".join(line).replace("\n", " ") + " |" for line in cells]
    return "\n".join([head, "|---" + "|---:" * (len(cells[0]) - 1) + "|", *body]) + "\n"
