"""What each row that was learnt from does to the model: its leverage, and the error of the model without it.

Legend: w weight, h as in `ntkdist.solvers.uncertainty`, ŷ the prediction; without its row, it is y − (y − ŷ)/(1 − wh).
"""

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ntkdist.cluster import Client
from ntkdist.cluster.connect import connect, resources
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import reduce_all
from ntkdist.cluster.shards import Source
from ntkdist.data.arrays import Arrays
from ntkdist.data.dataset import Dataset, Rows
from ntkdist.data.scaling import Matching
from ntkdist.errors import SpecError
from ntkdist.ridge.model import RidgeModel
from ntkdist.ridge.prepare import verified_source
from ntkdist.ridge.rowwise import Rowwise

F8 = NDArray[np.float64]
FULL = 1 - 1e-9  # leverage at which a row is all that its prediction rests on


def leave_one_out(
    model: RidgeModel,
    rows: Dataset | Arrays | str,
    *,
    client: Client | None = None,
    scheduler: str = "",
    watch: Watch | None = None,
) -> Rowwise:
    """One pass over the rows that a model was fitted to: what each does to it.

    Exact for the ridge at its alpha and scaling: as if each row had been left out, and the others solved again.

    Parameters
    ----------
    model : RidgeModel
        With its factor; see ``keep_factor`` of `solve`.
    rows : Dataset or str
        Those that it was fitted to; of a dataset that says so, damaged partitions are skipped.

    Returns
    -------
    Rowwise
        By place: ``y`` (n, t), for classes one-hot; ``weight``; ``prediction`` (n, t); ``leverage`` (n,), between 0 and
        1; and ``left_out`` (n, t), the prediction of the model without the row.  Residuals are ``y`` less either.

    Raises
    ------
    SpecError
        If the model has no factor.
    """
    dataset = Dataset(rows) if isinstance(rows, str) else rows
    if model.factor is None:
        raise SpecError("the model has no factor; solve its equations again with keep_factor=True")
    here = isinstance(dataset, Arrays) and not dataset.lazy  # rows that no other process has
    with nullcontext() if here else connect(None, scheduler, client) as client:
        source = verified_source(Source(dataset, dataset.layout(), 0, 1), client, watch)
        return left_out(model, source, client, watch)


def left_out(model: RidgeModel, source: Source, client: Client | None, watch: Watch | None) -> Rowwise:
    """Pass once over rows as `leave_one_out` does, less those that the source skips."""
    layout = source.layout
    source = source._replace(block_rows=max(1024, model.features.n_components), threads=resources(client).threads)
    summand = LeftOut(model, model.preprocessing.match(layout, source.dataset.store))
    found: Rowwise = reduce_all(source, summand, layout.rows_per_partition, client, "leave one out", watch).total
    return found.in_order()


@dataclass(frozen=True)
class LeftOut:
    """Predictions with and without each row."""

    model: RidgeModel
    matching: Matching

    def zero(self) -> Rowwise:
        t = len(self.model.intercept)
        values = {name: np.empty((0, t)) for name in ("y", "prediction", "left_out")}
        return Rowwise.of(np.empty(0, np.int64), values | {name: np.empty(0) for name in ("weight", "leverage")})

    def update(self, total: Rowwise, rows: Rows) -> Rowwise:
        model, rows = self.model, self.matching(rows)
        assert rows.y is not None
        pre, weight = model.preprocessing, model.preprocessing.weights(rows)
        y = pre.targets(rows.y) * pre.y_scale + pre.y_mean
        w = np.ones(rows.n) if weight is None else weight
        prediction, leverage = model.scores(rows.x), w * model.spread(rows.x)
        left_out = y - (y - prediction) / (1 - np.minimum(leverage, FULL))[:, None]
        values = {"y": y, "weight": w, "prediction": prediction, "leverage": leverage, "left_out": left_out}
        return total + Rowwise.of(rows.places, values)
