"""Fits with a Gram in tiles: the tiles of every fold are summed on the workers, and factored where they are.

No process holds the whole Gram.  The rows are read and mapped once for each panel of tiles; a tile's bits do not depend
on its panel, nor on the workers.

Legend: as in `ntkdist.sums.tiles`; a training set is all folds but one, or all of them; x (m, t) coefficients.
"""

import functools
import itertools
import operator
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend, memory
from ntkdist.cluster import Client
from ntkdist.cluster.connect import identity
from ntkdist.cluster.progress import Progress, timed
from ntkdist.cluster.reduce import Pass, fetch, on_each_worker, phase, settle, sums_in_place
from ntkdist.cluster.shards import Part
from ntkdist.cluster.tally import Tally
from ntkdist.errors import NotPositiveDefinite
from ntkdist.planning.plan import Plan
from ntkdist.ridge.augmented import with_copies
from ntkdist.ridge.fitted import Clock, FitStatistics, Fitted
from ntkdist.ridge.model import RidgeModel
from ntkdist.ridge.prepare import Prepared
from ntkdist.solvers import check_sums
from ntkdist.solvers.cross_validation import CVResult, check_folds, penalties
from ntkdist.solvers.grid import Grid
from ntkdist.solvers.tiled import divide, factor, solve_tiles
from ntkdist.sums import CrossSums
from ntkdist.sums.equations import TargetSums
from ntkdist.sums.mapped_rows import RowMapper
from ntkdist.sums.rounding import Loss, relative_rounding
from ntkdist.sums.tiles import Place, TilesOf, owner_index, panels, run, runs

F8 = NDArray[np.float64]


def fit(p: Plan, prepared: Prepared) -> Fitted:
    """Fit by factorisations of tiles that stay on the workers; raise NotPositiveDefinite if no penalty is solved."""
    client, watch, pre, clock = prepared.client, prepared.watch, prepared.empty.preprocessing, Clock()
    placement = TilePlacement(client, p.threads, runs(p.m, p.tile))
    timeline: list[tuple[float, int]] = []
    source, shards = with_copies(prepared.source, prepared.shards, p.job.augment, p.group_folds[p.folds :])
    with phase("equations", p.panels * sum(shard.rows for shard in shards), client, watch) as done:
        prepared = prepared._replace(source=source, shards=shards)
        groups, squared, tally = sum_tiles(p, prepared, placement, timed(done, timeline))
    squares = [_squares(p, group, placement) for group in groups]
    sums = [_cross_sums(p, *of, placement) for of in zip(groups, squares, strict=True)]
    on_each_worker(client, memory.give_back)  # what sums of shards have left free between tiles that stay
    check_sums(functools.reduce(operator.add, sums))
    roundings = [relative_rounding(r, group.weight) for r, group in zip(squared, sums, strict=True)]
    clock.lap("equations")
    with phase("factorisations", 0, client, watch):
        folds: list[list[Group]] = [[] for _ in range(p.folds)]
        for k, group in zip(p.group_folds, map(Group, groups, sums, squares, roundings), strict=True):
            folds[k].append(group)
        path = TiledPath(p, folds, placement)
        cv, alpha = path.choose(p.job.alphas, p.job.alphas_per_row, p.job.alpha_per_target)
        coef, intercept = path.of_all_rows(alpha)
    clock.lap("solve")
    model = RidgeModel.of_scaled(pre, prepared.empty.features, coef, intercept, alpha, p.dtype)
    model = replace(model, augment=p.job.augment)
    statistics = FitStatistics(pre, [fold.weight for fold in path.sums], tally, clock.seconds, None, timeline)
    return Fitted(statistics, lambda: (model, cv and cv.scaled(pre.y_scale), None))


class TilePlacement:
    """The assignment of tiles to workers; a call runs a function of tiles on the worker that owns its place.

    Places are assigned by `owner_index`, so tiles of one place in different matrices are on one worker.  If a worker
    dies, Dask makes its tiles again on another.  Without a client, everything runs in this process.
    """

    def __init__(self, client: Client | None, threads: int, last: int) -> None:
        self.client, self.threads, self.last = client, threads, last
        self.workers = sorted(client.nthreads()) if client is not None else []
        self.id, self.calls = uuid.uuid4().hex[:8], itertools.count()

    def __call__(self, place: Place, function: Any, *args: Any) -> Any:
        """Run a function on the owner of a place; return its value, or a future of it."""
        if self.client is None:
            return on_threads(self.threads, function, *args)
        worker = self.workers[owner_index(place, self.last) % len(self.workers)]
        first = int(function in (factor, divide))  # a column is factored as soon as it can be: all others wait for it
        options = {"key": self._key(function), "workers": worker, "allow_other_workers": True, "priority": first}
        return self.client.submit(on_threads, self.threads, function, *args, **options)

    def beside(self, function: Any, *args: Any) -> Any:
        """Run a function where its arguments are, before all other tasks; return its value, or a future of it."""
        if self.client is None:
            return function(*args)
        return self.client.submit(function, *args, key=self._key(function), priority=10)

    def _key(self, function: Any) -> tuple[str, int]:
        return f"ntkdist-{function.__name__.strip('_')}-{self.id}", next(self.calls)


