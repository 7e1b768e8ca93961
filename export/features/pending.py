"""The features of a shard that is being filled: raw rows, and a journal of the images that have one.

The journal names an image only when its row is on the disk, so that after a kill, or a loss of power, the rows of the
images that it names are whole. What was written since is encoded again, at most about a second's work.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

SYNC_SECONDS = 1.0
"""How often rows are brought to the disk."""
MAX_LINE = 1 << 20


class Pending:
    """Rows that grow, and can be continued. Threads may use it at the same time.

    Args:
        rows: the file of the raw rows.
        journal: the file that names them: a line for each image, `["id"]`, or `["id", "reason"]` for one without a row.
        wanted: the ids that it is to hold, in order; what the files have of other ids is dropped.
        shape: of one row.
        dtype: of its values.
        offset: bytes at the beginning of `rows` that are left free.

    Attributes:
        images: that the journal or this run names.
        good: of them, that have a row.

    Raises OSError.
    """

    def __init__(
        self, rows: Path, journal: Path, wanted: Iterable[str], shape: tuple[int, ...], dtype: str, offset: int = 0
    ) -> None:
        self.rows, self.journal = rows, journal
        self.shape, self.dtype, self.offset = shape, np.dtype(dtype).newbyteorder("<"), offset
        self.each = math.prod(shape) * self.dtype.itemsize
        self.images = self.good = 0
        self._lines: list[bytes] = []
        self._lock = threading.RLock()
        self._named = 0  # bytes of the journal that are whole
        self._rows = rows.open("r+b" if rows.exists() else "w+b")
        try:
            # Without a buffer, which after a failed write would be written once more.
            self._journal = journal.open("r+b" if journal.exists() else "w+b", buffering=0)
        except BaseException:
            self._rows.close()
            raise
        try:
            self._continue(wanted)
        except BaseException:
            self.close(flush=False)
            raise
        self._synced = time.monotonic()

    def _continue(self, wanted: Iterable[str]) -> None:
        """Takes what an earlier run left, up to the first image whose row or line is not whole."""
        have = (os.fstat(self._rows.fileno()).st_size - self.offset) // self.each
        with self.journal.open("rb") as lines:
            for name in wanted:
                line = lines.readline(MAX_LINE)
                found = _parsed(line)
                good = len(found) == 1
                if found[:1] != [name] or self.good + good > have:
                    break
                self.images, self.good, self._named = self.images + 1, self.good + good, self._named + len(line)
        self._journal.truncate(self._named)
        self._rows.truncate(self.offset + self.good * self.each)
        self._rows.seek(0, os.SEEK_END)

    def append(self, ids: list[str], values: np.ndarray, reasons: list[str | None]) -> None:
        """Adds images in order.

        Args:
            ids: of the images.
            values: rows of those that have no reason, in order.
            reasons: why an image has no row; None for one that has.
        """
        with self._lock:
            self._rows.write(np.ascontiguousarray(values, self.dtype).data)
            for name, reason in zip(ids, reasons, strict=True):
                self._lines.append(msgspec.json.encode([name] if reason is None else [name, reason]) + b"\n")
            self.images += len(ids)
            self.good += len(values)
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()

    def sync(self) -> None:
        """Brings the rows to the disk, and then names them."""
        with self._lock:
            self._rows.flush()
            getattr(os, "fdatasync", os.fsync)(self._rows.fileno())
            left = memoryview(b"".join(self._lines))
            self._journal.truncate(self._named)  # what a failed write has left
            self._journal.seek(self._named)
            end = self._named + len(left)
            while left:
                left = left[self._journal.write(left) :]
            self._named = end
            self._lines.clear()
            self._synced = time.monotonic()

    def entries(self) -> tuple[list[str], list[str | None]]:
        """Ids of the images, and why one has no row."""
        self.sync()
        with self.journal.open("rb") as stream:
            lines = [_parsed(line) for line in stream]
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
        with self._lock:
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


def _parsed(line: bytes) -> list[str]:
    """A line of the journal; an empty list if it is none, or is cut off."""
    if not line.endswith(b"\n"):
        return []
    try:
        found: list[str] = msgspec.json.decode(line, type=list[str])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return []
    return found if len(found) in (1, 2) else []
