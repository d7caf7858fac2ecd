"""Images as people have them: folders of files, and columns of encoded images."""

import io
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from command_line import in_process
from converted import attrs, convert, everything
from pictures import CLASSES, HEIGHT, WIDTH, encoded, folder, image, pixels, table
from PIL import Image
from pyarrow import parquet

import ntkdist as nd
from ntkdist.data import image_files, images, source_files, sources, table_files
from ntkdist.errors import DataError, SpecError

N = 40
X = pixels(N)


def in_order(names: list[str]) -> list[int]:
    """Return the positions of images in the order of the names of their files."""
    return sorted(range(len(names)), key=names.__getitem__)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_with_a_folder_for_each_class(channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = pixels(N, channels=channels)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 7 * x[0].nbytes)
    monkeypatch.setattr(image_files, "AT_ONCE", 3)
    order = in_order(folder(tmp_path / "photos", x))
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"left out")
    layout = convert(str(tmp_path / "photos"), str(tmp_path / "d"), rows_per_partition=10)
    assert layout.input_shape == (HEIGHT, WIDTH, channels)
    assert (layout.x_dtype, layout.rows, layout.classes) == ("uint8", N, CLASSES)
    found = everything(tmp_path / "d")
    np.testing.assert_array_equal(found["x"], x[order])
    assert found["y"].tolist() == [i % 3 for i in order]
    data = nd.Dataset(str(tmp_path / "d"))
    first = data.column(layout, "y", 0, 10)  # shuffled, though the folders are sorted by class
    assert len(set(first.tolist())) == 3
    convert(str(tmp_path / "photos"), str(tmp_path / "kept"), shuffle_seed=None)
    assert data.layout().fingerprint != nd.Dataset(str(tmp_path / "kept")).layout().fingerprint
    kept = nd.Dataset(str(tmp_path / "kept"))
    np.testing.assert_array_equal(kept.column(kept.layout(), "x", 0, N), x[order])


def test_the_same_images_are_the_same_dataset_wherever_they_are(tmp_path: Path) -> None:
    names = folder(tmp_path / "photos", X)
    layout = convert(str(tmp_path / "photos"), str(tmp_path / "d"))
    again = convert(str(tmp_path / "photos/**/*.png"), str(tmp_path / "e"))
    memory, bucket = fsspec.filesystem("memory"), f"memory://pictures{tmp_path}"
    for name in names:
        memory.pipe(f"{bucket}/photos/{name}", (tmp_path / "photos" / name).read_bytes())
    there = convert(f"{bucket}/photos", f"{bucket}/d")
    assert layout == again == there
    assert attrs(tmp_path / "d")["source"]["sha256"] == attrs(tmp_path / "e")["source"]["sha256"]
    assert attrs(tmp_path / "d")["source"] | {"name": ""} == {
        "rows": N,
        "name": "",
        "files": N,
        "sha256": attrs(tmp_path / "d")["source"]["sha256"],
    }


def test_a_flat_folder_and_a_single_file_have_no_classes(tmp_path: Path) -> None:
    folder(tmp_path / "photos", X, ())
    layout = convert(str(tmp_path / "photos"), str(tmp_path / "d"))
    assert not layout.labelled
    np.testing.assert_array_equal(everything(tmp_path / "d")["x"], X)
    assert convert(str(tmp_path / "photos/003.png"), str(tmp_path / "e")).rows == 1
    np.testing.assert_array_equal(everything(tmp_path / "e")["x"][0], X[3])
    with pytest.raises(SpecError, match="has no folders of classes"):
        convert(str(tmp_path / "photos"), str(tmp_path / "f"), classes=True)


@pytest.mark.parametrize("kind", ["bytes", "struct", "large"])
def test_a_column_of_encoded_images(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 5 * X[0].nbytes)
    path = table(tmp_path / "t.parquet", X, kind, weight=np.arange(N) + 1.0, site=[f"s{i % 4}" for i in range(N)])
    if kind == "large":
        large = parquet.read_table(path)
        parquet.write_table(large.set_column(0, "image", large["image"].cast(pa.large_binary())), path)
    layout = convert(str(path), str(tmp_path / "d"), target=["label"], weight="weight", groups="site")
    assert (layout.input_shape, layout.x_dtype, layout.classes) == ((HEIGHT, WIDTH, 3), "uint8", CLASSES)
    found = everything(tmp_path / "d")
    np.testing.assert_array_equal(found["x"], X)
    assert found["y"].tolist() == [i % 3 for i in range(N)]
    np.testing.assert_array_equal(found["weight"], np.arange(N) + 1.0)
    assert len(set(found["groups"].tolist())) == 4


