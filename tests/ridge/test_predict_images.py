"""Predictions of images as they are, beside those of their arrays."""

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
from command_line import Command, assert_refused
from pictures import CLASSES, encoded, folder, image, pixels, table
from PIL import Image
from pyarrow import parquet

import ntkdist as nd
from ntkdist.data import image_files, sources

TRAIN, NEW = pixels(90), pixels(20, 1)


def fit(place: Path, source: str, **options: Any) -> nd.RidgeModel:
    """Fit to images, and return the model as it is saved and loaded."""
    nd.convert(source, str(place / "train.zarr"), **options)
    job = nd.Job(nd.Dataset(str(place / "train.zarr")), nd.Nystrom(30, nd.NTK(1)), plan=nd.PlanTable(folds=2))
    nd.fit(job, out=str(place / "run"))
    return nd.load(str(place / "run" / "model.zarr"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a run on images in folders, as they are."""
    where = tmp_path_factory.mktemp("images")
    folder(where / "photos", TRAIN)
    fit(where, str(where / "photos"))
    return where


@pytest.fixture
def model(place: Path) -> nd.RidgeModel:
    loaded: nd.RidgeModel = nd.load(str(place / "run" / "model.zarr"))
    return loaded


@pytest.mark.parametrize("classes", [(), CLASSES])
@pytest.mark.parametrize("out", ["p.csv", "p.parquet"])
def test_a_folder_is_predicted_in_the_order_of_its_names(
    model: nd.RidgeModel, classes: tuple[str, ...], out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = folder(tmp_path / "new", NEW, classes)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 3 * NEW[0].nbytes)
    monkeypatch.setattr(image_files, "AT_ONCE", 4)
    report = nd.predict(model, str(tmp_path / "new"), str(tmp_path / out), proba=True)
    found = (pd.read_csv if out.endswith("csv") else pd.read_parquet)(tmp_path / out)
    assert list(found.columns) == ["file", "prediction", *(f"probability {name}" for name in CLASSES)]
    assert found["file"].tolist() == sorted(names)
    order = [names.index(name) for name in found["file"]]
    assert found["prediction"].tolist() == model.predict(NEW)[order].tolist()
    assert report.rows == len(NEW)
    truth = [CLASSES[i % 3] for i in order]
    assert np.mean(found["prediction"] == truth) > 0.8


def test_a_folder_its_dataset_and_its_bucket_have_the_same_predictions(model: nd.RidgeModel, tmp_path: Path) -> None:
    names = folder(tmp_path / "new", NEW, ())
    memory, bucket = fsspec.filesystem("memory"), f"memory://predicted{tmp_path}"
    for name in names:
        memory.pipe(f"{bucket}/new/{name}", (tmp_path / "new" / name).read_bytes())
    nd.convert(str(tmp_path / "new"), str(tmp_path / "new.zarr"))
    nd.predict(model, str(tmp_path / "new.zarr"), str(tmp_path / "a.csv"))
    nd.predict(model, f"{bucket}/new", str(tmp_path / "b.csv"))
    nd.predict(model, f"{bucket}/new/*.png", f"{bucket}/c.zarr")
    there = pd.read_csv(tmp_path / "b.csv")
    assert there["file"].tolist() == names
    assert there["prediction"].tolist() == pd.read_csv(tmp_path / "a.csv")["prediction"].tolist()
    nd.predict(model, str(tmp_path / "new" / "007.png"), str(tmp_path / "one.csv"))
    assert pd.read_csv(tmp_path / "one.csv").to_dict("records") == [there.to_dict("records")[7]]


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_a_column_of_images(kind: str, model: nd.RidgeModel, tmp_path: Path) -> None:
    path = str(table(tmp_path / "new.parquet", NEW, kind, id=np.arange(len(NEW)), site=["s"] * len(NEW)))
    report = nd.predict_table(model, path, str(tmp_path / "p.csv"), keep=["id"])
    found = pd.read_csv(tmp_path / "p.csv")
    assert list(found.columns) == ["id", "prediction"]
    assert found["id"].tolist() == list(range(len(NEW)))
    assert found["prediction"].tolist() == model.predict(NEW).tolist()
    assert report.ignored == ["label", "site"]
    with pytest.raises(nd.DataError, match="has no column 'image' that can be kept"):
        nd.predict_table(model, path, str(tmp_path / "q.csv"), keep=["image"])
    parquet.write_table(parquet.read_table(path)[:0], tmp_path / "none.parquet")
    assert nd.predict_table(model, str(tmp_path / "none.parquet"), str(tmp_path / "none.csv")).rows == 0


def test_resizing_and_the_mode_are_the_models(tmp_path: Path) -> None:
    """Images of any size and mode are decoded as those of the training; the model knows which column held them."""
    path = table(tmp_path / "t.parquet", TRAIN, "struct", thumb=[encoded(each) for each in TRAIN])
    model = fit(tmp_path, str(path), target="label", drop="thumb", size="4x3", mode="gray")
    large = [image(each).resize((13, 11), Image.Resampling.NEAREST) for each in NEW]
    (tmp_path / "new").mkdir()
    for i, each in enumerate(large):
        each.save(tmp_path / "new" / f"{i:02}.png" if i % 2 else tmp_path / "new" / f"{i:02}.bmp")
    x = np.stack([np.asarray(each.convert("L").resize((4, 3), Image.Resampling.BILINEAR)) for each in large])
    nd.predict(model, str(tmp_path / "new"), str(tmp_path / "p.csv"))
    assert pd.read_csv(tmp_path / "p.csv")["prediction"].tolist() == model.predict(x[..., None]).tolist()
    new = table(tmp_path / "new.parquet", NEW, "struct", thumb=[encoded(each[:2]) for each in NEW])
    nd.predict(model, str(new), str(tmp_path / "q.csv"))
    x = np.stack([np.asarray(image(each).convert("L").resize((4, 3), Image.Resampling.BILINEAR)) for each in NEW])
    assert pd.read_csv(tmp_path / "q.csv")["prediction"].tolist() == model.predict(x[..., None]).tolist()


def test_what_the_model_cannot_take_is_named_and_nothing_is_written(
    model: nd.RidgeModel, place: Path, tmp_path: Path, command: Command
) -> None:
    folder(tmp_path / "new", NEW, ())
    run = place / "run"
    done = command("predict", run, tmp_path / "new", "good.csv")
    assert done.exit_code == 0, done.output
    assert "good.csv: 20 rows" in done.stdout
    assert_refused(("predict", run, tmp_path / "new", "p.csv", "--keep", "id"), "images in files have 'file'")
    (tmp_path / "new" / "004.png").write_bytes(encoded(NEW[0][:4]))
    says = "004.png is 6x4 rgb, but the model was fitted to 6x5 rgb; make all images alike, or convert the images of"
    assert_refused(("predict", run, tmp_path / "new", "p.csv"), says, "--size 6x5")
    (tmp_path / "new" / "004.png").write_bytes(encoded(NEW[0])[:50])
    for out in ("p.csv", "p.zarr"):
        assert_refused(("predict", run, tmp_path / "new", out), "004.png cannot be read as an image")
    table(tmp_path / "two.parquet", NEW, other=[encoded(each) for each in NEW])
    assert_refused(("predict", run, tmp_path / "two.parquet", "p.csv"), "has 2 columns of images: image, other")
    Path("x.csv").write_text("a,b\n1,2\n")
    assert_refused(("predict", run, Path("x.csv"), "p.csv"), "has no column of images; expected one, of bytes or of")
    np.savez("x.npz", x=TRAIN.reshape(90, -1), y=np.arange(90) % 3)
    nd.convert("x.npz", "x.zarr", classes=True)
    flat = nd.fit(nd.Job(nd.Dataset("x.zarr"), nd.Linear(90), plan=nd.PlanTable(folds=2))).model
    with pytest.raises(nd.DataError, match="holds images, but the model was fitted to rows of 90 columns"):
        nd.predict(flat, str(place / "photos"), "p.csv")


def test_arrays_of_images_give_a_model_for_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=TRAIN, y=np.arange(90) % 3)
    model = fit(tmp_path, str(tmp_path / "x.npz"), classes=True)
    folder(tmp_path / "new", NEW, ())
    nd.predict(model, str(tmp_path / "new"), str(tmp_path / "p.csv"))
    assert pd.read_csv(tmp_path / "p.csv")["prediction"].tolist() == model.predict(NEW).tolist()
