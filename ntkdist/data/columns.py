"""Columns of tables: what a scan over all their values says of them, and their values as numbers."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ntkdist.data.source_files import flags
from ntkdist.data.sources import MAX_CLASSES
from ntkdist.errors import DataError

MAX_CATEGORIES = 2**16  # names of a column
NUMBERS = ("int", "float", "bool")
INPUTS = (*NUMBERS, "string", "date", "time")
CLOCK = r"^(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d(?:\.\d+)?))?$"
PATTERNS = {
    "bool": "(?i)^(true|false)$",
    "date": r"^\d{4}-\d\d-\d\d([ T]\d\d:\d\d.*)?$",
    "time": CLOCK,
}
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
CLOCK_LIMITS = {"hour": (3600, 24), "minute": (60, 60), "second": (1, 60)}  # seconds of each, and how many there are
MOSTLY = 0.9  # share of a column's strings that are dates or numbers, above which another string is a mistake
FEW = 4  # strays that are named
MICROSECONDS = pa.timestamp("us")


@dataclass
class Likeness:
    """The number of a column's strings that are written in one way, and those that are not."""

    pattern: str
    alike: int = 0
    others: int = 0
    strays: dict[str, tuple[int, int]] = field(default_factory=dict)  # count and first row of a few of the others

    def add(self, values: Any, start: int, whole: bool) -> None:
        """Count a block of values, of which the first is in row ``start``; ``whole`` says that none is another."""
        if whole:
            self.alike += len(values) - values.null_count
            return
        alike = pc.match_substring_regex(values, self.pattern)
        self.alike += pc.sum(alike).as_py() or 0
        odd = values.filter(pc.fill_null(pc.invert(alike), False))
        self.others += len(odd)
        for each in pc.value_counts(odd)[: FEW + 1 + len(self.strays)].to_pylist():
            value = each["values"]
            if value in self.strays or len(self.strays) <= FEW:
                count, row = self.strays.get(value, (0, -1))
                self.strays[value] = count + each["counts"], row if count else start + pc.index(values, value).as_py()

    @property
    def nearly(self) -> bool:
        """The answer whether nearly all strings are written so, and some are not."""
        return bool(self.others) and self.alike > MOSTLY * (self.alike + self.others)

    @property
    def first(self) -> tuple[str, int]:
        """The first string that is not, and its row."""
        value, (_, row) = min(self.strays.items(), key=lambda item: item[1][1])
        return value, row


class Refusal(NamedTuple):
    """The reason why a column cannot be an input, what to do, and the flags that do it."""

    why: str
    remedy: str
    flag: str


