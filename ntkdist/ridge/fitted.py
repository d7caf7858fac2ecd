"""Types that dense, tiled and iterative fits share: their outcome, and a clock for their phases."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ntkdist.cluster.tally import Tally
from ntkdist.data.scaling import Preprocessing
from ntkdist.ridge.fit_report import Curve, Products
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.solvers.cv_result import CVResult

Solved = tuple[RidgeModel, CVResult | None, Curve | None]  # with the curve of fewer features


class FitStatistics(NamedTuple):
    """Statistics of the passes over the data."""

    preprocessing: Preprocessing
    fold_weights: list[float]
    tally: Tally
    seconds: dict[str, float]
    products: Products | None  # counts of a solver that formed no Gram
    timeline: Sequence[tuple[float, int]] = ()  # seconds into the pass, and rows, of every shard that ended
    syrk_rates: Sequence[float] = ()  # flop/s of each worker
    held_out_bytes: int = 0  # of mapped rows that were kept to be scored, and added, without reading them again

    @property
    def remembered(self) -> dict[str, int]:
        """The largest memory of mapped rows on a worker, in bytes; the plan does not project it."""
        nbytes = self.products.remembered_bytes if self.products else self.held_out_bytes
        return {"remembered rows": nbytes} if self.products or nbytes else {}


class Fitted(NamedTuple):
    """The outcome of a fit under the cluster."""

    statistics: FitStatistics
    solve: Callable[[], Solved]  # called after a local cluster has ended: a factorisation can use its memory
    equations: Equations | None = None  # of a dense fit


class Clock:
    """Wall seconds of consecutive phases, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a phase, or a part of one, and begin the next."""
        now = time.perf_counter()
        self.seconds[name], self.last = self.seconds.get(name, 0.0) + now - self.last, now
