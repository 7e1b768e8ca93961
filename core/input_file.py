"""Reading files that others made: only regular files, no larger than their kind can be, and JSON of any content."""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any, BinaryIO

SMALL_FILE = 64 << 20
"""Most bytes of a file of settings or results, which is read whole."""

MOST_LEVELS = 100
"""Levels of objects and lists within each other; `repr` and `json.dumps` fail on what is nested only as deeply as
`json.loads` can just read.
"""

_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading; a FIFO or a device, which could block or never end, raises OSError.

    The error's `strerror` says what the path is: "is a FIFO, not a regular file".
    """
    # Without O_NONBLOCK the opening of a FIFO would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises OSError if the path is not a regular file, or a link to one; for files that a foreign library opens."""
    _check_regular(os.stat(path).st_mode, path)  # noqa: PTH116 - `path` may be a text


def read_bytes(path: str | os.PathLike[str], limit: int = SMALL_FILE) -> bytes:
    """The content of a regular file of at most `limit` bytes; everything else raises OSError."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        found = f"is larger than {limit >> 20} MB, which no file of its kind is"
        raise OSError(errno.EFBIG, found, os.fspath(path))
    return content


def read_text(path: str | os.PathLike[str], limit: int = SMALL_FILE) -> str:
    """The text of a regular file in UTF-8; raises OSError as `read_bytes`, and UnicodeDecodeError."""
    return read_bytes(path, limit).decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, which raises nothing but ValueError, also for more than `MOST_LEVELS` levels of nesting."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(MOST_LEVELS + 1):
        if not level:
            return content
        held = (value.values() if isinstance(value, dict) else value for value in level)
        level = [inner for values in held for inner in values if isinstance(inner, dict | list)]
    raise ValueError("nested too deeply")


def read_json(path: str | os.PathLike[str], limit: int = SMALL_FILE) -> Any:
    """The content of a file of JSON in UTF-8, UTF-16 or UTF-32; raises OSError as `read_bytes`, and ValueError."""
    return parse_json(read_bytes(path, limit))


def kind_of(mode: int) -> str | None:
    """What a file's mode says it is, such as "a FIFO"; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((name for matches, name in _KINDS if matches(mode)), "a device")


def _check_regular(mode: int, path: str | os.PathLike[str]) -> None:
    if (kind := kind_of(mode)) is not None:
        raise OSError(errno.EINVAL, f"is {kind}, not a regular file", os.fspath(path))
