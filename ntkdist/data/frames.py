"""Frames of pandas and polars as rows of numbers: codes of categories, seconds of dates, NaN for what is missing.

Times of a day are numbers, seconds since midnight, and durations seconds, as `convert` has them.

Neither library is imported: a frame that is given is of one that is loaded.
"""

import datetime
import decimal
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist.data.dataset import HELD, Kind
from ntkdist.data.encoding import Encoding
from ntkdist.data.sources import MAX_CLASSES
from ntkdist.errors import InputError
from ntkdist.spec import nearest

F8 = NDArray[np.float64]
WHOLE = re.compile(r"-?\d+")
CLOCKS = (datetime.time, datetime.timedelta)


@dataclass(frozen=True, eq=False)
class Coded:
    """Rows of a frame, (n, d), with the names of their columns and of what the columns hold."""

    x: F8
    columns: tuple[str, ...]
    categories: tuple[tuple[str, tuple[str, ...]], ...] = ()  # sorted names of the codes, by column
    dates: tuple[str, ...] = ()

    def like(self, frame: Any) -> Any:
        """Return a frame of numbers, of the library and the columns of another."""
        if _is_polars(frame):
            return type(frame)(self.x, schema=list(frame.columns))
        return type(frame)(self.x, columns=frame.columns)


@dataclass(frozen=True)
class Known:
    """The kinds of columns in training by name, and the names of their codes; numbers where no kind is known."""

    kinds: Mapping[str, Kind] = field(default_factory=dict)
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, encoding: Encoding | None) -> "Known":
        """Return what an encoding was fitted to; all are numbers without one."""
        if encoding is None:
            return cls()
        names = encoding.columns
        return cls(dict(zip(names, encoding.kinds, strict=True)), dict(zip(names, encoding.categories, strict=True)))


def is_frame(x: Any) -> bool:
    """Return whether x is a frame of pandas or polars."""
    return type(x).__module__.split(".")[0] in ("pandas", "polars") and len(getattr(x, "shape", ())) == 2


def is_plain(frame: Any) -> bool:
    """Return whether all columns of a frame are of numbers or booleans by their types."""
    return all(_type_kind(frame[name]) == "number" for name in frame.columns)


def coded(frame: Any, known: Known | None = None) -> Coded:
    """Return the rows of a frame as numbers; those of a model's kind and codes, −1 for new names, if it is ``known``.

    Raises
    ------
    InputError
        If a column holds what is no number, date or name, too many names, or something else than in training.
    """
    columns = tuple(str(name) for name in frame.columns)
    x = np.empty((len(frame), len(columns)))
    categories: list[tuple[str, tuple[str, ...]]] = []
    dates: list[str] = []
    for i, name in enumerate(columns):
        series = frame[frame.columns[i]]
        kind = _kind(series, name)
        if known is not None:
            kind = _as_known(kind, name, known)
        if kind == "category":
            names = tuple(_names(series, name)) if known is None else known.categories[name]
            categories.append((name, names))
            positions = {each: float(code) for code, each in enumerate(names)}
            x[:, i] = [positions.get(each, -1.0) for each in _named(series)]
        elif kind == "date":
            dates.append(name)
            x[:, i] = _seconds(series, name)
        else:
            x[:, i] = _numbers(series)
    return Coded(x, columns, tuple(categories), tuple(dates))


def _as_known(kind: Kind | None, name: str, known: Known) -> Kind:
    """Return the kind of a column in training; refuse one that cannot be read as that.

    Integers are read as names where all names of training are integers, and strings as dates.
    """
    expected = known.kinds.get(name, "number")
    integers = expected == "category" and all(map(WHOLE.fullmatch, filter(None, known.categories[name])))
    if kind in (None, expected) or (kind == "number" and integers) or (kind == "category" and expected == "date"):
        return expected
    assert kind is not None
    remedy = 'by astype("category") or to strings' if expected == "category" else "as then"
    raise InputError(f"Column '{name}' holds {HELD[kind]}, but {HELD[expected]} in training; convert it {remedy}")


def as_trained(frame: Any, columns: tuple[str, ...], encoding: Encoding | None) -> F8:
    """Return the rows of a frame in the columns, of the kinds and with the codes that a model was fitted to."""
    names = [str(name) for name in frame.columns]
    if missing := [c for c in columns if c not in names]:
        raise InputError(f"Column '{missing[0]}' of the model is missing{nearest(missing[0], names)}")
    if columns:
        positions = [names.index(c) for c in columns]
        frame = frame[[frame.columns[i] for i in positions]]
    return coded(frame, Known.of(encoding)).x


