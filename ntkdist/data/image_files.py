"""Images in files, by folders of their classes, read in their order and in bounded memory."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.data import sources, storage
from ntkdist.data.images import Decoder, check_installed
from ntkdist.data.npy import readable
from ntkdist.data.source_files import ImageList, combined_hash
from ntkdist.data.sources import MAX_CLASSES, Block, Fields, RawTable, Wanted
from ntkdist.errors import DataError, SpecError

AT_ONCE = 64  # files that are read, at most, before they are decoded
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}
COLUMNS = ("target", "weight", "groups", "holdout", "drop", "category")  # options that name what a folder has not


@dataclass
class ImageFiles:
    """Files of images, and the hashes of those that were read."""

    found: ImageList
    hashes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.found.name

    def identity(self) -> dict[str, Any]:
        """Return name and hash of the files that were read."""
        return combined_hash(self.name, self.hashes)

    def blocks(self, decoder: Decoder) -> Iterator[NDArray[np.uint8]]:
        """Yield the images (n, height, width, channels) in order, some MiB at a time; the decoder knows their shape.

        Raises
        ------
        DataError
            If a file cannot be read; it is named.
        """
        count, rows = max(1, sources.BLOCK_BYTES // math.prod(decoder.shape)), []
        at_once = min(AT_ONCE, max(count, backend.cores()))
        for start in range(0, len(self.found.urls), at_once):
            for row in self._decoded(decoder, slice(start, start + at_once)):
                rows.append(row)
                if len(rows) == count:
                    yield np.stack(rows)
                    rows = []
        if rows:
            yield np.stack(rows)

    def first(self, decoder: Decoder) -> NDArray[np.uint8]:
        """Decode the first image."""
        return decoder(self._contents(slice(0, 1))[0], self.found.names[0])

    def _decoded(self, decoder: Decoder, some: slice) -> list[NDArray[np.uint8]]:
        contents = self._contents(some)
        self.hashes += [hashlib.sha256(content).hexdigest() for content in contents]
        pairs = zip(contents, self.found.names[some], strict=True)
        return backend.parallel_map(lambda pair: decoder(*pair), pairs, backend.cores())

    def _contents(self, some: slice) -> list[bytes]:
        urls = self.found.urls[some]
        with readable(self.found.names[some][0] if len(urls) == 1 else self.name):
            return storage.read(urls)


def open_images(found: ImageList, wanted: Wanted) -> RawTable:
    """Open images of a folder, whose folders are their classes; or of a folder without folders.

    Raises
    ------
    DataError
        If the first image cannot be read, or some images have a class and others have none.
    SpecError
        If the options are for other sources.
    """
    for option in COLUMNS:
        if getattr(wanted, option):
            raise SpecError(
                f"{found.name} holds images, classified by folders; --{option} is for tables, and for images in a "
                "column of parquet"
            )
    if wanted.x != "x" or wanted.channels_first:
        raise SpecError(f"{found.name} holds images; --x and --channels-first are for arrays")
    check_installed()
    files, decoder = ImageFiles(found), Decoder(wanted.images)
    files.first(decoder)
    classes, codes = _classes(found)
    if wanted.classes and not classes:
        raise SpecError(f"{found.name} has no folders of classes; sort its images into them, or leave out --classes")
    fields: Fields = {"x": (np.dtype(np.uint8), decoder.shape)}
    if classes:
        fields["y"] = codes.dtype, ()
    described = {"source": files}
    notes = tuple(_notes(found, wanted, classes))
    return RawTable(
        len(found.urls), fields, _labelled(files, decoder, codes), described, classes, notes=notes, images=wanted.images
    )


def _labelled(files: ImageFiles, decoder: Decoder, codes: NDArray[Any]) -> Callable[[], Iterator[Block]]:
    """Return a function that yields blocks of images with the codes of their classes, if there are any."""

    def blocks() -> Iterator[Block]:
        start = 0
        for x in files.blocks(decoder):
            stop = start + len(x)
            yield {"x": x} | ({"y": codes[start:stop]} if len(codes) else {})
            start = stop

    return blocks


def _classes(found: ImageList) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Return the sorted names of the folders, and the code of each image; none if there are no folders."""
    folders = [name.partition("/")[0] if "/" in name else "" for name in found.names]
    classes = sorted(set(folders))
    if classes == [""]:
        return (), np.empty(0, np.uint8)
    if classes[0] == "":
        raise DataError(
            f"{found.name} has images beside its folders of classes, such as {found.names[folders.index('')]}; move "
            "them into one, or away"
        )
    if len(classes) > MAX_CLASSES:
        raise DataError(f"{found.name} has more than {MAX_CLASSES} folders, each of which is a class; sort them anew")
    positions = {name: code for code, name in enumerate(classes)}
    return tuple(classes), np.array([positions[each] for each in folders], np.min_scalar_type(len(classes) - 1))


def _notes(found: ImageList, wanted: Wanted, classes: tuple[str, ...]) -> Iterator[str]:
    """Say what a person should look at."""
    if found.others:
        some = ", ".join(found.others[:3]) + ", …" * (len(found.others) > 3)
        yield f"files that are no images by their names were left out, {len(found.others):,} in all: {some}"
    if classes and {name.lower() for name in classes} <= SPLITS:
        yield f"the classes are {' and '.join(classes)}, which look like parts of one; convert each by itself"
    if len(classes) == 1:
        yield f"all images have the class '{classes[0]}', the folder that they are in; a classifier needs two or more"
