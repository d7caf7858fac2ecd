"""The search over a grid of penalties: its start, its growth at an edge, and the choice among errors that round."""

import abc
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ntkdist.solvers.cv_result import CVResult, over_folds
from ntkdist.sums import CrossSums, NormalEquations
from ntkdist.sums.rounding import SKETCH, Loss, difference_rounding, evaluation_rounding

F8 = NDArray[np.float64]
EXTENSIONS = 6  # times that a grid may grow
THIN = 2048  # features from which every second penalty, or fewer, of the "auto" grid is tried first
FLAT = 1e-3  # relative gain below which growth towards zero stops
SINGLE = 1e-10  # relative rounding of sums above which they are of float32


class Grid(abc.ABC):
    """A grid of penalties, with the error of each on each fold; subclasses compute the errors.

    ``total`` is the sum of all ``folds``, ``scored`` are those whose errors count; with ``per_row``, penalties are per
    unit of weight.  A thinned grid begins with every ``stride``-th penalty, where that is a power of two.
    """

    stride: ClassVar[int] = 2

    def __init__(
        self,
        folds: Sequence[NormalEquations | CrossSums],
        scored: tuple[int, ...],
        total: NormalEquations | CrossSums,
        per_row: bool,
    ) -> None:
        self.count, self.scored, self.weights = len(folds), scored, [folds[k].weight for k in scored]
        self.total, self.per_row = total, per_row
        self.mse: dict[float, F8] = {}
        self.rounding: dict[float, F8] = {}
        self.sketch: dict[float, F8] = {}
        self.precision = 0.0  # relative rounding of the sums that errors are computed from

    @abc.abstractmethod
    def add(self, grid: Sequence[float]) -> None:
        """Score more penalties: set their errors (k, t) in ``mse``, or `put` losses that are evaluated from sums."""

    def scale(self, weight: float) -> float:
        """Return the factor of the grid's penalties for a training set of some weight."""
        return weight if self.per_row else 1.0

    def put(self, alpha: float, losses: Sequence[Loss | None]) -> None:
        """Set a penalty's loss on each scored fold, evaluated from sums; None where it was not solved."""
        t = self.total.t
        nothing = Loss(np.full(t, np.inf), np.full(t, np.nan), np.full((SKETCH, t), np.nan))
        value, rounding, sketch = map(np.stack, zip(*(each or nothing for each in losses), strict=True))
        weights = np.array(self.weights)
        self.mse[alpha], self.rounding[alpha] = value / weights[:, None], rounding / weights[:, None]
        self.sketch[alpha] = sketch / np.sqrt(weights)[:, None, None]

    def search(self, grid: Sequence[float], thin: bool, extend: bool, per_target: bool) -> CVResult:
        """Score a grid, thinned if ``thin`` and there are many features, and grow it at its edge while that gains."""
        if thin and self.total.m >= THIN:
            self._add_thinned(grid, per_target)
        else:
            self.add(grid)
        result = self.result(per_target, self.extend(per_target) if extend and len(grid) > 1 else "")
        if len(self.scored) > 1:
            return result
        note = f"one fold of {self.count} was scored, so the error has no standard error"
        return replace(result, note="; ".join(filter(None, [result.note, note])))

    def _add_thinned(self, grid: Sequence[float], per_target: bool) -> None:
        """Score some penalties, then those between them beside the best: the whole grid's choice if it has one dip."""
        step = self.stride
        self.add(grid[::step])
        while step > 1:
            step //= 2
            result = self.result(per_target)
            best = {grid.index(a) for a in result.alphas[np.concatenate(self.choice(result, per_target))]}
            beside = {i + side for i in best for side in (-step, step)}
            self.add([grid[i] for i in sorted(beside) if 0 <= i < len(grid)])

    def may_grow(self) -> bool:
        """Return whether the grid may still grow."""
        return True

    def result(self, per_target: bool, note: str = "") -> CVResult:
        """Return the errors so far, with the choice among their penalties."""
        alphas, total = np.array(sorted(self.mse)), self.total
        spread = np.diagonal(total.yy) / total.weight - np.square(total.y_sum / total.weight)
        result = CVResult(
            alphas,
            self.per_row,
            np.stack([self.mse[a] for a in alphas]),
            np.array(self.weights),
            np.maximum(spread, 0.0),
            np.zeros(total.t, np.int64),
            np.zeros(total.t),
            scored=self.scored,
            rounding=np.stack([self.rounding[a] for a in alphas]) if self.rounding else None,
        )
        lowest, best = self.choice(result, per_target)
        scale = self.scale(total.weight)
        result = replace(result, best=best, alpha=alphas[best] * scale)
        if not note and result.at_edge:
            note = f"the best alpha ({alphas[best].min():g}) is at the edge of the grid"
        return replace(result, note="; ".join(filter(None, [note, self._rounding_note(result, best != lowest)])))

    def choice(self, result: CVResult, per_target: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find, for each target, the row of the grid of least error, and the last row within rounding of it."""
        score = result.path if per_target else result.path.mean(axis=1, keepdims=True)
        lowest, every = np.broadcast_to(np.nanargmin(score, axis=0), (result.path.shape[1],)), np.arange(len(score))
        rounding = self._difference_rounding(result, lowest)
        if not per_target:
            rounding = rounding.mean(axis=1, keepdims=True)
        alike = (score - np.nanmin(score, axis=0) < rounding) | (every[:, None] == lowest)
        return lowest, len(score) - 1 - alike[::-1].argmax(axis=0)

    def _difference_rounding(self, result: CVResult, row: NDArray[np.int64]) -> F8:
        """Bound the rounding of the differences, (a, t), between all errors and the one in a row for each target."""
        if result.rounding is None:
            return np.zeros_like(result.path)
        sketch, of_row = np.stack([self.sketch[a] for a in result.alphas]), (row, slice(None), np.arange(len(row)))
        rounding = difference_rounding(sketch, np.moveaxis(sketch.swapaxes(2, 3)[of_row], 0, -1))
        late = evaluation_rounding(self.total.m)
        late /= late + self.precision  # share of the rounding that does not cancel in a difference
        return over_folds(rounding + late * (result.rounding + result.rounding[of_row].T), result.weights)

    def _rounding_note(self, result: CVResult, tied: NDArray[np.bool_]) -> str:
        """Return a note if rounding may be all of an error, or of the difference between two."""
        rounding = result.path_rounding[result.best, np.arange(len(result.best))]
        small, notes = result.rounded & ~(result.spread <= rounding), []
        if small.any():
            of = "" if len(small) == 1 else f" of {small.sum()} of {len(small)} targets"
            size = (rounding[small] / result.spread[small]).max()
            notes += [f"the error{of} is below the rounding of its sums, {size:.0e} of the target's variance"]
        if tied.any():
            notes += ["smaller alphas differ from the one chosen by less than the rounding of the sums"]
        if notes and self.precision > SINGLE:
            notes += ['use dtype = "float64" to tell more']
        return "; ".join(notes)

    def extend(self, per_target: bool) -> str:
        """Add penalties beyond the edge that holds the best, while that gains; return a note of it."""
        grown, whole = 0, self.total.trace() / self.scale(self.total.weight)
        for _ in range(EXTENSIONS):
            before = self.result(per_target)
            grid = before.alphas[before.alphas > 0]
            # Errors within rounding of the best may improve further up, but not once alpha exceeds the whole trace.
            lowest, best = self.choice(before, per_target)
            low, last = (best == 0).any(), len(before.alphas) - 1
            high = ((lowest if before.alphas[-1] > whole else best) == last).any()
            down, up = (grid[1] / grid[0], grid[-1] / grid[-2]) if len(grid) > 1 else (10.0, 10.0)
            more = [grid[0] / down**i for i in (1, 2, 3)] if low and len(grid) == len(before.alphas) else []
            more += [grid[-1] * up**i for i in (1, 2, 3)] if high else []
            if not more or not self.may_grow():
                break
            self.add(more)
            grown += len(more)
            # Towards zero, a flat error stays flat; upwards, it may still fall.
            if not high and self.result(per_target).chosen.sum() >= (1 - FLAT) * before.chosen.sum():
                break
        after = self.result(per_target)
        if not grown:
            return ""
        where = " and is still at its edge, where the error is flat" if after.at_edge else ""
        return f"the grid grew by {grown} alphas to {after.alphas[0]:g}–{after.alphas[-1]:g}{where}"
