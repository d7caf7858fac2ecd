"""Columns of encoded images: bytes, or Hugging Face's structures of bytes and a path."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.data.images import Decoder
from ntkdist.errors import DataError


def may_hold_images(type: Any) -> bool:
    """Return whether a type of Arrow is of bytes, or of structures with bytes."""
    if pa.types.is_struct(type):
        return type.get_field_index("bytes") >= 0 and may_hold_images(type.field("bytes").type)
    return pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_binary_view(type)


@dataclass
class ImageColumn:
    """A column of images, decoded."""

    name: str
    table: str
    decoder: Decoder

    def images(self, values: Any, start: int) -> NDArray[np.uint8]:
        """Decode values, the first of which is in row ``start``, (n, height, width, channels).

        Raises
        ------
        DataError
            If a row holds no image that can be read; it is named.
        """
        content = pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values
        pairs = ((each.as_py(), self._place(start + i)) for i, each in enumerate(content))
        return np.stack(backend.parallel_map(lambda pair: self._image(*pair), pairs, backend.cores()))

    def _image(self, content: bytes | None, place: str) -> NDArray[np.uint8]:
        if content is None:
            raise DataError(f"{place} is missing: there are no bytes; give it, or leave the row out")
        return self.decoder(content, place)

    def _place(self, row: int) -> str:
        return f"the image in row {row:,} of column '{self.name}' of {self.table}"
