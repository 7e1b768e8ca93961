"""JSON lines that stay readable when a process is killed: only the last line can be cut off, and it does not count."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO

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


def append_lines(file: Path, lines: Iterable[str]) -> None:
    """Adds lines that are on the disk when this returns, after removing a last line that was cut off.

    Raises ArtifactError if the file is a folder, device, FIFO or socket.
    """
    text = "".join(f"{line}\n" for line in lines).encode()
    if not text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    check_no_special_file(file)
    with file.open("ab+") as stream:
        drop_torn_line(stream)
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def drop_torn_line(stream: BinaryIO) -> None:
    """Removes a last line without a line break from a file opened as `ab+`."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, end - 1))
    if stream.read(1) not in (b"\n", b""):
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
