"""Arrays of the caller, in memory or sliced from Zarr or Dask, read like a dataset."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ntkdist import random
from ntkdist.data import sparse
from ntkdist.data.dataset import FOLD, Layout, Rows, wrong_inputs
from ntkdist.errors import InputError

ROW, SAMPLE = 1, 2  # roles of random streams: of the folds of rows, and of `Arrays.sample`; role 0 is for groups
SPAN_BYTES = 64 * 2**20
HASH_VALUES = 2**20  # values that are hashed at once, to bound memory


@dataclass(frozen=True, eq=False)
class Arrays:
    """Row-aligned arrays with the reading methods of a `Dataset`."""

    x: Any  # (n, *input_shape), sparse or anything whose slices convert to NumPy; slices of a Dask array stay lazy
    y: Any  # (n,) or (n, t), numbers or codes of ``classes``, or None
    weight: Any  # (n,) or None
    dtype: str  # that x is read as
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    first: int = 0  # position of the first row, if the arrays are a part of others
    nan: Literal["error", "impute"] = "error"  # as of a `Dataset`
    categories: tuple[tuple[str, tuple[str, ...]], ...] = ()  # as of a `Layout`
    dates: tuple[str, ...] = ()
    deal: Any = None  # (n,) numbers that deal rows to folds, in place of a hash of their values

    store = "X"  # its name in errors

    @property
    def lazy(self) -> bool:
        return hasattr(self.x, "__dask_graph__")

    def layout(self) -> Layout:
        """Describe the rows without reading them."""
        rows, *shape = (int(s) for s in self.x.shape)
        size = np.dtype(self.dtype).itemsize
        if self.lazy:
            span = max(self.x.chunks[0])
        else:
            span = rows if isinstance(self.x, csr_array) else SPAN_BYTES // (int(np.prod(shape)) * size)
        return Layout(
            rows=rows,
            rows_per_partition=max(1, min(rows, span)),
            input_shape=tuple(shape),
            x_dtype=self.dtype,
            fingerprint="",
            targets=self.y.shape[1] if self.y is not None and self.y.ndim == 2 else 0,
            labelled=self.y is not None,
            classes=self.classes,
            columns=self.columns,
            target_names=self.target_names,
            max_nonzeros=max(self.x.nnz, 1) if isinstance(self.x, csr_array) else 0,
            categories=self.categories,
            dates=self.dates,
        )

    def read(
        self, layout: Layout, start: int, stop: int, *, labelled: bool = True, keep: NDArray[np.bool_] | None = None
    ) -> Rows:
        """Read rows ``start`` to ``stop``, or those of them marked by ``keep``; refuse NaN and negative weights."""
        cut = slice(start - self.first, stop - self.first)
        x = self.x[cut]
        x = x.astype(self.dtype) if isinstance(x, csr_array) else np.asarray(x).astype(self.dtype, copy=False)
        y, weight = (None if a is None else np.asarray(a[cut]) for a in (self.y if labelled else None, self.weight))
        weight = None if weight is None else weight.astype(np.float64)
        for name, array in (("X", x), ("y", y), ("sample_weight", weight)):
            if array is None or array.dtype.kind != "f":
                continue
            bad = wrong_inputs(layout, x, self.nan) if array is x else sparse.bad_rows(array)
            if bad.any():
                what = "infinity" if self.nan == "impute" and array is x else "NaN or infinity"
                raise InputError(f"{name} contains {what} in row {start + int(bad.argmax())}; fill or drop it")
        if weight is not None and (weight < 0).any():
            raise InputError(f"sample_weight is negative in row {start + int((weight < 0).argmax())}")
        nbytes = sum(a.nbytes for a in (x.data if isinstance(x, csr_array) else x, y, weight) if a is not None)
        rows = Rows(x, y, weight, np.arange(start, stop), 0, nbytes)
        return rows if keep is None or keep.all() else rows.take(keep)

    def folds(self, layout: Layout, start: int, stop: int, count: int) -> NDArray[np.int64]:
        """Assign rows to ``count`` folds by ``deal``, or by a hash of a row's values: equal rows then share a fold."""
        if self.deal is not None:
            return np.asarray(self.deal[start - self.first : stop - self.first]) % count
        x = self.x[start - self.first : stop - self.first]
        return np.floor(random.uniforms_of(_row_hashes(x, self.dtype), 0, FOLD, ROW) * count).astype(np.int64)

    def sample(self, count: int) -> "Arrays":
        """Return so many of the rows, picked by a hash of their positions, in memory and in their order; or all."""
        keys = random.uniforms_of(np.arange(self.x.shape[0]), 0, FOLD, SAMPLE)
        picked = np.sort(np.argsort(keys, kind="stable")[:count])
        if len(picked) == len(keys) and isinstance(self.x, np.ndarray):
            return self
        x, y, weight, deal = (
            None if a is None else _taken(a, picked) for a in (self.x, self.y, self.weight, self.deal)
        )
        return replace(self, x=x, y=y, weight=weight, deal=deal)

    def between(self, start: int, stop: int) -> tuple[Any, Any, Any, Any]:
        """Slice x, y, weights and folds; slices of Dask arrays are not computed."""
        x, y, weight, deal = (None if a is None else a[start:stop] for a in (self.x, self.y, self.weight, self.deal))
        return x, y, weight, deal

    def holding(self, first: int, x: Any, y: Any, weight: Any, deal: Any) -> "Arrays":
        """Return a copy that holds the given rows, of which the first is row ``first``."""
        return replace(self, x=x, y=y, weight=weight, deal=deal, first=first)

    def without_targets(self) -> "Arrays":
        """Return the same rows with a target of zeros, for maps that are fitted without one."""
        return replace(self, y=np.broadcast_to(np.zeros(1), self.x.shape[:1]))

    def without_rows(self) -> "Arrays":
        return replace(self, x=None, y=None, weight=None, deal=None)


def _taken(a: Any, rows: NDArray[np.int64]) -> Any:
    """Return some rows of an array, which may be of Dask or of Zarr."""
    return np.asarray(a.oindex[rows] if hasattr(a, "oindex") else a[rows])


def _row_hashes(x: Any, dtype: str) -> NDArray[np.int64]:
    """Hash every row, (n,): equal rows have equal hashes."""
    if isinstance(x, csr_array):
        out = np.zeros(x.shape[0], np.uint64)
        np.add.at(out, x.tocoo(copy=False).row, random.hashes(x.data, x.indices))
        return out.view(np.int64)
    x = np.asarray(x).astype(dtype, copy=False)
    x = x.reshape(len(x), -1)
    out, columns = np.empty(len(x), np.uint64), np.arange(x.shape[1])
    step = max(1, HASH_VALUES // max(x.shape[1], 1))
    for i in range(0, len(x), step):
        out[i : i + step] = random.hashes(x[i : i + step], columns).sum(axis=1, dtype=np.uint64)
    return out.view(np.int64)
