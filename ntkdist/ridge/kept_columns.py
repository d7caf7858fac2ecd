"""Columns of a dataset beside its predictions, in the order of its source, and both as a csv or parquet file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ntkdist.data import zarr_groups
from ntkdist.data.dataset import Dataset, Kind
from ntkdist.errors import DataError
from ntkdist.ridge.outputs import PREDICTIONS, Outputs
from ntkdist.spec import nearest

BLOCK_ROWS = 2**16  # of a table


@dataclass(frozen=True)
class KeptColumn:
    """A column of a dataset to copy: column ``index`` of an array, or the array itself if it has one axis."""

    name: str
    array: str
    dtype: str
    index: int | None = None
    kind: Kind = "number"
    names: tuple[str, ...] = ()  # of the codes of a category, or of classes

    @property
    def field(self) -> str:
        """The name of the array of its values beside predictions."""
        return f"kept {self.name}"

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the column (n,) of the rows of its array."""
        return values if self.index is None else values[:, self.index]


def kept(dataset: Dataset, names: Sequence[str]) -> list[KeptColumn]:
    """Find columns of a dataset by name: inputs, targets, and arrays with a number a row.

    Raises
    ------
    DataError
        If there is none of a name.
    """
    layout, others = dataset.layout(labelled=False), dataset.others()
    found = {name: KeptColumn(name, name, kind) for name, (shape, kind) in others.items() if len(shape) == 1}
    if layout.labelled:
        shape, kind = others[dataset.y]
        targets = layout.target_names or (dataset.y,)
        classes: dict[str, Any] = {"kind": "category", "names": layout.classes} if layout.classes else {}
        for i, name in enumerate(targets):
            found[name] = KeptColumn(name, dataset.y, kind, i if len(shape) == 2 else None, **classes)
    for i, name in enumerate(layout.columns):
        found[name] = KeptColumn(name, "x", layout.x_dtype, i, layout.kinds[i], layout.names[i])
    if missing := [name for name in names if name not in found]:
        raise DataError(
            f"{dataset.store} has no column '{missing[0]}', which is to be kept{nearest(missing[0], list(found))}"
        )
    return [found[name] for name in dict.fromkeys(names)]


def write_table(outputs: Outputs, columns: Sequence[KeptColumn], group: str, out: str) -> None:
    """Write the rows of a group of predictions and columns kept to a csv or parquet file."""
    from ntkdist.data import written_tables  # Arrow, which takes a while to import

    _, attrs = zarr_groups.read_attributes(group, (PREDICTIONS,))
    digest = next(iter(attrs["content"].values()))
    names = [name for name, _, _ in outputs.fields]
    rows = zarr_groups.member(group, zarr_groups.open_group(group, PREDICTIONS), names[0]).shape[0]
    with written_tables.writer(out) as write:
        for start in range(0, rows, BLOCK_ROWS):

            def block(name: str, start: int = start) -> NDArray[Any]:
                return zarr_groups.read_rows(group, name, start, min(start + BLOCK_ROWS, rows), digest)

            copied = {c.name: written_tables.decoded(block(c.field), c.kind, c.names) for c in columns}
            write(copied | outputs.columns({name: block(name) for name in names}))
