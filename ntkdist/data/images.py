"""Encoded images, such as the bytes of PNG and JPEG files, decoded to rows of one shape by Pillow."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ntkdist.errors import DataError, NtkdistError, SpecError
from ntkdist.spec import Spec

ImageMode = Literal["", "gray", "rgb"]
PILLOW = {"gray": "L", "rgb": "RGB"}  # Pillow's names of modes of 8 bits
OF_MODE: dict[str, ImageMode] = {  # by Pillow's mode
    **dict.fromkeys(("1", "L", "LA", "La"), "gray"),
    **dict.fromkeys(("RGB", "RGBA", "RGBX", "RGBa", "P", "PA"), "rgb"),
}
CHANNELS = {1: "gray", 3: "rgb"}
DEEP = ("I", "F")  # what Pillow's modes of more than 8 bits begin with


class Decoding(Spec, frozen=True):
    """The way in which a dataset's images were decoded, which `predict` repeats.

    Images are turned as their EXIF data says, resized to ``size`` (width, height), if there is one, by Pillow's
    bilinear filter, which averages where it shrinks and does not keep proportions, and converted to ``mode``, "gray" or
    "rgb".  Without a mode palettes become rgb, and images that are neither gray nor rgb, or partly transparent, are
    refused; with one transparency is left out.  Of several frames the first is taken.
    """

    size: tuple[int, ...] = ()
    mode: ImageMode = ""
    column: str = ""  # of a table

    @classmethod
    def of(cls, size: str | Sequence[int], mode: str) -> "Decoding":
        """Return a decoding; ``size`` may be text such as 32x24.  Raise a `SpecError` if it is none."""
        pixels: Sequence[Any] = re.split("[x×]", size) if isinstance(size, str) and size else size
        if pixels and not (len(pixels) == 2 and all(str(n).isdecimal() and int(n) > 0 for n in pixels)):
            raise SpecError(f"size is {size!r}; expected width and height in pixels, as in 32x32")
        if mode not in ("", *PILLOW):
            raise SpecError(f"mode is {mode!r}; expected gray or rgb")
        return cls(tuple(map(int, pixels)), cast(ImageMode, mode))


@dataclass
class Decoder:
    """Images decoded to one shape (height, width, channels): a given one, or that of the first image."""

    form: Decoding
    shape: tuple[int, ...] = ()
    first: str = ""  # what has this shape
    remedy: str = "convert with"

    def __call__(self, content: bytes, name: str) -> NDArray[np.uint8]:
        """Decode an image, (height, width, channels).

        Raises
        ------
        DataError
            If it is damaged, of another shape, or has more than 8 bits; it is called by ``name``.
        """
        pixels = _decoded(content, name, self.form)
        if not self.shape:
            self.shape, self.first = pixels.shape, f"{name} is"
        if pixels.shape != self.shape:
            raise DataError(
                f"{name} is {_said(pixels.shape)}, but {self.first} {_said(self.shape)}; make all images alike, or "
                f"{self.remedy} {self._flags(pixels.shape)}"
            )
        return pixels

    def _flags(self, shape: tuple[int, ...]) -> str:
        """Return the flags that make images of another shape alike."""
        width_height = f"--size {self.shape[1]}x{self.shape[0]}" if shape[:2] != self.shape[:2] else ""
        mode = "--mode gray or rgb" if shape[2] != self.shape[2] else ""
        return " and ".join(filter(None, (width_height, mode)))


def _said(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} {CHANNELS.get(shape[2], f'with {shape[2]} channels')}"


def check_installed() -> None:
    """Raise an error if there is no Pillow."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise NtkdistError('Images need Pillow, which is not installed; pip install "ntkdist[images]"') from None


def _decoded(content: bytes, name: str, form: Decoding) -> NDArray[np.uint8]:
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = _in_mode(ImageOps.exif_transpose(opened), name, form.mode)
            if form.size and image.size != form.size:
                image = image.resize((form.size[0], form.size[1]), Image.Resampling.BILINEAR)
            pixels = np.array(image)
    except (NtkdistError, MemoryError):
        raise
    except Exception as error:  # of any of Pillow's readers, each of which has its own
        why = re.sub(r"<[^>]*>", "its content", " ".join(str(error).split())[:200])
        raise DataError(f"{name} cannot be read as an image ({why}); mend it, get it again, or leave it out") from error
    return pixels.reshape(*pixels.shape[:2], -1)


def _in_mode(image: Any, name: str, mode: ImageMode) -> Any:
    """Return an image in 8 bits gray or rgb."""
    if image.mode.startswith(DEEP):
        raise DataError(
            f"{name} has more than 8 bits a value (Pillow's mode {image.mode}); scale it to 8 bits and save it again, "
            "or convert its numbers as npy"
        )
    wanted = mode or OF_MODE.get(image.mode, "")
    if not wanted:
        raise DataError(f"{name} is {image.mode}, neither gray nor rgb; convert with --mode rgb or --mode gray")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if not mode and image.getchannel("A").getextrema()[0] < 255:
            raise DataError(
                f"{name} is transparent in places; convert with --mode rgb or --mode gray, which leave that out"
            )
    return image if image.mode == PILLOW[wanted] else image.convert(PILLOW[wanted])
