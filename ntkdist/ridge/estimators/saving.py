"""Fitted ridges as a saved model with parameters and attributes beside it: JSON and arrays, without pickle.

What is saved predicts, scores and can be fitted again.  As in pickles by default, sums are left out, and so are
``choice_`` and ``cv_results_``.
"""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist.data.augment import Augment
from ntkdist.errors import SpecError, StoreError
from ntkdist.features import AnyFeatureMap
from ntkdist.planning.job import Metric
from ntkdist.ridge.estimators.classification import NTKRidgeClassifier
from ntkdist.ridge.estimators.regression import NTKRidge, NTKRidgeCV
from ntkdist.ridge.estimators.ridge import RidgeEstimator
from ntkdist.ridge.model import RidgeModel
from ntkdist.solvers.cv_result import CVResult
from ntkdist.spec import Spec, decode

KINDS: dict[str, Any] = {each.__name__: each for each in (NTKRidge, NTKRidgeCV, NTKRidgeClassifier)}
PLAIN = (bool, int, float, str, type(None))


def described(value: Any) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what an estimator has beside its model: attributes as plain objects, and arrays.

    Raises
    ------
    SpecError
        If it is no ridge that was fitted, or has a parameter that is a Python object, such as a splitter.
    """
    if type(value).__name__ not in KINDS or type(value) is not KINDS[type(value).__name__]:
        raise SpecError(f"a {type(value).__name__} cannot be saved; expected a model, equations, or {', '.join(KINDS)}")
    if not hasattr(value, "model_"):
        raise SpecError(f"{type(value).__name__} is not fitted, so there is nothing to save; call fit first")
    params = {name: _plain(name, one) for name, one in value.get_params(deep=False).items()}
    cv, dealt = value.cv_, (value._dealt_by, value._added)
    attrs = {"kind": type(value).__name__, "params": params, "cv": cv and cv.to_dict(), "dealt": dealt}
    names = ("classes_", "temperature_", "multilabel_", "residuals_", "_weights")
    arrays = {name: np.asarray(getattr(value, name)) for name in names if hasattr(value, name)}
    if "classes_" in arrays and arrays["classes_"].dtype.kind not in "biuf":
        attrs["classes"] = arrays.pop("classes_").tolist()
    return attrs, {name: np.atleast_1d(array) for name, array in arrays.items()}


def restored(model: RidgeModel, attrs: dict[str, Any], arrays: dict[str, NDArray[Any]], url: str) -> RidgeEstimator:
    """Return the estimator of a model and of what `described` returned."""
    kind = KINDS.get(attrs["kind"])
    if kind is None or not attrs["params"].keys() <= set(kind._get_param_names()):
        raise StoreError(f"{url}: a newer ntkdist saved this {attrs['kind']}; update ntkdist")
    made: RidgeEstimator = kind(**{name: _decoded(name, one, url) for name, one in attrs["params"].items()})
    made._set_columns(model.preprocessing)
    made.model_, made.cv_ = model, None if attrs["cv"] is None else CVResult.from_dict(attrs["cv"])
    made._dealt_by, made._added = attrs["dealt"]
    for name, array in arrays.items():
        one = name == "multilabel_" or (name == "temperature_" and not arrays["multilabel_"][0])
        setattr(made, name, array[0].item() if one else array)
    if "classes" in attrs:
        made.classes_ = np.array(attrs["classes"])
    made._set_weights(model)
    return made


def _plain(name: str, value: Any) -> Any:
    """Return a parameter as plain objects."""
    if isinstance(value, Spec):
        return msgspec.to_builtins(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(name, each) for each in value]
    if isinstance(value, dict):
        return {"pairs": [[_plain(name, key), _plain(name, each)] for key, each in value.items()]}
    if isinstance(value, PLAIN):
        return value
    raise SpecError(
        f"{name} is {value!r}, a Python object, of which nothing is saved; set {name} to None first, or save the model_"
    )


def _decoded(name: str, value: Any, url: str) -> Any:
    if name == "features":
        maps = value if isinstance(value, list) else [value]
        found = [None if each is None else decode(each, AnyFeatureMap, url) for each in maps]
        return found if isinstance(value, list) else found[0]
    if name in ("metric", "augment"):
        return None if value is None else decode(value, Metric if name == "metric" else Augment, url)
    return dict(map(tuple, value["pairs"])) if isinstance(value, dict) else value
