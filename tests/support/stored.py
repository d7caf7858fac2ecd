"""Datasets that tests write, and a regression problem for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ntkdist as nd

F8 = NDArray[np.float64]
MakeDataset = Callable[..., str]  # the fixture `make_dataset`


def write_dataset(
    folder: Path, x: NDArray[Any], y: NDArray[Any] | None = None, name: str = "data", **options: Any
) -> str:
    """Write arrays as a dataset in source order, of ten partitions unless told otherwise, and return its path."""
    source = folder / f"{name}.npz"
    weight = options.pop("weights", None)
    arrays = {"x": x} | ({} if y is None else {"y": y}) | ({} if weight is None else {"w": weight})
    beside = {role: options.pop(role) for role in ("groups", "holdout") if role in options}
    np.savez(source, **arrays, **beside)
    parts = {"rows_per_partition": -(-len(x) // 10)} if len(x) else {}
    options = {"target": () if y is None else ["y"], "shuffle_seed": None} | parts | options
    options |= {role: role for role in beside}
    if weight is not None:
        options["weight"] = "w"
    nd.convert(str(source), str(folder / f"{name}.zarr"), **options)
    return str(folder / f"{name}.zarr")


def regression() -> tuple[F8, F8]:
    """Draw a problem that a line cannot solve: 900 rows, 5 columns of very different scales, 2 targets."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((900, 5))
    signal = np.stack([np.abs(x[:, 0]) + x[:, 1] * x[:, 2], np.abs(x[:, 3]) - x[:, 4]], axis=1)
    y = signal + 0.1 * rng.standard_normal((900, 2))
    return x * [1, 10, 100, 1e-3, 1] + [0, 5, -2000, 0, 1], y * [1, 30] + [100, -4]
