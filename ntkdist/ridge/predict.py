"""Uses of a model or a map: evaluate, predict, featurize.  Each is a pass of the mapper; writers sum digests."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist.cluster import Client
from ntkdist.cluster.connect import connect, resources
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import reduce_all
from ntkdist.cluster.shards import Source
from ntkdist.data import storage, zarr_groups
from ntkdist.data.dataset import FORMAT, Dataset, Rows
from ntkdist.data.partitions import Content, partition_rows
from ntkdist.data.scaling import Matching, Preprocess, Preprocessing
from ntkdist.data.source_files import is_raw
from ntkdist.data.sources import output_format
from ntkdist.errors import DataError
from ntkdist.features import AnyFeatureMap, AnyMap
from ntkdist.ridge import earlier, kept_columns, source_order
from ntkdist.ridge.fitted_map import fitted
from ntkdist.ridge.kept_columns import KeptColumn
from ntkdist.ridge.model import RidgeModel
from ntkdist.ridge.outputs import PREDICTIONS, Fields, Outputs, PredictionReport
from ntkdist.ridge.predict_table import check_kept, predict_table
from ntkdist.ridge.prepare import scaling, verified_source
from ntkdist.sums.metrics import MetricsOf


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
    keep: Sequence[str] = (),
    std: bool = False,
    proba: bool = False,
    interval: float = 0.0,
    client: Client | None = None,
    scheduler: str = "",
    watch: Watch | None = None,
) -> PredictionReport:
    """Write predictions for every row of a dataset, in the order of the source: to Zarr shard by shard, csv or parquet.

    Arrays of a Zarr group: ``prediction`` in target units, or class codes with their names in the attribute ``classes``
    and the scores in ``score``; ``std`` of numbers, if the model has its factor (see `RidgeModel.std`); ``low`` and
    ``high`` of intervals, and ``probability`` (n, k) of classes, if asked for; ``row``, ``groups`` and ``holdout`` as
    far as the dataset has them.  Columns of a csv or parquet file are those of `predict_table`, which also takes raw
    files; they pass through a group beside it, which is removed.

    The attribute ``order`` is "source" if entry i is that of row i of what was converted.  It is "dataset" if the
    dataset has no array ``row``, or one that is not a permutation of its rows.  The attribute ``clipped_rows`` counts
    the rows with values outside the range of the rows that the model was fitted to, ``clipped_columns`` the same by
    column, and ``clipped_first`` names the first few.

    Parameters
    ----------
    model : RidgeModel
    dataset : Dataset or str
    out : str
        Path or URL of the new file or group; the ending says csv, parquet or Zarr, which is also without an ending.
    keep : sequence of str
        Input columns, targets, and arrays such as ``row``, to copy to csv or parquet.
    std, proba, interval
        As in `predict_table`.
    client, scheduler, watch
        As in `fit`; a file is read in this process.

    Returns
    -------
    PredictionReport

    Raises
    ------
    StoreError
        If ``out`` exists.
    DataError
        If a row has a NaN that the model cannot fill in, or cannot be read, whatever the dataset's settings: every row
        gets a prediction; or there is no column to keep.
    SpecError
        If ``out`` has another ending, or the model has not what is asked for.
    """
    outputs = Outputs(model, std, proba, interval)
    as_table = output_format(out, bare="zarr") != "zarr"
    check_kept(keep, outputs, out)
    if isinstance(dataset, str) and is_raw(dataset):
        return predict_table(model, dataset, out, keep=keep, std=std, proba=proba, interval=interval)
    dataset = as_fitted(msgspec.structs.replace(_dataset(dataset), nan="error"), model.preprocessing)
    zarr_groups.refuse_existing(out)
    with connect(None, scheduler, client) as client:
        if client is not None:
            storage.check_shared(out)
        if not as_table:
            outputs = replace(outputs, std=bool(model.factor and not model.classes))
            return _to_group(outputs, dataset, out, (), client, watch)
        kept = kept_columns.kept(dataset, keep)
        with storage.scratch(out) as rows:
            report = _to_group(outputs, dataset, rows, kept, client, watch)
            kept_columns.write_table(outputs, kept, rows, out)
    return report


def _to_group(
    outputs: Outputs,
    dataset: Dataset,
    out: str,
    kept: Sequence[KeptColumn],
    client: Client | None,
    watch: Watch | None,
) -> PredictionReport:
    """Write predictions, and columns kept, to a new Zarr group."""
    model, layout = outputs.model, dataset.layout(labelled=False)
    pre = model.preprocessing
    matching = pre.match(layout, dataset.store)
    attrs: dict[str, Any] = {"classes": model.classes, "target_names": pre.target_names, "source": dataset.store}
    threads = resources(client).threads
    source = Source(dataset.absolute(), layout, 0, threads, labelled=False, range=matching.range)
    others = dataset.others().items()
    copied = tuple((k, kind, shape[1:]) for k, (shape, kind) in others if k in ("row", "groups", "holdout"))
    table = Predictions(outputs, matching, source, copied, tuple(kept))
    with zarr_groups.new_group(out, PREDICTIONS, attrs) as place:
        order = source_order.order_of(source, client, watch)
        attrs["order"] = "dataset" if order == "dataset" else "source"
        part = source_order.write(table, source, place, order == "shuffled", client, watch)
        first = source_order.first_rows(dataset, layout, part.tally.clipped_first)
        report = PredictionReport.of_tally(part.tally, [(f"row {row:,}", columns) for row, columns in first])
        report.ignored = [name for name in layout.columns if pre.columns and name not in pre.columns]
        report.uncalibrated = outputs.proba and np.isnan(model.temperature)
        attrs |= {"content": part.total.to_dict()} | report.to_attributes()
    return report


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
    """A `Table` of predictions, with the arrays ``copied`` from the dataset, and columns kept."""

    outputs: Outputs
    matching: Matching
    source: Source
    copied: Fields
    kept: tuple[KeptColumn, ...] = ()

    @property
    def record(self) -> np.dtype[Any]:
        kept: Fields = tuple((column.field, column.dtype, ()) for column in self.kept)
        return np.dtype([*self.copied, *kept, *self.outputs.fields])

    def __call__(self, rows: Rows) -> NDArray[Any]:
        records = np.empty(rows.n, self.record)
        span = rows.start, rows.start + rows.n
        for name, _, _ in self.copied:
            records[name] = source_order.column(self.source, name, *span)
        for column in self.kept:
            stored = None if column.array == "x" else source_order.column(self.source, column.array, *span)
            records[column.field] = column.of(rows.x if stored is None else stored)
        for name, values in self.outputs.arrays(self.matching(rows).x).items():
            records[name] = values
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
