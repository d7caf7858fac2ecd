"""Files that a source stands for: itself, or in a fixed order those of a directory or a pattern.

Objects of tables are copied.

A directory or a pattern may hold hive partitions: a folder ``year=2024`` gives each row below it the column ``year``.
"""

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from ntkdist.data import storage
from ntkdist.errors import DataError, SpecError

TEXT, JSON = (".csv", ".tsv"), (".jsonl", ".ndjson")  # endings, to which .gz may be added
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
TABLES = (*TEXT, *JSON, ".parquet", ".feather", ".arrow")
ZIPPED = tuple(f"{ending}.gz" for ending in (*TEXT, *JSON))
ZARR = ("zarr.json", ".zgroup", ".zarray")
HIVE = re.compile(r"([^=]+)=(.*)")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
SEVERAL = "*"  # in a location: a pattern
LIST = ", ".join(TABLES)


class Format(NamedTuple):
    """The way that tables of text are written, and texts that stand for a missing value in any table."""

    sep: str = ""  # "" is a tab in .tsv, a semicolon where the decimal mark is a comma, else a comma
    decimal: str = "."
    encoding: str = "utf-8"
    header: bool = True
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, sep: str, decimal: str, encoding: str, header: bool, missing: str | Sequence[str]) -> "Format":
        """Return a format; raise a `SpecError` unless it can be read."""
        sep = "\t" if sep in ("\\t", "tab") else sep
        if len(sep.encode()) > 1:
            raise SpecError(f"sep is {sep!r}; expected one character, such as ';', or tab")
        if decimal not in (".", ","):
            raise SpecError(f"decimal is {decimal!r}; expected '.' or ','")
        if sep == decimal:
            raise SpecError(f"sep and decimal are both {sep!r}; give two")
        try:
            "".encode(encoding)
        except LookupError:
            raise SpecError(f"encoding is {encoding!r}, which is unknown; expected one such as latin-1") from None
        return cls(sep, decimal, encoding, header, (missing,) if isinstance(missing, str) else tuple(missing))

    def separator(self, path: Path) -> str:
        """Return the character between the values of a file."""
        return self.sep or ("\t" if ending(path.name) == ".tsv" else ";" if self.decimal == "," else ",")


