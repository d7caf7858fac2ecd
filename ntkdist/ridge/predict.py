"""Using a model or a map: evaluate, predict, featurize.  Each is a pass of the mapper; writers sum digests."""

import time
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist.cluster import Client
from ntkdist.cluster.connect import connect, resources
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import reduce_all
from ntkdist.cluster.shards import Source
from ntkdist.data import zarr_groups
from ntkdist.data.dataset import FORMAT, Dataset, Rows
from ntkdist.data.partitions import Content, partition_rows
from ntkdist.data.scaling import Matching, Preprocess, Preprocessing
from ntkdist.errors import DataError
from ntkdist.features import AnyFeatureMap, AnyMap
from ntkdist.ridge import source_order
from ntkdist.ridge.model import RidgeModel
from ntkdist.ridge.prepare import fitted, scaling, verified_source
from ntkdist.sums.metrics import MetricsOf

PREDICTIONS = "ntkdist.predictions"
Fields = tuple[tuple[str, str, tuple[int, ...]], ...]  # name, type and shape of each


def evaluate(
    model: RidgeModel,
    dataset: Dataset | str,
    *,
    client: Client | None = None,
    scheduler: str = "",
    watch: Watch | None = None,
) -> dict[str, float]:
    """Errors of a model on a labelled dataset.

    Returns
    -------
    dict
        ``rmse``, ``mae``, ``r2`` or ``accuracy``, ``log_loss``; ``rows``, ``clipped_rows`` (those with values outside
        the range that the model has seen) and ``seconds``; where the dataset says that damaged partitions are skipped,
        ``skipped_rows``.

    Raises
    ------
    DataError
        If columns or classes do not match the model's by name, or the targets are of another kind.
    """
    dataset = _dataset(dataset)
    start = time.perf_counter()
    with connect(None, scheduler, client) as client:
        source = verified_source(Source(dataset, dataset.layout(), 0, 1), client, watch)
        found = errors_on(model, source, client, watch)
    if dataset.damaged == "skip":
        found["skipped_rows"] = source.layout.rows_of(source.skip)
    return found | {"seconds": time.perf_counter() - start}


def errors_on(model: RidgeModel, source: Source, client: Client | None, watch: Watch | None) -> dict[str, float]:
    """Errors of a model on the labelled rows of a dataset, as `evaluate` gives them, and the number of rows."""
    layout = source.layout
    theirs, ours = target_kind(layout.classes, layout.targets), target_kind(model.classes, len(model.intercept))
    if theirs != ours:
        raise DataError(
            f"{source.dataset.store}: targets are {theirs}, the model predicts {ours}; convert the same way"
        )
    matching = model.preprocessing.match(layout, source.dataset.store)
    block_rows, threads = max(1024, model.features.n_components), resources(client).threads
    source = source._replace(block_rows=block_rows, threads=threads, range=matching.range)
    part = reduce_all(source, MetricsOf(model, matching), layout.rows_per_partition, client, "evaluate", watch)
    summary: dict[str, float] = part.total.summary()
    return summary | {"clipped_rows": part.tally.clipped}


def predict(
    model: RidgeModel,
    dataset: Dataset | str,
    out: str,
    *,
    client: Client | None = None,
    scheduler: str = "",
    watch: Watch | None = None,
) -> None:
    """Write predictions for every row of a dataset to a new Zarr group, shard by shard, in the order of the source.

    Arrays: ``prediction`` in target units, or class codes with their names in the attribute ``classes`` and the scores
    in ``score``; ``std`` of numbers, if the model has its factor (see `RidgeModel.std`); ``row``, ``groups`` and
    ``holdout`` as far as the dataset has them.  A row with a NaN, or one that cannot be read, is an error whatever the
    dataset says of them: every row gets its prediction.

    The attribute ``order`` is "source": entry i is that of row i of what was converted, or "dataset" where the dataset
    has no array ``row`` that says so, or one that is not a permutation of its rows.  The attribute ``clipped_rows``
    counts the rows with values outside the range that the model has seen.

    Raises
    ------
    StoreError
        If ``out`` exists.
    """
    dataset = msgspec.structs.replace(_dataset(dataset), nan="error")
    layout = dataset.layout(labelled=False)
    pre = model.preprocessing
    matching = pre.match(layout, dataset.store)
    attrs: dict[str, Any] = {"classes": model.classes, "target_names": pre.target_names, "source": dataset.store}
    with connect(None, scheduler, client) as client:
        threads = resources(client).threads
        source = Source(dataset.absolute(), layout, 0, threads, labelled=False, range=matching.range)
        table = Predictions(model, matching, source, _beside(dataset))
        with zarr_groups.new_group(out, PREDICTIONS, attrs) as place:
            lies = source_order.order_of(source, client, watch)
            attrs["order"] = "dataset" if lies == "dataset" else "source"
            part = source_order.write(table, source, place, lies == "shuffled", client, watch)
            attrs |= {"content": part.total.to_dict(), "clipped_rows": part.tally.clipped}