@dataclass
class Column:
    """A column and the result of its scan; its kind depends on all values, and not on how they are cut into blocks."""

    name: str
    place: str  # for messages
    text: bool  # numbers are still text
    kinds: tuple[str, ...]  # kinds that every value so far can have, best first; none: a string
    most: int  # distinct values to keep
    values: set[Any] = field(default_factory=set)  # distinct ones; if they are more than most and null, not all
    first_null: int = -1
    dates: Likeness = field(default_factory=lambda: Likeness(PATTERNS["date"]))
    numerals: Likeness = field(default_factory=lambda: Likeness(NUMBER))

    @property
    def kind(self) -> str:
        return self.kinds[0] if self.kinds else "string"

    def scan(self, values: Any, start: int) -> None:
        """Take note of a block of values, the first of which is in row ``start``."""
        if self.text:
            before = self.kinds
            self.kinds = tuple(k for k in self.kinds if _can_be(values, k))
            for kind, likeness in (("date", self.dates), ("float", self.numerals)):
                if kind in before or likeness.alike:  # else it is known that the column holds none
                    likeness.add(values, start, kind in self.kinds)
        if self.kind not in ("image", "nested") and len(self.values) <= self.most + 1:  # one more for null
            self.values |= set(pc.unique(values)[: self.most + 2].to_pylist())
        if self.first_null < 0 and (null := pc.index(pc.is_null(values, nan_is_null=True), True).as_py()) >= 0:
            self.first_null = start + null

    def refusal(self) -> Refusal | None:
        """Return why the column cannot be an input; None if it can."""
        drop, remedy = flags("drop", [self.name]), f"leave it out with --drop {self.name}"
        if self.kind not in INPUTS:
            why = f"holds {self._held()}, which cannot be inputs"
            return Refusal(why, f"turn it into numbers, or {remedy}", drop)
        if self.kind == "string" and self.dates.nearly:
            return Refusal(*_no_date(self.name, *self.dates.first), flags("category", [self.name]))
        if self.kind == "string" and len(self._names()) > MAX_CATEGORIES:
            why = f"holds strings with more than {MAX_CATEGORIES:,} distinct values"
            return Refusal(f"{why}{self._strays(', as ')}", remedy, drop)
        return None

    def note(self, rows: int) -> str:
        """Return what a person should know of a column of strings; "" for nothing."""
        if self.kind != "string":
            return ""
        if strays := self._strays(""):
            return f"column '{self.name}' was taken as names, as {strays}"
        if 20 < rows < 2 * len(self.values):
            return (
                f"column '{self.name}' has {len(self.values):,} names in {rows:,} rows, which say little of new rows; "
                f"{flags('drop', [self.name])} leaves it out"
            )
        return ""

    def _strays(self, before: str) -> str:
        """Describe the few strings among numbers, and how to take them as missing; "" if there are none or many."""
        if not self.numerals.nearly:
            return ""
        found = list(self.numerals.strays.items())
        each = ", ".join(f"'{v}' ({count:,}, first in row {row})" for v, (count, row) in found[:FEW])
        total, others = self.numerals.alike + self.numerals.others, self.numerals.others
        remedy = flags("missing", [value for value, _ in found[:FEW]])
        more = ", …" * (len(found) > FEW)
        return (
            f"{before}{others:,} of its {total:,} values are no numbers: {each}{more}; {remedy} takes them as missing"
        )

    def seconds(self, values: Any, start: int) -> NDArray[np.float64]:
        """Convert dates and times to seconds since 1970-01-01 UTC, null to NaN; ``start`` is the row of the first."""
        if not pa.types.is_temporal(values.type):
            values = self._read_dates(values, start)
        elif not pa.types.is_date(values.type):
            values = values.cast(pa.timestamp("us", getattr(values.type, "tz", None)), safe=False)
        microseconds = values.cast(MICROSECONDS, safe=False).cast(pa.int64()).cast(pa.float64(), safe=False)
        return microseconds.to_numpy(zero_copy_only=False) / 1e6

    def _read_dates(self, values: Any, start: int) -> Any:
        """Read ISO dates and times; without an offset they are UTC."""
        with contextlib.suppress(pa.ArrowInvalid):
            return values.cast(MICROSECONDS)
        read: list[datetime | None] = []
        for i, value in enumerate(values.to_pylist()):
            try:
                read.append(None if value is None else datetime.fromisoformat(value))
            except ValueError:
                raise DataError(f"{self.place} {'; '.join(_no_date(self.name, value, start + i))}") from None
        aware = [d.replace(tzinfo=d.tzinfo or UTC).astimezone(UTC).replace(tzinfo=None) if d else None for d in read]
        return pa.array(aware, MICROSECONDS)

    def clock(self, values: Any, start: int) -> NDArray[np.float64]:
        """Convert times of a day to seconds since midnight, and durations to seconds, null to NaN."""
        if not pa.types.is_string(values.type):
            unit = pa.time64("us") if pa.types.is_time(values.type) else pa.duration("us")
            microseconds = values.cast(unit, safe=False).cast(pa.int64()).cast(pa.float64(), safe=False)
            return microseconds.to_numpy(zero_copy_only=False) / 1e6
        parts, seconds = pc.extract_regex(values, CLOCK), np.zeros(len(values))
        for i, (unit, limit) in enumerate(CLOCK_LIMITS.values()):
            digits = pc.struct_field(parts, i)
            number = np.asarray(pc.if_else(pc.equal(digits, ""), "0", digits).cast(pa.float64()))
            if (wrong := number >= limit).any():
                row = int(wrong.argmax())
                raise DataError(
                    f"{self.place} holds '{values[row]}' in row {start + row}, which is no time of a day such as "
                    f"13:45 or 13:45:30; mend it, or leave the column out with --drop {self.name}"
                )
            seconds += unit * number
        return seconds

    def typed(self, values: Any) -> Any:
        """Cast an Arrow array to integers, double, bool or string."""
        if self.text and self.kind == "bool":
            return pc.equal(pc.utf8_lower(values), "true")
        if self.kind == "string":
            return values.cast(pa.string())
        target = {"int": pa.int64() if self.text else values.type, "float": pa.float64(), "bool": pa.bool_()}
        return values.cast(target[self.kind])

    def numbers(self, values: Any) -> NDArray[np.float64]:
        """Convert values to float64, null to NaN."""
        return self.typed(values).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)

    def as_input(self, values: Any, start: int) -> NDArray[np.float64]:
        """Convert values of an input that are no names to numbers; ``start`` is the row of the first."""
        convert = {"date": self.seconds, "time": self.clock}.get(self.kind)
        return convert(values, start) if convert else self.numbers(values)

    def whole(self, values: Any) -> NDArray[Any]:
        """Convert values to NumPy, integers exactly; numbers with a null among them to float64, null to NaN."""
        if values.null_count and self.kind != "string":
            return self.numbers(values)
        return self.typed(values).to_numpy(zero_copy_only=False)

    def categories(self) -> list[str]:
        """Return the sorted distinct strings; null is the empty one."""
        return sorted(self._names())

    def _names(self) -> set[str]:
        return {v or "" for v in self.values}

    def labels(self) -> Any:
        """Return the sorted distinct class labels as an Arrow array."""
        if self.first_null >= 0:
            raise DataError(f"{self.place} has no class label in row {self.first_null}; leave the row out or mend it")
        if len(self.values) > MAX_CLASSES:
            raise DataError(
                f"{self.place} has more than {MAX_CLASSES} distinct labels{self._strays(', as ')}; is it a number to "
                "regress on?"
            )
        values = pa.array(list(self.values), pa.string() if self.text else None)
        labels = sorted(set(self.typed(values).to_pylist()))
        if self.kind == "float" and (odd := [v for v in labels if not v.is_integer()]):
            raise DataError(f"{self.place} holds {odd[0]}, which is no class label; expected whole numbers or strings")
        return pa.array([int(v) for v in labels] if self.kind == "float" else labels)

    def codes(self, values: Any, labels: Any) -> NDArray[np.int32]:
        return pc.index_in(self.typed(values).cast(labels.type), value_set=labels).to_numpy()

    def expect(self, kinds: tuple[str, ...], use: str, remedy: str) -> None:
        """Raise a `DataError` unless the column is of one of some kinds."""
        if self.kind not in kinds:
            raise DataError(
                f"{self.place} holds {self._held()}, which cannot be {use}; turn it into numbers, or {remedy}"
            )

    def _held(self) -> str:
        names = {"date": "dates", "time": "times", "nested": "lists, structures or bytes", "string": "strings"}
        names |= {"image": "bytes, as of images"}
        return names.get(self.kind, "numbers")


