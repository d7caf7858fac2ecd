"""Predictions in the order of the source, whatever the order of the dataset; or a group that says "dataset"."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import tree
from numpy.typing import NDArray
from scipy import sparse
from stored import MakeDataset

import ntkdist as nd
from ntkdist.data import zarr_groups
from ntkdist.data.dataset import FORMAT
from ntkdist.data.zarr_groups import read_attributes, read_whole
from ntkdist.ridge import source_order

F8 = NDArray[np.float64]
MAP = nd.NTKRandomFeatures(24, bias=1.0)


def fitted(store: str) -> nd.RidgeModel:
    job = nd.Job(nd.Dataset(store), MAP, alphas=(1.0,), plan=nd.PlanTable(folds=2, dtype="float64"))
    result = nd.fit(job)
    if result.model.classes:
        return result.model
    assert result.equations is not None
    return nd.solve(result.equations, alphas=[1.0], keep_factor=True)[0]


def saved_order(place: Path) -> str:
    return str(read_attributes(str(place), ("ntkdist.predictions",))[1]["order"])


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("ranges", [1, 7])
def test_numbers_are_sorted(
    make_dataset: MakeDataset, table: Any, tmp_path: Path, two_workers: Any, monkeypatch: Any, ranges: int
) -> None:
    """Two targets with deviations, groups and holdout; one range of places and several; with and without a cluster."""
    x, y = table
    beside = {"groups": np.arange(900) // 7, "holdout": np.arange(900) % 3 == 0}
    store = make_dataset(x, y, shuffle_seed=0, **beside)
    model = fitted(store)
    monkeypatch.setattr(source_order, "RANGE_BYTES", 900 // ranges * (4 * 8 + 8 + 8 + 1))
    for client in (None, two_workers):
        out = tmp_path / f"out-{client is None}"
        nd.predict(model, store, str(out), client=client)
        arrays = {name: read_whole(str(out), name) for name in ("prediction", "std", "row", "groups", "holdout")}
        np.testing.assert_allclose(arrays["prediction"], model(x), rtol=1e-9)
        np.testing.assert_allclose(arrays["std"], model.std(x), rtol=1e-9)
        np.testing.assert_array_equal(arrays["row"], np.arange(900))
        np.testing.assert_array_equal(arrays["groups"], beside["groups"])
        np.testing.assert_array_equal(arrays["holdout"], beside["holdout"])
        assert saved_order(out) == "source"
        assert {path.name for path in out.iterdir()} == {*arrays, "zarr.json"}  # the scratch array is removed
    one, other = (read_attributes(str(tmp_path / f"out-{here}"), ("ntkdist.predictions",))[1] for here in (True, False))
    assert one["content"] == other["content"]
    assert set(one["content"]) == set(arrays)


def test_classes_are_sorted(make_dataset: MakeDataset, table: Any, tmp_path: Path) -> None:
    x, names = table[0], np.array(["low", "high"])[(table[1][:, 0] > 101).astype(int)]
    store = make_dataset(x, names, shuffle_seed=3)
    model = fitted(store)
    nd.predict(model, store, str(tmp_path / "out"))
    np.testing.assert_allclose(read_whole(str(tmp_path / "out"), "score"), model.scores(x), rtol=1e-9)
    codes = read_whole(str(tmp_path / "out"), "prediction")
    np.testing.assert_array_equal(np.array(model.classes)[codes], model.predict(x))


def test_sparse_rows_are_sorted(tmp_path: Path) -> None:
    x = sparse.random_array((90, 12), density=0.3, format="csr", rng=np.random.default_rng(0))
    y = np.asarray(x.sum(axis=1)).ravel()
    sparse.save_npz(tmp_path / "x.npz", x)
    np.save(tmp_path / "y.npy", y)
    store = str(tmp_path / "d")
    nd.convert(str(tmp_path / "x.npz"), store, target=[str(tmp_path / "y.npy")], rows_per_partition=20)
    job = nd.Job(nd.Dataset(store), nd.Linear(12), alphas=(0.1,), plan=nd.PlanTable(folds=2))
    model = nd.fit(job).model
    nd.predict(model, store, str(tmp_path / "out"))
    np.testing.assert_allclose(read_whole(str(tmp_path / "out"), "prediction"), model(x), rtol=1e-9)


@pytest.mark.parametrize("row", [None, [0, 1, 2, 3, 4, 5, 6, 6], [8, 1, 2, 3, 4, 5, 6, 7], [0.0] * 8])
def test_without_places_in_a_source_rows_stay_as_they_are(
    make_dataset: MakeDataset, table: Any, tmp_path: Path, row: Any
) -> None:
    model = fitted(make_dataset(*table))
    x = table[0][:8]
    arrays: dict[str, Any] = {"x": x} | ({} if row is None else {"row": np.array(row)})
    with zarr_groups.new_group(str(tmp_path / "d"), FORMAT, {}) as place:
        for name, values in arrays.items():
            zarr_groups.create_array(place, name, values.shape, values.dtype, 3)
            for start in range(0, 8, 3):
                zarr_groups.write_rows(place, name, start, values[start : start + 3])
    nd.predict(model, str(tmp_path / "d"), str(tmp_path / "out"))
    np.testing.assert_allclose(read_whole(str(tmp_path / "out"), "prediction"), model(x), rtol=1e-9)
    assert saved_order(tmp_path / "out") == "dataset"


def test_rows_in_the_order_of_their_source_are_written_at_once(
    make_dataset: MakeDataset, table: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    store = make_dataset(*table)
    model = fitted(store)
    monkeypatch.delattr(source_order, "SortedSpans")
    nd.predict(model, store, str(tmp_path / "out"))
    np.testing.assert_allclose(read_whole(str(tmp_path / "out"), "prediction"), model(table[0]), rtol=1e-9)
    assert saved_order(tmp_path / "out") == "source"


@pytest.mark.parametrize("damaged", ["error", "skip"])
def test_a_damaged_chunk_fails_and_leaves_nothing(
    make_dataset: MakeDataset, table: Any, tmp_path: Path, damaged: Any
) -> None:
    store = make_dataset(*table, shuffle_seed=0, rows_per_partition=45)
    model = fitted(store)
    (Path(store) / "x" / "c" / "13" / "0").unlink()
    before, dataset = tree(tmp_path), nd.Dataset(store, damaged=damaged)
    with pytest.raises(nd.DataError, match=r"chunk x/c/13/0 is missing \(rows 585–629\)"):
        nd.predict(model, dataset, str(tmp_path / "out"))
    with pytest.raises(nd.DataError, match=r"chunk x/c/13/0 is missing \(rows 585–629\)"):
        nd.featurize(dataset, MAP, str(tmp_path / "features"))
    assert tree(tmp_path) == before


def test_a_failed_sort_leaves_nothing(make_dataset: MakeDataset, table: Any, tmp_path: Path, monkeypatch: Any) -> None:
    store = make_dataset(*table, shuffle_seed=0)
    model = fitted(store)
    before = tree(tmp_path)

    def full(*args: Any) -> Any:
        raise nd.StoreError("no space is left")

    monkeypatch.setattr(zarr_groups, "write_content", full)  # which only the last of three passes calls
    with pytest.raises(nd.StoreError, match="no space"):
        nd.predict(model, store, str(tmp_path / "out"))
    assert tree(tmp_path) == before


def test_estimators_predict_a_dataset_in_the_order_of_its_source(make_dataset: MakeDataset, table: Any) -> None:
    x, y = table
    store = make_dataset(x, y, shuffle_seed=0)
    ridge = nd.NTKRidge(MAP, keep_factor=True).fit(store)
    mean, std = ridge.predict(store, return_std=True)
    np.testing.assert_allclose(mean, ridge.predict(x), rtol=1e-9)
    np.testing.assert_allclose(std, ridge.predict(x, return_std=True)[1], rtol=1e-9)
    holes = x.copy()
    holes[17] = np.nan
    with pytest.raises(nd.DataError, match="array 'x' has NaN"):
        ridge.predict(nd.Dataset(make_dataset(holes, name="holes", shuffle_seed=0), nan="drop"))


@pytest.mark.parametrize(("asked", "expected"), [(1, 1), (4, 4), (7, 6), (50, 48)])
def test_chunks_of_a_partition_divide_it(tmp_path: Path, asked: int, expected: int) -> None:
    with zarr_groups.new_group(str(tmp_path / "d"), "tests", {}) as place:
        zarr_groups.create_array(place, "a", (96, 2), np.float64, 48, chunks=asked)
    array: Any = zarr_groups.open_group(str(tmp_path / "d"), "tests")["a"]
    assert array.chunks[0] == 48 // expected
