"""Parameters of specs inside an estimator's parameters, such as ``features__kernel__depth``, for searches."""

from typing import Any

import msgspec

from ntkdist.errors import InputError
from ntkdist.spec import Spec, nearest

BETWEEN = "__"  # between the names of a path, as in scikit-learn


def nested(name: str, value: Any) -> dict[str, Any]:
    """Return all fields of a spec, and of the specs in it, by their paths; nothing of another value."""
    if not isinstance(value, Spec):
        return {}
    fields = {f"{name}{BETWEEN}{field}": getattr(value, field) for field in value.__struct_fields__}
    return fields | {path: inner for key, one in fields.items() for path, inner in nested(key, one).items()}


def replaced(name: str, value: Any, changes: dict[str, Any]) -> Any:
    """Return a spec with fields replaced, by their paths inside it; what is given whole is replaced before its fields.

    Raises
    ------
    InputError
        If the value is no spec, or has no such field; the message has the nearest name.
    SpecError
        If a field cannot have the value.
    """
    if not isinstance(value, Spec):
        raise InputError(
            f"{name} is {value!r}, which has no '{next(iter(changes))}'; set {name} to a value that has, first"
        )
    whole = {key: new for key, new in changes.items() if BETWEEN not in key}
    inner: dict[str, dict[str, Any]] = {}
    for key, new in changes.items():
        field, between, rest = key.partition(BETWEEN)
        if field not in value.__struct_fields__:
            known = nearest(field, value.__struct_fields__)
            raise InputError(f"{name} is a {type(value).__name__}, which has no '{field}'{known}")
        if between:
            inner.setdefault(field, {})[rest] = new
    for field, some in inner.items():
        path = f"{name}{BETWEEN}{field}"
        whole[field] = replaced(path, whole.get(field, getattr(value, field)), some)
    return msgspec.structs.replace(value, **whole)
