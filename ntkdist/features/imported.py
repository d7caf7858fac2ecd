"""A map of the user's own, taken by its name from a module that every worker can import."""

import functools
import importlib
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ntkdist.errors import DataError, SpecError
from ntkdist.features.base import FeatureMap, Params


class Imported(FeatureMap, frozen=True):
    """An object with ``n_components`` that maps rows when it is called, imported by name wherever rows are mapped.

    Models and jobs keep the name only, and no code.  The promises of other maps are the object's to keep: equal rows
    have equal features in every process, and a row's features do not depend on the rows beside it.  Memory is planned
    for the rows and the features in float64, twice each.

    Parameters
    ----------
    n_components : int
        Those of the object.
    name : str
        ``"module:name"``.  The object is called with rows (n, *input_shape), float32 or float64, and returns
        (n, n_components) finite numbers.  If it has a method ``kernel(x, y)``, that is the kernel that its features
        approximate; else the kernel is that of the features.
    """

    name: str
    no_gradient: ClassVar[tuple[str, str]] = ("it is not one of ntkdist's", "leave the metric out")

    def validate(self) -> None:
        module, colon, name = self.name.partition(":")
        if not (module and colon and name):
            raise SpecError(f"Imported.name is {self.name!r}; expected module:name, such as mymaps:phi")

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        if (found := getattr(_imported(self.name), "n_components", None)) != self.n_components:
            what = f"Imported.n_components is {self.n_components}, but {self.name} has {found}"
            raise SpecError(f"{what}; set it to that")
        return {}

    def apply(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        if not len(x):
            return np.empty((0, self.n_components), x.dtype)
        z = np.asarray(_imported(self.name)(x))
        if z.shape != (len(x), self.n_components):
            raise DataError(
                f"{self.name} returned an array of shape {z.shape} for {len(x)} rows; expected "
                f"{(len(x), self.n_components)}: one row of n_components numbers each"
            )
        return z.astype(x.dtype, copy=False)

    def kernel(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> NDArray[np.float64]:
        x = np.asarray(x, np.float64)
        y = x if y is None else np.asarray(y, np.float64)
        if exact := getattr(_imported(self.name), "kernel", None):
            return np.asarray(exact(x, y), np.float64)
        return self(x) @ self(y).T

    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        return 2 * 8 * (int(np.prod(input_shape)) + self.n_components)


@functools.cache
def _imported(name: str) -> Any:
    """Return the object of a name."""
    module, _, rest = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), rest)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"{name} cannot be imported here ({error}); install its module on every worker, or put its directory on "
            "PYTHONPATH"
        ) from None
    if not callable(found) or isinstance(found, type):
        raise SpecError(f"{name} is {type(found).__name__}, no object that maps rows; name an instance")
    return found
