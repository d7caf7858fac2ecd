"""Per-row side columns (sample weight, group, holdout flag): stored types, and how raw values are encoded."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist.errors import DataError

DTYPES: dict[str, np.dtype[Any]] = {
    "weight": np.dtype(np.float64),
    "groups": np.dtype(np.int64),
    "holdout": np.dtype(np.uint8),
}


def group_codes(values: NDArray[Any], name: str, start: int = 0) -> NDArray[np.int64]:
    """Encode groups: an integer as itself, a string as the first eight bytes of its BLAKE2b, equal in every file.

    Values that are missing, NaN or not whole are refused, by ``name`` and by rows counted from ``start``.
    """
    if values.dtype.kind == "f":
        _refuse(~(np.isfinite(values) & (values == np.rint(values))), values, name, start, "whole numbers or strings")
    if values.dtype.kind in "biuf":
        return values.astype(np.int64)
    if values.dtype.kind == "O":
        missing = np.array([v is None for v in values], bool)
        _refuse(missing, values, name, start, "a group for every row")
        values = values.astype(str)
    names, positions = np.unique(values, return_inverse=True)
    texts = [bytes(n) if isinstance(n, bytes) else str(n).encode() for n in names]
    codes = [int.from_bytes(hashlib.blake2b(t, digest_size=8).digest(), "little", signed=True) for t in texts]
    return np.array(codes, np.int64)[positions]


def holdout_flags(values: NDArray[Any], name: str, start: int = 0) -> NDArray[np.uint8]:
    """Check flags, 1 for rows that are held out and 0 for the others, as `group_codes` checks groups."""
    _refuse((values != 0) & (values != 1), values, name, start, "0, or 1 for rows that are held out")
    return values.astype(np.uint8)


CODES: dict[str, Callable[[NDArray[Any], str, int], NDArray[Any]]] = {"groups": group_codes, "holdout": holdout_flags}


def _refuse(wrong: NDArray[np.bool_], values: NDArray[Any], name: str, start: int, expected: str) -> None:
    """Raise a `DataError` if any value is wrong."""
    if wrong.any():
        rows = np.flatnonzero(wrong)
        shown = ", ".join(str(start + r) for r in rows[:8]) + ", …" * (len(rows) > 8)
        raise DataError(
            f"{name} is {values[rows[0]]} in row{'s' * (len(rows) > 1)} {shown}; expected {expected}: mend the source, "
            "or leave these rows out"
        )