def sum_tiles(
    p: Plan, prepared: Prepared, placement: TilePlacement, done: Progress
) -> tuple[list[dict[Place, Any]], list[float], Tally]:
    """Sum the tiles of every group on their workers, panel by panel; return them, each one's rounding, and a tally."""
    mapped = RowMapper(prepared.empty.features, prepared.empty.preprocessing, p.dtype, "", 0)
    groups: list[dict[Place, Any]] = [{} for _ in p.group_folds]
    roundings: list[float] = []
    tally = Tally()
    for panel in panels(p.m, p.tile, p.panels):
        summand = TilesOf(mapped, p.tile, tuple(panel))
        keep = prepared.kept and prepared.kept.tiles(p.tile, panel)
        parts = sums_in_place(Pass(prepared.source, summand, prepared.shards, p.fan_in, done, keep), placement.client)
        for group, part in zip(groups, parts, strict=True):
            group.update({place: placement(place, identity, placement.beside(taken, part, place)) for place in panel})
        counts = fetch(placement.client, [placement.beside(_counts, part) for part in parts])
        roundings = [rounding for _, rounding in counts]
        panel_tally = functools.reduce(operator.add, (counted for counted, _ in counts))
        tally = (tally + panel_tally).of_rows(panel_tally)
        del parts, part  # before the next panel needs the memory
        settle(placement.client, [group[place] for group in groups for place in panel])
    return groups, roundings, tally


def _squares(p: Plan, tiles: dict[Place, Any], placement: TilePlacement) -> F8:
    """Fetch the diagonal of a Gram, (m,), to this process."""
    places = [(i, i) for i in range(runs(p.m, p.tile))]
    return np.concatenate(fetch(placement.client, [placement(place, np.diagonal, tiles[place]) for place in places]))


def _cross_sums(p: Plan, tiles: dict[Place, Any], squares: F8, placement: TilePlacement) -> CrossSums:
    """Fetch the sums beside a Gram, and the Gram's trace, to this process."""
    n = runs(p.m, p.tile)
    cross = fetch(placement.client, [tiles[n, j] for j in range(n + 1)])
    traces = [squares[run(p.m, p.tile, i)].sum() for i in range(n)]
    return CrossSums(np.hstack(cross[:n]).T, cross[n], float(sum(traces)))


class Group(NamedTuple):
    """A sum in tiles over some rows, and what this process knows of it."""

    tiles: dict[Place, Any]  # or futures of them
    sums: CrossSums
    squares: F8  # diagonal (m,) of the Gram
    rounding: float  # relative, of the sums


