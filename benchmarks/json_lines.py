"""JSON lines that stay readable when a process is killed: only the last line can be cut off, and it does not count."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO

from ..core.errors import ArtifactError
from ..core.input_file import open_regular, parse_json
from ..core.output_path import check_no_special_file

LONGEST_LINE = 16 << 20
"""Most bytes of a line: more than the longest answer of a model or window of calls takes."""


def complete_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The number, from 1, and text of each line that ends with a line break and is not blank; none without a file.

    Raises OSError for what is no regular file, or has a line longer than `LONGEST_LINE`.
    """
    try:
        stream = open_regular(file)
    except FileNotFoundError:
        return
    with stream:
        for number, line in enumerate(limited_lines(stream, file), start=1):
            if line.endswith(b"\n") and line.strip():
                yield number, line.decode("utf-8", errors="replace").rstrip("\r\n")


def limited_lines(stream: IO[AnyStr], file: Path) -> Iterator[AnyStr]:
    """The lines of a stream with their line breaks; one longer than `LONGEST_LINE` raises OSError, naming `file`."""
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            found = f"has a line longer than {LONGEST_LINE >> 20} MB, which no file of its kind has"
            raise OSError(errno.EFBIG, found, os.fspath(file))
        yield line


def complete_rows(file: Path) -> Iterator[Any]:
    """What each of these lines holds; lines that a killed writer and another one made one of are left out."""
    for _, text in complete_lines(file):
        try:
            row = parse_json(text)
        except ValueError:
            continue
        yield row


def append_lines(file: Path, lines: Iterable[str], *, begins: str) -> None:
    """Adds lines that are on the disk when this returns, after removing a last line that was cut off.

    Args:
        file: made if it is not there.
        lines: without line breaks.
        begins: see `check_torn_line`.

    Raises ArtifactError if the file is a folder, device, FIFO or socket, or as `check_torn_line`.
    """
    text = "".join(f"{line}\n" for line in lines).encode()
    if not text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    check_no_special_file(file)
    check_torn_line(file, begins)
    with file.open("ab+") as stream:
        drop_torn_line(stream)
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def check_torn_line(file: Path, begins: str, is_ours: Callable[[str], bool] = lambda _: True) -> None:
    """Makes sure that a last line without a line break was cut off by a kill, and may be removed.

    Where complete lines stand before it, whoever reads them has to know that they are ours.

    Args:
        file: need not exist.
        begins: what the first line of such a file begins with.
        is_ours: whether a line that is whole but for its line break is one of such a file.

    Raises ArtifactError if it is the file's only line, and none of ours; OSError as `complete_lines`.
    """
    number, last = 0, b""
    try:
        stream = open_regular(file)
    except FileNotFoundError:
        return
    with stream:
        for number, last in enumerate(limited_lines(stream, file), start=1):  # noqa: B007 - used below
            if last.endswith(b"\n") and last.strip():
                return
    start = begins.encode()
    ours = last.startswith(start) or start.startswith(last)
    if ours and len(last) > len(start):
        with contextlib.suppress(ValueError):
            parse_json(last)
            ours = is_ours(last.decode())
    if last.strip() and not ours:
        raise ArtifactError(f"{file}, line {number} is no result of this command; choose another --out")


def drop_torn_line(stream: BinaryIO) -> None:
    """Removes a last line without a line break from a file opened as `ab+`, whosever it is: see `check_torn_line`."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, end - 1))
    if stream.read(1) not in (b"\n", b""):
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
