"""New images, in files or in a column of a table, decoded as those that a model was fitted to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntkdist.data import sources
from ntkdist.data.image_columns import ImageColumn
from ntkdist.data.image_files import ImageFiles
from ntkdist.data.images import Decoder, Decoding, check_installed
from ntkdist.data.new_rows import Block, places
from ntkdist.data.scaling import Preprocessing
from ntkdist.data.source_files import Format, ImageList, SourceFiles
from ntkdist.data.table_files import opened
from ntkdist.errors import DataError
from ntkdist.spec import nearest

FILE = "file"  # name of the column of names of files


@dataclass(frozen=True)
class NewFiles:
    """Images in files; the column ``file`` is kept, with their names below the folder of the source."""

    files: ImageFiles
    decoder: Decoder
    ignored: Sequence[str] = ()

    @classmethod
    def open(cls, found: ImageList, pre: Preprocessing, keep: Sequence[str]) -> "NewFiles":
        """Prepare to read; raise a `DataError` if the model takes no images, or another column is to be kept."""
        if others := [name for name in keep if name != FILE]:
            raise DataError(f"{found.name} has no column '{others[0]}' to keep; images in files have '{FILE}'")
        return cls(ImageFiles(found), _decoder(pre, found.name))

    @property
    def name(self) -> str:
        return self.files.name

    def blocks(self) -> Iterator[Block]:
        """Read block by block."""
        start = 0
        for x in self.files.blocks(self.decoder):
            yield Block(x, {FILE: self.files.found.names[start : start + len(x)]})
            start += len(x)

    def places(self, rows: Sequence[int]) -> list[str]:
        """Return the names of files by their positions."""
        return [self.files.found.names[row] for row in rows]


@dataclass(frozen=True)
class NewImageColumn:
    """Files of a table with images in a column, and other columns to keep as they are, by name."""

    files: SourceFiles
    form: Format
    batches: Callable[[list[str]], Iterator[Any]]
    images: ImageColumn
    keep: Sequence[str]
    ignored: Sequence[str]

    @classmethod
    def open(cls, files: SourceFiles, form: Format, pre: Preprocessing, keep: Sequence[str]) -> "NewImageColumn":
        """Open files.

        Raises
        ------
        DataError
            If a file cannot be opened, a column is missing, or it is not known which one holds the images.
        """
        kinds, batches = opened(files, form)
        decoder = _decoder(pre, files.name)
        found = [name for name, kind in kinds.items() if kind == ("image",)]
        if decoder.form.column in found:
            found = [decoder.form.column]
        if len(found) != 1:
            several = f"{len(found)} columns of images: {', '.join(found)}" if found else "no column of images"
            raise DataError(f"{files.name} has {several}; expected one, of bytes or of structures of bytes and a path")
        for name in keep:
            if name not in kinds or kinds[name] == ("image",):
                known = [name for name, kind in kinds.items() if kind != ("image",)]
                raise DataError(f"{files.name} has no column '{name}' that can be kept{nearest(name, known)}")
        ignored = [name for name in kinds if name not in (*found, *keep)]
        return cls(files, form, batches, ImageColumn(found[0], files.name, decoder), list(keep), ignored)

    @property
    def name(self) -> str:
        return self.files.name

    def blocks(self) -> Iterator[Block]:
        """Read block by block; one without rows if there are none."""
        shape, at = self.images.decoder.shape, 0
        count = max(1, sources.BLOCK_BYTES // int(np.prod(shape)))
        for batch in self.batches([self.images.name, *self.keep]):
            for start in range(0, batch.num_rows, count):
                part = batch.slice(start, count)
                yield Block(self.images.images(part[self.images.name], at), {name: part[name] for name in self.keep})
                at += part.num_rows
        if not at:
            yield Block(np.empty((0, *shape), np.uint8), {name: np.empty(0, np.str_) for name in self.keep})

    def places(self, rows: Sequence[int]) -> list[str]:
        """Return the words for ascending rows."""
        return places(self.files, self.form, rows)


def _decoder(pre: Preprocessing, name: str) -> Decoder:
    """Return the decoder of images that a model takes."""
    if len(pre.input_shape) != 3:
        shape = " × ".join(map(str, pre.input_shape))
        raise DataError(f"{name} holds images, but the model was fitted to rows of {shape} columns; give such rows")
    check_installed()
    form = Decoding() if pre.images is None else pre.images
    return Decoder(form, pre.input_shape, "the model was fitted to", "convert the images of the training with")
