"""Images are read and prepared in threads beside the encoder, in the order of their source.

Threads, because Pillow and NumPy free Python's lock while they work: two threads are at least as fast as two processes,
which have to start and to send 3 MB for each image (`python -m fvexport.benchmarks.studies.decoding`).
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from ...core.errors import ConfigError, ImageError, ImageWarning
from ...core.hardware import usable_threads
from ...core.phrases import printable
from ...encoder.preprocess import Preprocessor
from .feature_form import named
from .sources.source import Item

AHEAD = 2
"""Batches that are decoded while another one is encoded."""
MAX_WORKERS = 1024


@dataclass(frozen=True)
class Batch:
    """Images to encode together.

    Attributes:
        ids: of all of them, in order.
        pixels: (B, 3, H, W) uint8 of those that could be read; valid until the next batch is asked for.
        reasons: for each of `ids`, why it could not be read; None where it could.
    """

    ids: list[str]
    pixels: np.ndarray
    reasons: list[str | None]


class BatchReader:
    """Batches of a source, decoded ahead.

    >>> with BatchReader(source, preprocessor, 8) as batches:
    ...     for batch in batches:
    ...         features = encoder.run(batch.pixels)

    Args:
        source: images; read in a thread of its own.
        preprocessor: makes pixels of them.
        size: images of a batch.
        workers: threads that decode; None for the cores that this process may use.

    Raises ConfigError for an impossible number of workers, and, while it is iterated over, what the source raises.
    """

    def __init__(
        self, source: Iterable[Item], preprocessor: Preprocessor, size: int, workers: int | None = None
    ) -> None:
        check_workers(workers)
        count = workers or usable_threads()
        self._source, self._preprocessor, self._size = source, preprocessor, size
        # One is encoded; the others hold as many images as there are workers, and a batch that is ready.
        buffers = 1 + max(AHEAD, -(-count // size) + 1)
        shape = (buffers, size, 3, preprocessor.height, preprocessor.width)
        self._buffers = np.empty(shape, np.uint8)
        self._pool = ThreadPoolExecutor(count, "decode")
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Decoding | BaseException | None] = queue.SimpleQueue()
        for index in range(buffers):
            self._free.put(index)
        self._feeder = threading.Thread(target=self._feed, name="read images", daemon=True)

    def __enter__(self) -> BatchReader:
        self._feeder.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._free.put(None)
        self._feeder.join()
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Batch]:
        while (found := self._ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found.batch(self._buffers[found.buffer])
            self._free.put(found.buffer)

    def _feed(self) -> None:
        """Reads the source and has its images decoded, a batch for each free buffer."""
        try:
            items = iter(self._source)
            while (buffer := self._free.get()) is not None:
                chunk = list(islice(items, self._size))
                if not chunk:
                    break
                futures = [
                    self._pool.submit(_decode, self._preprocessor, item, self._buffers[buffer, slot])
                    for slot, item in enumerate(chunk)
                ]
                self._ready.put(_Decoding([item.id for item in chunk], buffer, futures))
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)


def check_workers(count: int | None) -> None:
    """Raises ConfigError for an impossible number of threads that decode; None is the default."""
    if count is not None and not 1 <= count <= MAX_WORKERS:
        raise ConfigError(f"--workers (workers) must be from 1 to {MAX_WORKERS}; found {count}")


class _Decoded(NamedTuple):
    """What became of one image: why it cannot be read, if so, and what is to be warned of in its turn."""

    reason: str | None
    notices: list[str]


@dataclass(frozen=True)
class _Decoding:
    """A batch whose images are being decoded."""

    ids: list[str]
    buffer: int
    futures: list[Future[_Decoded]]

    def batch(self, pixels: np.ndarray) -> Batch:
        decoded = [future.result() for future in self.futures]
        for notice in (notice for one in decoded for notice in one.notices):
            warnings.warn(notice, ImageWarning, stacklevel=3)
        reasons = [one.reason for one in decoded]
        good = [slot for slot, reason in enumerate(reasons) if reason is None]
        return Batch(self.ids, pixels[: len(good)] if len(good) == len(reasons) else pixels[good], reasons)


def _decode(preprocessor: Preprocessor, item: Item, into: np.ndarray) -> _Decoded:
    """Writes the pixels (3, H, W) of an image."""
    if item.data is None:
        return _Decoded(printable(item.error or f"{item.id} cannot be read"), [])
    notices: list[str] = []
    try:
        into[...] = preprocessor.pixels(item.data, notices)
    except ImageError as error:
        return _Decoded(named(printable(str(error)), item.id), notices)
    return _Decoded(None, [named(notice, item.id) for notice in notices])
