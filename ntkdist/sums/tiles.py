"""Normal equations cut into tiles, so that no process holds the whole Gram.

Legend: z (n, m) features; y (n, t) targets; w (n,) weights; A = Σ w [z y 1]ᵀ[z y 1].  The features are cut into
runs of ``tile`` columns, the last of which may be shorter.  The targets and the 1 are one more run, so that the last
row of tiles holds right-hand sides and sums of features.  A *place* (i, j), j ≤ i, names a tile of the lower triangle.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.data.dataset import Rows
from ntkdist.data.partitions import evenly
from ntkdist.sums.equations import with_roots
from ntkdist.sums.mapped_rows import RowMapper, check_finite
from ntkdist.sums.rounding import UNKNOWN, block_rounding

F8 = NDArray[np.float64]
Place = tuple[int, int]


def runs(m: int, tile: int) -> int:
    return -(-m // tile)


def run(m: int, tile: int, i: int) -> slice:
    return slice(i * tile, min((i + 1) * tile, m))


def places(m: int, tile: int) -> list[Place]:
    """Return the places of all tiles of A, row by row."""
    return [(i, j) for i in range(runs(m, tile) + 1) for j in range(i + 1)]


def panels(m: int, tile: int, count: int) -> list[Sequence[Place]]:
    """Cut the places into panels, each of which is summed in a pass over the data."""
    return evenly(places(m, tile), count)


def panel_bytes(m: int, t: int, tile: int, count: int) -> int:
    """Return the bytes of the largest of the panels."""
    return max(map(sum, evenly(nbytes(m, t, tile), count)))


def owner_index(place: Place, last: int) -> int:
    """Return the round-robin index of the worker that owns a tile.

    Right-hand sides go with the diagonal tile of their column, because both use the same tiles of the factor.
    """
    i, j = place
    i = j if i == last else i
    return i * (i + 1) // 2 + j


@functools.lru_cache(maxsize=8)
def nbytes(m: int, t: int, tile: int) -> tuple[int, ...]:
    """Return the bytes of every tile of A, in the order of `places`."""
    width = [*(min(tile, m - i) for i in range(0, m, tile)), t + 1]
    return tuple(8 * width[i] * width[j] for i, j in places(m, tile))


def worker_bytes(m: int, t: int, tile: int, workers: int, count: int) -> int:
    """Return the most bytes that any worker owns of the first ``count`` tiles."""
    owned = [0] * workers
    for place, size in zip(places(m, tile)[:count], nbytes(m, t, tile), strict=False):
        owned[owner_index(place, runs(m, tile)) % workers] += size
    return max(owned)


class TileSums:
    """A sum over rows, in float64, of some tiles of A: a value with ``+`` and a size.

    Blocks are multiplied and added as in `NormalEquations`.  Only the lower triangle of a tile on the diagonal is
    valid.  ``rounding`` is the sum of `block_rounding` over blocks.
    """

    def __init__(self, tiles: dict[Place, F8], rounding: float = 0.0) -> None:
        self.tiles, self.rounding = tiles, rounding

    @classmethod
    def zeros(cls, m: int, t: int, tile: int, of: Iterable[Place]) -> "TileSums":
        """Return the empty sum of the tiles at some places."""

        def size(i: int) -> int:
            return t + 1 if i == runs(m, tile) else min(tile, m - i * tile)

        return cls({(i, j): np.zeros((size(i), size(j))) for i, j in of})

    @classmethod
    def of_arrays(cls, arrays: dict[str, F8]) -> "TileSums":
        names = (name.split("-") for name in arrays if name != "rounding")
        tiles = {(int(i), int(j)): arrays[f"{i}-{j}"] for i, j in names}
        return cls(tiles, float(arrays.get("rounding", UNKNOWN)[0]))

    def arrays(self) -> dict[str, F8]:
        """Return the arrays to store, by name."""
        return {f"{i}-{j}": a for (i, j), a in self.tiles.items()} | {"rounding": np.array([self.rounding])}

    def update(self, z: NDArray[Any], y: NDArray[Any], weight: NDArray[Any] | None, tile: int) -> "TileSums":
        """Add a block of rows, in place; arguments and result are those of `NormalEquations.update`."""
        z, y1 = with_roots(z, y, weight)
        m, right, last = z.shape[1], y1.astype(z.dtype), runs(z.shape[1], tile)

        def pieces() -> Iterator[tuple[Place, slice, slice]]:
            for i, j in self.tiles:
                rows = [slice(0, y1.shape[1])] if i == last else list(_pieces(run(m, tile, i)))
                for b in _pieces(run(m, tile, j)) if j < last else ():
                    yield from (((i, j), a, b) for a in rows if i != j or a.start >= b.start)

        def add(piece: tuple[Place, slice, slice]) -> None:
            (i, j), a, b = piece
            left, top = (right, 0) if i == last else (z, i * tile)
            into = self.tiles[i, j][a.start - top : a.stop - top, b.start - j * tile : b.stop - j * tile]
            into += left[:, a].T @ z[:, b]

        backend.parallel_for(add, pieces())
        if (last, last) in self.tiles:
            self.tiles[last, last] += y1.T @ y1
        self.rounding += block_rounding(len(y1), float(y1[:, -1] @ y1[:, -1]), z.dtype)
        return self

    def __add__(self, other: "TileSums") -> "TileSums":
        tiles = {place: a + other.tiles[place] for place, a in self.tiles.items()}
        return TileSums(tiles, self.rounding + other.rounding)

    def __iadd__(self, other: "TileSums") -> "TileSums":
        for place, a in self.tiles.items():
            a += other.tiles[place]
        self.rounding += other.rounding
        return self

    def __sizeof__(self) -> int:
        return sum(a.nbytes for a in self.tiles.values())


def _pieces(columns: slice) -> Iterator[slice]:
    for a in range(columns.start, columns.stop, backend.TILE):
        yield slice(a, min(a + backend.TILE, columns.stop))


@dataclass(frozen=True)
class TilesOf:
    """A summand: the `TileSums` of some places, of the features of scaled rows."""

    mapped: RowMapper
    tile: int
    panel: tuple[Place, ...]

    def zero(self) -> TileSums:
        return TileSums.zeros(self.mapped.features.n_components, self.mapped.preprocessing.t, self.tile, self.panel)

    def update(self, total: TileSums, rows: Rows) -> TileSums:
        rows = self.mapped.of(rows)
        assert rows.y is not None
        check_finite(np.ones(rows.n, rows.x.dtype) @ rows.x, rows, self.mapped.dtype)
        return total.update(rows.x, rows.y, rows.weight, self.tile)
