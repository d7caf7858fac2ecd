"""The whole story in a bucket of a real server, of S3 and others: the same bits as on disk, and what may go wrong."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import dask.dataframe as dd
import msgspec
import numpy as np
import pyarrow as pa
import pytest
import zarr
from command_line import FEATURES, assert_one_line, in_process, write_job
from interrupted import Cut, CutAfter, same
from object_stores import Azurite, FakeGcs, Seaweed, Server, free_ports, installed, serving
from pictures import folder, pixels
from pyarrow import fs, parquet
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import ntkdist as nd
from ntkdist.data import object_store, storage, zarr_groups

pytestmark = [pytest.mark.timeout(600)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Seaweed, marks=pytest.mark.s3, id="s3"),
        pytest.param(Azurite, marks=pytest.mark.azure, id="azure"),
        pytest.param(FakeGcs, marks=pytest.mark.gs, id="gs"),
    ],
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running store with an empty bucket, and the environment that opens it."""
    if not installed(request.param):
        pytest.skip("no such server is installed; see tests/support/object_stores.py")
    store = request.param(tmp_path_factory.mktemp("server"))
    with serving(store):
        yield store


@pytest.fixture
def place(server: Server, tmp_path: Path) -> str:
    """A place of its own in the bucket."""
    return f"{server.url}/{tmp_path.name}"


def table(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1200, 4))
    return {"x": x, "y": np.abs(x).sum(axis=1) + 0.1 * rng.standard_normal(len(x))}


def both(place: str, tmp_path: Path) -> tuple[nd.Job, nd.Job]:
    """The same job on the same data, on disk and in the bucket."""
    source = tmp_path / "data.npz"
    np.savez(source, **table())
    jobs = []
    for dest in (str(tmp_path / "data.zarr"), f"{place}/data.zarr"):
        nd.convert(str(source), dest)
        settings = nd.PlanTable(folds=2, shards=10, fan_in=2)
        jobs.append(nd.Job(nd.Dataset(dest), nd.NTKRandomFeatures(64), plan=settings, alphas=(0.1, 1.0)))
    return jobs[0], jobs[1]


def test_from_table_to_predictions_by_two_workers(place: str, tmp_path: Path, two_workers_of_bucket: Any) -> None:
    """Everything in the bucket, also the source; the bits are those of the same on disk."""
    here, there = both(place, tmp_path)
    local = nd.fit(here, out=str(tmp_path / "run"))
    far = nd.fit(there, out=f"{place}/run", client=two_workers_of_bucket)
    same(local, far)
    assert {"equations.zarr", "job.json", "model.zarr", "report.json"} <= set(storage.names(f"{place}/run"))
    assert nd.fit(there, out=f"{place}/run").report["finished"] == far.report["finished"]  # complete: loaded
    same(local, nd.FitResult(nd.load(f"{place}/run/model.zarr"), None, {}, nd.load(f"{place}/run/equations.zarr")))
    nd.predict(far.model, there.dataset, f"{place}/predictions", client=two_workers_of_bucket)
    nd.predict(local.model, here.dataset, str(tmp_path / "predictions"))
    nd.featurize(there.dataset, there.features, f"{place}/features.zarr", client=two_workers_of_bucket)
    nd.featurize(here.dataset, here.features, str(tmp_path / "features.zarr"))
    for group, name in (("predictions", "prediction"), ("predictions", "row"), ("features.zarr", "x")):
        ours = zarr_groups.read_whole(f"{place}/{group}", name)
        np.testing.assert_array_equal(ours, zarr_groups.read_whole(str(tmp_path / group), name))
    errors = nd.evaluate(far.model, there.dataset, client=two_workers_of_bucket)
    assert errors["rmse"] == nd.evaluate(local.model, here.dataset)["rmse"]
    nd.fit(msgspec.structs.replace(there, dataset=nd.Dataset(f"{place}/features.zarr"), features=nd.Linear(64)))


