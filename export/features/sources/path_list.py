"""Lists of paths: one path per line, from a file or from stdin."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import BinaryIO

from ....core.errors import ImageError

LONGEST_LINE = 1 << 16
"""Bytes; longer than any path that a system opens."""


def read_list(lines: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a list that are not blank: (line number from 1, path).

    The list is read as it is used, so it may be of any length. Lines end with LF or CRLF, a byte order mark at the
    start is skipped, and a path is UTF-8 or, on Linux, any other bytes that a file's name has.

    Args:
        lines: the list.
        name: what errors call it.

    Raises:
        ImageError: a NUL byte, a line too long for a path, bytes that no file's name has here, or the list cannot be
            read.
    """
    number = 0
    while True:
        try:
            line = lines.readline(LONGEST_LINE + 1)
        except (OSError, ValueError) as error:
            raise ImageError(f"cannot read {name} ({error}): check that it is a file of text") from None
        if not line:
            return
        number += 1
        if len(line) > LONGEST_LINE:
            raise ImageError(f"line {number} of {name} is longer than {LONGEST_LINE} bytes: write one path per line")
        if b"\0" in line:
            raise ImageError(
                f"line {number} of {name} contains a NUL byte: write one path per line, in UTF-8, without -print0"
            )
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            path = line.decode("utf-8", "surrogateescape" if sys.platform == "linux" else "strict")
        except UnicodeDecodeError:
            raise ImageError(f"line {number} of {name} is not UTF-8: save the list in UTF-8") from None
        if path.strip():
            yield number, path