class TiledPath(Grid):
    """Penalties scored by factorisations of the tiles of every training set, one after another."""

    def __init__(
        self,
        p: Plan,
        folds: Sequence[Sequence[Group]],  # the last of a fold's groups is what it is scored on
        placement: TilePlacement,
    ) -> None:
        self.sums = [functools.reduce(operator.add, [group.sums for group in groups]) for groups in folds]
        total = functools.reduce(operator.add, self.sums)
        super().__init__(self.sums, p.scored or tuple(range(len(folds))), total, False)
        self.m, self.tile, self.n = p.m, p.tile, runs(p.m, p.tile)
        self.tiles, self.held, self.placement = (
            [[g.tiles for g in groups] for groups in folds],
            [g[-1] for g in folds],
            placement,
        )
        self.precision = max(group.rounding for group in self.held)

    def choose(
        self, alphas: Sequence[float] | str, alphas_per_row: Sequence[float] | None, per_target: bool
    ) -> tuple[CVResult | None, F8]:
        """Score the penalties, unless there is one fold, and choose one for every target; see `cross_validate`."""
        grid, self.per_row = penalties(self.total, alphas, alphas_per_row)
        if len(self.tiles) == 1:
            return None, np.full(self.total.t, grid[0] * self.scale(self.total.weight))
        check_folds(self.sums)
        cv = self.search(grid, alphas_per_row is None and isinstance(alphas, str), True, per_target)
        return cv, cv.alpha

    def add(self, grid: Sequence[float]) -> None:
        losses: list[list[Loss | None]] = [[None] * len(self.scored) for _ in grid]
        failed: NotPositiveDefinite | None = None
        for n, k in enumerate(self.scored):
            others = [i for i in range(len(self.tiles)) if i != k]
            train = functools.reduce(operator.add, [self.sums[i] for i in others])
            tiles = self.centred(others, train)
            for a, alpha in enumerate(grid):
                try:
                    losses[a][n] = self._loss(k, tiles, train, alpha * self.scale(train.weight))
                except NotPositiveDefinite as error:
                    failed = error
        if failed and not self.mse and not any(all(each) for each in losses):
            raise failed
        for alpha, each in zip(grid, losses, strict=True):
            self.put(alpha, each)

    def of_all_rows(self, alpha: F8) -> tuple[F8, F8]:
        """Solve for all rows, each target with its penalty; return coefficients (m, t) and intercepts (t,)."""
        coef = np.empty((self.m, len(alpha)))
        tiles = self.centred(range(len(self.tiles)), self.total)
        for each in set(alpha.tolist()):
            solved, _ = self._solve(tiles, each)
            coef[:, alpha == each] = solved[:, alpha == each]
        return coef, self._intercept(self.total, coef)

    def centred(self, folds: Iterable[int], train: TargetSums) -> dict[Place, Any]:
        """Add the tiles of a training set's folds, centred at its means."""
        groups = [tiles for k in folds for tiles in self.tiles[k]]
        total = np.concatenate([train.z_sum, train.y_sum, [train.weight]])

        def means(i: int) -> F8:
            return total[self.m :] if i == self.n else total[run(self.m, self.tile, i)]

        return {
            (i, j): self.placement(
                (i, j), added_and_centred, [tiles[i, j] for tiles in groups], means(i), means(j) / total[-1]
            )
            for i, j in groups[0]
            if j < self.n
        }

    def _solve(self, tiles: dict[Place, Any], alpha: float) -> tuple[F8, list[Any]]:
        """Solve for coefficients; return them, and their parts, by runs of columns, on the workers."""
        parts = solve_tiles(tiles, self.m, self.tile, alpha, self.placement)
        coef = np.hstack(fetch(self.placement.client, parts)).T
        return coef[:, :-1], parts  # the last column is of the constant 1, and zero

    def _intercept(self, train: TargetSums, coef: F8) -> F8:
        return (train.y_sum - train.z_sum @ coef) / train.weight

    def _loss(self, k: int, tiles: dict[Place, Any], train: CrossSums, alpha: float) -> Loss:
        """Evaluate the model of a training set, from its tiles, over fold k."""
        coef, x = self._solve(tiles, alpha)
        held, intercept = self.held[k], self._intercept(train, coef)
        gram = [(place, tile) for place, tile in held.tiles.items() if place[0] < self.n]
        squares = fetch(self.placement.client, [self.placement((i, j), quadratic, g, x[i], x[j]) for (i, j), g in gram])
        square = sum(s * (1 if i == j else 2) for ((i, j), _), s in zip(gram, squares, strict=True))[:-1]
        loss = held.sums.loss_of(coef, intercept, square, held.squares, held.rounding)
        return loss.times(self.sums[k].weight / held.sums.weight)


def on_threads(threads: int, function: Any, *args: Any) -> Any:
    """Call a function with a number of threads for this process's tasks."""
    backend.use_threads(threads)
    return function(*map(backend.aligned, args))


def taken(part: Part, place: Place) -> F8:
    """Return a tile of a sum, with both triangles if it is on the diagonal."""
    tile: F8 = part.total.tiles[place]
    if place[0] == place[1]:
        tile = tile.copy()
        backend.mirror(tile)
    return tile


def _counts(part: Part) -> tuple[Tally, float]:
    """Return the tally of a sum, and the rounding of its products."""
    return part.tally, float(part.total.rounding)


def added_and_centred(tiles: Sequence[F8], sums: F8, means: F8) -> F8:
    """Add tiles of one place, centred at the means of their columns."""
    total = np.outer(sums, -means)
    for tile in tiles:
        total += tile
    return total


def quadratic(tile: F8, left: F8, right: F8) -> F8:
    """Compute xᵢᵀ G_ij xⱼ of every target, from xᵢᵀ (t, rows) and xⱼᵀ (t, columns)."""
    return np.einsum("tj,tj->t", left @ tile, right)