@pytest.fixture
def two_workers_of_bucket(server: Server) -> Iterator[Any]:
    """A client of two worker processes that were started with the store's environment."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_a_source_in_the_bucket(place: str, tmp_path: Path) -> None:
    arrays = table()
    np.save(tmp_path / "x.npy", arrays["x"])
    np.save(tmp_path / "y.npy", arrays["y"])
    for name in ("x.npy", "y.npy"):
        put(f"{place}/{name}", (tmp_path / name).read_bytes())
    layout = nd.convert(f"{place}/x.npy", f"{place}/d", target=[f"{place}/y.npy"])
    assert layout == nd.convert(str(tmp_path / "x.npy"), str(tmp_path / "d"), target=[str(tmp_path / "y.npy")])
    with pytest.raises(nd.DataError, match="no such object; check the URL"):
        nd.convert(f"{place}/z.npy", f"{place}/e")


def test_many_objects_to_predictions(place: str, tmp_path: Path) -> None:
    """Hive partitions in a bucket: three commands, and the dataset that the same files on disk give."""
    rng = np.random.default_rng(0)
    for i in range(12):
        a = rng.standard_normal(40)
        columns = {"a": a, "c": np.array(["p", "q"])[i % 2].repeat(40), "y": a + i // 4}
        name = f"year={2020 + i // 4}/part-{i % 4}.parquet"
        path = tmp_path / "t" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(columns), path)
        put(f"{place}/t/{name}", path.read_bytes())
    put(f"{place}/t/_SUCCESS", b"")
    layout = nd.convert(str(tmp_path / "t"), str(tmp_path / "d"), target=["y"])
    assert layout.columns == ("a", "c", "year")
    assert nd.convert(f"{place}/t/**/*.parquet", str(tmp_path / "e"), target=["y"]) == layout
    out = str(tmp_path / "predictions.csv")
    job = write_job(str(tmp_path / "job.toml"), store=f"{place}/d")
    for args in (
        ("convert", f"{place}/t", f"{place}/d", "--target", "y"),
        ("fit", job, "--out", f"{place}/run"),
        ("predict", f"{place}/run", f"{place}/t/year=2021/*.parquet", out, "--keep", "year"),
    ):
        done = in_process(*args)
        assert done.exit_code == 0, done.output
    assert nd.Dataset(f"{place}/d").layout() == layout
    assert Path(out).read_text().count("2021,") == 160
    with pytest.raises(nd.DataError, match="no tables there"):
        nd.convert(f"{place}/t/*.csv", str(tmp_path / "f"))


def test_a_frame_of_dask_from_the_bucket(server: Server, place: str, tmp_path: Path) -> None:
    """Three calls: what Dask reads from a bucket is converted, fitted, and predicts the objects in place."""
    if not isinstance(server, Seaweed):
        pytest.skip("pyarrow opens S3 with these settings, and other stores with others")
    rng = np.random.default_rng(0)
    for i in range(4):
        a = rng.standard_normal(60)
        parquet.write_table(pa.table({"a": a, "c": ["p", "q"] * 30, "y": np.abs(a)}), tmp_path / "part.parquet")
        put(f"{place}/t/part-{i}.parquet", (tmp_path / "part.parquet").read_bytes())
    keys = server.env
    bucket = fs.S3FileSystem(
        access_key=keys["AWS_ACCESS_KEY_ID"],
        secret_key=keys["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=keys["AWS_ENDPOINT_URL"],
    )
    frame = dd.read_parquet(f"{place}/t", filesystem=bucket)
    layout = nd.convert(frame, f"{place}/d", target=["y"])
    assert (layout.rows, layout.columns) == (240, ("a", "c"))
    model = nd.fit(nd.Job(nd.Dataset(f"{place}/d"), nd.NTKRandomFeatures(64), plan=nd.PlanTable(folds=2))).model
    out = str(tmp_path / "predictions.parquet")
    assert nd.predict_table(model, f"{place}/t/*.parquet", out, keep=["y"]).rows == 240
    found = parquet.read_table(out)
    assert np.corrcoef(found["prediction"], found["y"])[0, 1] > 0.5


def test_images_in_the_bucket_to_predictions(place: str, tmp_path: Path) -> None:
    for name in folder(tmp_path / "photos", pixels(90)):
        put(f"{place}/photos/{name}", (tmp_path / "photos" / name).read_bytes())
    job, out = write_job(str(tmp_path / "job.toml"), store=f"{place}/d"), str(tmp_path / "predictions.csv")
    for args in (
        ("convert", f"{place}/photos", f"{place}/d"),
        ("fit", job, "--out", f"{place}/run"),
        ("predict", f"{place}/run", f"{place}/photos/cat", out),
    ):
        done = in_process(*args)
        assert done.exit_code == 0, done.output
    assert nd.Dataset(f"{place}/d").layout() == nd.convert(str(tmp_path / "photos"), str(tmp_path / "d"))
    lines = Path(out).read_text().splitlines()
    assert lines[:2] == ["file,prediction", "000.png,cat"]
    assert len(lines) == 31
    put(f"{place}/photos/dog/001.png", b"damaged")
    with pytest.raises(nd.DataError, match=r"dog/001\.png cannot be read as an image"):
        nd.convert(f"{place}/photos", f"{place}/e")
    assert not storage.exists(f"{place}/e")


def test_a_zarr_group_of_others_in_the_bucket(place: str, tmp_path: Path) -> None:
    group = zarr.open_group(storage.open_plain_store(f"{place}/others"), mode="w")
    for name, values in table().items():
        group.create_array(name, data=values, chunks=(100, *values.shape[1:]))
    np.savez(tmp_path / "a.npz", **table())
    layout = nd.convert(f"{place}/others", str(tmp_path / "d"))
    assert layout == nd.convert(str(tmp_path / "a.npz"), str(tmp_path / "e"))


def test_a_demo_and_a_comparison_in_the_bucket(place: str, tmp_path: Path) -> None:
    done = in_process("demo", "--out", f"{place}/demo", "--workers", 1)
    assert done.exit_code == 0, done.output
    assert set(storage.names(f"{place}/demo")) == {
        *(f"{name}.{kind}" for name in ("train", "test") for kind in ("csv", "zarr")),
        *("linear-run", "ntk-run"),
    }
    job = write_job(str(tmp_path / "job.toml"), features='type = "Linear"\nn_components = 64')
    compared = in_process(
        *("compare", f"{place}/demo/train.zarr", job, "--sample", 50, "--seeds", 1),
        *("--no-baselines", "--out", f"{place}/compared"),
    )
    assert compared.exit_code == 0, compared.output
    assert get(f"{place}/compared/error_against_m.png").startswith(b"\x89PNG")
    assert {"compare.json", "compare.md"} < set(storage.names(f"{place}/compared"))
    again = in_process("demo", "--out", f"{place}/demo")
    assert_one_line(again.stderr, [f"{place}/demo exists already"])


def bucket_and_key(url: str) -> tuple[str, str]:
    scheme, _, bucket, key = url.split("/", 3)
    return f"{scheme}//{bucket}", key


def put(url: str, content: bytes) -> None:
    """An object as somebody else would write it."""
    root, key = bucket_and_key(url)
    sync(object_store.open_bucket(root).set(key, default_buffer_prototype().buffer.from_bytes(content)))


def get(url: str) -> bytes:
    root, key = bucket_and_key(url)
    found = sync(object_store.open_bucket(root).get(key, default_buffer_prototype()))
    assert found is not None, url
    return found.to_bytes()


def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(place: str, tmp_path: Path) -> None:
    here, there = both(place, tmp_path)
    straight = nd.fit(here)
    with pytest.raises(Cut):
        nd.fit(there, out=f"{place}/run", watch=CutAfter(4))
    with pytest.raises(nd.StoreError, match="holds another run"):
        nd.fit(msgspec.structs.replace(there, alphas=(3.0,)), out=f"{place}/run")
    kept = [n for n in storage.names(f"{place}/run/checkpoint") if n.startswith("shard-") and n.endswith(".kept")]
    result = nd.fit(there, out=f"{place}/run", resume=True)
    same(result, straight)
    assert f"{len(kept)} of 10 shards were finished before" in " ".join(result.report["notes"])
    assert not storage.exists(f"{place}/run/checkpoint")


def test_a_damaged_or_missing_object_is_named(place: str, tmp_path: Path) -> None:
    _, there = both(place, tmp_path)
    chunk = f"{place}/data.zarr/x/c/7/0"
    content = get(chunk)
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 4
    for damaged in (bytes(flipped), content[: len(content) // 2]):
        put(chunk, damaged)
        with pytest.raises(nd.DataError, match="array 'x', rows 420–479, cannot be read"):
            nd.fit(there)
    put(chunk, b"")
    with pytest.raises(nd.DataError, match=r"chunk x/c/7/0 is empty|rows 420–479, cannot be read"):
        nd.fit(there)
    storage.remove(chunk)
    with pytest.raises(nd.DataError, match=r"chunk x/c/7/0 is missing \(rows 420–479\); restore it or convert again"):
        nd.fit(there, out=f"{place}/run")
    put(chunk, content)
    assert nd.fit(there, out=f"{place}/run").equations.total.weight == 1200


def test_what_was_not_finished_is_refused_and_written_anew(place: str, tmp_path: Path) -> None:
    """A writer that was cut off leaves a group without its mark; one that goes on meanwhile is told."""
    url, attrs = f"{place}/g", {"of": "tests"}

    def overtaken() -> None:
        with zarr_groups.new_group(url, "tests", attrs) as first:
            zarr_groups.write_whole(first, "a", np.arange(5))
            with pytest.raises(nd.DataError, match="never finished"):
                zarr_groups.read_attributes(url, ("tests",))
            assert not zarr_groups.finished(url)
            with zarr_groups.new_group(url, "tests", attrs) as second:
                zarr_groups.write_whole(second, "a", np.arange(6))

    def failed(place: str) -> None:
        with zarr_groups.new_group(place, "tests", attrs) as third:
            zarr_groups.write_whole(third, "a", np.arange(7))
            raise Cut

    with pytest.raises(nd.StoreError, match="was begun by another process meanwhile"):
        overtaken()
    with pytest.raises(nd.StoreError, match="exists already"):
        failed(url)
    np.testing.assert_array_equal(zarr_groups.read_whole(url, "a"), np.arange(6))
    with pytest.raises(Cut):
        failed(f"{place}/h")
    assert not storage.exists(f"{place}/h")


def test_wrong_credentials_and_an_absent_bucket(
    server: Server, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, there = both(place, tmp_path)
    for name, dataset in (("absent", f"{server.other}/data.zarr"), ("there", there.dataset.store)):
        (tmp_path / f"{name}.toml").write_text(
            f'alphas = [1.0]\n[dataset]\nstore = "{dataset}"\n[features]\n{FEATURES}\n'
        )
    found = in_process("fit", tmp_path / "absent.toml", "--out", tmp_path / "run")
    assert_one_line(found.stderr, [server.other, "check that", "exists"])
    found = in_process("convert", tmp_path / "data.npz", f"{server.other}/new.zarr")
    assert_one_line(found.stderr, [server.other])
    assert found.exit_code == 1
    if not server.wrong:
        pytest.skip("this server opens to all")
    for name, value in server.wrong.items():
        monkeypatch.setenv(name, value)
    object_store.open_bucket.cache_clear()
    try:
        found = in_process("fit", tmp_path / "there.toml", "--out", f"{place}/run")
        assert_one_line(found.stderr, [place, "access was refused", "check the credentials"])
        assert not any(value in found.stderr for value in server.wrong.values())
    finally:
        monkeypatch.undo()
        object_store.open_bucket.cache_clear()


def test_absent_credentials_are_said_soon(server: Server, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the machine's cloud, which is asked for them, does not answer; patience is for stores."""
    if not server.secret:
        pytest.skip("this server opens to all")
    (nobody,), (variable, path) = free_ports(1), server.metadata
    monkeypatch.setenv(variable, f"http://127.0.0.1:{nobody}{path}")
    for name in server.env:
        if "KEY" in name:
            monkeypatch.delenv(name)
    object_store.open_bucket.cache_clear()
    start = time.monotonic()
    try:
        with pytest.raises(nd.StoreError, match="no credentials were found in the environment"):
            storage.read_text(f"{place}/any")
        monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
        with pytest.raises(nd.StoreError, match=r"az://elsewhere cannot be opened .*Account must be specified"):
            storage.read_text("az://elsewhere/any")
    finally:
        monkeypatch.undo()
        object_store.open_bucket.cache_clear()
    assert time.monotonic() - start < object_store.PATIENCE_SECONDS / 2


