"""What every feature map promises, over one table of all public maps: a new map is a new row of it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import CASES, F8, MAPS, ROUNDING, VECTORS, Case, D, both_dtypes, fitted, rows, same_rows
from numpy.typing import NDArray

from ntkdist import (
    DataError,
    Imported,
    Linear,
    backend,
)
from ntkdist.features import AnyFeatureMap
from ntkdist.features.base import PIECE_BYTES, _cast
from ntkdist.spec import decode, encode


def maps(that: Callable[[Case], bool]) -> pytest.MarkDecorator:
    """Some of the table; all tests of one map run in a row, so that few draw it anew."""
    return pytest.mark.parametrize("name", [name for name, case in CASES.items() if that(case)], scope="module")


every_map = maps(lambda case: True)
homogeneous_maps = maps(lambda case: case.homogeneous)
random_maps = maps(lambda case: hasattr(case.spec, "seed"))


def of(name: str, n: int, seed: int = 0) -> tuple[Any, F8]:
    return MAPS[name], rows(n, CASES[name].shape, seed)


def test_the_table_has_every_public_map() -> None:
    public = set(get_args(AnyFeatureMap))
    assert {type(case.spec) for case in CASES.values()} == public
    assert {type(case.spec) for case in CASES.values() if case.falls} == public - {Imported, Linear}


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
def test_shape_and_dtype(name: str, dtype: type) -> None:
    for n in (0, 1, 7):
        features, x = of(name, n)
        z = features(x.astype(dtype))
        assert z.shape == (n, features.n_components)
        assert z.dtype == dtype
        assert np.isfinite(z).all()
        assert (np.abs(z).sum(1) > 0).all()


@every_map
def test_other_numbers_are_computed_in_float64(name: str) -> None:
    features, shape = MAPS[name], CASES[name].shape
    for dtype in (np.uint8, np.float16, ">f8"):
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
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # where the module of `Imported` is
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], env=found)
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
def test_homogeneous(name: str) -> None:
    features, x = of(name, 20)
    for scale in (0.25, 3):
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
