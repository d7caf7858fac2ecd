"""Datasets: row-aligned arrays in one group of Zarr, cut into partitions, read verified or not at all.

A dataset has an array ``x`` (rows first), usually a ``y``, and whatever else has one entry a row, all cut into the same
partitions.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ntkdist import groups
from ntkdist.errors import DataError
from ntkdist.spec import Spec, digest

FORMAT = "ntkdist.dataset"


class Rows(NamedTuple):
    """Some rows of a dataset, as read: raw values, nothing scaled."""

    x: NDArray[Any]
    y: NDArray[Any] | None
    weight: NDArray[np.float64] | None
    places: NDArray[np.int64]  # positions of the rows in the dataset
    dropped: int = 0  # rows left out because of NaN or Inf
    nbytes: int = 0  # bytes of the arrays before rows were dropped

    @property
    def start(self) -> int:
        """Position of the first row."""
        return int(self.places[0])

    def take(self, rows: slice | NDArray[Any]) -> "Rows":
        """The same with some of the rows."""
        y, weight = (None if a is None else a[rows] for a in (self.y, self.weight))
        return self._replace(x=self.x[rows], y=y, weight=weight, places=self.places[rows])


class Layout(Spec, frozen=True):
    """What is known of a dataset without reading a row.

    ``fingerprint`` names the data: it is a hash of the group's attributes, which hold the SHA-256 of the
    source, and of the arrays' shapes, types and partitions.
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

    @property
    def partitions(self) -> int:
        return -(-self.rows // self.rows_per_partition)

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.input_shape)) * np.dtype(self.x_dtype).itemsize

    def span(self, partition: int) -> tuple[int, int]:
        """First row of a partition and the row after its last."""
        start = partition * self.rows_per_partition
        return start, min(start + self.rows_per_partition, self.rows)


class Dataset(Spec, frozen=True):
    """A dataset by its place and the names of its arrays.

    Parameters
    ----------
    store : str
        Path or URL of the Zarr group.
    x, y : str
        Names of the input and target arrays.
    weight : str
        Name of an array of non-negative sample weights; empty for none.
    nan : {"error", "drop"}
        What to do with rows that hold a NaN or an infinity: refuse, or leave them out and count them.
    """

    store: str
    x: str = "x"
    y: str = "y"
    weight: str = ""
    nan: Literal["error", "drop"] = "error"

    def layout(self, *, labelled: bool = True) -> Layout:
        """Open the group, check that it is complete and consistent, and describe it.

        Parameters
        ----------
        labelled : bool
            Whether targets are needed.  Without, a dataset that has none is fine.

        Raises
        ------
        DataError
            If there is no such dataset, it is incomplete or empty, or an array is absent or of the wrong length.
        """
        group = groups.open_group(self.store, FORMAT)
        attrs: dict[str, Any] = dict(group.attrs)
        x = groups.member(self.store, group, self.x)
        rows = x.shape[0]
        if rows == 0:
            raise DataError(f"{self.store}: the dataset has no rows; convert a source that has some")
        if x.ndim < 2:
            raise DataError(f"{self.store}: array '{self.x}' has shape {x.shape}; expected (rows, columns) or images")
        has_y = self.y in group
        arrays = {self.x: x}
        if labelled or has_y:
            arrays[self.y] = y = groups.member(self.store, group, self.y)
        if self.weight:
            arrays[self.weight] = groups.member(self.store, group, self.weight)
        for name, array in arrays.items():
            if array.shape[0] != rows:
                raise DataError(
                    f"{self.store}: array '{name}' has {array.shape[0]} rows but '{self.x}' has {rows}; convert again"
                )
            found, recorded = groups.describe(array), attrs.get("arrays", {}).get(name)
            if found != recorded:
                raise DataError(f"{self.store}: array '{name}' is {found} but {recorded} was recorded; convert again")
        return Layout(
            rows=rows,
            rows_per_partition=(x.shards or x.chunks)[0],
            input_shape=x.shape[1:],
            x_dtype=str(x.dtype),
            fingerprint=digest(attrs),
            targets=y.shape[1] if has_y and y.ndim == 2 else 0,
            labelled=has_y,
            classes=tuple(attrs.get("classes", ())),
            columns=tuple(attrs.get("columns", ())) if self.x == "x" else (),
            target_names=tuple(attrs.get("target_names", ())) if self.y == "y" else (),
        )

    def read(self, layout: Layout, start: int, stop: int, *, labelled: bool = True) -> Rows:
        """Rows ``start`` to ``stop``, verified.

        Raises
        ------
        DataError
            If a chunk is missing or damaged, or a value is NaN or infinite and ``nan`` is "error".  The message
            names the array and the rows.
        """
        x = self.column(layout, self.x, start, stop)
        y = self.column(layout, self.y, start, stop) if labelled else None
        w = self.column(layout, self.weight, start, stop).astype(np.float64) if self.weight else None
        rows = Rows(x, y, w, np.arange(start, stop), 0, sum(a.nbytes for a in (x, y, w) if a is not None))
        bad = np.zeros(len(x), bool)
        for name, array in ((self.x, x), (self.y, y), (self.weight, w)):
            if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
                bad |= ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
                if self.nan == "error":
                    raise DataError(
                        f"{self.store}: array '{name}' has NaN or Inf in {bad.sum()} of the rows {start}–{stop - 1}, "
                        f'first in row {start + int(bad.argmax())}; mend the source, or set nan = "drop"'
                    )
        if w is not None and (w[~bad] < 0).any():
            raise DataError(f"{self.store}: array '{self.weight}' has negative weights in rows {start}–{stop - 1}")
        return rows.take(~bad)._replace(dropped=int(bad.sum())) if bad.any() else rows

    def column(self, layout: Layout, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of one array of the dataset, verified as in `read`."""
        return groups.read_rows(self.store, name, start, stop, layout.fingerprint)

    def others(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of every array beside the input."""
        arrays = groups.open_group(self.store, FORMAT).arrays()
        return {str(k): (a.shape, str(a.dtype)) for k, a in sorted(arrays) if k != self.x}
