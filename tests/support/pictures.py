"""Images in files and in tables, written by Pillow."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

HEIGHT, WIDTH = 5, 6
CLASSES = ("cat", "dog", "owl")


def pixels(count: int, seed: int = 0, channels: int = 3) -> NDArray[np.uint8]:
    """Draw images (count, 5, 6, channels) whose brightness says the class, which is that of position i modulo 3."""
    rng = np.random.default_rng(seed)
    bright = 60 * (np.arange(count) % 3)[:, None, None, None]
    return (bright + rng.integers(0, 100, (count, HEIGHT, WIDTH, channels))).astype(np.uint8)


def image(values: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)


def encoded(values: NDArray[np.uint8], form: str = "PNG") -> bytes:
    """Encode an image (height, width, channels)."""
    file = io.BytesIO()
    image(values).save(file, form)
    return file.getvalue()


def folder(place: Path, values: NDArray[np.uint8], classes: tuple[str, ...] = CLASSES) -> list[str]:
    """Write images as PNG, in folders of classes or in one; return their names in the order of images."""
    names = []
    for i, each in enumerate(values):
        name = f"{classes[i % len(classes)]}/{i:03}.png" if classes else f"{i:03}.png"
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(encoded(each))
        names.append(name)
    return names


def table(path: Path, values: NDArray[np.uint8], kind: str = "bytes", **columns: Any) -> Path:
    """Write images and a label to parquet, as bytes or as structures of Hugging Face, in groups of a few rows."""
    content: list[Any] = [encoded(each) for each in values]
    if kind == "struct":
        content = [{"bytes": each, "path": f"{i:03}.png"} for i, each in enumerate(content)]
    label = [CLASSES[i % 3] for i in range(len(values))]
    parquet.write_table(pa.table({"image": content, "label": label, **columns}), path, row_group_size=7)
    return path
