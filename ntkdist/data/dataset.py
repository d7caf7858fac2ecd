"""Datasets: row-aligned arrays in a Zarr group, cut into partitions, and verified when they are read.

A dataset has an array ``x`` (rows first; for sparse rows, the three arrays of `ntkdist.data.sparse`), usually a ``y``,
and any other arrays with one entry per row, all cut into the same partitions.
"""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ntkdist import random
from ntkdist.data import sparse, storage, zarr_groups
from ntkdist.data.images import Decoding
from ntkdist.errors import DataError, SpecError
from ntkdist.spec import Spec, decode, digest

FORMAT = "ntkdist.dataset"
IDENTITY = ("content", "arrays", "sparse", "columns", "target_names", "classes")  # attributes that identify the data
KINDS = ("categories", "dates")  # and these, where there are any
FOLD, GROUP = 1001, 0  # keys of the random stream that assigns groups to folds: a layer that no map uses, and a role


Kind = Literal["number", "date", "category"]  # of a column
HELD = {"number": "numbers", "date": "dates", "category": "categories"}  # the words for what a column of a kind holds


class Rows(NamedTuple):
    """Rows of a dataset as stored, not scaled."""

    x: NDArray[Any] | csr_array
    y: NDArray[Any] | None
    weight: NDArray[np.float64] | None
    places: NDArray[np.int64]  # positions of the rows in the dataset
    dropped: int = 0  # number of rows left out because of NaN or Inf
    nbytes: int = 0  # bytes of the arrays before rows were dropped
    fold: int = -1  # of all rows, where they are training rows of one fold

    @property
    def n(self) -> int:
        return int(self.x.shape[0])

    @property
    def start(self) -> int:
        """Position of the first row."""
        return int(self.places[0])

    def take(self, rows: slice | NDArray[Any]) -> "Rows":
        y, weight = (None if a is None else a[rows] for a in (self.y, self.weight))
        return self._replace(x=self.x[rows], y=y, weight=weight, places=self.places[rows])