class KillServer:
    """A watch that kills the store when some shards are done, and starts it again a while later."""

    def __init__(self, server: Server, after: int) -> None:
        self.server, self.left, self.again = server, after, threading.Timer(3, server.start)

    @contextmanager
    def __call__(self, phase: str, rows: int) -> Iterator[Any]:
        def done(count: int) -> None:
            self.left -= phase == "equations"
            if self.left == 0:
                self.server.kill()
                self.again.start()

        yield done


def test_a_server_killed_and_started_again(
    server: Server, place: str, tmp_path: Path, two_workers_of_bucket: Any
) -> None:
    here, there = both(place, tmp_path)
    straight, kill = nd.fit(here), KillServer(server, 3)
    result = nd.fit(there, out=f"{place}/run", client=two_workers_of_bucket, watch=kill)
    kill.again.join()
    assert kill.left <= 0
    same(result, straight)


def test_a_server_that_stays_away_ends_the_run_with_its_name(
    server: Server, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run goes on when it is back."""
    here, there = both(place, tmp_path)
    monkeypatch.setattr(object_store, "PATIENCE_SECONDS", 1.0)
    kill = KillServer(server, 3)
    kill.again = threading.Timer(0, lambda: None)
    with pytest.raises(nd.StoreError, match=r"has not answered for 1 s .*check its endpoint"):
        nd.fit(there, out=f"{place}/run", watch=kill)
    monkeypatch.undo()
    server.start()
    same(nd.fit(there, out=f"{place}/run", resume=True), nd.fit(here))


def test_nothing_secret_is_sent(server: Server, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client is given to run holds the URL and no secret; nor does anything that a run leaves."""
    if not server.secret:
        pytest.skip("this server opens to all")
    from distributed import Client, LocalCluster

    _, there = both(place, tmp_path)
    sent: list[bytes] = []
    submit = Client.submit

    def spy(self: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        sent.append(cloudpickle.dumps((function, [a for a in args if not hasattr(a, "key")], kwargs)))
        return submit(self, function, *args, **kwargs)

    monkeypatch.setattr(Client, "submit", spy)
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        nd.fit(there, out=f"{place}/run", client=client)
        nd.predict(nd.load(f"{place}/run/model.zarr"), there.dataset, f"{place}/predictions", client=client)
    assert any(there.dataset.store.encode() in each for each in sent)
    assert not any(server.secret.encode() in each for each in sent)
    assert server.secret not in str(storage.read_text(f"{place}/run/report.json"))


def test_one_of_many_claims_a_place(place: str) -> None:
    """Sixteen at once, twenty times: all are told of the same one."""
    with ThreadPoolExecutor(16) as pool:
        for key in range(20):
            told = list(pool.map(lambda i, key=key: storage.claim(f"{place}/claimed-{key}", str(i)), range(16)))
            assert len(set(told)) == 1
            assert storage.read_text(f"{place}/claimed-{key}") == told[0]


@pytest.mark.parametrize("package", ["s3fs"])
def test_the_same_through_fsspec(server: Server, place: str, tmp_path: Path, package: str) -> None:
    if not server.url.startswith("s3"):
        pytest.skip("gcsfs has tests of its own, and one driver more is enough")
    pytest.importorskip(package)
    here, there = both(place, tmp_path)
    nd.fit(there, out=f"{place}/run")
    code = f"""
import sys
sys.modules["obstore"] = sys.modules["obstore.store"] = None
import ntkdist as nd
from ntkdist.data import object_store, storage
nd.convert({str(tmp_path / "data.npz")!r}, {place!r} + "/again.zarr")
model = nd.load({place!r} + "/run/model.zarr")
nd.predict(model, {place!r} + "/again.zarr", {place!r} + "/predictions")
told = [storage.claim({place!r} + "/claimed", str(i)) for i in range(3)]
assert told == ["0"] * 3, told
storage.remove({place!r} + "/claimed")
assert storage.read_text({place!r} + "/claimed") is None
assert type(object_store.open_bucket({server.url!r})).__name__ == "FsspecStore"
"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | server.env, check=True)
    nd.predict(nd.load(f"{place}/run/model.zarr"), here.dataset, str(tmp_path / "predictions"))
    ours = zarr_groups.read_whole(f"{place}/predictions", "prediction")
    np.testing.assert_array_equal(ours, zarr_groups.read_whole(str(tmp_path / "predictions"), "prediction"))
