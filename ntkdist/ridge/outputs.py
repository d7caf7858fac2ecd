"""The values that a model writes for rows: predictions, and what is asked for beside them; and a report of the rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist.cluster.tally import Tally
from ntkdist.display import names
from ntkdist.errors import DataError, SpecError
from ntkdist.ridge.model import RidgeModel, class_labels

PREDICTIONS = "ntkdist.predictions"  # kind of a group
Fields = tuple[tuple[str, str, tuple[int, ...]], ...]  # name, type and shape of each
CHARACTERS = 200  # of a list of rows


@dataclass(frozen=True)
class Outputs:
    """A model and what it is asked for: ``std``, probabilities (``proba``), intervals of a coverage, 0 for none.

    Raises
    ------
    DataError, SpecError
        If the model cannot give what is asked for.
    """

    model: RidgeModel
    std: bool = False
    proba: bool = False
    interval: float = 0.0

    def __post_init__(self) -> None:
        model = self.model
        if model.classes and self.std:
            raise DataError("the model predicts classes, which have no std; leave it out")
        if self.std:
            model.check_factor()
        if self.interval:
            model.radius(self.interval)
        if self.proba and not model.classes:
            raise SpecError("the model predicts numbers, which have no probabilities; ask for an interval")

    @property
    def fields(self) -> Fields:
        """The arrays of `arrays`, with shapes of a row."""
        model, t = self.model, len(self.model.intercept)
        if model.classes:
            proba = [("probability", "f8", (t,))] if self.proba else []
            return (("prediction", "u2", ()), ("score", "f8", (t,)), *proba)
        found = ["prediction", *["std"] * self.std, *["low", "high"] * bool(self.interval)]
        return tuple((name, "f8", (t,) if model.preprocessing.vector_target else ()) for name in found)

    def arrays(self, x: Any) -> dict[str, NDArray[Any]]:
        """Return predictions of raw rows x in target units, and so on, by name; of classes, codes and scores."""
        model = self.model
        found: dict[str, NDArray[Any]] = {"prediction": model(x)}
        if model.classes:
            scores = found["prediction"]
            found = {"prediction": scores.argmax(axis=1).astype(np.uint16), "score": scores}
            return found | ({"probability": model.probabilities_of(scores)} if self.proba else {})
        if self.std:
            found["std"] = model.std(x)
        if self.interval:
            radius = model.radius(self.interval)
            radius = radius if model.preprocessing.vector_target else radius[0]
            found |= {"low": found["prediction"] - radius, "high": found["prediction"] + radius}
        return found

    def columns(self, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return arrays as the columns of a table: classes by name, and a column for each class or target."""
        if self.model.classes:
            found = {"prediction": class_labels(self.model.classes)[arrays["prediction"]]}
            return found | (_each(arrays, "probability", self.model.classes) if self.proba else {})
        targets = self.model.preprocessing.target_names or tuple(map(str, range(len(self.model.intercept))))
        found = {}
        for name, _, shape in self.fields:
            found |= _each(arrays, name, targets) if shape else {name: arrays[name]}
        return found


def _each(arrays: dict[str, NDArray[Any]], name: str, of: Sequence[str]) -> dict[str, NDArray[Any]]:
    return {f"{name} {one}": np.ascontiguousarray(arrays[name][:, i]) for i, one in enumerate(of)}


@dataclass
class PredictionReport:
    """Counts of the rows that a model has predicted, and of what was odd in them."""

    rows: int = 0
    outside: int = 0  # rows with values or names outside those of training
    outside_in: Counter[str] = field(default_factory=Counter)  # the same by column
    first: list[tuple[str, list[str]]] = field(default_factory=list)  # the first few of them, and in which columns
    unknown: Counter[str] = field(default_factory=Counter)  # names that were not in training, by column
    empty: Counter[str] = field(default_factory=Counter)  # empty cells of columns that had none in training
    ignored: Sequence[str] = ()  # columns that are neither the model's nor kept
    uncalibrated: bool = False  # probabilities are those of a model that was not calibrated

    @classmethod
    def of_tally(cls, tally: Tally, first: list[tuple[str, list[str]]]) -> "PredictionReport":
        """Return the report of a pass over a dataset, with the ``first`` rows by their places in the source."""
        return cls(tally.rows, tally.clipped, Counter(tally.clipped_in), first, empty=Counter(tally.empty_in))

    def to_attributes(self) -> dict[str, Any]:
        """Return what is written beside predictions in a group."""
        return {"clipped_rows": self.outside, "clipped_columns": dict(self.outside_in), "clipped_first": self.first}

    def notes(self) -> Iterator[str]:
        """Say what a person should know of the rows."""
        if self.outside:
            each = ", ".join(f"'{name}' {count:,}" for name, count in self.outside_in.items())
            yield (
                f"{self.outside:,} of {self.rows:,} rows had values or names outside those of training ({each}); "
                f"among them {_listed(self.first)}"
            )
        for name, count in self.unknown.items():
            yield f"column '{name}' held {count:,} names that training had not, taken as unknown ones"
        for name, count in self.empty.items():
            how = "filled in with the median, or as an unknown name"
            yield f"column '{name}' was empty in {count:,} rows, and never in training; {how}"
        if self.ignored:
            quoted = [f"'{name}'" for name in self.ignored]
            yield f"{len(quoted):,} columns are not the model's, and were ignored: {names(quoted, 8)}"
        if self.uncalibrated:
            yield (
                "probabilities are scores clipped to [0, 1] and divided by their sum; `ntkdist calibrate RUN "
                "MODEL.zarr` makes a model with calibrated ones"
            )


def _listed(rows: list[tuple[str, list[str]]]) -> str:
    """List rows with their columns, as many as a person reads."""
    said, length = [], 0
    for row, columns in rows:
        said.append(f"{row} ({names(columns, 3)})")
        length += len(said[-1])
        if length > CHARACTERS:
            break
    return ", ".join(said) + ", counted from 0" * rows[0][0].startswith("row")
