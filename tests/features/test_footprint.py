"""The memory of maps: what is projected bounds the measured peaks, and is within a factor of them."""

from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from maps import NUMPY_BUFFERS, PAPER, both_dtypes, peak_bytes, rows

from ntkdist import (
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
from ntkdist.features import AnyFeatureMap, FeatureMap
from ntkdist.features.base import _cast
from ntkdist.features.landmarks import ROWS


class Case(NamedTuple):
    """A map of rows of a shape, how many are mapped at once, and at most how many times the peak is projected."""

    spec: FeatureMap
    shape: tuple[int, ...]
    n: int
    factor: float = 4


CASES = [
    Case(Linear(784), (784,), 64),
    Case(NTKRandomFeatures(1024), (9,), 200),
    Case(NTKRandomFeatures(8192), (9,), 64),
    Case(NTKRandomFeatures(2048, bias=1.0), (90,), 64),
    Case(NTKRandomFeatures(128, bias=1.0), (784,), 300),
    Case(NTKRandomFeatures(1024, depth=2), (9,), 200),
    Case(NTKRandomFeatures(1024, depth=2), (784,), 64),
    Case(NTKRandomFeatures(1024, depth=3), (90,), 64),
    Case(NTKRandomFeatures(128, depth=3), (784,), 300),
    Case(NTKRandomFeatures(2048, **PAPER), (784,), 64),
    Case(NTKRandomFeatures(8192, **PAPER), (9,), 64),
    Case(NTKRandomFeatures(1024, depth=2, **PAPER), (90,), 64),
    Case(NTKRandomFeatures(128, depth=2, **PAPER), (784,), 300),
    Case(ZonalFeatures(64, NTK(2)), (1,), 99),
    Case(ZonalFeatures(2048, NTK(2)), (2,), 64),
    Case(ZonalFeatures(1024, NTK(2)), (9,), 200),
    Case(ZonalFeatures(2048, NTK(2)), (90,), 64),
    Case(ZonalFeatures(512, NTK(2)), (784,), 300),
    Case(NTKSketch(1024, 2), (9,), 200),
    Case(NTKSketch(2048, 2), (90,), 64),
    Case(NTKSketch(6000, 2), (90,), 40),
    Case(NTKSketch(1024, 2), (784,), 64),
    Case(NTKSketch(512, 2), (1500,), 64),
    Case(RandomFourier(65, Gaussian(1.5)), (1,), 500),
    Case(RandomFourier(1024, GammaExponential(2.0, 0.5)), (9,), 200),
    Case(RandomFourier(2048, Gaussian(1.5)), (90,), 64),
    Case(RandomFourier(2048, Laplace(2.0, homogeneous=True)), (90,), 64),
    Case(RandomFourier(512, GammaExponential(2.0, 0.5)), (784,), 300),
    Case(RandomFourier(512, Laplace(2.0, homogeneous=True)), (784,), 300),
    Case(Nystrom(1024, NTK(2, bias=1.0)), (9,), ROWS),
    Case(Nystrom(1024, Laplace(3.0)), (9,), ROWS),
    Case(Imported(9, "own_map:phi"), (6,), ROWS),
    Case(Nystrom(512, NTK(2, bias=1.0)), (784,), ROWS),
    Case(Nystrom(512, Laplace(3.0)), (784,), ROWS),
    Case(CNTKRandomFeatures(512, 2, width=64), (16, 16, 3), 1, 1.3),
    Case(CNTKRandomFeatures(1024, 3, ends=True, width=32, pool=(2, 1, 1), grid=2), (16, 16, 3), 3, 1.3),
    Case(CNTKRandomFeatures(4096, 2, tangent=False, grid=2, width=48, flips=True), (16, 16, 1), 3, 1.3),
    Case(CNTKRandomFeatures(4096, 2, tangent=False, whiten=0.1, compress=16, pool=(2, 1), grid=2), (32, 32, 3), 1, 1.3),
    Case(PatchLandmarks(9 * 64, (64,)), (32, 32, 3), 1),
    Case(PatchLandmarks(4 * 100, (256,), 16, "zca", flips=True, grid=2), (32, 32, 3), 2),
    Case(PatchLandmarks(9 * 128, (32,), 0, "none", activation="nngp"), (16, 16, 1), 3),
    Case(PatchLandmarks(9 * 256, (64,), activation="ntk"), (16, 16, 3), 2),
    Case(ImageLandmarks(300, PatchLandmarks(9 * 64, (64,))), (16, 16, 3), ROWS),
    Case(CNTKSketch(400), (8, 9, 3), 20),
    Case(CNTKSketch(200, 2), (32, 33, 3), 2),
    Case(CNTKSketch(300, 4, degree=4), (12, 13, 50), 6),
    Case(CNTKSketch(200, 4, degree=4), (32, 33, 3), 2),
    Case(CNTKSketch(300, padding="valid"), (12, 13, 50), 6),
]


def test_every_map_is_measured() -> None:
    assert {type(case.spec) for case in CASES} == set(get_args(AnyFeatureMap))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{type(case.spec).__name__}-{case.shape}")
@both_dtypes
def test_memory_is_projected(case: Case, dtype: type) -> None:
    spec, shape, params = case.spec, case.shape, dict[str, Any]()
    seen = max(spec.sample_rows, 5) if isinstance(spec, Nystrom | ImageLandmarks) else 5
    features: Any = spec.fit(rows(seen, shape, seed=7)) if spec.sample_rows else spec
    x = rows(case.n, shape).astype(dtype)

    def draw() -> None:
        params.clear()
        params.update({k: _cast(v, np.dtype(dtype)) for k, v in features.draw(shape).items()})

    draw()
    spec.apply(params, x[:2])  # loops are compiled, polynomials fitted and Hadamard matrices made once a process
    drawing, drawn = peak_bytes(draw), spec.draw_bytes(shape, dtype)
    assert drawing <= drawn + NUMPY_BUFFERS
    assert drawn <= 4 * drawing + 3 * NUMPY_BUFFERS
    applying, applied = peak_bytes(lambda: spec.apply(params, x)), case.n * spec.row_bytes(shape, dtype)
    assert applying <= applied + NUMPY_BUFFERS
    assert applied <= case.factor * applying + 3 * NUMPY_BUFFERS
