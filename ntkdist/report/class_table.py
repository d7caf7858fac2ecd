"""The classes of a run: their rows, and how many of them are found."""

import numpy as np
from numpy.typing import NDArray

from ntkdist.report.parts import Table

F8 = NDArray[np.float64]
MOST = 40  # classes that are listed


def class_table(counts: F8, classes: tuple[str, ...]) -> Table:
    """List rows, recall and precision of each class, from the weight of rows (k, k) by true and predicted class.

    Of many classes, those with the least recall are listed.
    """
    right, of, guessed = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    recall = recalls(counts)
    order = np.arange(len(classes)) if len(classes) <= MOST else np.argsort(np.nan_to_num(recall, nan=2.0))[:MOST]
    rows = [(classes[k], f"{of[k]:,.6g}", _share(right[k], of[k]), _share(right[k], guessed[k])) for k in order]
    text = "" if len(classes) <= MOST else f"Of {len(classes):,} classes, the {MOST} with the least recall."
    return Table("Classes", rows, ("class", "rows", "recall", "precision"), text)


def recalls(counts: F8) -> F8:
    """Return the share of each class that is found, (k,); nan for a class without rows."""
    of = counts.sum(axis=1)
    return np.divide(np.diagonal(counts), of, out=np.full(len(counts), np.nan), where=of > 0)


def balanced_accuracy(counts: F8) -> tuple[float, float]:
    """Return the mean recall of the classes that have rows, and its standard error."""
    recall, of = recalls(counts), counts.sum(axis=1)
    some = of > 0
    variance = recall[some] * (1 - recall[some]) / of[some]
    return float(recall[some].mean()), float(np.sqrt(variance.sum()) / some.sum())


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole > 0 else "–"
