"""Sparse rows: their storage, conversion, reading, scaling, and a fit that never makes them dense."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, load_npz, random_array, save_npz

import ntkdist as nd
from ntkdist.data.dataset import Rows
from ntkdist.data.moments import Moments
from ntkdist.data.scaling import Preprocess, Preprocessing

F8 = NDArray[np.float64]
N, D = 700, 1100


@pytest.fixture
def source(tmp_path: Path) -> tuple[csr_array, F8]:
    """Rows of about 15 non-zeros, one of none, and a target that is not linear; also as files x.npz and y.npy."""
    rng = np.random.default_rng(0)
    x = csr_array(random_array((N, D), density=0.01, format="csr", rng=rng, data_sampler=rng.standard_normal))
    x.data[x.indptr[5] : x.indptr[6]] = 0
    x.eliminate_zeros()
    y = np.abs(x @ rng.standard_normal(D)) + x @ rng.standard_normal(D)
    save_npz(tmp_path / "x.npz", x)
    np.save(tmp_path / "y.npy", y)
    return x, y


@pytest.fixture
def dataset(tmp_path: Path, source: tuple[csr_array, F8]) -> nd.Dataset:
    nd.convert(str(tmp_path / "x.npz"), str(tmp_path / "x.zarr"), target=[str(tmp_path / "y.npy")])
    return nd.Dataset(str(tmp_path / "x.zarr"))


def test_every_row_is_stored_once_with_its_target(dataset: nd.Dataset, source: tuple[csr_array, F8]) -> None:
    x, y = source
    layout = dataset.layout()
    assert (layout.rows, layout.input_shape, layout.sparse, layout.x_dtype) == (N, (D,), True, "float64")
    assert layout.partitions >= 20
    rows, order = dataset.read(layout, 0, N), dataset.column(layout, "row", 0, N)
    assert sorted(order) == list(range(N))
    assert (order != np.arange(N)).any()
    np.testing.assert_array_equal(rows.x.toarray(), x.toarray()[order])
    np.testing.assert_array_equal(rows.y, y[order])


@pytest.mark.slow
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (3, 40), (34, 35), (30, 105), (690, 700)])
def test_any_rows_are_read(dataset: nd.Dataset, start: int, stop: int) -> None:
    layout = dataset.layout()
    whole, some = dataset.read(layout, 0, N), dataset.read(layout, start, stop)
    np.testing.assert_array_equal(some.x.toarray(), whole.x.toarray()[start:stop])
    assert some.n == stop - start
    np.testing.assert_array_equal(whole.take(slice(start, stop)).x.toarray(), some.x.toarray())


def test_storage_is_three_arrays_with_a_row_a_partition(dataset: nd.Dataset) -> None:
    group, layout = zarr.open_group(dataset.store, mode="r"), dataset.layout()
    indptr, data = group["x/indptr"], group["x/data"]
    assert indptr.shape == (layout.partitions, layout.rows_per_partition + 1)
    assert data.shape == group["x/indices"].shape == (layout.partitions, int(indptr[:, -1].max()))
    assert data.shards == (1, data.shape[1])
    assert {"x/indptr", "x/indices", "x/data", "y", "row"} == set(group.attrs["arrays"])


def test_order_is_kept_and_other_formats_are_taken(tmp_path: Path, source: tuple[csr_array, F8]) -> None:
    x, _ = source
    save_npz(tmp_path / "coo.npz", coo_array(x.astype(np.float32)))
    labels = np.where(np.arange(N) % 3 == 0, "a", "b")
    np.save(tmp_path / "labels.npy", labels)
    layout = nd.convert(
        str(tmp_path / "coo.npz"), str(tmp_path / "c.zarr"), target=[str(tmp_path / "labels.npy")], shuffle_seed=None
    )
    assert layout.classes == ("a", "b")
    assert layout.x_dtype == "float32"
    rows = nd.Dataset(str(tmp_path / "c.zarr")).read(layout, 0, N)
    np.testing.assert_array_equal(rows.x.toarray(), x.toarray().astype(np.float32))
    np.testing.assert_array_equal(rows.y, np.where(labels == "a", 0, 1))


def test_damage_is_seen(dataset: nd.Dataset) -> None:
    layout = dataset.layout()
    chunk = next(p for p in sorted(Path(dataset.store, "x", "data", "c", "3").rglob("*")) if p.is_file())
    content = chunk.read_bytes()
    chunk.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    first = 3 * layout.rows_per_partition
    dataset.read(layout, 0, first)
    with pytest.raises(nd.DataError, match="array 'x/data', rows 3–3, cannot be read"):
        dataset.read(layout, first, first + 1)
    chunk.unlink()
    with pytest.raises(nd.DataError, match=r"chunk x/data/c/3/0 is missing"):
        dataset.read(layout, first, first + 1)


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused_or_dropped(tmp_path: Path, source: tuple[csr_array, F8], value: float) -> None:
    x, _ = source
    x.data[x.indptr[20]] = value
    save_npz(tmp_path / "bad.npz", x)
    nd.convert(str(tmp_path / "bad.npz"), str(tmp_path / "b.zarr"), target=[str(tmp_path / "y.npy")], shuffle_seed=None)
    dataset = nd.Dataset(str(tmp_path / "b.zarr"))
    with pytest.raises(nd.DataError, match="array 'x' has NaN or Inf in 1 of the rows 0–29, first in row 20"):
        dataset.read(dataset.layout(), 0, 30)
    rows = nd.Dataset(dataset.store, nan="drop").read(dataset.layout(), 0, 30)
    assert (rows.n, rows.dropped, len(rows.y)) == (29, 1, 29)
    np.testing.assert_array_equal(rows.x.toarray(), np.delete(x.toarray()[:30], 20, axis=0))


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_are_those_of_dense_rows(source: tuple[csr_array, F8], weighted: bool) -> None:
    x, _ = source
    w = np.random.default_rng(1).random(N) if weighted else None
    sparse, dense = Moments.of(x, w, None, 0), Moments.of(x.toarray(), w, None, 0)
    np.testing.assert_allclose(sparse.mean, dense.mean, atol=1e-14)
    np.testing.assert_allclose(sparse.deviation, dense.deviation, rtol=1e-10, atol=1e-12)


def test_scaling_divides_and_never_subtracts(dataset: nd.Dataset) -> None:
    layout = dataset.layout()
    mode = Preprocess().resolve(layout)
    assert mode == "scale"
    rows = dataset.read(layout, 0, N)
    moments = Moments.of(rows.x, None, None, 0).beside(Moments.of(rows.y[:, None], None, None, 0))
    scaled = Preprocessing.fit(mode, layout, moments).inputs(rows.x, "float64")
    assert isinstance(scaled, csr_array)
    std = rows.x.toarray().std(0)
    np.testing.assert_allclose(scaled.toarray(), rows.x.toarray() / np.where(std > 0, std, 1), rtol=1e-12)
    with pytest.raises(nd.SpecError, match='inputs = "columns" subtracts means, which would fill sparse rows'):
        nd.plan(nd.Job(dataset, nd.NTKSketch(64), preprocess=nd.Preprocess(inputs="columns")))


def dense_twin(dataset: nd.Dataset, tmp_path: Path) -> nd.Dataset:
    """The same rows in the same order and partitions, stored dense."""
    layout = dataset.layout()
    rows = dataset.read(layout, 0, N)
    np.savez(tmp_path / "dense.npz", x=rows.x.toarray(), y=rows.y)
    nd.convert(
        str(tmp_path / "dense.npz"),
        str(tmp_path / "dense.zarr"),
        shuffle_seed=None,
        rows_per_partition=layout.rows_per_partition,
    )
    return nd.Dataset(str(tmp_path / "dense.zarr"))


@pytest.mark.slow
@pytest.mark.parametrize("features", [nd.NTKSketch(200, 2), nd.NTKSketch(100, bias=1.0)], ids=str)
def test_fit_is_that_of_dense_rows(dataset: nd.Dataset, tmp_path: Path, features: Any) -> None:
    options: dict[str, Any] = {"alphas": (1.0, 30.0), "preprocess": Preprocess(inputs="none")}
    options["plan"] = nd.PlanTable(dtype="float64")
    twin = dense_twin(dataset, tmp_path)
    here, there = (nd.fit(nd.Job(d, features, **options)) for d in (dataset, twin))
    np.testing.assert_allclose(here.model.coef, there.model.coef, rtol=1e-6, atol=1e-9)
    x = dataset.read(dataset.layout(), 0, N).x
    np.testing.assert_allclose(here.model(x), there.model(x.toarray()), rtol=1e-6, atol=1e-8)
    found, expected = nd.evaluate(here.model, dataset), nd.evaluate(there.model, twin)
    assert found["rmse"] == pytest.approx(expected["rmse"], rel=1e-8)


@pytest.mark.slow
def test_fit_save_predict_and_featurize(dataset: nd.Dataset, tmp_path: Path, source: tuple[csr_array, F8]) -> None:
    x, y = source
    model = nd.fit(nd.Job(dataset, nd.NTKSketch(250), alphas_per_row=(1e-3, 1e-1))).model
    nd.save(model, str(tmp_path / "m.zarr"))
    nd.predict(nd.load(str(tmp_path / "m.zarr")), dataset, str(tmp_path / "p.zarr"))
    group = zarr.open_group(tmp_path / "p.zarr", mode="r")
    predicted = np.empty(N)
    predicted[group["row"][:]] = group["prediction"][:]
    np.testing.assert_allclose(predicted, model(x), atol=1e-4)
    assert np.corrcoef(predicted, y)[0, 1] > 0.5
    nd.featurize(dataset, nd.NTKSketch(64), str(tmp_path / "f.zarr"), preprocess=Preprocess(inputs="none"))
    made = nd.Dataset(str(tmp_path / "f.zarr"))
    z = made.read(made.layout(), 0, N).x
    expected = nd.NTKSketch(64)(dataset.read(dataset.layout(), 0, N).x)
    np.testing.assert_allclose(z, expected, atol=1e-5)


@pytest.mark.slow
def test_sites_add_their_moments(dataset: nd.Dataset, tmp_path: Path) -> None:
    rows, job = dataset.read(dataset.layout(), 0, N), nd.Job(dataset, nd.NTKSketch(64), alphas=(1.0,))
    nd.fit(job, out=str(tmp_path / "all-run"))
    for name, cut in (("here", slice(0, 400)), ("there", slice(400, N))):
        save_npz(tmp_path / "x.npz", csr_array(rows.x[cut]))
        np.save(tmp_path / "y.npy", rows.y[cut])
        nd.convert(
            str(tmp_path / "x.npz"),
            str(tmp_path / f"{name}.zarr"),
            target=[str(tmp_path / "y.npy")],
            rows_per_partition=50,
        )
        here = msgspec.structs.replace(job, dataset=nd.Dataset(str(tmp_path / f"{name}.zarr")))
        nd.fit(here, out=str(tmp_path / f"{name}-run"))
    reuse = Preprocess(reuse=f"{tmp_path}/here-run + {tmp_path}/there-run")
    found = nd.fit(msgspec.structs.replace(here, preprocess=reuse)).model.preprocessing
    whole = nd.load(str(tmp_path / "all-run" / "model.zarr")).preprocessing
    for scale in ("x_mean", "x_scale", "y_mean", "y_scale", "x_low", "x_high"):
        np.testing.assert_allclose(getattr(found, scale), getattr(whole, scale), rtol=1e-10, err_msg=scale)


def test_maps_for_dense_rows_are_refused_before_anything_runs(dataset: nd.Dataset) -> None:
    with pytest.raises(nd.SpecError, match=r"ZonalFeatures does not take sparse rows but those of .* are; use"):
        nd.plan(nd.Job(dataset, nd.ZonalFeatures(64)))


def test_memory_follows_the_non_zeros(dataset: nd.Dataset) -> None:
    """A plan of sparse rows counts those, not the columns."""
    layout = dataset.layout()
    assert layout.row_values < 30
    assert layout.row_bytes == 12 * layout.row_values
    features = nd.NTKSketch(64)
    assert features.sparse_row_bytes((D,), "float32", 15) < 0.2 * features.row_bytes((D,), "float32")
    assert isinstance(dataset.read(layout, 0, 5), Rows)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": ["short.npy"]}, "short.npy has 3 rows but x.npz has 700; they must be as many"),
        ({"target": ["none.npy"]}, "no such file"),
        ({"drop": ["a"]}, "holds sparse rows without names"),
        ({"x": "z"}, "holds sparse rows without names"),
        ({"classes": True}, "classes were asked for without a target"),
    ],
)
def test_what_cannot_be_converted(
    tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("short.npy", np.ones(3))
    with pytest.raises((nd.DataError, nd.SpecError), match=said):
        nd.convert("x.npz", "bad.zarr", **options)
    assert not Path("bad.zarr").exists()
    assert load_npz("x.npz").shape == (N, D)
