"""Kinds of X that estimators accept: arrays and frames in memory or of Dask, Zarr arrays, and places of datasets."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, issparse
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d, validate_data

from ntkdist.data import frames
from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Dataset, Nan
from ntkdist.data.encoding import Encoding
from ntkdist.data.frames import Coded, Known
from ntkdist.data.sources import channels_first
from ntkdist.errors import DataError, InputError

ABSENT = object()  # in place of y, where none is expected


def is_dataset(x: Any) -> bool:
    """Return whether x names a dataset in Zarr, instead of being rows."""
    return isinstance(x, (str, os.PathLike, Dataset))


def dataset(x: Any, y: Any, weight: Any = None, nan: Nan = "error") -> Dataset:
    """Return the dataset that x names, with its own ``nan`` if it has one; refuse targets and weights beside it."""
    if y is not None or weight is not None:
        raise InputError(
            "X is the place of a dataset, which holds its own targets and weights; leave out y and sample_weight, "
            "or name other arrays by nd.Dataset(store, y=..., weight=...)"
        )
    return x if isinstance(x, Dataset) else Dataset(os.fspath(x), nan=nan)


def is_lazy(x: Any) -> bool:
    """Return whether x is a Dask collection."""
    return hasattr(x, "__dask_graph__")


def is_outside(x: Any) -> bool:
    """Return whether the rows of x are not in memory: a Dask collection or a Zarr array."""
    return is_lazy(x) or type(x).__module__.split(".")[0] == "zarr"


def training_rows(
    estimator: Any, x: Any, y: Any = ABSENT, weight: Any = None, *, reset: bool = True, labels: bool = False
) -> Arrays:
    """Validate training rows, and set scikit-learn's attributes of the columns, or compare them if ``reset`` is false.

    Labels are not converted.  Raises scikit-learn's ValueError or TypeError, or `InputError`.
    """
    y = np.asarray(y) if is_outside(y) and (labels or not is_outside(x)) else y
    before = None if reset else estimator.equations_.preprocessing.encoding
    nan: Literal["error", "impute"] = (
        "impute" if estimator.nan == "impute" and (reset or (before and before.impute)) else "error"
    )
    x, table = _coded(x, None if reset else Known.of(before))
    if is_outside(x):
        x, columns = _outside(estimator, x, reset, lengths=True)
        if y is None:
            raise InputError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
        if y is not ABSENT:
            y = _with_lengths(y) if is_outside(y) else np.asarray(y)
    else:
        of_y = {} if y is ABSENT else {"y": y} if labels else {"y": y, "multi_output": True, "y_numeric": True}
        x = x.astype(np.float32) if _is_picture(x) else x
        x = validate_data(estimator, x, reset=reset, **of_y, **_options(estimator, nan == "impute"))
        x, y = (x, ABSENT) if y is ABSENT else x
        columns = tuple(getattr(estimator, "feature_names_in_", ()))
    if labels:
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
    y = None if y is ABSENT else y
    for name, array in (("y", y), ("sample_weight", weight := _weights(weight, x.shape[0]))):
        if array is not None and array.shape[0] != x.shape[0]:
            raise InputError(f"{name} has {array.shape[0]} entries but X has {x.shape[0]} rows; give one for every row")
    x = csr_array(x) if issparse(x) else x
    of_columns = {"columns": columns} if table is None else _of_table(table)
    if reset and x.ndim == 4:
        for note in channels_first("X", x.shape[1:], "give X.transpose(0, 2, 3, 1)"):
            warnings.warn(note, stacklevel=4)  # the caller of fit
    dtype = "float32" if x.dtype == np.float32 or _is_picture(x) else "float64"
    return Arrays(x, y, weight, dtype, nan=nan, **of_columns)


def as_indicators(y: Any) -> NDArray[np.float64] | None:
    """Return targets of several labels a row, as zeros and ones; None for others."""
    y = y.toarray() if issparse(y) else np.asarray(y)
    several = y.ndim == 2 and y.shape[1] > 1 and type_of_target(y) == "multilabel-indicator"
    return y.astype(np.float64) if several else None


def new_rows(estimator: BaseEstimator, x: Any, encoding: Encoding | None) -> Any:
    """Validate new rows against those fitted to; return a NumPy, sparse, Zarr or Dask array."""
    if is_outside(x):
        return _outside(estimator, x, reset=False)[0]
    x, _ = _coded(x, Known.of(encoding))
    fills = encoding is not None and encoding.impute
    x = x.astype(np.float32) if _is_picture(x) else x
    x = validate_data(estimator, x, reset=False, **_options(estimator, fills))
    return csr_array(x) if issparse(x) else x


def _is_picture(x: Any) -> bool:
    """Return whether x is an array of images in bytes, which are computed in float32."""
    return getattr(x, "dtype", None) == np.uint8 and len(x.shape) > 2


def _coded(x: Any, known: Known | None) -> tuple[Any, Coded | None]:
    """Return a frame with more than numbers, now or in training, as one of numbers, and what its columns hold."""
    if is_outside(x) or not frames.is_frame(x) or (frames.is_plain(x) and not (known and known.kinds)):
        return x, None
    table = frames.coded(x, known)
    return table.like(x), table


def _of_table(table: Coded) -> dict[str, Any]:
    return {"columns": table.columns, "categories": table.categories, "dates": table.dates}


@contextmanager
def as_value_errors() -> Iterator[None]:
    """Raise data errors as the ValueErrors that scikit-learn expects."""
    try:
        yield
    except DataError as error:
        raise InputError(str(error)) from error


def _options(estimator: Any, missing: bool) -> dict[str, Any]:
    """Return the options of scikit-learn's validation of X, where values may be ``missing`` or not."""
    return {
        "ensure_all_finite": "allow-nan" if missing else True,
        "dtype": [np.float64, np.float32],
        "accept_sparse": "csr" if estimator.feature_map.takes_sparse else False,
        "allow_nd": True,
    }


