"""Files that hold many images each: what tables and tar files have in common."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ....core.errors import ImageError, first_line
from ....core.input_file import open_regular
from ....core.phrases import printable

MAX_IMAGE_BYTES = 1 << 30
"""Larger ones are an error of the image and are not read."""


class ShardError(Exception):
    """A shard cannot be read; the message follows its name: `is cut off at byte 9; download it again`."""


def shard_id(path: str | os.PathLike[str]) -> str:
    """What a shard is called in ids and errors: its path as given, with forward slashes."""
    return printable(Path(path).as_posix())


def open_shard(path: str | os.PathLike[str], size: int | None = None) -> tuple[BinaryIO, int]:
    """Opens a shard: (file, its size in bytes). Raises ShardError, also if `size` is given and it has another one."""
    try:
        file = open_regular(path)
    except (OSError, ValueError) as error:
        raise ShardError(why_unreadable(error)) from None
    found = os.fstat(file.fileno()).st_size
    if size is not None and found != size:
        file.close()
        raise ShardError(f"changed while it was read (from {size} to {found} bytes); run the command again")
    return file, found


def why_unreadable(error: BaseException) -> str:
    """The end of a sentence that begins with the shard's name."""
    reason = getattr(error, "strerror", None) or first_line(error)
    if reason.startswith("is "):
        return reason
    return f"cannot be read ({reason}); check its path and permissions"


def overlaps(ends: np.ndarray, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The shards that have some of the items `start` to `stop`: (index, first item in it, last + 1).

    Args:
        ends: the number of items up to the end of each shard.
        start, stop: items of the source.
    """
    for index in range(int(np.searchsorted(ends, start, side="right")), len(ends)):
        before = int(ends[index - 1]) if index else 0
        if before >= stop:
            return
        low, high = max(start - before, 0), min(stop, int(ends[index])) - before
        if low < high:
            yield index, low, high


def refuse_all(errors: Iterable[tuple[str, str]]) -> None:
    """Raises ImageError that names the first of some unreadable shards and counts the others."""
    listed = list(errors)
    name, reason = listed[0]
    more = f" (and so {len(listed) - 1} more)" if len(listed) > 1 else ""
    raise ImageError(f"no images: {name} {reason}{more}")
