"""Versions of what decides results, as recorded in everything that is saved."""

import platform
from importlib.metadata import PackageNotFoundError, version


def installed(name: str) -> str:
    """The version of an installed package, or "unknown"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def versions() -> dict[str, str]:
    """Of Python and of every package that features, sums and files go through."""
    names = ("ntkdist", "numpy", "scipy", "zarr", "dask", "distributed")
    return {"python": platform.python_version(), **{name: installed(name) for name in names}}