def _outside(estimator: Any, x: Any, reset: bool, lengths: bool = False) -> tuple[Any, tuple[str, ...]]:
    """Validate rows that are not in memory; return them as an array, with the names of their columns."""
    names = tuple(str(c) for c in getattr(x, "columns", ()))
    if lengths:
        x = _with_lengths(x)
    elif hasattr(x, "to_dask_array"):
        x = x.to_dask_array()
    if x.dtype.kind not in "biuf":
        raise InputError(
            f"X has type {x.dtype}; expected numbers: of a Dask frame with strings or dates, target and all, write a "
            'dataset by ntkdist.convert(frame, "rows.zarr", target="y"), and fit to "rows.zarr"'
        )
    if x.ndim < 2:
        raise InputError(f"X has shape {x.shape}; expected rows, (n, d). Reshape your data")
    if reset:
        estimator.n_features_in_ = int(x.shape[1])
        if names:
            estimator.feature_names_in_ = np.array(names, object)
        return x, names
    before = tuple(getattr(estimator, "feature_names_in_", ()))
    if names and before and names != before:
        raise InputError(f"X has the columns {', '.join(names)}; the estimator was fitted on {', '.join(before)}")
    if x.shape[1] != estimator.n_features_in_:
        raise InputError(
            f"X has {x.shape[1]} features, but {type(estimator).__name__} is expecting {estimator.n_features_in_} "
            "features as input"
        )
    return x, names


def _with_lengths(x: Any) -> Any:
    """Convert a Dask frame to an array, and compute the numbers of rows of its chunks if they are unknown."""
    # Not from the frame: Dask counts its rows by another expression, whose partitions may differ.
    x = x.to_dask_array() if hasattr(x, "to_dask_array") else x
    return x.compute_chunk_sizes() if is_lazy(x) and np.isnan(x.shape[0]) else x


def _weights(weight: Any, rows: int) -> Any:
    """Return weights of rows, (n,), checked if they are in memory; others are checked when they are read."""
    if weight is None or is_lazy(weight):
        return _with_lengths(weight)
    weight = np.asarray(weight, np.float64)
    if weight.ndim == 0:
        weight = np.full(rows, weight)
    if weight.ndim != 1:
        raise InputError(f"Sample weights must be 1D array or scalar, got shape {weight.shape}")
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise InputError("sample_weight holds negative numbers, NaN or infinity; give weights of zero or more")
    if not weight.any():
        raise InputError("sample_weight is zero for every row; give some rows a weight that is not zero")
    return weight
