"""The table of all public maps, and the rows and measures by which maps are tested: a new map is a new row of it."""

import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from ntkdist import (
    NNGP,
    NTK,
    CNTKRandomFeatures,
    CNTKSketch,
    GammaExponential,
    Gaussian,
    ImageLandmarks,
    Imported,
    Laplace,
    Linear,
    NTKRandomFeatures,
    NTKSketch,
    Nystrom,
    PatchLandmarks,
    RandomFourier,
    ZonalFeatures,
)
from ntkdist.features import FeatureMap

F8 = NDArray[np.float64]
D = 6
ROUNDING = {np.float64: 1e-12, np.float32: 1e-5}
NUMPY_BUFFERS = 2**18  # of ufuncs on strided arrays: two of 8192 elements, however many rows
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
VECTORS, IMAGES = (D,), (8, 7, 3)
ROOT = 16**0.4  # the error falls at least so much with 16 times the columns: m^-½ says 4
PAPER: dict[str, Any] = {"variant": "paper"}
FEW: dict[str, Any] = {"columns": 48, "rows": (4, 8, 7, 1)}  # images cost more
LOW: dict[str, Any] = {"columns": 15, "rows": (250, 3)}
FAST: dict[str, Any] = LOW | {"falls": 6.0}


def same_rows(a: NDArray[Any], b: NDArray[Any]) -> None:
    """Assert that rows are equal, to the promised share of the row's norm."""
    norms = np.linalg.norm(b, axis=1)
    assert (np.linalg.norm(a.astype(np.float64) - b, axis=1) <= ROUNDING[b.dtype.type] * norms).all()


def slow(*values: Any) -> Any:
    """Make a slow case of some parameters."""
    return pytest.param(*values, marks=pytest.mark.slow)


def estimate(features: FeatureMap, x: F8) -> F8:
    """Return the kernel matrix of the features, drawn without keeping."""
    z = features.apply(features.draw(x.shape[1:]), x)
    return z @ z.T


def peak_bytes(call: Callable[[], Any]) -> int:
    """Measure the peak of the calmer of two calls: other threads, such as those of a client, allocate, too."""

    def measured() -> int:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        return peak

    return min(measured(), measured())


class Case(NamedTuple):
    """A map, and by how much its error falls from some columns to 16 times as many, on rows of a shape.

    None where the kernel that the map names is not `kernel` itself, or where there is no error.
    """

    spec: FeatureMap
    homogeneous: bool = True
    falls: float | None = ROOT
    columns: int = 128
    rows: tuple[int, ...] = (60, 40)

    @property
    def shape(self) -> tuple[int, ...]:
        return (
            IMAGES
            if isinstance(self.spec, CNTKRandomFeatures | CNTKSketch | ImageLandmarks | PatchLandmarks)
            else VECTORS
        )