class Layout(Spec, frozen=True):
    """The description of a dataset, known without reading a row.

    ``fingerprint`` identifies the data independently of their location: it is a hash of the arrays' names, types,
    shapes, partitions and contents, and of the names of columns, targets and classes.
    """

    rows: int
    rows_per_partition: int
    input_shape: tuple[int, ...]
    x_dtype: str
    fingerprint: str
    targets: int = 0  # 0: no y, or y is one-dimensional
    labelled: bool = False
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    max_nonzeros: int = 0  # of a partition; 0: rows are dense
    categories: tuple[tuple[str, tuple[str, ...]], ...] = ()  # columns of codes, each with its sorted names
    dates: tuple[str, ...] = ()  # columns of seconds since 1970-01-01 UTC
    missing: tuple[str, ...] = ()  # columns of numbers or dates that hold NaN, as far as that is known
    images: Decoding | None = None  # the way in which encoded images became the rows

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of every column of a table."""
        coded = {name for name, _ in self.categories}
        names = self.columns or ("",) * int(np.prod(self.input_shape))
        return tuple("category" if n in coded else "date" if n in self.dates else "number" for n in names)

    @property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The names of the categories of every column; empty for numbers and dates."""
        known = dict(self.categories)
        return tuple(known.get(name, ()) for name in self.columns) or ((),) * int(np.prod(self.input_shape))

    @property
    def sparse(self) -> bool:
        return self.max_nonzeros > 0

    @property
    def row_values(self) -> int:
        """Values stored per row; for sparse rows, an upper bound of their mean over a partition."""
        return -(-self.max_nonzeros // self.rows_per_partition) if self.sparse else int(np.prod(self.input_shape))

    @property
    def partitions(self) -> int:
        return -(-self.rows // self.rows_per_partition)

    @property
    def row_bytes(self) -> int:
        return self.row_values * (np.dtype(self.x_dtype).itemsize + 4 * self.sparse)

    def span(self, partition: int) -> tuple[int, int]:
        """Return the first row of a partition and the row after its last."""
        start = partition * self.rows_per_partition
        return start, min(start + self.rows_per_partition, self.rows)

    def rows_of(self, partitions: Iterable[int]) -> int:
        return sum(stop - start for start, stop in map(self.span, partitions))


Nan = Literal["error", "drop", "impute"]


class Dataset(Spec, frozen=True, repr_omit_defaults=True):
    """A dataset, by the location of its Zarr group and the names of its arrays.

    Parameters
    ----------
    store : str
        Path or URL of the Zarr group.
    x, y : str
        Names of the input and target arrays.
    weight : str
        Name of an array of non-negative sample weights; empty for none.
    nan : {"error", "drop", "impute"}
        Treatment of rows that hold a NaN or an infinity: raise an error; leave them out and count them; or take NaN
        among the inputs for a missing value, which gets the column's median and a column of its own that marks it.
    damaged : {"error", "skip"}
        Treatment of partitions that are missing or damaged: raise an error, or first read all partitions, leave the
        damaged ones out and name them.  Predict and featurize, which return a value for every row, always raise.
    groups : str
        Name of an array of integers; rows with one value are never in different folds.  Empty for none.
    holdout : str
        Name of an array of 0 and 1 (or booleans); the penalty is chosen on the rows with 1.  Empty for none.
    """

    store: str
    x: str = "x"
    y: str = "y"
    weight: str = ""
    nan: Nan = "error"
    damaged: Literal["error", "skip"] = "error"
    groups: str = ""
    holdout: str = ""

    def validate(self) -> None:
        if self.groups and self.holdout:
            raise SpecError(
                f"both groups ('{self.groups}') and holdout ('{self.holdout}') are given; give one: a holdout array "
                "that keeps groups together does both"
            )

    def absolute(self) -> "Dataset":
        """Return the same dataset for a process with another working directory."""
        return msgspec.structs.replace(self, store=storage.absolute(self.store))

    @property
    def fold_array(self) -> str:
        """Name of the array that determines the fold of every row; empty if folds are of whole partitions."""
        return self.groups or self.holdout

    def layout(self, *, labelled: bool = True) -> Layout:
        """Open the group, check that it is complete and consistent, and return its layout.

        Parameters
        ----------
        labelled : bool
            Require targets; without, a dataset need not have any.

        Raises
        ------
        DataError
            If there is no such dataset, it is incomplete or empty, or an array is absent or of the wrong length.
        """
        group = zarr_groups.open_group(self.store, FORMAT)
        attrs: dict[str, Any] = dict(group.attrs)
        stored = attrs.get("sparse", {}).get(self.x)
        names = [f"{self.x}/{part}" for part in ("indptr", "indices", "data")] if stored else []
        parts = {k: zarr_groups.member(self.store, group, k) for k in names}
        x = parts[f"{self.x}/data"] if stored else zarr_groups.member(self.store, group, self.x)
        shape: tuple[int, ...] = tuple(stored) if stored else x.shape
        rows = shape[0]
        size = parts[f"{self.x}/indptr"].shape[1] - 1 if stored else (x.shards or x.chunks)[0]
        if rows == 0:
            raise DataError(f"{self.store}: the dataset has no rows; convert a source that has some")
        if len(shape) < 2:
            raise DataError(f"{self.store}: array '{self.x}' has shape {shape}; expected (rows, columns) or images")
        has_y = zarr_groups.has(self.store, group, self.y)
        arrays = {} if stored else {self.x: x}
        if labelled or has_y:
            arrays[self.y] = y = zarr_groups.member(self.store, group, self.y)
        if self.weight:
            arrays[self.weight] = zarr_groups.member(self.store, group, self.weight)
        if name := self.fold_array:
            arrays[name] = array = zarr_groups.member(self.store, group, name)
            if array.ndim != 1 or array.dtype.kind not in "iub":
                raise DataError(
                    f"{self.store}: array '{name}' has shape {array.shape} and type {array.dtype}; expected "
                    f"{'integers' if self.groups else '0 and 1'}, one a row; convert again with "
                    f"--{'groups' if self.groups else 'holdout'}"
                )
        for name, array in arrays.items():
            if array.shape[0] != rows:
                raise DataError(
                    f"{self.store}: array '{name}' has {array.shape[0]} rows but '{self.x}' has {rows}; convert again"
                )
        for name, array in (arrays | parts).items():
            actual, recorded = zarr_groups.describe(array), attrs.get("arrays", {}).get(name)
            if actual != recorded:
                raise DataError(f"{self.store}: array '{name}' is {actual} but {recorded} was recorded; convert again")
        return Layout(
            rows=rows,
            rows_per_partition=size,
            input_shape=shape[1:],
            x_dtype=str(x.dtype),
            # groups of versions that did not record contents are identified by all attributes, with the source's hash
            fingerprint=digest(_identity(attrs) if "content" in attrs else attrs),
            targets=y.shape[1] if has_y and y.ndim == 2 else 0,
            labelled=has_y,
            classes=tuple(attrs.get("classes", ())),
            columns=tuple(attrs.get("columns", ())) if self.x == "x" else (),
            target_names=tuple(attrs.get("target_names", ())) if self.y == "y" else (),
            max_nonzeros=x.shape[1] if stored else 0,
            images=decode(attrs["images"], Decoding, self.store) if "images" in attrs and self.x == "x" else None,
            **(_of_columns(attrs) if self.x == "x" else {}),
        )

    def read(
        self, layout: Layout, start: int, stop: int, *, labelled: bool = True, keep: NDArray[np.bool_] | None = None
    ) -> Rows:
        """Read rows ``start`` to ``stop``, or those of them marked by ``keep``, verified.

        Raises
        ------
        DataError
            If a chunk is missing or damaged (`Damaged`), or a value is NaN or infinite and ``nan`` is "error".  The
            message names the array and the rows.
        """
        x = self._inputs(layout, start, stop)
        y = self.column(layout, self.y, start, stop) if labelled else None
        w = self.column(layout, self.weight, start, stop).astype(np.float64) if self.weight else None
        inputs = [x.data, x.indices, x.indptr] if isinstance(x, csr_array) else [x]
        rows = Rows(x, y, w, np.arange(start, stop), 0, sum(a.nbytes for a in (*inputs, y, w) if a is not None))
        bad = np.zeros(stop - start, bool)
        for name, array, values in ((self.x, x, inputs[0]), (self.y, y, y), (self.weight, w, w)):
            if array is not None and array.dtype.kind == "f" and not np.isfinite(np.asarray(values)).all():
                wrong = wrong_inputs(layout, x, self.nan) if array is x else sparse.bad_rows(array)
                bad |= wrong
                if self.nan != "drop" and wrong.any():
                    what = "Inf" if self.nan == "impute" and array is x else "NaN or Inf"
                    raise DataError(
                        f"{self.store}: array '{name}' has {what} in {bad.sum()} of the rows {start}–{stop - 1}, "
                        f'first in row {start + int(bad.argmax())}; mend the source, or set nan = "drop"'
                    )
        if w is not None and (w[~bad] < 0).any():
            raise DataError(f"{self.store}: array '{self.weight}' has negative weights in rows {start}–{stop - 1}")
        kept = np.ones(stop - start, bool) if keep is None else keep
        dropped = int((bad & kept).sum())
        return rows if (kept & ~bad).all() else rows.take(kept & ~bad)._replace(dropped=dropped)

    def folds(self, layout: Layout, start: int, stop: int, count: int) -> NDArray[np.int64]:
        """Assign each row to one of ``count`` folds, by its value in `fold_array` alone.

        Groups are assigned by a hash; a holdout has two folds, and fold 1 is held out.

        Raises
        ------
        DataError
            If a holdout flag is neither 0 nor 1, or as in `read`.
        """
        values = self.column(layout, self.fold_array, start, stop)
        if self.groups:
            return np.floor(random.uniforms_of(values, 0, FOLD, GROUP) * count).astype(np.int64)
        if (wrong := (values != 0) & (values != 1)).any():
            raise DataError(
                f"{self.store}: array '{self.holdout}' is {values[wrong.argmax()]} in row "
                f"{start + int(wrong.argmax())}; expected 0, or 1 to hold a row out"
            )
        return values.astype(np.int64)

    def column(self, layout: Layout, name: str, start: int, stop: int) -> NDArray[Any]:
        """Read rows of one array of the dataset, verified as in `read`."""
        return zarr_groups.read_rows(self.store, name, start, stop, layout.fingerprint)

    def source_rows(self, layout: Layout, places: Iterable[int]) -> list[int] | None:
        """Return the rows of the source, from 0, at some positions; None if the dataset has no array ``row``."""
        if "row" not in self.others():
            return None
        return [int(self.column(layout, "row", place, place + 1)[0]) for place in places]

    def _inputs(self, layout: Layout, start: int, stop: int) -> NDArray[Any] | csr_array:
        if not layout.sparse:
            return self.column(layout, self.x, start, stop)
        shape = sparse.Shape(layout.rows, layout.input_shape[0], layout.rows_per_partition)
        return sparse.read(self.store, self.x, shape, start, stop, layout.fingerprint)

    def others(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and type of every array but the input."""
        arrays = zarr_groups.open_group(self.store, FORMAT).arrays()
        return {str(k): (a.shape, str(a.dtype)) for k, a in sorted(arrays) if k != self.x}


def _identity(attrs: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes that identify the data."""
    return {name: attrs.get(name) for name in IDENTITY} | {name: attrs[name] for name in KINDS if attrs.get(name)}


def _of_columns(attrs: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a layout that say what its columns hold."""
    categories = tuple((name, tuple(names)) for name, names in attrs.get("categories", {}).items())
    return {"categories": categories} | {name: tuple(attrs.get(name, ())) for name in ("dates", "missing")}


def wrong_inputs(layout: Layout, x: NDArray[Any] | csr_array, nan: Nan) -> NDArray[np.bool_]:
    """Mark the rows (n,) whose inputs cannot be used: NaN is a name of categories, and may be a missing number."""
    if isinstance(x, csr_array) or len(layout.input_shape) > 1 or not (layout.categories or nan == "impute"):
        return sparse.bad_rows(x)
    allowed = np.array([nan == "impute" or kind == "category" for kind in layout.kinds])
    values: NDArray[Any] = x.reshape(len(x), -1)
    return (np.isinf(values) | (np.isnan(values) & ~allowed)).any(axis=1)


class Shard(NamedTuple):
    """A task: the group that its rows are summed in, and spans (start, stop) of them in reading order.

    ``fold`` is that of its rows, where they are training rows that each fold maps by what the others say; −1 elsewhere.
    ``copies`` are those of each row that enter, where the source augments them; 0 is the row itself.
    """

    group: int
    spans: tuple[tuple[int, int], ...]
    fold: int = -1
    copies: tuple[int, ...] = (0,)

    @property
    def rows(self) -> int:
        return len(self.copies) * sum(stop - start for start, stop in self.spans)

    @property
    def which(self) -> str:
        """First and last row, for messages."""
        return f"{self.spans[0][0]}–{self.spans[-1][1] - 1}"
