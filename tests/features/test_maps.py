"""What every feature map promises, over one table of all public maps: a new map is a new row of it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_features import F8, ROUNDING, D, same_rows

from ntkdist import (
    NNGP,
    NTK,
    CNTKRandomFeatures,
    CNTKSketch,
    DataError,
    GammaExponential,
    Gaussian,
    Laplace,
    Linear,
    NTKRandomFeatures,
    NTKSketch,
    Nystrom,
    RandomFourier,
    ZonalFeatures,
    backend,
)
from ntkdist.features import AnyFeatureMap, FeatureMap
from ntkdist.features.base import PIECE_BYTES, _cast
from ntkdist.spec import decode, encode

VECTORS, IMAGES = (D,), (8, 7, 3)
ROOT = 16**0.4  # the error falls at least so much with 16 times the columns: m^-½ says 4


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
        return IMAGES if isinstance(self.spec, CNTKRandomFeatures | CNTKSketch) else VECTORS


PAPER: dict[str, Any] = {"variant": "paper"}
FEW: dict[str, Any] = {"columns": 48, "rows": (4, 8, 7, 1)}  # images cost more
LOW: dict[str, Any] = {"columns": 15, "rows": (250, 3)}
FAST: dict[str, Any] = LOW | {"falls": 6.0}
CASES: dict[str, Case] = {
    "linear": Case(Linear(D), falls=None),
    "random-features": Case(NTKRandomFeatures(64)),
    "random-features-deep": Case(NTKRandomFeatures(101, depth=3)),
    "random-features-projected": Case(NTKRandomFeatures(13 + 3, depth=1, seed=4)),
    "random-features-bias": Case(NTKRandomFeatures(64, depth=2, bias=0.5), homogeneous=False),
    "paper": Case(NTKRandomFeatures(50, **PAPER)),
    "paper-deep": Case(NTKRandomFeatures(64, depth=2, **PAPER)),
    "paper-leverage": Case(NTKRandomFeatures(64, leverage_scores=True, **PAPER)),
    "paper-bias": Case(NTKRandomFeatures(64, bias=0.5, **PAPER), homogeneous=False),
    "zonal": Case(ZonalFeatures(64)),
    "zonal-deep": Case(ZonalFeatures(101, NTK(5), seed=2), falls=None),
    "zonal-nngp": Case(ZonalFeatures(50, NNGP(2))),
    "zonal-laplace": Case(ZonalFeatures(64, Laplace(0.5, homogeneous=True)), falls=None),
    "zonal-projected": Case(ZonalFeatures(13, seed=4)),
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
    "cntk-cells": Case(CNTKRandomFeatures(101, 2, pool=(2, 1), grid=2), **FEW),
    "cntk-learnt": Case(CNTKRandomFeatures(64, 2, tangent=False, flips=True, whiten=0.1, compress=6), falls=None),
    "cntk-oversample": Case(CNTKRandomFeatures(50, 2, oversample=3, grid=2), **FEW),
    "cntk-sketch": Case(CNTKSketch(49, seed=3), falls=None),
    "cntk-sketch-degree-5": Case(CNTKSketch(150, degree=5), **FEW),
}


def rows(n: int, shape: tuple[int, ...], seed: int = 0) -> F8:
    """Normals; of images, sums of neighbours."""
    rng = np.random.default_rng(seed)
    if len(shape) == 1:
        return rng.standard_normal((n, *shape))
    x = rng.standard_normal((n, shape[0] + 1, shape[1] + 1, shape[2]))
    x = x[:, 1:] + x[:, :-1]
    return x[:, :, 1:] + x[:, :, :-1]


def fitted(spec: FeatureMap, shape: tuple[int, ...]) -> Any:
    """The map, fitted to 250 rows if it has to see some."""
    return spec.fit(rows(250, shape, seed=9)) if spec.sample_rows else spec


MAPS: dict[str, Any] = {name: fitted(case.spec, case.shape) for name, case in CASES.items()}


def maps(that: Callable[[Case], bool]) -> pytest.MarkDecorator:
    """Some of the table; all tests of one map run in a row, so that few draw it anew."""
    return pytest.mark.parametrize("name", [name for name, case in CASES.items() if that(case)], scope="module")


every_map = maps(lambda case: True)
homogeneous_maps = maps(lambda case: case.homogeneous)
random_maps = maps(lambda case: hasattr(case.spec, "seed"))
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def of(name: str, n: int, seed: int = 0) -> tuple[Any, F8]:
    return MAPS[name], rows(n, CASES[name].shape, seed)


def test_the_table_has_every_public_map() -> None:
    public = set(get_args(AnyFeatureMap))
    assert {type(case.spec) for case in CASES.values()} == public
    assert {type(case.spec) for case in CASES.values() if case.falls} == public - {Linear}


def mean_error(case: Case, columns: int, seeds: int) -> float:
    """‖φφᵀ − K‖/‖K‖ (Frobenius), root mean square over redraws."""
    x = rows(case.rows[0], case.rows[1:])
    k, found = case.spec.kernel(x), []
    for seed in range(seeds):
        spec: Any = msgspec.structs.replace(case.spec, n_components=columns, seed=seed)
        z = fitted(spec, case.rows[1:])(x)
        found.append(np.linalg.norm(z @ z.T - k) / np.linalg.norm(k))
    return float(np.sqrt(np.mean(np.square(found))))


@maps(lambda case: bool(case.falls))
def test_error_falls_like_the_root_of_the_columns_or_faster(name: str) -> None:
    case = CASES[name]
    assert case.falls is not None
    few, many = mean_error(case, case.columns, 6), mean_error(case, 16 * case.columns, 3)
    assert few >= case.falls * many


@every_map
@both_dtypes
@pytest.mark.parametrize("n", [0, 7])
def test_shape_and_dtype(name: str, dtype: type, n: int) -> None:
    features, x = of(name, n)
    z = features(x.astype(dtype))
    assert z.shape == (n, features.n_components)
    assert z.dtype == dtype
    assert np.isfinite(z).all()
    assert n == 0 or (np.abs(z).sum(1) > 0).all()


@every_map
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, ">f8"])
def test_other_numbers_are_computed_in_float64(name: str, dtype: Any) -> None:
    features, shape = MAPS[name], CASES[name].shape
    x = np.random.default_rng(0).integers(0, 200, (5, *shape)).astype(dtype)
    z = features(x)
    assert z.dtype == np.float64
    np.testing.assert_array_equal(z, features(x.astype(np.float64)))


@every_map
def test_float32_is_float64_rounded(name: str) -> None:
    features, x = of(name, 50)
    x = x.astype(np.float32)
    z = features(x.astype(np.float64))
    assert (np.linalg.norm(features(x) - z, axis=1) <= 10 * ROUNDING[np.float32] * np.linalg.norm(z, axis=1)).all()


@settings(max_examples=60, derandomize=True)
@given(st.data(), st.sampled_from(list(CASES)), st.sampled_from([np.float32, np.float64]))
def test_a_row_depends_on_its_own_input_only(data: st.DataObject, name: str, dtype: type) -> None:
    """Any subset in any order, in any pieces, gives the same rows."""
    features, x = of(name, 30)
    whole = features(x.astype(dtype))
    order = data.draw(st.lists(st.integers(0, 29), min_size=1, max_size=30))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(order)), max_size=6)))
    pieces = [features(part) for part in np.split(x.astype(dtype)[order], cuts) if len(part)]
    same_rows(np.concatenate(pieces), whole[order])


@every_map
@both_dtypes
def test_many_rows_in_pieces(name: str, dtype: type) -> None:
    """A call works through many rows in pieces, which must not show; nor must memory order."""
    features, shape = MAPS[name], CASES[name].shape
    piece = max(features.spec.piece_rows, PIECE_BYTES // features.spec.row_bytes(shape, dtype))
    x = rows(piece + piece // 4 + 2, shape).astype(dtype)
    whole = features(x)
    same_rows(np.concatenate([features(part) for part in np.array_split(x, 5)]), whole)
    same_rows(features(np.asfortranarray(x[:50])), whole[:50])
    same_rows(features(np.repeat(x[:50], 2, axis=0)[::2]), whole[:50])


@every_map
@both_dtypes
def test_rows_are_only_read(name: str, dtype: type) -> None:
    features, x = of(name, 20)
    x = x.astype(dtype)
    before, whole = x.copy(), features(x)
    np.testing.assert_array_equal(x, before)
    x.flags.writeable = False
    np.testing.assert_array_equal(features(x), whole)


@random_maps
def test_a_map_is_its_seed(name: str) -> None:
    """Drawn again: the same bits; another seed: another map."""
    features, x = of(name, 20)
    drawn = {k: _cast(v, x.dtype) for k, v in features.draw(x.shape[1:]).items()}
    np.testing.assert_array_equal(features.spec.apply(drawn, x), features(x))
    other = fitted(msgspec.structs.replace(features.spec, seed=99), x.shape[1:])
    z = other(x) - features(x)
    assert np.linalg.norm(z) > 0.1 * np.linalg.norm(features(x))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[Any]]:
    """Features of every map by another process, which gets its JSON, rows, and a sample to fit to."""
    place = tmp_path_factory.mktemp("elsewhere")
    arrays = {}
    for name, case in CASES.items():
        arrays |= {f"{name}/x": of(name, 9)[1].astype(np.float32), f"{name}/sample": rows(250, case.shape, seed=9)}
    np.savez(place / "rows.npz", **arrays)
    (place / "maps.json").write_text(encode({name: case.spec for name, case in CASES.items()}))
    code = f"""
