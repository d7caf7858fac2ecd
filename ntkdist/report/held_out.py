"""Every row of a run predicted by the model that has not seen its fold: one more pass, summed to what can be looked at.

The models of the folds come from the saved equations: fold k's is solved from the total minus fold k.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ntkdist.cluster import Client
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import reduce_all
from ntkdist.data.dataset import Rows
from ntkdist.errors import DataError
from ntkdist.planning.plan import Plan, source_of
from ntkdist.report.largest_errors import BINS, SPAN, HeldOut
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.ridge.residuals import fold_models
from ntkdist.solvers.cv_result import CVResult

F8 = NDArray[np.float64]


def held_out(
    p: Plan, equations: Equations, cv: CVResult, *, client: Client | None = None, watch: Watch | None = None
) -> HeldOut:
    """Predictions of all rows by the models of the other folds, at the chosen penalties.

    Rows of folds that were not scored, as those beside a holdout, are left out, and those that the fit skipped.

    Parameters
    ----------
    p : Plan
    equations : Equations
    cv : CVResult
        In target units, as a fit returns it.

    Raises
    ------
    DataError
        If the data are not those of the plan.
    """
    if (found := p.dataset.layout()) != p.layout:
        raise DataError(
            f"{p.dataset.store} is not the data that was fitted on (fingerprint {found.fingerprint}, "
            f"then {p.layout.fingerprint}); restore it"
        )
    unit = float(np.sqrt(cv.chosen[0])) or 1.0
    summand = HeldOutOf(p, fold_models(p.solver, equations, cv), edges_of(equations), unit)
    source = source_of(p)._replace(block_rows=0)
    total: HeldOut = reduce_all(source, summand, p.layout.rows_per_partition, client, "held out", watch).total
    return total


def edges_of(equations: Equations) -> F8:
    """Edges of the bins of the first target's values, (BINS + 1,), in its units."""
    pre = equations.preprocessing
    return np.asarray(pre.y_mean[0] + pre.y_scale[0] * np.linspace(-SPAN, SPAN, BINS + 1))


@dataclass(frozen=True)
class HeldOutOf:
    """Predictions by the models of the other folds; for spans of whole partitions."""

    plan: Plan
    models: dict[int, RidgeModel]
    edges: F8
    unit: float

    def zero(self) -> HeldOut:
        t, none = self.plan.t, np.empty(0, np.int64)
        if self.plan.layout.classes:
            return HeldOut.of_classes(none, np.empty((0, t)), None, none)
        return HeldOut.of_numbers(np.empty((0, t)), np.empty((0, t)), None, none, self.edges, self.unit)

    def update(self, total: HeldOut, rows: Rows) -> HeldOut:
        size = self.plan.layout.rows_per_partition
        partition = rows.start // size
        folds = self.plan.folds_of(partition)[rows.places - partition * size]
        for k, model in self.models.items():
            if (mine := folds == k).any():
                total = total + self._of_fold(model, rows.take(mine))
        return total

    def _of_fold(self, model: RidgeModel, rows: Rows) -> HeldOut:
        assert rows.y is not None
        scores, y = model.scores(rows.x), rows.y
        if model.classes:
            return HeldOut.of_classes(y, scores, rows.weight, rows.places)
        y = y.reshape(len(y), -1)
        return HeldOut.of_numbers(y, scores, rows.weight, rows.places, self.edges, self.unit)
