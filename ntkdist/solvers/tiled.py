"""Cholesky factorisation of a Gram that is cut into tiles, so that no process needs the whole Gram.

It is right-looking, on a dictionary of tiles by place as in `ntkdist.sums.tiles`: once a column is factored, its outer
product is subtracted from all columns to its right.  The right-hand sides are the last row of tiles, so that the
factorisation includes the forward substitution.  Tiles are arrays, or handles of arrays elsewhere (futures): they are
only passed on, to a `Call`.

Dask's own ``linalg.cholesky`` wants tiles of equal size, computes both triangles and adds a tile's products at the end,
so that about m³/(6·tile) numbers wait.

Legend: A (m, m) the centred Gram plus alpha, bᵀ (t, m) right-hand sides, A = LLᵀ; tiles A_ij of rows i and columns j.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.linalg.blas import dtrsm

from ntkdist import backend
from ntkdist.errors import SpecError
from ntkdist.solvers.base import Sizes, Solver, Sums, cholesky
from ntkdist.sums.rounding import SKETCH
from ntkdist.sums.tiles import Place, panel_bytes, panels, places, run, runs, worker_bytes

F8 = NDArray[np.float64]
Call = Callable[..., Any]  # (place, function, *arguments) → the function's value, or a handle of it
FREED = 1e9  # operations of a thread until a worker is told that nobody needs a tile any more: 20 ms
DROPPED = 1e11  # operations of a thread until a scheduler drops copies that no task waits for: Dask's two seconds
TILE = 2048  # a product takes 0.2 s of one core, a thousand times its scheduling


class TiledCholesky(Solver, frozen=True):
    """One Cholesky factorisation per penalty, tile by tile: for Grams that do not fit one process.

    On a cluster the tiles of every fold are summed on the workers and stay in their memory; so do the factors.  Tiles
    are summed in panels small enough for a worker; a fit reads and maps the data once per panel.  It saves no
    equations that could be added or solved again.

    Parameters
    ----------
    tile : int, optional
        Columns of a tile; if absent, the plan chooses, or 2,048.
    """

    sums: ClassVar[Sums] = "tiles"
    tile: Annotated[int, Meta(ge=1)] | None = None

    def tile_size(self, m: int, wanted: int | None) -> int:
        if wanted and self.tile not in (None, wanted):
            raise SpecError(f"tile is {wanted} in the plan but {self.tile} in the solver; give one")
        return min(m, wanted or self.tile or TILE)

    def block_rows(self, m: int) -> int:
        return TILE

    def most_panels(self, sizes: Sizes) -> int:
        return len(places(sizes.m, sizes.tile))

    def sum_bytes(self, sizes: Sizes) -> int:
        """Return the bytes of the largest panel."""
        return panel_bytes(sizes.m, sizes.t, sizes.tile, sizes.panels)

    def worker_bytes(self, summing: dict[str, int], sizes: Sizes, workers: int, tasks_at_once: int) -> dict[str, int]:
        """Return the more of summing the last panel beside the tiles of those before, and of solving."""
        m, tile, threads = sizes.m, sizes.tile, sizes.threads
        owned = functools.partial(worker_bytes, m, sizes.t, tile, workers)
        everything, n, one = len(places(m, tile)), runs(m, tile), 8 * min(tile, m) ** 2
        before, share = everything - len(panels(m, tile, sizes.panels)[-1]), owned(everything)
        # Two columns of a factor are in use, and others are still where they were.
        steps = 2 + DROPPED * workers * threads / (tile**3 * n * (n + 1))
        columns = min(n * (n + 1) // 2, int(steps * n)) * (workers - 1) // workers
        replaced = min(n * (n + 1) // 2, math.ceil(FREED * threads / (2 * tile**3)))
        solving = {
            "process": summing["process"],
            "map": summing["map"],
            "tiles": sizes.folds * share,
            "training set and factor": 2 * share,
            "columns of others": columns * one,
            "replaced tiles": replaced * one,
            "batch": tasks_at_once * 2 * one,
        }
        summing = summing | {"tiles": sizes.folds * owned(before)}
        return max(summing, solving, key=lambda parts: sum(parts.values()))

    def driver_bytes(self, sizes: Sizes) -> dict[str, int]:
        sums = 8 * (2 * sizes.folds + 4) * sizes.m * (sizes.t + 1)
        return {"sums": sums, "signs": 8 * SKETCH * sizes.m}

    def weights(self, gram: F8, rhs: F8, alphas: Sequence[float]) -> Iterator[F8]:
        m, tile = len(gram), self.tile or TILE
        last = runs(m, tile)
        tiles = {
            (i, j): (rhs.T if i == last else gram[run(m, tile, i)])[:, run(m, tile, j)]
            for i, j in places(m, tile)
            if j < last
        }
        for alpha in alphas:
            yield np.hstack(solve_tiles(tiles, m, tile, alpha, lambda place, function, *args: function(*args))).T


def solve_tiles(tiles: dict[Place, Any], m: int, tile: int, alpha: float, call: Call) -> list[Any]:
    """Solve (G + alpha) x = b; return xᵀ, (t, tile) each, of every run of columns.

    ``tiles`` is the lower triangle of G, with both triangles of the tiles on the diagonal, and bᵀ in the last row.  The
    call that meets it raises `NotPositiveDefinite`.
    """
    a, n = dict(tiles), runs(m, tile)
    for k in range(n):
        a[k, k] = call((k, k), factor, a[k, k], alpha, k * tile, m)
        for i in range(k + 1, n + 1):
            a[i, k] = call((i, k), divide, a[i, k], a[k, k])
        for j in range(k + 1, n):
            for i in range(j, n + 1):
                a[i, j] = call((i, j), subtract_product, a[i, j], a[i, k], a[j, k])
    x = [a.pop((n, j)) for j in range(n)]
    for j in reversed(range(n)):
        x[j] = call((j, j), divide_backwards, x[j], a.pop((j, j)))
        for i in range(j):
            x[i] = call((j, i), subtract_product_backwards, x[i], x[j], a.pop((j, i)))
    return x


class Work(NamedTuple):
    """The work of `solve_tiles` for n runs of columns of one length; an operation is that length cubed."""

    operations: float  # on tiles of the Gram
    longest: float  # on the critical path
    calls: int


def work(n: int) -> Work:
    """Count the work of factoring n(n + 1)/2 tiles and solving."""
    products, quotients = (n - 1) * n * (n + 1) // 6, n * (n - 1) // 2
    of_rhs = n * (n + 1)  # half of them forwards, half backwards
    return Work(n / 3 + quotients + 2 * products, n / 3 + 3 * (n - 1), n + quotients + products + of_rhs)


def factor(a: F8, alpha: float, start: int, m: int) -> F8:
    """Factor G + alpha = LLᵀ of a diagonal tile whose first column is ``start`` of m."""
    return cholesky(a.copy(), alpha, "; use a larger alpha, or float64", start, m)


def divide(a: F8, lower: F8) -> F8:
    """Compute A L⁻ᵀ."""
    out = np.empty_like(a, order="C")

    def fill(i: int) -> None:
        rows = slice(i, i + backend.TILE)
        out[rows] = dtrsm(1.0, lower, a[rows].T, lower=1).T

    backend.parallel_for(fill, range(0, len(a), backend.TILE))
    return out


def subtract_product(a: F8, left: F8, right: F8) -> F8:
    """Compute A − left rightᵀ, with the same bits whether both are one array in memory or two equal ones.

    Of one array NumPy would compute a symmetric product, which may round in another way than a general one.
    """
    out = np.empty_like(a, order="C")
    right = right.copy() if np.may_share_memory(left, right) else right

    def fill(i: int) -> None:
        rows = slice(i, i + backend.TILE)
        np.matmul(left[rows], right.T, out=out[rows])
        np.subtract(a[rows], out[rows], out=out[rows])

    backend.parallel_for(fill, range(0, len(a), backend.TILE))
    return out


def divide_backwards(x: F8, lower: F8) -> F8:
    """Compute x L⁻¹."""
    return dtrsm(1.0, lower, x.T, lower=1, trans_a=1).T


def subtract_product_backwards(x: F8, y: F8, lower: F8) -> F8:
    """Compute x − y L."""
    return x - y @ lower
