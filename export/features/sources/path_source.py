"""Image files by their paths."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ....core.phrases import printable
from .packed import PackedTexts, TextPacker
from .source import Item
from .splits import cut


@dataclass
class PathSource:
    """Image files; about 16 bytes more per file than its path has.

    Attributes:
        paths: of the files.
        sizes: of each file in bytes, (n) int64; -1 if it is missing or cannot be looked up.
        notices: see `Source`.
        lists: files that name the paths.
    """

    paths: PackedTexts
    sizes: np.ndarray
    notices: list[str] = field(default_factory=list)
    kind: str = "images"
    lists: tuple[str, ...] = ()
    _digest: str | None = field(default=None, repr=False)

    @property
    def digest(self) -> str:
        """See `Source`; hashes the ids and sizes."""
        if self._digest is None:
            hashed = hashlib.sha256(b"images\n")
            for path, size in zip(self.paths, self.sizes, strict=True):
                name = path_id(path).encode()
                hashed.update(b"%d:%d:%b" % (len(name), size, name))
            self._digest = hashed.hexdigest()
        return self._digest

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Item]:
        return (path_item(path_id(text), text) for text in self.paths)

    def ids(self) -> Iterator[str]:
        """See `Source`."""
        return (path_id(text) for text in self.paths)

    def files(self) -> Iterator[Path]:
        """See `Source`."""
        yield from map(Path, self.lists)
        yield from map(Path, self.paths)

    def part(self, start: int, stop: int) -> PathSource:
        """See `Source`."""
        return PathSource(self.paths.part(start, stop), self.sizes[start:stop].copy())

    def splits(self, rows: int) -> list[tuple[int, int]]:
        """See `Source`; a list of files has no better place for a cut than another."""
        return cut(len(self), rows)


class PathCollector:
    """Builds a `PathSource`: takes paths in order, and keeps the first of those that have the same id."""

    def __init__(self) -> None:
        self._paths = TextPacker()
        self._sizes = array("q")

    def add(self, path: str, size: int) -> None:
        """Adds a file of `size` bytes, -1 if unknown."""
        self._paths.append(path if _POSIX and not _REDUNDANT.search(path) else str(Path(path)))
        self._sizes.append(size)

    def __len__(self) -> int:
        return len(self._sizes)

    def source(self, notices: list[str], lists: tuple[str, ...] = ()) -> PathSource:
        """The files so far; the collector is not used after this."""
        paths, sizes = self._paths.packed(), np.frombuffer(self._sizes, np.int64)
        keep = np.ones(len(paths), bool)
        for _, again in paths.repeats(path_id):
            keep[again] = False
        if not keep.all():
            once = TextPacker()
            for path, kept in zip(paths, keep, strict=True):
                if kept:
                    once.append(path)
            paths, sizes = once.packed(), sizes[keep]
        return PathSource(paths, sizes, notices, lists=lists)


def path_id(path: str) -> str:
    """The id of an image at a path, such as `str(Path(...))` gives it: with forward slashes, in valid Unicode."""
    return printable(path if _POSIX else Path(path).as_posix())


_POSIX = Path("a/b").as_posix() == str(Path("a/b"))
_REDUNDANT = re.compile(r"//|(?:^|/)\.(?:/|$)|/$")
"""What `Path` removes from a path of POSIX. Making a `Path` takes longer than all else that is done for a line."""


def path_item(name: str, path: str | Path) -> Item:
    """The item of an image file; one with an error if no file can have such a path."""
    text = str(path)
    if not text or text == ".":
        return Item(name, None, f"{name}: the path of the image is empty")
    if "\0" in text:
        return Item(name, None, f"{name}: the path of the image contains a NUL character")
    return Item(name, Path(path))


def look(path: str | Path) -> tuple[int, bool]:
    """The size of a file in bytes, -1 if it cannot be looked up; and whether it is a folder. No name raises."""
    try:
        found = os.stat(path)  # noqa: PTH116  # a text, for speed
    except (OSError, ValueError):
        return -1, False
    folder = stat.S_ISDIR(found.st_mode)
    return -1 if folder else found.st_size, folder
