"""The features of a shard that is being filled: raw rows, and a journal of the images that have one.

The journal names an image only when its row is on the disk, so that after a kill, or a loss of power, the rows of the
images that it names are whole. What was written since is encoded again, at most about a second's work.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import numpy as np

from ...core.errors import ArtifactError
from .working_folder import BEGIN_AGAIN

SYNC_SECONDS = 1.0
"""How often rows are brought to the disk."""
MAX_LINE = 1 << 20


class Pending:
    """Rows that grow, and can be continued.

    Args:
        rows: the file of the raw rows.
        journal: the file that names them: a line for each image, `["id"]`, or `["id", "reason"]` for one without a row.
        shape: of one row.
        dtype: of its values.
        offset: bytes at the beginning of `rows` that are left free.

    Attributes:
        images: that the journal or this run names.
        good: of them, that have a row.

    Raises OSError, and ArtifactError for a damaged journal.
    """

    def __init__(self, rows: Path, journal: Path, shape: tuple[int, ...], dtype: str, offset: int = 0) -> None:
        self.rows, self.journal = rows, journal
        self.shape, self.dtype, self.offset = shape, np.dtype(dtype).newbyteorder("<"), offset
        self.each = int(np.prod(shape)) * self.dtype.itemsize
        self.images = self.good = 0
        self._lines: list[bytes] = []
        self._rows = rows.open("r+b" if rows.exists() else "w+b")
        try:
            self._journal = journal.open("a+b")
        except BaseException:
            self._rows.close()
            raise
        try:
            self._continue()
        except BaseException:
            self.close(flush=False)
            raise
        self._synced = time.monotonic()

    def _continue(self) -> None:
        """Takes what an earlier run left, up to the first image whose row or line is not whole."""
        have = (os.fstat(self._rows.fileno()).st_size - self.offset) // self.each
        self._journal.seek(0)
        end = 0
        while (line := self._journal.readline(MAX_LINE)).endswith(b"\n"):
            good = len(_parsed(line, self.journal)) == 1
            if self.good + good > have:
                break
            self.images, self.good, end = self.images + 1, self.good + good, end + len(line)
        self._journal.truncate(end)
        self._rows.truncate(self.offset + self.good * self.each)
        self._rows.seek(0, os.SEEK_END)

    def append(self, ids: list[str], values: np.ndarray, reasons: list[str | None]) -> None:
        """Adds images in order.

        Args:
            ids: of the images.
            values: rows of those that have no reason, in order.
            reasons: why an image has no row; None for one that has.
        """
        self._rows.write(np.ascontiguousarray(values, self.dtype).data)
        for name, reason in zip(ids, reasons, strict=True):
            self._lines.append(msgspec.json.encode([name] if reason is None else [name, reason]) + b"\n")
        self.images += len(ids)
        self.good += len(values)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Brings the rows to the disk, and then names them."""
        self._rows.flush()
        getattr(os, "fdatasync", os.fsync)(self._rows.fileno())
        self._journal.write(b"".join(self._lines))
        self._journal.flush()
        self._lines.clear()
        self._synced = time.monotonic()

    def entries(self) -> tuple[list[str], list[str | None]]:
        """Ids of the images, and why one has no row."""
        self.sync()
        self._journal.seek(0)
        lines = [_parsed(line, self.journal) for line in self._journal]
        return [line[0] for line in lines], [line[1] if len(line) == 2 else None for line in lines]

    def values(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """`count` rows (rows, *shape) from `start` on, read from the file; by default all."""
        self.sync()
        count = self.good - start if count is None else count
        found = np.fromfile(
            self.rows, self.dtype, count * (self.each // self.dtype.itemsize), offset=self.offset + start * self.each
        )
        return found.reshape(count, *self.shape)

    def close(self, *, flush: bool = True) -> None:
        """Closes the files; what is not yet named is named before."""
        try:
            if flush and not self._journal.closed:
                self.sync()
        finally:
            self._journal.close()
            # A full disk makes this fail once more, when it flushes what is left.
            try:
                self._rows.close()
            except OSError:
                if flush:
                    raise

    def remove(self) -> None:
        """Removes the files, which are closed."""
        self.journal.unlink(missing_ok=True)
        self.rows.unlink(missing_ok=True)


def _parsed(line: bytes, journal: Path) -> list[str]:
    try:
        found: list[str] = msgspec.json.decode(line, type=list[str])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = []
    if len(found) not in (1, 2):
        raise ArtifactError(f"{journal} is damaged (line {line[:60]!r}); {BEGIN_AGAIN}")
    return found
