"""What has one number a row beside inputs and target: weights, groups and holdouts, as a dataset keeps them."""

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
    """Integers as they are; of a string the first eight bytes of its BLAKE2b, so that it is the same in every file.

    Parameters
    ----------
    values : (n,) array
        Numbers or strings.
    name : str
        What to call them in an error.
    start : int
        The row of the source that is the first of them.

    Raises
    ------
    DataError
        If one is missing, NaN or not whole; the message names the rows.
    """
    if values.dtype.kind == "f":
        _refuse(~(np.isfinite(values) & (values == np.rint(values))), values, name, start, "whole numbers or strings")
    if values.dtype.kind in "biuf":
        return values.astype(np.int64)
    if values.dtype.kind == "O":
        missing = np.array([v is None for v in values], bool)
        _refuse(missing, values, name, start, "a group for every row")
    known, places = np.unique(values.astype(str) if values.dtype.kind == "O" else values, return_inverse=True)
    texts = [bytes(k) if isinstance(k, bytes) else str(k).encode() for k in known]
    codes = [int.from_bytes(hashlib.blake2b(t, digest_size=8).digest(), "little", signed=True) for t in texts]
    return np.array(codes, np.int64)[places]


def holdout_flags(values: NDArray[Any], name: str, start: int = 0) -> NDArray[np.uint8]:
    """1 for rows that are held out and 0 for the others; parameters as in `group_codes`.

    Raises
    ------
    DataError
        If a value is anything else; the message names the rows.
    """
    _refuse((values != 0) & (values != 1), values, name, start, "0, or 1 for rows that are held out")
    return values.astype(np.uint8)


CODES: dict[str, Callable[[NDArray[Any], str, int], NDArray[Any]]] = {"groups": group_codes, "holdout": holdout_flags}


def _refuse(wrong: NDArray[np.bool_], values: NDArray[Any], name: str, start: int, expected: str) -> None:
    if wrong.any():
        rows = np.flatnonzero(wrong)
        said = ", ".join(str(start + r) for r in rows[:8]) + ", …" * (len(rows) > 8)
        raise DataError(
            f"{name} is {values[rows[0]]} in row{'s' * (len(rows) > 1)} {said}; expected {expected}: mend the source, "
            "or leave these rows out"
        )