MANY = PatchLandmarks(300, (), 0, "none", pool=(), grid=1, activation="nngp")
ONE_LAYER = PatchLandmarks(64, (), 0, "none", pool=(), grid=1, lengthscale=1.0)
CASES: dict[str, Case] = {
    "linear": Case(Linear(D), falls=None),
    "imported": Case(Imported(9, "own_map:phi"), homogeneous=False, falls=None),
    "random-features": Case(NTKRandomFeatures(64)),
    "random-features-deep": Case(NTKRandomFeatures(101, depth=3)),
    "random-features-projected": Case(NTKRandomFeatures(13 + 3, depth=1, seed=4)),
    "random-features-bias": Case(NTKRandomFeatures(64, depth=2, bias=0.5), homogeneous=False),
    "paper": Case(NTKRandomFeatures(50, **PAPER)),
    "paper-deep": Case(NTKRandomFeatures(64, depth=2, **PAPER)),
    "paper-leverage": Case(NTKRandomFeatures(64, leverage_scores=True, **PAPER)),
    "paper-bias": Case(NTKRandomFeatures(64, bias=0.5, **PAPER), homogeneous=False),
    "zonal": Case(ZonalFeatures(64, NTK(2))),
    "zonal-deep": Case(ZonalFeatures(101, NTK(5), seed=2), falls=None),
    "zonal-nngp": Case(ZonalFeatures(50, NNGP(2))),
    "zonal-laplace": Case(ZonalFeatures(64, Laplace(0.5, homogeneous=True)), falls=None),
    "zonal-projected": Case(ZonalFeatures(13, NTK(2), seed=4)),
    "zonal-bias": Case(ZonalFeatures(64, NTK(2, bias=0.5)), homogeneous=False),
    "sketch": Case(NTKSketch(64)),
    "sketch-deep": Case(NTKSketch(301, depth=3, seed=2)),
    "sketch-projected": Case(NTKSketch(11, depth=2, seed=4)),
    "sketch-bias": Case(NTKSketch(64, depth=2, degree=5, bias=0.5), homogeneous=False),
    "fourier": Case(RandomFourier(64, Gaussian(2.0)), homogeneous=False),
    "fourier-laplace": Case(RandomFourier(101, Laplace(2.0)), homogeneous=False),
    "fourier-gamma": Case(RandomFourier(64, GammaExponential(2.0, 1.5)), homogeneous=False),
    "fourier-homogeneous": Case(RandomFourier(63, Laplace(0.5, homogeneous=True))),
    "nystrom": Case(Nystrom(64), **FAST),
    "nystrom-leverage": Case(Nystrom(70, NNGP(3), "leverage"), **FAST),
    "nystrom-bias": Case(Nystrom(300, NTK(3, bias=1.0), "rpcholesky"), homogeneous=False, **FAST),
    "nystrom-gaussian": Case(Nystrom(64, Gaussian(2.0)), homogeneous=False, **FAST),
    "nystrom-laplace": Case(Nystrom(64, Laplace(0.5, homogeneous=True)), **LOW),
    "cntk": Case(CNTKRandomFeatures(50, 2), falls=None),
    "cntk-one-layer": Case(CNTKRandomFeatures(64, 1, ends=True), **FEW),
    "cntk-deep": Case(CNTKRandomFeatures(64, width=12, seed=3), falls=None),
    "cntk-valid": Case(CNTKRandomFeatures(67, 2, 2, padding="valid", pool=(1, 2), ends=True), falls=None),
    "cntk-compress": Case(CNTKRandomFeatures(64, 3, ends=True, compress=6, width=16), falls=None),
    "cntk-cells": Case(CNTKRandomFeatures(101, 2, pool=(2, 1), grid=2), **FEW),
    "cntk-learnt": Case(CNTKRandomFeatures(64, 2, tangent=False, flips=True, whiten=0.1, compress=6), falls=None),
    "cntk-oversample": Case(CNTKRandomFeatures(50, 2, oversample=3, grid=2), **FEW),
    "cntk-sketch": Case(CNTKSketch(49, seed=3), falls=None),
    "cntk-sketch-valid": Case(CNTKSketch(150, 2, 2, padding="valid"), falls=None),
    "cntk-sketch-linear": Case(CNTKSketch(150, degree=1), falls=None),
    "patches": Case(PatchLandmarks(50, (20,), 8, grid=2), falls=None),
    "patches-one-layer": Case(ONE_LAYER, **FEW),
    "patches-nngp": Case(PatchLandmarks(70, (16,), 0, "zca", True, grid=2, activation="nngp", seed=3), falls=None),
    "patches-ntk": Case(PatchLandmarks(64, (16, 24), 12, "none", pool=(1, 2), grid=2, activation="ntk"), falls=None),
    "images": Case(ImageLandmarks(24, PatchLandmarks(50, (20,), 8, grid=2), NTK(1)), falls=None),
    "images-one-layer": Case(ImageLandmarks(40, MANY, NNGP(1)), columns=4, rows=(40, 8, 7, 1)),
    "cntk-sketch-degree-5": Case(CNTKSketch(150, degree=5), **FEW),
}


def rows(n: int, shape: int | tuple[int, ...] = D, seed: int = 0) -> F8:
    """Draw normals; of images, sums of neighbours."""
    rng = np.random.default_rng(seed)
    if isinstance(shape, int) or len(shape) == 1:
        return rng.standard_normal((n, *np.atleast_1d(shape)))
    x = rng.standard_normal((n, shape[0] + 1, shape[1] + 1, shape[2]))
    x = x[:, 1:] + x[:, :-1]
    return x[:, :, 1:] + x[:, :, :-1]


def fitted(spec: FeatureMap, shape: tuple[int, ...]) -> Any:
    """Fit the map to 250 rows if it has to see some; else return it."""
    return spec.fit(rows(250, shape, seed=9)) if spec.sample_rows else spec


class _Fitted(dict[str, Any]):
    """The maps of the table by name, each fitted when it is first asked for."""

    def __missing__(self, name: str) -> Any:
        self[name] = fitted(CASES[name].spec, CASES[name].shape)
        return self[name]


MAPS = _Fitted()
