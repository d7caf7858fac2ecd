"""Saved models and equations: Zarr groups of plain arrays and JSON, without pickle.

A saved value holds the fingerprint of its feature map, φ of fixed probe rows.  Loading refuses it where the installed
software computes other features from the same spec.
"""

import functools
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist import backend, random
from ntkdist.data import zarr_groups
from ntkdist.data.augment import Augment
from ntkdist.data.encoding import Encoding
from ntkdist.data.images import Decoding
from ntkdist.data.moments import Moments
from ntkdist.data.scaling import Preprocessing, Round
from ntkdist.errors import StoreError
from ntkdist.features import AnyFeatureMap, AnyMap, FittedMap
from ntkdist.ridge.model import Equations, RidgeModel
from ntkdist.solvers.uncertainty import Calibration, Factor
from ntkdist.spec import decode, versions
from ntkdist.sums import NormalEquations

MODEL, EQUATIONS = "ntkdist.model", "ntkdist.equations"
VERSION = 3  # version 1 had no range of inputs, no moments, no rounding; 2, still written for those, no copies of rows
SUMS = ("triangle", "cross", "inner", "rounding")  # arrays of a fold, see `NormalEquations.arrays`
PLAIN = ("input_shape", "classes", "columns", "target_names", "vector_target", "constant", "class_weight")
SCALES = ("x_mean", "x_scale", "y_mean", "y_scale")
RANGE = ("x_low", "x_high")
METRIC = "metric"  # absent for the identity
ESTIMATOR = "estimator"  # absent for a model alone
ENCODING = "encoding"  # absent for numbers alone
IMAGES = "images"  # absent for rows that were no encoded images
AUGMENT, ORIGINALS = "augment", "originals"  # absent without copies of rows
RESIDUALS, WEIGHT = "calibration.residuals", "calibration.weight"  # absent for classes
PROBES, PROBE_ROLE = 8, 1000
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}  # relative to the norm of a probe's features


def save(
    value: RidgeModel | Equations,
    url: str,
    estimator: dict[str, Any] | None = None,
    beside: dict[str, NDArray[Any]] | None = None,
) -> None:
    """Write a model or equations to a new Zarr group, which appears when it is complete; see `ntkdist.save`.

    ``estimator`` and the arrays ``beside`` are what the estimator of a model has more.
    """
    pre = value.preprocessing
    attrs = {
        "version": 2 if value.augment.copies == 1 else VERSION,
        "features": msgspec.to_builtins(value.features.spec),
        "learnt": sorted(value.features.arrays),
        "dtype": value.dtype,
        "preprocessing": {name: getattr(pre, name) for name in PLAIN} | {"rounds": [r._asdict() for r in pre.rounds]},
        "versions": versions(),
    }
    arrays = {name: getattr(pre, name) for name in (*SCALES, *RANGE)}
    arrays |= {f"features.{name}": array for name, array in value.features.arrays.items()}
    if pre.images is not None:
        attrs[IMAGES] = msgspec.to_builtins(pre.images)
    if pre.metric.size:
        arrays[METRIC] = pre.metric
    if pre.encoding is not None:
        attrs[ENCODING] = pre.encoding.plain()
        arrays |= {f"{ENCODING}.{name}": array for name, array in pre.encoding.arrays().items() if array.size}
    if estimator is not None:
        attrs[ESTIMATOR] = estimator
        arrays |= {f"{ESTIMATOR}.{name}": array for name, array in (beside or {}).items()}
    if value.augment.copies > 1:
        attrs[AUGMENT] = msgspec.to_builtins(value.augment)
    arrays["fingerprint"] = fingerprint(value.features, pre.mapped_shape, value.dtype)
    if isinstance(value, RidgeModel):
        kind = MODEL
        arrays |= {"coef": value.coef, "intercept": value.intercept, "alpha": value.alpha}
        if (factor := value.factor) is not None:
            attrs |= {"factor": {"weight": factor.weight}}
            arrays |= {"triangle": backend.pack(factor.lower), "z_mean": factor.z_mean, "noise": factor.noise}
        if (calibration := value.calibration) is not None:
            beta = calibration.temperature
            attrs |= {"calibration": {"temperature": beta if np.isfinite(beta) else None}}
            arrays |= {RESIDUALS: calibration.residuals, WEIGHT: calibration.weight} if calibration.weight.size else {}
    else:
        kind = EQUATIONS
        attrs |= {"folds": len(value.folds), "scored": value.scored, "sums": SUMS, "datasets": value.datasets}
        if (moments := value.moments) is not None:
            attrs |= {"moments": {"rows": moments.rows, "arrays": list(moments.arrays())}}
            arrays |= {f"moments.{name}": array for name, array in moments.arrays().items()}
        for k, fold in enumerate(value.folds):
            arrays |= {f"{name}{k}": array for name, array in fold.arrays().items()}
        for k, fold in value.originals.items():
            arrays |= {f"{ORIGINALS}.{name}{k}": array for name, array in fold.arrays().items()}
        attrs |= {ORIGINALS: sorted(value.originals)} if value.originals else {}
    with zarr_groups.new_group(url, kind, attrs) as place:
        for name, array in arrays.items():
            zarr_groups.write_whole(place, name, np.ascontiguousarray(array))


