"""Specs: values that are frozen, hashable, decodable from TOML and JSON, and checked when they are made.

Everything that decides a result (feature map, kernel, dataset, plan, solver, job) is a `Spec`.  One codec reads all of
them, from a job file or a saved model.
"""

import abc
import difflib
import hashlib
import math
import platform
import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform

import msgspec
import numpy as np

from ntkdist.errors import SpecError

T = TypeVar("T")
WORD = re.compile(r"[A-Za-z_/~][^\s\"'\[\]{}=,#]*")  # a string that TOML wants quoted: a name, a path or a URL


@dataclass_transform(frozen_default=True)
class _Meta(msgspec.StructMeta, abc.ABCMeta):
    """The metaclass of structs with abstract methods."""


class Spec(msgspec.Struct, frozen=True, tag=True, tag_field="type", forbid_unknown_fields=True, metaclass=_Meta):
    """A frozen value of numbers, strings, tuples and other specs.

    The constructor checks the types and bounds of the fields exactly as decoding does, and converts NumPy scalars to
    Python's and ``2`` to ``2.0`` where a float is declared, so that equal specs have equal hashes and equal encodings.

    Raises
    ------
    SpecError
        If a field has the wrong type, is out of bounds or not finite; the message names the field.
    """

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(type(self)):
            value = _plain(getattr(self, field.name))
            where = f"{type(self).__name__}.{field.name}"
            try:
                value = msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                text = str(error)
                raise SpecError(f"{where} is {value!r}: {text[0].lower()}{text[1:]}") from None
            numbers = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(v) for v in numbers if isinstance(v, float)):
                raise SpecError(f"{where} is {value!r}: expected a finite number")
            msgspec.structs.force_setattr(self, field.name, value)
        self.validate()

    def validate(self) -> None:
        """Check conditions between fields; raise `SpecError`."""


def _plain(value: object) -> object:
    """Convert NumPy scalars to Python's, and lists and arrays to tuples."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(_plain(v) for v in value)
    return value


def encode(value: object) -> str:
    """Return the canonical JSON of a spec: equal values give equal text."""
    return msgspec.json.encode(value, order="deterministic").decode()


def digest(*values: object) -> str:
    """Return a short name for specs: the first 16 hexadecimal digits of the SHA-256 of their canonical JSON."""
    return hashlib.sha256("\n".join(encode(v) for v in values).encode()).hexdigest()[:16]


def decode(data: dict[str, Any], type: type[T] | Any, source: str = "input") -> T:
    """Decode the plain objects of a parsed TOML or JSON text to a `Spec` class, or one of a union of them.

    ``source`` is the name of the text in errors.  A `SpecError` names the key and, if it is unknown, the nearest known.
    """
    try:
        return cast(T, msgspec.convert(data, type))
    except msgspec.ValidationError as error:
        hint = _unknown(data, msgspec.inspect.type_info(type), "")
        raise SpecError(f"{source}: {hint or error}") from None


def read_toml(path: str) -> dict[str, Any]:
    """Read a TOML file to plain objects, for `decode`; raise `SpecError` if it cannot be read or is not TOML."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:
        raise SpecError(f"{path}: not TOML: {error}") from None


def set_key(data: dict[str, Any], setting: str) -> None:
    """Set a key in the plain objects of a TOML text by ``table.key=value``; tables that are absent are made.

    The value is TOML, or a word without quotes, which a shell takes away.  A `SpecError` names a setting that is
    neither.
    """
    name, sign, text = setting.partition("=")
    *tables, key = (part.strip() for part in name.split("."))
    if not sign or not all([*tables, key]):
        raise SpecError(f"'{setting}' sets nothing; expected KEY=VALUE, such as features.n_components=2048")
    for i, each in enumerate(tables):
        data = data.setdefault(each, {})
        if not isinstance(data, dict):
            raise SpecError(f"'{setting}': '{'.'.join(tables[: i + 1])}' is no table, so it has no key '{key}'")
    try:
        data[key] = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        if not WORD.fullmatch(text.strip()):
            raise SpecError(f"'{setting}': {text.strip() or 'nothing'} is not a value of TOML; quote it") from None
        data[key] = text.strip()


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return ``; did you mean 'x'?`` for a misspelt name, or the list of the known names."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"


def _unknown(data: Any, info: Any, path: str) -> str:
    """Describe the first key or type name in data that its declared type lacks; '' if there is none."""
    if not isinstance(data, dict):
        return ""
    structs = [t for t in getattr(info, "types", (info,)) if isinstance(t, msgspec.inspect.StructType)]
    if not structs:
        return ""
    names = tuple(str(t.tag) for t in structs if t.tag is not None)
    name = data.get("type", names[0] if len(names) == 1 else None)
    if names and name is None:
        return f"[{path}] has no type; expected one of: {', '.join(names)}"
    if names and name not in names:
        return f"unknown type '{name}' in [{path}]{nearest(str(name), names)}"
    struct = structs[names.index(name)] if names else structs[0]
    fields = {f.encode_name: f.type for f in struct.fields}
    for key, value in data.items():
        place = f"{path}.{key}" if path else key
        if key in fields:
            if message := _unknown(value, fields[key], place):
                return message
        elif key != "type" or not names:
            return f"unknown key '{place}'{nearest(key, list(fields))}"
    return ""


def installed(name: str) -> str:
    """Return the version of an installed package, or "unknown"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def versions() -> dict[str, str]:
    """Return the versions of Python and of every package that features, sums and files depend on."""
    names = ("ntkdist", "numpy", "scipy", "zarr", "dask", "distributed")
    return {"python": platform.python_version(), **{name: installed(name) for name in names}}
