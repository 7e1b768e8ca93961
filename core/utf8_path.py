"""Paths for libraries in C++ and Rust, which take text in UTF-8, where file names on Linux are any bytes.

Python has such a name as text with surrogates, and under LC_ALL=C without UTF-8 mode every name that is not ASCII.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UnavailableError

DESCRIPTORS = Path("/proc/self/fd")
"""Where Linux shows this process's open files and folders under their numbers, as links."""


@contextmanager
def utf8_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """The path of a file or folder as text that encodes to UTF-8, to use inside the block.

    It is `path` itself, or else the same place by the number of its open folder. A file to write needs a name in UTF-8.

    Raises:
        UnavailableError: such a path needs another name on this system.
        OSError: there is no such folder.
    """
    place = Path(path)
    if _is_utf8(str(place)):
        yield str(place)
        return
    if not DESCRIPTORS.is_dir():
        raise UnavailableError(f"{place} is not UTF-8, and libraries that read it take no other names; rename it")
    opened = place if place.is_dir() or not _is_utf8(place.name) else place.parent
    number = os.open(opened, os.O_RDONLY)
    try:
        found = DESCRIPTORS / str(number)
        yield str(found if opened == place else found / place.name)
    finally:
        os.close(number)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