def featurize(
    dataset: Dataset | str,
    features: AnyFeatureMap,
    out: str,
    *,
    preprocess: Preprocess | None = None,
    dtype: str = "float32",
    client: Client | None = None,
    scheduler: str = "",
    watch: Watch | None = None,
) -> None:
    """Write the features of every row to a new dataset, shard by shard, with its targets and all else it has.

    A row with a NaN, or one that cannot be read, is an error whatever the dataset says of them.

    Parameters
    ----------
    dataset : Dataset or str
    features : FeatureMap
    out : str
        Where; refused if it exists.
    preprocess : Preprocess, optional
        Scaling of the inputs first; automatic by default, as in `fit`.
    dtype : {"float32", "float64"}
    """
    dataset = msgspec.structs.replace(_dataset(dataset), nan="error")
    layout, others, m = dataset.layout(), dataset.others(), features.n_components
    features.check_shape(layout.input_shape, dataset.store)
    attrs: dict[str, Any] = {
        "classes": layout.classes,
        "target_names": layout.target_names,
        "source": {"name": dataset.store, "fingerprint": layout.fingerprint, "features": msgspec.to_builtins(features)},
    }
    with connect(None, scheduler, client) as client, zarr_groups.new_group(out, FORMAT, attrs) as place:
        source = Source(dataset.absolute(), layout, max(1024, m), resources(client).threads)
        preprocess = preprocess or Preprocess()
        pre, _ = scaling(preprocess, source, client, watch)
        ready = fitted(features, preprocess, source, pre, client, watch)
        size = min(partition_rows(layout.rows, (m,), dtype), layout.rows_per_partition)
        zarr_groups.create_array(place, "x", (layout.rows, m), dtype, size)
        for name, (shape, kind) in others.items():
            zarr_groups.create_array(place, name, shape, kind, size)
        source = source._replace(block_rows=0, range=pre.range)
        summand = WriteFeatures(ready, pre, dtype, source, place, tuple(others))
        part = reduce_all(source, summand, size, client, "featurize", watch)
        attrs |= {"content": part.total.to_dict(), "clipped_rows": part.tally.clipped}


def _dataset(dataset: Dataset | str) -> Dataset:
    return Dataset(dataset) if isinstance(dataset, str) else dataset


def target_kind(classes: tuple[str, ...], targets: int) -> str:
    """What the targets of a dataset or a model are, in words."""
    return "class labels" if classes else f"numbers, {max(targets, 1)} a row"


@dataclass(frozen=True)
class Predictions:
    """Predictions of rows, and what their dataset has beside them: a `Table`."""

    model: RidgeModel
    matching: Matching
    source: Source
    copied: Fields

    @property
    def record(self) -> np.dtype[Any]:
        model, t = self.model, len(self.model.intercept)
        if model.classes:
            return np.dtype([*self.copied, ("prediction", "u2", ()), ("score", "f8", (t,))])
        shape = (t,) if model.preprocessing.vector_target else ()
        std = [("std", "f8", shape)] if model.factor else []
        return np.dtype([*self.copied, ("prediction", "f8", shape), *std])

    def __call__(self, rows: Rows) -> NDArray[Any]:
        model, x = self.model, self.matching(rows).x
        found = np.empty(rows.n, self.record)
        for name, _, _ in self.copied:
            found[name] = source_order.column(self.source, name, rows.start, rows.start + rows.n)
        scores = model.scores(x)
        if model.classes:
            found["score"], found["prediction"] = scores, scores.argmax(axis=1)
            return found
        found["prediction"] = scores if model.preprocessing.vector_target else scores[:, 0]
        if model.factor:
            found["std"] = model.std(x)
        return found


@dataclass(frozen=True)
class WriteFeatures:
    """Features written in place, other arrays copied; the sum is the content."""

    features: AnyMap
    preprocessing: Preprocessing
    dtype: str
    source: Source
    place: str
    copied: tuple[str, ...]

    def zero(self) -> Content:
        return Content()

    def update(self, total: Content, rows: Rows) -> Content:
        start, stop = rows.start, rows.start + rows.n
        x = self.features(self.preprocessing.inputs(rows.x, self.dtype))
        total += zarr_groups.write_content(self.place, "x", start, x)
        for name in self.copied:
            total += zarr_groups.write_content(
                self.place, name, start, source_order.column(self.source, name, start, stop)
            )
        return total


def _beside(dataset: Dataset) -> Fields:
    """The arrays of a dataset that go with its predictions."""
    others = dataset.others().items()
    return tuple((k, kind, shape[1:]) for k, (shape, kind) in others if k in ("row", "groups", "holdout"))