import msgspec, numpy as np
from ntkdist import backend
from ntkdist.features import AnyFeatureMap
from ntkdist.spec import decode
backend.use_threads(1)
rows, out = np.load(r"{place}/rows.npz"), dict()
for name, plain in msgspec.json.decode(open(r"{place}/maps.json").read()).items():
    spec = decode(plain, AnyFeatureMap)
    features = spec.fit(rows[name + "/sample"]) if spec.sample_rows else spec
    out[name] = features(rows[name + "/x"])
np.savez(r"{place}/out.npz", **out)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    with np.load(place / "out.npz") as out:
        return {name: out[name] for name in out.files}


@every_map
def test_another_process_has_the_same_bits(name: str, elsewhere: dict[str, NDArray[Any]]) -> None:
    features, x = of(name, 9)
    with backend.own_threads():
        backend.use_threads(1)
        z = features(x.astype(np.float32))
    np.testing.assert_array_equal(elsewhere[name], z)


@every_map
def test_a_map_is_a_value(name: str) -> None:
    spec = CASES[name].spec
    again: Any = decode(msgspec.json.decode(encode(spec)), AnyFeatureMap)
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.digest() == spec.digest()
    same = fitted(again, CASES[name].shape)
    assert same == MAPS[name]
    assert hash(same) == hash(MAPS[name])


@homogeneous_maps
@both_dtypes
def test_zero_rows_have_zero_features(name: str, dtype: type) -> None:
    features, x = of(name, 6)
    x[[0, 4]] = 0
    z = features(x.astype(dtype))
    assert (z[[0, 4]] == 0).all()
    assert (np.abs(z[[1, 2, 3, 5]]).sum(1) > 0).all()


@homogeneous_maps
@pytest.mark.parametrize("scale", [2, 3])
def test_homogeneous(name: str, scale: float) -> None:
    features, x = of(name, 20)
    same_rows(features(scale * x), scale * features(x))


@maps(lambda case: case.shape == VECTORS)
def test_maps_of_vectors_flatten_images(name: str) -> None:
    features, x = of(name, 9)
    np.testing.assert_array_equal(features(x.reshape(9, 1, 3, 2)), features(x))
    np.testing.assert_array_equal(features.kernel(x.reshape(9, 1, 3, 2)), features.kernel(x))


@every_map
def test_what_is_no_row_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="expected"):
        MAPS[name](np.ones(D))