def _is_polars(x: Any) -> bool:
    return type(x).__module__.split(".")[0] == "polars"


def _type_kind(series: Any) -> str:
    """Return the kind that a column's type says, "" where the values have to."""
    dtype = series.dtype
    if _is_polars(series):
        name = str(dtype).split("(")[0]
        if dtype.is_numeric() or name == "Boolean":
            return "number"
        kinds = {"Date": "date", "Datetime": "date", "String": "category", "Categorical": "category"}
        return (kinds | {"Enum": "category"}).get(name, "")
    if str(dtype) == "category":
        return "category"
    return {"b": "number", "i": "number", "u": "number", "f": "number", "M": "date"}.get(getattr(dtype, "kind", ""), "")


def _kind(series: Any, name: str) -> Kind | None:
    """Return the kind of a column; None if it holds nothing."""
    missing = _missing(series)
    if missing.all() and _type_kind(series) in ("", "category"):
        return None
    if kind := _type_kind(series):
        return kind  # type: ignore[return-value]
    some = [v for v, absent in zip(_values(series), missing, strict=True) if not absent]
    if all(isinstance(v, (numbers.Real, decimal.Decimal, np.bool_)) for v in some) or all(map(_is_clock, some)):
        return "number"
    if all(isinstance(v, datetime.date) for v in some):
        return "date"
    if odd := [v for v in some if not isinstance(v, (str, numbers.Real))]:
        raise InputError(
            f"Column '{name}' holds {type(odd[0]).__name__}; expected numbers, strings, categories, booleans or dates: "
            "turn it into one of them, or leave it out"
        )
    return "category"


def _missing(series: Any) -> NDArray[np.bool_]:
    """Mark the values that are absent; of a type of numbers, NaN too."""
    return np.asarray(series.is_null() if _is_polars(series) else series.isna(), bool)


def _values(series: Any) -> list[Any]:
    values: list[Any] = series.to_list() if _is_polars(series) else series.tolist()
    return values


def _named(series: Any) -> list[str]:
    """Return the name of every value, of a whole number that of the integer; what is missing has the name ""."""
    pairs = zip(_values(series), _missing(series).tolist(), strict=True)
    return ["" if absent else str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v, absent in pairs]


def _names(series: Any, name: str) -> list[str]:
    """Return the sorted names of a column."""
    found = sorted(set(_named(series)))
    if len(found) > MAX_CLASSES:
        raise InputError(f"Column '{name}' has more than {MAX_CLASSES:,} distinct names; leave it out")
    return found


def _is_clock(value: Any) -> bool:
    return isinstance(value, CLOCKS)


def _clock(value: Any) -> float:
    """Return the seconds of a duration, or of a time since midnight."""
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    return 3600 * value.hour + 60 * value.minute + value.second + value.microsecond / 1e6


def _numbers(series: Any) -> F8:
    if not _type_kind(series):
        missing = _missing(series)
        some = [v for v, absent in zip(_values(series), missing.tolist(), strict=True) if not absent]
        if all(map(_is_clock, some)):
            out = np.full(len(missing), np.nan)
            out[~missing] = [_clock(v) for v in some]
            return out
    if _is_polars(series):
        return np.asarray(series.cast(float).to_numpy(), np.float64)
    return np.asarray(series.to_numpy(np.float64, na_value=np.nan))


def _seconds(series: Any, name: str) -> F8:
    """Return seconds since 1970-01-01 UTC; dates without a zone are UTC, and strings are dates of ISO 8601."""
    if _type_kind(series) in ("", "category") and any(isinstance(v, str) for v in _values(series)):
        pairs = zip(_values(series), _missing(series).tolist(), strict=True)
        return np.array([np.nan if absent else _parsed(v, name, i) for i, (v, absent) in enumerate(pairs)])
    if _is_polars(series):
        return np.asarray(series.dt.epoch("us").cast(float).to_numpy(), np.float64) / 1e6
    try:
        moments = np.asarray(series.to_numpy("datetime64[us]"))
    except (ValueError, TypeError) as error:
        raise InputError(f"Column '{name}' holds a date that cannot be read ({error}); mend it") from None
    return np.where(np.isnat(moments), np.nan, moments.astype(np.int64) / 1e6)


def _parsed(value: Any, name: str, row: int) -> float:
    """Return the seconds of a date or its text."""
    try:
        moment = datetime.datetime.fromisoformat(str(value))
    except ValueError:
        raise InputError(
            f"Column '{name}' holds '{value}' in row {row}, which cannot be read as a date such as 2026-01-31 or "
            "2026-01-31T09:30; mend it"
        ) from None
    return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()