def check_inputs(columns: Sequence[Column], table: str) -> None:
    """Raise one `DataError` for all columns that cannot be inputs, with the flags that convert the table."""
    refused = [(column, why) for column in columns if (why := column.refusal())]
    if len(refused) == 1:
        ((column, one),) = refused
        raise DataError(f"{column.place} {one.why}; {one.remedy}")
    if refused:
        each = "; ".join(
            f"'{column.name}' {one.why.removesuffix(', which cannot be inputs')}" for column, one in refused
        )
        flags_of_all = " ".join(one.flag for _, one in refused)
        raise DataError(
            f"{len(refused)} columns of {table} cannot be inputs: {each}; mend them, or convert with {flags_of_all}"
        )


def _no_date(name: str, value: str, row: int) -> tuple[str, str]:
    """Return why a column of dates cannot be one, and what to do."""
    return (
        f"holds '{value}' in row {row}, which cannot be read as a date such as 2026-01-31 or 2026-01-31T09:30",
        f"mend it, or take the column's strings as names with --category {name}",
    )


def named(name: str, values: Any) -> Any:
    """Convert whole numbers to strings."""
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
        try:
            values = values.cast(pa.int64())
        except pa.ArrowInvalid:
            raise DataError(
                f"column '{name}' (named by --category) holds fractions; name columns of integers or strings"
            ) from None
    return values.cast(pa.string())


def _can_be(values: Any, kind: str) -> bool:
    """Return whether every string can be read as a kind of value."""
    if kind in PATTERNS:
        return bool(pc.all(pc.match_substring_regex(values, PATTERNS[kind]), min_count=0).as_py())
    with contextlib.suppress(pa.ArrowInvalid):
        values.cast(pa.int64() if kind == "int" else pa.float64())
        return True
    return False
