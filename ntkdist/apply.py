"""Using a model or a map: evaluate, predict, featurize.  Each is one pass of the mapper; writers sum only rows."""

import time
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from distributed import Client

from ntkdist import data, groups
from ntkdist.cluster import connect, resources
from ntkdist.data import Dataset, Rows
from ntkdist.errors import DataError
from ntkdist.features import AnyFeatureMap, AnyMap
from ntkdist.model import RidgeModel
from ntkdist.prepare import learnt, scaling
from ntkdist.preprocess import Matching, Preprocess, Preprocessing
from ntkdist.progress import Watch
from ntkdist.reduce import reduce_all
from ntkdist.shards import Source
from ntkdist.sums import Metrics

PREDICTIONS = "ntkdist.predictions"


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
        the range that the model has seen) and ``seconds``.

    Raises
    ------
    DataError
        If columns or classes do not match the model's by name, or the targets are of another kind.
    """
    dataset = _dataset(dataset)
    start = time.perf_counter()
    layout = dataset.layout()
    theirs, ours = target_kind(layout.classes, layout.targets), target_kind(model.classes, len(model.intercept))
    if theirs != ours:
        raise DataError(f"{dataset.store}: targets are {theirs}, the model predicts {ours}; convert the same way")
    matching = model.preprocessing.match(layout, dataset.store)
    with connect(None, scheduler, client) as client:
        block_rows = max(1024, model.features.n_components)
        source = Source(dataset, layout, block_rows, resources(client).threads, range=matching.range)
        part = reduce_all(source, MetricsOf(model, matching), layout.rows_per_partition, client, "evaluate", watch)
    summary: dict[str, float] = part.total.summary()
    return summary | {"clipped_rows": part.tally.clipped, "seconds": time.perf_counter() - start}


def predict(
    model: RidgeModel,
    dataset: Dataset | str,
    out: str,
    *,
    client: Client | None = None,
    scheduler: str = "",
    watch: Watch | None = None,
) -> None:
    """Write predictions for every row of a dataset to a new Zarr group, shard by shard.

    Arrays: ``prediction`` in target units, or class codes with their names in the attribute ``classes`` and the scores
    in ``score``; ``std`` of numbers, if the model has its factor (see `RidgeModel.std`); ``row``, ``groups`` and
    ``holdout`` as far as the dataset has them.  The attribute ``clipped_rows`` counts the rows with values outside the
    range that the model has seen.  A row with a NaN is an error: every row gets its prediction.

    Raises
    ------
    StoreError
        If ``out`` exists.
    """
    dataset = msgspec.structs.replace(_dataset(dataset), nan="error")
    layout = dataset.layout(labelled=False)
    matching = model.preprocessing.match(layout, dataset.store)
    t = len(model.intercept)
    copied = {k: v for k, v in dataset.others().items() if k in ("row", "groups", "holdout")}
    arrays = {name: (shape[1:], kind) for name, (shape, kind) in copied.items()}
    if model.classes:
        arrays |= {"prediction": ((), "uint16"), "score": ((t,), "float64")}
    else:
        for name in ("prediction", *(["std"] if model.factor else [])):
            arrays[name] = ((t,) if model.preprocessing.vector_target else (), "float64")
    attrs: dict[str, Any] = {
        "classes": model.classes,
        "target_names": model.preprocessing.target_names,
        "source": dataset.store,
    }
    with connect(None, scheduler, client) as client, groups.new_group(out, PREDICTIONS, attrs) as place:
        size = min(groups.partition_rows(layout.rows, (t,), "float64"), layout.rows_per_partition)
        for name, (shape, dtype) in arrays.items():
            groups.create_array(place, name, (layout.rows, *shape), dtype, size)
        source = Source(dataset, layout, 0, resources(client).threads, labelled=False, range=matching.range)
        summand = WritePredictions(model, matching, source, place, tuple(copied))
        attrs["clipped_rows"] = reduce_all(source, summand, size, client, "predict", watch).tally.clipped


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
    attrs: dict[str, Any] = {
        "classes": layout.classes,
        "target_names": layout.target_names,
        "source": {"name": dataset.store, "fingerprint": layout.fingerprint, "features": msgspec.to_builtins(features)},
    }
    with connect(None, scheduler, client) as client, groups.new_group(out, data.FORMAT, attrs) as place:
        source = Source(dataset, layout, max(1024, m), resources(client).threads)
        preprocess = preprocess or Preprocess()
        pre, _ = scaling(preprocess, source, client, watch)
        ready = learnt(features, preprocess, source, pre, client, watch)
        size = min(groups.partition_rows(layout.rows, (m,), dtype), layout.rows_per_partition)
        groups.create_array(place, "x", (layout.rows, m), dtype, size)
        for name, (shape, kind) in others.items():
            groups.create_array(place, name, shape, kind, size)
        source = source._replace(block_rows=0, range=pre.range)
        summand = WriteFeatures(ready, pre, dtype, source, place, tuple(others))
        attrs["clipped_rows"] = reduce_all(source, summand, size, client, "featurize", watch).tally.clipped


def _dataset(dataset: Dataset | str) -> Dataset:
    return Dataset(dataset) if isinstance(dataset, str) else dataset


def target_kind(classes: tuple[str, ...], targets: int) -> str:
    """What the targets of a dataset or a model are, in words."""
    return "class labels" if classes else f"numbers, {max(targets, 1)} a row"


@dataclass(frozen=True)
class MetricsOf:
    """Errors of a model."""

    model: RidgeModel
    matching: Matching

    def zero(self) -> Metrics | None:
        return None

    def update(self, total: Metrics | None, rows: Rows) -> Metrics:
        model, rows = self.model, self.matching(rows)
        assert rows.y is not None
        if model.classes:
            new = Metrics.of_classes(rows.y, model.scores(rows.x), rows.weight)
        else:
            new = Metrics.of_regression(rows.y.reshape(len(rows.y), -1), model.scores(rows.x), rows.weight)
        return new if total is None else total + new


@dataclass(frozen=True)
class WritePredictions:
    """Predictions written in place; the sum is the number of rows."""

    model: RidgeModel
    matching: Matching
    source: Source
    place: str
    copied: tuple[str, ...]

    def zero(self) -> int:
        return 0

    def update(self, total: int, rows: Rows) -> int:
        model = self.model
        scores = model.scores(self.matching(rows).x)
        stop = rows.start + len(scores)
        if model.classes:
            groups.write_rows(self.place, "score", rows.start, scores)
            groups.write_rows(self.place, "prediction", rows.start, scores.argmax(axis=1).astype(np.uint16))
        else:
            values = scores if model.preprocessing.vector_target else scores[:, 0]
            groups.write_rows(self.place, "prediction", rows.start, values)
            if model.factor:
                groups.write_rows(self.place, "std", rows.start, model.std(self.matching(rows).x))
        _copy(self.source, self.place, self.copied, rows.start, stop)
        return total + len(scores)


@dataclass(frozen=True)
class WriteFeatures:
    """Features written in place, other arrays copied; the sum is the number of rows."""

    features: AnyMap
    preprocessing: Preprocessing
    dtype: str
    source: Source
    place: str
    copied: tuple[str, ...]

    def zero(self) -> int:
        return 0

    def update(self, total: int, rows: Rows) -> int:
        stop = rows.start + rows.n
        groups.write_rows(self.place, "x", rows.start, self.features(self.preprocessing.inputs(rows.x, self.dtype)))
        _copy(self.source, self.place, self.copied, rows.start, stop)
        return total + rows.n


def _copy(source: Source, place: str, names: tuple[str, ...], start: int, stop: int) -> None:
    assert isinstance(source.dataset, Dataset)
    for name in names:
        groups.write_rows(place, name, start, source.dataset.column(source.layout, name, start, stop))