class SourceFiles(NamedTuple):
    """Files of rows, one after the other."""

    name: str  # for messages
    paths: tuple[Path, ...]
    keys: tuple[Mapping[str, str | None], ...] = ({},)  # columns of each file whose one value its folders say

    @classmethod
    def of(cls, path: Path) -> "SourceFiles":
        return cls(path.name, (path,))

    def identity(self) -> dict[str, Any]:
        """Return name and hash; of several files the hash is of all their hashes, in order."""
        hashes = []
        for path in self.paths:
            with path.open("rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
        return combined_hash(self.name, hashes)


def combined_hash(name: str, hashes: Sequence[str]) -> dict[str, Any]:
    """Return a name and the hash of its one file, or of the hashes of its files in order."""
    if len(hashes) == 1:
        return {"name": name, "sha256": hashes[0]}
    together = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return {"name": name, "files": len(hashes), "sha256": together}


class ImageList(NamedTuple):
    """Locations of images, in order."""

    name: str  # of all, for messages
    urls: list[str]
    names: list[str]  # of each, below the folder that the source begins with
    others: list[str]  # names of files beside them that are no images


def ending(url: str) -> str:
    """Return the ending of a table's name, without .gz; empty for any other."""
    lower = url.lower()
    lower = lower.removesuffix(".gz") if lower.endswith(ZIPPED) else lower
    return next((each for each in TABLES if lower.endswith(each)), "")


def is_table(url: str) -> bool:
    """Return whether a path or URL is that of a table's file by its ending."""
    return bool(ending(url))


def holds_tables(url: str) -> bool:
    """Return whether a location is of tables: a file by its ending, a pattern, or a directory that is no Zarr group."""
    if is_table(url) or SEVERAL in url:
        return True
    return not storage.is_file(url) and storage.exists(url) and not is_zarr(url)


def is_raw(url: str) -> bool:
    """Return whether a location is of tables or of images as they are."""
    return is_image(url) or holds_tables(url)


def is_image(url: str) -> bool:
    """Return whether a path or URL is that of an image by its ending."""
    return url.lower().endswith(IMAGES)


def images(source: str) -> ImageList | None:
    """List the images of a file, a directory or a pattern; None if it is of something else.

    Raises
    ------
    DataError
        If it is of images and tables.
    """
    source = str(storage.local_path(source)) if storage.is_local(source) else source
    if SEVERAL not in source and is_image(source):
        name = source.rpartition("/")[2]
        return ImageList(name, [source], [name], [])
    if is_table(source) or not holds_tables(source):
        return None
    root, urls = _root(source), [url for url, _ in _matches(source)]
    found = [url for url in urls if is_image(url)]
    if not found:
        return None
    if tables := [url for url in urls if is_table(url)]:
        raise DataError(
            f"{source} holds images and tables, such as {_below(root, tables[0])}; convert one or the other, by a "
            f"pattern such as '**/*{PurePosixPath(found[0]).suffix}'"
        )
    others = [_below(root, url) for url in urls if not is_image(url)]
    return ImageList(_last(source), found, [_below(root, url) for url in found], others)


def is_zarr(url: str) -> bool:
    """Return whether a location is of a Zarr group or array, of any version."""
    return any(storage.is_file(storage.join(url, name)) for name in ZARR)


def fetched(source: str, scratch: Path, form: Format) -> SourceFiles:
    """Return the files of a source, those of objects copied to ``scratch``.

    Raises
    ------
    DataError
        If there are none, or they are tables of several kinds.
    """
    source = str(storage.local_path(source)) if storage.is_local(source) else source
    if SEVERAL not in source and (storage.is_file(source) or not storage.exists(source)):
        path = storage.fetch(source, scratch / "source")
        if not path.exists():
            raise DataError(f"{source}: no such file; check the path")
        return SourceFiles.of(path)
    found = {url: keys for url, keys in _matches(source) if is_table(url) or form.sep}
    if not found:
        raise DataError(
            f"{source}: no tables there; expected files that end in {LIST}, or --sep for text of other names: check "
            "the path, or the pattern"
        )
    if len(kinds := sorted({ending(url) for url in found})) > 1:
        raise DataError(
            f"{source} holds {' and '.join(kind or 'other' for kind in kinds)} files; convert those of one kind, by a "
            f"pattern such as '**/*{kinds[-1]}'"
        )
    paths = tuple(storage.fetch(url, scratch / f"source-{i}") for i, url in enumerate(found))
    return SourceFiles(_last(source), paths, tuple(found.values()))


def _last(source: str) -> str:
    """Return the last part of a location, for messages."""
    return source.rstrip("/").rpartition("/")[2] or source


def _root(source: str) -> str:
    """Return the directory that a source begins with."""
    root = source.partition(SEVERAL)[0].rpartition("/")[0] if SEVERAL in source else source.rstrip("/")
    return root or ("/" if source.startswith("/") else ".")


def _below(root: str, url: str) -> str:
    return url.removeprefix(root).lstrip("/")


def _matches(source: str) -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield the locations of files in a directory or of a pattern, sorted, and the columns that their folders say.

    Files whose name, or whose folder's name below the directory that the source begins with, begins with . or _ are
    left out.  Folders of partitions may also be the last ones of that directory.
    """
    root = _root(source)
    pattern = _regex(source if source.startswith(root) else f"./{source}") if SEVERAL in source else None
    parts = root.split("/")
    while parts and HIVE.fullmatch(parts[-1]):
        parts.pop()
    for url in storage.files(root):
        at = url if url.startswith(root) else f"./{url}"
        shown = not any(part[:1] in (".", "_") for part in at.removeprefix(root).lstrip("/").split("/"))
        if shown and (pattern is None or pattern.fullmatch(at)):
            yield url, _keys(at.split("/")[len(parts) : -1])


def _regex(pattern: str) -> re.Pattern[str]:
    """Compile a pattern: * is any part of a name, ** any folders; what is below a match matches too."""
    each = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern.rstrip("/"))
    return re.compile("".join(each.get(part, re.escape(part)) for part in parts) + "(?:/.*)?")


def _keys(folders: Sequence[str]) -> dict[str, str | None]:
    """Return the columns that folders say, by name."""
    found = (HIVE.fullmatch(folder) for folder in folders)
    return {unquote(m[1]): None if m[2] == HIVE_NULL else unquote(m[2]) for m in found if m}


def flags(option: str, names: Sequence[str]) -> str:
    """Return an option of the command line for each of some names, quoted for a shell."""
    return " ".join(f"--{option} {shlex.quote(name)}" for name in names)