def load(url: str) -> Any:
    """Read a model or equations; errors are those of `ntkdist.load`."""
    kind, attrs = zarr_groups.read_attributes(url, (MODEL, EQUATIONS))
    if attrs["version"] > VERSION:
        raise StoreError(
            f"{url}: saved in format {attrs['version']}, this ntkdist reads up to {VERSION}; update ntkdist"
        )
    array = functools.partial(zarr_groups.read_whole, url)
    features: AnyMap = decode(attrs["features"], AnyFeatureMap, url)
    if attrs["learnt"]:
        features = FittedMap(features.spec, {name: array(f"features.{name}") for name in attrs["learnt"]})
    scales: dict[str, Any] = {name: array(name) for name in (SCALES if attrs["version"] < 2 else (*SCALES, *RANGE))}
    if METRIC in attrs["arrays"]:
        scales[METRIC] = array(METRIC)
    if ENCODING in attrs:
        names = [name for name in attrs["arrays"] if name.startswith(f"{ENCODING}.")]
        saved = {name.removeprefix(f"{ENCODING}."): array(name) for name in names}
        scales[ENCODING] = Encoding.of_saved(attrs[ENCODING], saved)
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in attrs["preprocessing"].items()}
    if IMAGES in attrs:
        plain["images"] = decode(attrs[IMAGES], Decoding, url)
    plain["rounds"] = tuple(Round(**one) for one in plain.get("rounds", ()))
    preprocessing = Preprocessing(**plain, **scales)
    augment: Augment = decode(attrs.get(AUGMENT, {}), Augment, url)
    _check_fingerprint(url, features, preprocessing.mapped_shape, attrs, array("fingerprint"))
    if kind == MODEL:
        factor = None
        if kept := attrs.get("factor"):
            factor = Factor(backend.unpack(array("triangle")), array("z_mean"), kept["weight"], array("noise"))
        weights: dict[str, Any] = {name: array(name) for name in ("coef", "intercept", "alpha")}
        model = RidgeModel(preprocessing, features, **weights, dtype=attrs["dtype"], factor=factor)
        return replace(model, calibration=_calibration(url, attrs, model), augment=augment)
    names = attrs.get("sums", SUMS[:3])

    def sums(of: str, k: int) -> NormalEquations:
        return NormalEquations.of_arrays({name: array(f"{of}{name}{k}") for name in names})

    folds = [sums("", k) for k in range(attrs["folds"])]
    originals = {k: sums(f"{ORIGINALS}.", k) for k in attrs.get(ORIGINALS, ())}
    scored, moments = attrs.get("scored"), None
    if kept := attrs.get("moments"):
        moments = Moments.of_arrays(kept["rows"], {name: array(f"moments.{name}") for name in kept["arrays"]})
    return Equations(
        *(folds, features, preprocessing, attrs["dtype"], None if scored is None else tuple(scored)),
        *(moments, attrs.get("datasets", {}), augment, originals),
    )


def _calibration(url: str, attrs: dict[str, Any], model: RidgeModel) -> Calibration | None:
    """Read the calibration of a model, if it has one."""
    if (kept := attrs.get("calibration")) is None:
        return None
    beta = float("nan") if kept["temperature"] is None else kept["temperature"]
    if RESIDUALS not in attrs["arrays"]:
        return Calibration(np.zeros((0, len(model.intercept))), np.zeros(0), beta)
    return Calibration(zarr_groups.read_whole(url, RESIDUALS), zarr_groups.read_whole(url, WEIGHT), beta)


def of_estimator(url: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read what a saved estimator has beside its model; nothing of another saved value."""
    _, attrs = zarr_groups.read_attributes(url, (MODEL, EQUATIONS))
    names = [name for name in attrs["arrays"] if name.startswith(f"{ESTIMATOR}.")]
    return attrs.get(ESTIMATOR, {}), {
        name.removeprefix(f"{ESTIMATOR}."): zarr_groups.read_whole(url, name) for name in names
    }


def fingerprint(features: AnyMap, mapped_shape: tuple[int, ...], dtype: str) -> NDArray[np.float64]:
    """Compute φ of fixed probe rows, (8, m), to compare a map with the one that was saved."""
    probes = random.normals((PROBES, *mapped_shape), 0, 0, PROBE_ROLE)
    return features(probes.astype(dtype)).astype(np.float64)


def _check_fingerprint(
    url: str, features: AnyMap, mapped_shape: tuple[int, ...], attrs: Any, saved: NDArray[Any]
) -> None:
    """Refuse a map that computes other features of the probe rows than the saved ones, beyond rounding."""
    computed = fingerprint(features, mapped_shape, attrs["dtype"])
    norms = np.linalg.norm(saved, axis=1)  # 0 for a fitted map that has no directions left
    apart = float(np.max(np.linalg.norm(computed - saved, axis=1) / np.where(norms == 0, 1, norms)))
    if not apart <= TOLERANCE[attrs["dtype"]]:
        theirs, ours = attrs["versions"], versions()
        differ = ", ".join(f"{k} {theirs.get(k)} → {ours[k]}" for k in ours if ours[k] != theirs.get(k)) or "none"
        raise StoreError(
            f"{url}: this machine makes other features than the saved ones of the same spec (relative difference "
            f"{apart:.1e}, at most {TOLERANCE[attrs['dtype']]:.0e} expected; changed versions: {differ}); "
            "load it with the versions that saved it, or fit again"
        )
