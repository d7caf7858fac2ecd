"""Reuse of earlier runs, by ``preprocess.reuse``: their scaling, the moments of their rows, and their fitted map."""

from collections.abc import Sequence

import msgspec
import numpy as np

from ntkdist.cluster.shards import Source
from ntkdist.data import storage
from ntkdist.data.dataset import Dataset, Layout
from ntkdist.data.moments import Moments, MomentsOf
from ntkdist.data.scaling import Preprocessing, column_names
from ntkdist.data.zarr_groups import find
from ntkdist.errors import DataError, SpecError
from ntkdist.features import AnyFeatureMap, AnyMap
from ntkdist.ridge import run_directory, store
from ntkdist.ridge.model import Equations, added
from ntkdist.sums import NormalEquations


def scaling(url: str, source: Source, balanced: bool | None) -> Preprocessing:
    """Load the scaling of an earlier run, for a dataset of the same columns and classes."""
    pre: Preprocessing = store.load(find(url, "model.zarr")).preprocessing
    _check_scaling(url, pre, source, balanced)
    return pre


def matched(source: Source, pre: Preprocessing) -> Source:
    """Return a source whose categories have the codes of an earlier scaling, and NaN only if that can fill it in."""
    matching, dataset = pre.match(source.layout, source.dataset.store), source.dataset
    if isinstance(dataset, Dataset) and dataset.nan == "impute" and not (pre.encoding and pre.encoding.impute):
        source = source._replace(dataset=msgspec.structs.replace(dataset, nan="error"))
    return source._replace(matching=matching) if matching.names else source


def fitted_map(url: str, features: AnyFeatureMap) -> AnyMap:
    """Load the fitted map of an earlier run; refuse several runs, or another map."""
    if " + " in url:
        raise SpecError(f"what {type(features).__name__} learnt in several runs does not add; reuse one run")
    before: AnyMap = store.load(find(url, "model.zarr")).features
    if before.spec != features:
        raise DataError(
            f"{url} holds another feature map, so what it learnt cannot be reused; use the same "
            "[features], or leave out [preprocess] reuse"
        )
    return before


def map_and_rounds(url: str) -> tuple[AnyFeatureMap, int]:
    """Load the feature map of an earlier run, and in how many rounds its metric was learned; 0 if it has none."""
    if " + " in url:
        raise SpecError("the job has no [features], and several runs are reused, whose maps may differ; give the map")
    model = store.load(find(url, "model.zarr"))
    spec: AnyFeatureMap = model.features.spec
    return spec, max(len(model.preprocessing.rounds) - 1, 0)


def moments(urls: Sequence[str], summand: MomentsOf, source: Source, balanced: bool | None) -> Moments:
    """Add the moments of the rows of earlier runs; refuse runs that hold the same rows, or other columns."""
    total, datasets = summand.zero(), dict[str, int]()
    for url in urls:
        of_run, theirs = _moments_of_run(url, source, balanced)
        if len(of_run.mean) != len(total.mean):
            raise DataError(
                f"{url} holds moments of {len(of_run.mean)} input and target columns, expected {len(total.mean)}; "
                "fit it with the same [preprocess] inputs"
            )
        total, datasets = total + of_run, added(datasets, theirs)
    return total


def _moments_of_run(url: str, source: Source, balanced: bool | None) -> tuple[Moments, dict[str, int]]:
    """Load the moments of an earlier run's rows, and the datasets that these rows are from.

    Where equations were saved without moments, they are recovered if the run's scaling was fitted to its own rows.
    """
    before = store.load(find(url, "equations.zarr"))
    if not isinstance(before, Equations):
        raise DataError(f"{url} holds a {type(before).__name__}; to add its scaling to another's it needs equations")
    pre = before.preprocessing
    _check_scaling(url, pre, source, balanced)
    if before.moments is not None:
        return before.moments, before.datasets
    asked = run_directory.read_report(url).plan if storage.exists(storage.join(url, "report.json")) else None
    how = asked["job"]["preprocess"] if asked else {"inputs": "none"}
    if how["inputs"] == "none" or how["reuse"] or source.layout.sparse:
        raise DataError(
            f"{url} was saved without the moments of its rows, and its scaling does not tell them; fit that run again"
        )
    assert asked is not None
    return _recovered_moments(pre, source.layout, before.total), {asked["layout"]["fingerprint"]: 1}


def _recovered_moments(pre: Preprocessing, layout: Layout, sums: NormalEquations) -> Moments:
    """Compute the moments that a scaling was fitted to from the sums of the same rows, scaled.

    Equations of older versions hold no moments.  The range of the rows stays unknown.
    """
    weight, pixels = sums.weight, int(np.prod(layout.input_shape)) // len(pre.x_mean)
    constant = np.isin(column_names(layout, len(pre.x_mean)), pre.constant)
    x = np.full(len(pre.x_mean), weight * pixels)
    deviation, counts, mean = np.where(constant, 0.0, x * pre.x_scale**2), np.zeros(0), pre.x_mean
    if pre.classes:
        counts = pre.y_mean * weight
    else:
        x, mean = np.append(x, np.full(pre.t, weight)), np.append(mean, pre.y_mean)
        y_deviation = np.diagonal(sums.yy) - sums.y_sum**2 / weight
        deviation = np.append(deviation, pre.y_scale**2 * y_deviation)
    return Moments(0, x, mean, deviation, np.full(len(x), -np.inf), np.full(len(x), np.inf), counts)


def _check_scaling(url: str, pre: Preprocessing, source: Source, balanced: bool | None) -> None:
    """Refuse a scaling that is for other columns or classes than those of a dataset."""
    layout = source.layout
    pre.match(layout, source.dataset.store)
    if pre.classes != layout.classes or pre.columns != layout.columns:
        raise DataError(f"{source.dataset.store}: classes or columns differ from those of {url}")
    if balanced is not None and balanced != bool(pre.class_weight):
        does, change = ("does not weigh", "leave out") if balanced else ("weighs", "set")
        raise DataError(
            f"{url} {does} classes, unlike this job, so their sums would not add; {change} "
            'class_weight = "balanced", or leave out [preprocess] reuse'
        )