def test_frames_and_several_files_with_a_column_of_images(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / "t").mkdir(exist_ok=True)
        table(tmp_path / "t" / f"{i}.parquet", X[20 * i : 20 * (i + 1)], "struct")
    layout = convert(str(tmp_path / "t"), str(tmp_path / "d"), drop=["label"])
    assert not layout.labelled
    np.testing.assert_array_equal(everything(tmp_path / "d")["x"], X)
    frame = parquet.read_table(tmp_path / "t" / "0.parquet").to_pandas()
    nd.convert(frame, str(tmp_path / "e"), target=["label"])
    np.testing.assert_array_equal(everything(tmp_path / "e")["x"], X[:20])


def test_batches_of_images_are_of_some_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large images are not read at once, neither those of a row group nor those of a file."""
    rng = np.random.default_rng(0)
    large = [encoded(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)) for _ in range(60)]  # 120 kB each, 7 MB
    parquet.write_table(
        pa.table({"image": large}),
        tmp_path / "t.parquet",
        write_batch_size=1,
        data_page_size=2**17,
        use_dictionary=False,
    )
    monkeypatch.setattr(sources, "BLOCK_BYTES", 2**20)
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    _, batches = table_files.opened(source_files.SourceFiles.of(tmp_path / "t.parquet"), source_files.Format())
    rows = [(batch.num_rows, pool.bytes_allocated() - before) for batch in batches(["image"])]
    assert max(n for n, _ in rows) <= 10
    assert sum(n for n, _ in rows) == 60
    assert max(held for _, held in rows) < 4 * 2**20


def test_files_are_decoded_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "photos", np.zeros((200, 100, 100, 3), np.uint8), ())  # 6 MB decoded
    monkeypatch.setattr(sources, "BLOCK_BYTES", 2**18)
    monkeypatch.setattr(image_files, "AT_ONCE", 8)
    found = source_files.images(str(tmp_path / "photos"))
    assert found is not None
    opened = image_files.open_images(found, sources.Wanted())
    tracemalloc.start()
    assert sum(len(block["x"]) for block in opened.blocks()) == 200
    assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    tracemalloc.stop()


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "photos", X)
    table(tmp_path / "t.parquet", X)
    monkeypatch.setitem(sys.modules, "PIL", None)
    for source, options in (("photos", {}), ("t.parquet", {"target": "label"})):
        with pytest.raises(nd.NtkdistError, match=r'Images need Pillow, .*; pip install "ntkdist\[images\]"'):
            convert(str(tmp_path / source), str(tmp_path / "d"), **options)


def one(content: bytes | Image.Image, place: Path, name: str = "a.png", **save: Any) -> str:
    """Write a folder with one image."""
    place.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        (place / name).write_bytes(content)
    else:
        content.save(place / name, **save)
    return str(place)


def row(content: bytes | Image.Image, tmp_path: Path, name: str = "a.png", **options: Any) -> Any:
    """Convert a folder with one image, and return its row."""
    convert(one(content, tmp_path / "one", name), str(tmp_path / "d"), **options)
    return everything(tmp_path / "d")["x"][0]


def test_kinds_of_images_are_defined(tmp_path: Path) -> None:
    rgb = image(X[0])
    gray, index = rgb.convert("L"), np.arange(30, dtype=np.uint8).reshape(5, 6)
    palette = Image.fromarray(index, "L").convert("P")
    palette.putpalette([v for i in range(256) for v in (i, 255 - i, 7)])
    opaque, clear = rgb.convert("RGBA"), rgb.convert("RGBA")
    clear.putpixel((2, 1), (9, 8, 7, 100))
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    rgb.save(turned, "PNG", exif=exif)
    cases: list[tuple[Any, dict[str, str], Any]] = [
        (gray, {}, np.asarray(gray)[..., None]),
        (gray.convert("1"), {}, np.asarray(gray.convert("1"))[..., None] * np.uint8(255)),
        (gray, {"mode": "rgb"}, np.repeat(np.asarray(gray)[..., None], 3, axis=2)),
        (rgb, {"mode": "gray"}, np.asarray(gray)[..., None]),
        (palette, {}, np.stack([index, 255 - index, np.full_like(index, 7)], axis=-1)),
        (opaque, {}, X[0]),
        (gray.convert("LA"), {}, np.asarray(gray)[..., None]),
        (clear, {"mode": "rgb"}, np.asarray(clear)[..., :3]),
        (turned.getvalue(), {}, np.rot90(X[0], -1)),
    ]
    for i, (content, options, expected) in enumerate(cases):
        np.testing.assert_array_equal(row(content, tmp_path / str(i), **options), expected, str(i))
    resized = row(rgb, tmp_path / "resized", size="3x2")
    np.testing.assert_array_equal(resized, np.asarray(rgb.resize((3, 2), Image.Resampling.BILINEAR)))
    assert abs(resized.mean() - X[0].mean()) < 4  # an average, not a choice of pixels


def test_a_jpeg_is_what_pillow_reads(tmp_path: Path) -> None:
    found = row(encoded(X[0], "JPEG"), tmp_path, "a.JPG")
    np.testing.assert_array_equal(found, np.asarray(Image.open(tmp_path / "one" / "a.JPG")))
    assert np.abs(found.astype(float) - X[0]).mean() < 40


PNG = encoded(X[0])
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "size": (
        {"a/2.png": encoded(X[0][:4])},
        {},
        DataError,
        r"a/2\.png is 6x4 rgb, but a/1\.png is 6x5.*--size 6x5",
    ),
    "gray": (
        {"a/2.png": encoded(X[0][..., :1])},
        {},
        DataError,
        r"a/2\.png is 6x5 gray, but a/1\.png is 6x5 r.*--mode",
    ),
    "cut": ({"a/2.png": PNG[:60]}, {}, DataError, r"^a/2\.png cannot be read as an image \(.*\); mend it"),
    "no image": ({"a/2.png": b"hello"}, {}, DataError, r"^a/2\.png cannot be read as an image \(cannot identify"),
    "empty": ({"a/2.png": b""}, {}, DataError, r"^a/2\.png cannot be read as an image"),
    "first": ({"a/0.png": PNG[:60]}, {}, DataError, r"^a/0\.png cannot be read as an image"),
    "deep": ({"a/0.png": Image.fromarray(np.zeros((5, 6), np.uint16))}, {}, DataError, r"more than 8 bits a value"),
    "cmyk": ({"a/0.jpg": image(X[0]).convert("CMYK")}, {}, DataError, r"is CMYK, neither gray nor rgb.*--mode rgb"),
    "clear": ({"a/0.png": Image.new("RGBA", (6, 5))}, {}, DataError, r"is transparent in places; convert with --mode"),
    "beside": ({"2.png": PNG}, {}, DataError, r"images beside its folders of classes, such as 2\.png"),
    "table": ({"a/t.csv": b"a\n1\n"}, {}, DataError, r"holds images and tables, such as a/t\.csv.*'\*\*/\*\.png'"),
    "bad size": ({}, {"size": "32"}, SpecError, r"size is '32'; expected width and height in pixels, as in 32x32"),
    "zero size": ({}, {"size": (0, 3)}, SpecError, r"size is \(0, 3\); expected width and height"),
    "bad mode": ({}, {"mode": "grey"}, SpecError, r"mode is 'grey'; expected gray or rgb"),
    "target": ({}, {"target": "y"}, SpecError, r"holds images, classified by folders; --target is for tables"),
    "array": ({}, {"x": "z"}, SpecError, r"--x and --channels-first are for arrays"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused_and_nothing_is_left(case: str, tmp_path: Path) -> None:
    files, options, error, says = BAD[case]
    one(PNG, tmp_path / "photos" / "a", "1.png")
    for name, content in files.items():
        path = tmp_path / "photos" / name
        one(content, path.parent, path.name)
    with pytest.raises(error, match=says) as refused:
        convert(str(tmp_path / "photos"), str(tmp_path / "d"), **options)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def decoded(content: bytes, name: str) -> str:
    """Decode an image, and return why it is refused."""
    try:
        images.Decoder(images.Decoding(), X[0].shape, "others are")(content, name)
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of TIFF
def test_damage_anywhere_names_the_file_or_is_only_of_values() -> None:
    """Whatever byte is wrong, there is an image of the shape, or one sentence."""
    rng = np.random.default_rng(0)
    for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        good, name = encoded(X[0], form), f"a.{form.lower()}"
        for _ in range(30):
            content = bytearray(good)
            content[rng.integers(len(content))] ^= int(rng.integers(1, 256))
            refused = decoded(bytes(content), name)
            assert not refused or refused.startswith(f"{name} ")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([PNG, PNG[:50]], r"the image in row 1 of column 'image' of t\.parquet cannot be read as an image"),
        ([PNG, None], r"the image in row 1 of column 'image' of t\.parquet is missing"),
        ([PNG, encoded(X[0][:4])], r"the image in row 1 of .* is 6x4 rgb, but the image in row 0 .* is 6x5 rgb"),
        ([{"bytes": PNG}, {"bytes": None, "path": "b.png"}], r"row 1 of column 'image' of t\.parquet is missing"),
    ],
)
def test_bad_rows_of_a_column_are_named(values: list[Any], says: str, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": values}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=says):
        convert(str(tmp_path / "t.parquet"), str(tmp_path / "d"))
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_images_beside_other_columns_are_to_be_chosen(tmp_path: Path) -> None:
    path = str(table(tmp_path / "t.parquet", X, a=np.arange(N), b=np.arange(N)))
    says = r"holds bytes, as of images, beside the inputs a, b;.*--drop a --drop b, or the others, with --drop image"
    with pytest.raises(DataError, match=says):
        convert(path, str(tmp_path / "d"), target=["label"])
    assert convert(path, str(tmp_path / "d"), target=["label"], drop=["a", "b"]).input_shape == (HEIGHT, WIDTH, 3)
    assert convert(path, str(tmp_path / "e"), target=["label"], drop=["image"]).columns == ("a", "b")
    with pytest.raises(DataError, match="holds bytes, as of images, which cannot be a target"):
        convert(path, str(tmp_path / "f"), target=["image"])
    with pytest.raises(SpecError, match="holds no encoded images; --size and --mode are for PNG"):
        convert(path, str(tmp_path / "f"), target=["label"], drop=["image"], size="3x3")


def test_the_command_and_its_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(Path("photos"), X)
    Path("photos/cat/notes.txt").write_text("a cat")
    done = in_process("convert", "photos", "d.zarr", "--size", "4x3", "--mode", "gray")
    assert done.exit_code == 0, done.output
    assert "40 rows of 3 x 4 x 1 uint8, 3 classes" in done.stdout
    assert "files that are no images by their names were left out, 1 in all: cat/notes.txt." in done.stdout
    assert in_process("columns", "d.zarr").stdout in done.stdout
    assert nd.Dataset("d.zarr").layout().images == nd.convert("photos", "e.zarr", size=(4, 3), mode="gray").images
    folder(Path("parts"), X, ("train", "test"))
    nd.convert("parts", "f.zarr")
    assert nd.columns("f.zarr").notes == (
        "the classes are test and train, which look like parts of one; convert each by itself",
    )


def test_the_first_job_for_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(Path("photos"), X)
    table(Path("t.parquet"), X, "struct")
    for source, more in (("photos", ()), ("t.parquet", ("--target", "label"))):
        done = in_process("init", source, *more)
        assert done.exit_code == 0, done.output
        line = next(each for each in done.stdout.splitlines() if each.startswith("ntkdist convert"))
        assert in_process(*line.split()[1:]).exit_code == 0
        job = nd.Job.read(f"{Path(source).stem}.toml")
        assert job.dataset.layout().input_shape == (HEIGHT, WIDTH, 3)
    assert "whose classes are their folders" in in_process("init", "photos/cat").stderr
