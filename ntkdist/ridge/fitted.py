"""Parts of the three ways to fit: their outcome, and a clock for their phases."""

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
    """Statistics of the passes over the data: the fitted scaling, counts, seconds and the rate of bare ``syrk``.

    ``products`` holds the counts of a solver that formed no Gram.
    """

    preprocessing: Preprocessing
    fold_weights: list[float]
    tally: Tally
    seconds: dict[str, float]
    products: Products | None
    timeline: Sequence[tuple[float, int]] = ()  # seconds into the pass, and rows, of every shard that ended
    syrk_rates: Sequence[float] = ()

    @property
    def remembered(self) -> dict[str, int]:
        """The most that a worker kept beyond what the plan projects."""
        return {"remembered rows": self.products.remembered_bytes} if self.products else {}


class Fitted(NamedTuple):
    """The outcome of a fit under the cluster.

    ``solve`` gives model, scores and curve; it is called once the workers of a local cluster are gone, whose memory a
    dense factorisation can use.  ``equations`` is what a dense fit can save, add and solve again.
    """

    statistics: FitStatistics
    solve: Callable[[], Solved]
    equations: Equations | None = None


class Clock:
    """Wall seconds of consecutive phases, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a phase."""
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now
