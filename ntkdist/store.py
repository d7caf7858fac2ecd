"""Saving and loading models and equations: Zarr groups of plain arrays and JSON, no pickle.

A saved value holds the fingerprint of its feature map, φ of fixed probe rows, and is refused on loading where the
installed software makes other features of the same spec.
"""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist import backend, draws, groups
from ntkdist.errors import StoreError
from ntkdist.features import AnyFeatureMap, AnyMap, FittedMap
from ntkdist.model import Equations, RidgeModel
from ntkdist.preprocess import Preprocessing
from ntkdist.spec import decode
from ntkdist.sums import NormalEquations
from ntkdist.uncertainty import Factor
from ntkdist.versions import versions

MODEL, EQUATIONS, VERSION = "ntkdist.model", "ntkdist.equations", 1
SUMS = ("triangle", "cross", "inner", "rounding")  # of a fold, `NormalEquations.arrays`
SCALES = ("x_mean", "x_scale", "y_mean", "y_scale")
PROBES, PROBE_ROLE = 8, 1000
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}  # of the norm of a probe's features


def save(value: RidgeModel | Equations, url: str) -> None:
    """Write a model or equations to a new Zarr group, whole or not at all.

    Parameters
    ----------
    value : RidgeModel or Equations
    url : str

    Raises
    ------
    StoreError
        If ``url`` exists or cannot be written.
    """
    pre = value.preprocessing
    attrs = {
        "features": msgspec.to_builtins(value.features.spec),
        "learnt": sorted(value.features.arrays),
        "dtype": value.dtype,
        "preprocessing": {
            "input_shape": pre.input_shape,
            "classes": pre.classes,
            "columns": pre.columns,
            "target_names": pre.target_names,
            "vector_target": pre.vector_target,
            "constant": pre.constant,
            "class_weight": pre.class_weight,
        },
        "versions": versions(),
    }
    arrays = {name: getattr(pre, name) for name in SCALES}
    arrays |= {f"features.{name}": array for name, array in value.features.arrays.items()}
    arrays["fingerprint"] = fingerprint(value.features, pre.input_shape, value.dtype)
    if isinstance(value, RidgeModel):
        kind = MODEL
        arrays |= {"coef": value.coef, "intercept": value.intercept, "alpha": value.alpha}
        if (factor := value.factor) is not None:
            attrs |= {"factor": {"weight": factor.weight}}
            arrays |= {"triangle": backend.pack(factor.lower), "z_mean": factor.z_mean, "noise": factor.noise}
    else:
        kind = EQUATIONS
        attrs |= {"folds": len(value.folds), "scored": value.scored, "sums": SUMS}
        for k, fold in enumerate(value.folds):
            arrays |= {f"{name}{k}": array for name, array in fold.arrays().items()}
    with groups.new_group(url, kind, attrs) as place:
        for name, array in arrays.items():
            groups.write_whole(place, name, np.ascontiguousarray(array))


def load(url: str) -> Any:
    """Read a model or equations.

    Parameters
    ----------
    url : str

    Returns
    -------
    RidgeModel or Equations
        Whichever was saved there.

    Raises
    ------
    DataError
        If nothing complete is there, or a chunk is missing or damaged.
    StoreError
        If it was written by a newer version, or this machine's features differ from the saved ones.
    """
    kind, attrs = groups.read_attributes(url, (MODEL, EQUATIONS))
    if attrs["version"] > VERSION:
        raise StoreError(
            f"{url}: saved in format {attrs['version']}, this ntkdist reads up to {VERSION}; update ntkdist"
        )

    def array(name: str) -> NDArray[Any]:
        return groups.read_whole(url, name)

    features: AnyMap = decode(attrs["features"], AnyFeatureMap, url)
    if attrs["learnt"]:
        features = FittedMap(features.spec, {name: array(f"features.{name}") for name in attrs["learnt"]})
    scales: dict[str, Any] = {name: array(name) for name in SCALES}
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in attrs["preprocessing"].items()}
    preprocessing = Preprocessing(**plain, **scales)
    _check_fingerprint(url, features, preprocessing.input_shape, attrs, array("fingerprint"))
    if kind == MODEL:
        factor = None
        if kept := attrs.get("factor"):
            factor = Factor(backend.unpack(array("triangle")), array("z_mean"), kept["weight"], array("noise"))
        weights = {name: array(name) for name in ("coef", "intercept", "alpha")}
        return RidgeModel(preprocessing, features, **weights, dtype=attrs["dtype"], factor=factor)
    names = attrs.get("sums", SUMS[:3])  # versions before this one did not count the rounding
    folds = [NormalEquations.of_arrays({name: array(f"{name}{k}") for name in names}) for k in range(attrs["folds"])]
    scored = attrs.get("scored")
    return Equations(folds, features, preprocessing, attrs["dtype"], None if scored is None else tuple(scored))


def fingerprint(features: AnyMap, input_shape: tuple[int, ...], dtype: str) -> NDArray[np.float64]:
    """φ of fixed probe rows, (8, m): what a map does, to be compared where it is used next."""
    probes = draws.normals((PROBES, *input_shape), 0, 0, PROBE_ROLE)
    return features(probes.astype(dtype)).astype(np.float64)


def _check_fingerprint(
    url: str, features: AnyMap, input_shape: tuple[int, ...], attrs: Any, saved: NDArray[Any]
) -> None:
    here = fingerprint(features, input_shape, attrs["dtype"])
    norms = np.linalg.norm(saved, axis=1)  # 0 where a map has learnt that there is nothing
    apart = float(np.max(np.linalg.norm(here - saved, axis=1) / np.where(norms == 0, 1, norms)))
    if not apart <= TOLERANCE[attrs["dtype"]]:
        theirs, ours = attrs["versions"], versions()
        differ = ", ".join(f"{k} {theirs.get(k)} → {ours[k]}" for k in ours if ours[k] != theirs.get(k)) or "none"
        raise StoreError(
            f"{url}: this machine makes other features than the saved ones of the same spec (relative difference "
            f"{apart:.1e}, at most {TOLERANCE[attrs['dtype']]:.0e} expected; changed versions: {differ}); "
            "load it with the versions that saved it, or fit again"
        )
