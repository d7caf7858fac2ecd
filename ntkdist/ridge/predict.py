"""Uses of a model or a map: evaluate, predict, featurize.  Each is a pass of the mapper; writers sum digests."""

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
from ntkdist.ridge import earlier, source_order
from ntkdist.ridge.fitted_map import fitted
from ntkdist.ridge.model import RidgeModel
from ntkdist.ridge.prepare import scaling, verified_source
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
    """Compute the errors of a model on a labelled dataset.

    Parameters
    ----------
    model : RidgeModel
    dataset : Dataset or str
    client, scheduler, watch
        As in `fit`.

    Returns
    -------
    dict
        ``rmse``, ``mae``, ``r2`` or ``accuracy``, ``log_loss``; ``rows``, ``clipped_rows`` (with values outside the
        range of the rows that the model was fitted to) and ``seconds``; with ``damaged="skip"``, ``skipped_rows``.

    Raises
    ------
    DataError
        If columns or classes do not match the model's by name, or the targets are of another kind.
    """
    dataset = as_fitted(_dataset(dataset), model.preprocessing)
    start = time.perf_counter()
    with connect(None, scheduler, client) as client:
        source = verified_source(Source(dataset, dataset.layout(), 0, 1), client, watch)
        errors = errors_on(model, source, client, watch)
    if dataset.damaged == "skip":
        errors["skipped_rows"] = source.layout.rows_of(source.skip)
    return errors | {"seconds": time.perf_counter() - start}


def errors_on(model: RidgeModel, source: Source, client: Client | None, watch: Watch | None) -> dict[str, float]:
    """Compute the errors that `evaluate` returns, over the rows of a source."""
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
    ``holdout`` as far as the dataset has them.

    The attribute ``order`` is "source" if entry i is that of row i of what was converted.  It is "dataset" if the
    dataset has no array ``row``, or one that is not a permutation of its rows.  The attribute ``clipped_rows`` counts
    the rows with values outside the range of the rows that the model was fitted to.

    Parameters
    ----------
    model : RidgeModel
    dataset : Dataset or str
    out : str
        Path or URL of the new group.
    client, scheduler, watch
        As in `fit`.

    Raises
    ------
    StoreError
        If ``out`` exists.
    DataError
        If a row has a NaN that the model cannot fill in, or cannot be read, whatever the dataset's settings: every row
        gets a prediction.
    """
    pre = model.preprocessing
    dataset = as_fitted(msgspec.structs.replace(_dataset(dataset), nan="error"), pre)
    layout = dataset.layout(labelled=False)
    matching = pre.match(layout, dataset.store)
    attrs: dict[str, Any] = {"classes": model.classes, "target_names": pre.target_names, "source": dataset.store}
    with connect(None, scheduler, client) as client:
        threads = resources(client).threads
        source = Source(dataset.absolute(), layout, 0, threads, labelled=False, range=matching.range)
        others = dataset.others().items()
        copied = tuple((k, kind, shape[1:]) for k, (shape, kind) in others if k in ("row", "groups", "holdout"))
        table = Predictions(model, matching, source, copied)
        with zarr_groups.new_group(out, PREDICTIONS, attrs) as place:
            order = source_order.order_of(source, client, watch)
            attrs["order"] = "dataset" if order == "dataset" else "source"
            part = source_order.write(table, source, place, order == "shuffled", client, watch)
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
    """Write the features of every row to a new dataset, shard by shard, and copy all other arrays.

    Parameters
    ----------
    dataset : Dataset or str
    features : FeatureMap
    out : str
        Path or URL of the new dataset.
    preprocess : Preprocess, optional
        Scaling of the inputs; automatic by default, as in `fit`.
    dtype : {"float32", "float64"}
        Of the features.
    client, scheduler, watch
        As in `fit`.

    Raises
    ------
    StoreError
        If ``out`` exists.
    DataError
        If a row has a NaN (unless ``nan="impute"``) or cannot be read, whatever the dataset's other settings.
    """
    dataset, preprocess = _dataset(dataset), preprocess or Preprocess()
    dataset = msgspec.structs.replace(dataset, nan="impute" if dataset.nan == "impute" else "error")
    layout, others, m = dataset.layout(), dataset.others(), features.n_components
    features.check_shape(layout.input_shape, dataset.store)
    attrs: dict[str, Any] = {
        "classes": layout.classes,
        "target_names": layout.target_names,
        "source": {"name": dataset.store, "fingerprint": layout.fingerprint, "features": msgspec.to_builtins(features)},
    }
    with connect(None, scheduler, client) as client, zarr_groups.new_group(out, FORMAT, attrs) as place:
        source = Source(dataset.absolute(), layout, max(1024, m), resources(client).threads)
        pre, _ = scaling(preprocess, source, client, watch)
        ready = fitted(features, preprocess, source, pre, client, watch)
        size = min(partition_rows(layout.rows, (m,), dtype), layout.rows_per_partition)
        zarr_groups.create_array(place, "x", (layout.rows, m), dtype, size)
        for name, (shape, kind) in others.items():
            zarr_groups.create_array(place, name, shape, kind, size)
        source = earlier.matched(source, pre)._replace(block_rows=0, range=pre.range)
        summand = WriteFeatures(ready, pre, dtype, source, place, tuple(others))
        part = reduce_all(source, summand, size, client, "featurize", watch)
        attrs |= {"content": part.total.to_dict(), "clipped_rows": part.tally.clipped}


def _dataset(dataset: Dataset | str) -> Dataset:
    return Dataset(dataset) if isinstance(dataset, str) else dataset


def as_fitted(dataset: Dataset, pre: Preprocessing) -> Dataset:
    """Return a dataset whose missing values are filled in if the model knows how."""
    fills = dataset.nan == "error" and pre.encoding is not None and pre.encoding.impute
    return msgspec.structs.replace(dataset, nan="impute") if fills else dataset


def target_kind(classes: tuple[str, ...], targets: int) -> str:
    """Describe the targets of a dataset or a model."""
    return "class labels" if classes else f"numbers, {max(targets, 1)} a row"


@dataclass(frozen=True)
class Predictions:
    """A `Table` of predictions, with the arrays ``copied`` from the dataset."""

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
        model, x, records = self.model, self.matching(rows).x, np.empty(rows.n, self.record)
        for name, _, _ in self.copied:
            records[name] = source_order.column(self.source, name, rows.start, rows.start + rows.n)
        if model.classes:
            records["score"] = scores = model.scores(x)
            records["prediction"] = scores.argmax(axis=1)
            return records
        records["prediction"] = model(x)
        if model.factor:
            records["std"] = model.std(x)
        return records


@dataclass(frozen=True)
class WriteFeatures:
    """A summand that writes features and copies other arrays; the sum is the content."""

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
        x = self.features(self.preprocessing.of_rows(rows, self.dtype))
        total += zarr_groups.write_content(self.place, "x", start, x)
        for name in self.copied:
            values = source_order.column(self.source, name, start, stop)
            total += zarr_groups.write_content(self.place, name, start, values)
        return total
