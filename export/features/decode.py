"""Images are read and prepared beside the encoder, in threads or processes, in the order of their source.

Pillow resizes with Python's lock held, so threads do not go beyond one core there, and keep a GPU's thread from its
work; processes do neither, but take about a second to start (`python -m fvexport.benchmarks.studies.decoding`). They
write the pixels into shared memory.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...core.errors import ConfigError, FvexportError, ImageError, ImageWarning
from ...core.hardware import usable_threads
from ...core.phrases import printable
from ...encoder.preprocess import Preprocessor
from .source import Item

AHEAD = 2
"""Batches that are decoded while another one is encoded."""
MANY = 256
"""Images from which on processes are worth their start."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Who decodes.

    Attributes:
        workers: how many; None for the cores that this process may use.
        processes: processes instead of threads; in a script these need the usual `if __name__ == "__main__":`.
    """

    workers: int | None = None
    processes: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and not 1 <= self.workers <= 256:
            raise ConfigError(f"--workers (workers) must be from 1 to 256; found {self.workers}")


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

    >>> with BatchReader(source, preprocessor, 8, Decoding()) as batches:
    ...     for batch in batches:
    ...         features = encoder.run(batch.pixels)

    Args:
        source: images; read in a thread of its own.
        preprocessor: makes pixels of them.
        size: images of a batch.
        decoding: who decodes.

    Raises what the source raises, and FvexportError if a process that decodes is killed.
    """

    def __init__(self, source: Iterable[Item], preprocessor: Preprocessor, size: int, decoding: Decoding) -> None:
        workers = decoding.workers or usable_threads()
        self._source, self._size = source, size
        self._shape = (size, 3, preprocessor.height, preprocessor.width)
        # Enough that no worker waits where batches are smaller than their number.
        buffers = 1 + max(AHEAD, -(-workers // size) + 1)
        self._buffers: list[np.ndarray]
        self._pool: Executor
        self._submit: Callable[[Item, int, int], Future[_Decoded]]
        if decoding.processes:
            self._buffers = self._start_processes(workers, buffers, preprocessor)
        else:
            self._buffers = [np.empty(self._shape, np.uint8) for _ in range(buffers)]
            pool = self._pool = ThreadPoolExecutor(workers, "decode")
            self._submit = lambda item, buffer, slot: pool.submit(
                _decode, preprocessor, item, self._buffers[buffer][slot]
            )
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Decoding | BaseException | None] = queue.SimpleQueue()
        for index in range(buffers):
            self._free.put(index)
        self._feeder = threading.Thread(target=self._feed, name="read images", daemon=True)

    def _start_processes(self, workers: int, buffers: int, preprocessor: Preprocessor) -> list[np.ndarray]:
        import multiprocessing

        # A fork would copy the runtime's threads in whatever state they are.
        context: Any = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
        if hasattr(context, "set_forkserver_preload"):
            context.set_forkserver_preload([__name__])
        # Not SharedMemory, whose name would stay behind a killed process.
        shared = context.RawArray(ctypes.c_uint8, buffers * int(np.prod(self._shape)))
        pool = self._pool = ProcessPoolExecutor(
            workers, context, _start_worker, (shared, (buffers, *self._shape), preprocessor, Image.MAX_IMAGE_PIXELS)
        )
        self._submit = lambda item, buffer, slot: pool.submit(_decode_into, item, buffer, slot)
        return list(np.frombuffer(shared, np.uint8).reshape(buffers, *self._shape))

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
            while chunk := list(islice(items, self._size)):
                buffer = self._free.get()
                if buffer is None:
                    return
                futures = [self._submit(item, buffer, slot) for slot, item in enumerate(chunk)]
                self._ready.put(_Decoding([item.id for item in chunk], buffer, futures))
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(_explained(error))


class _Decoded(NamedTuple):
    """What became of one image: why it cannot be read, if so, and what a process wants to warn of."""

    reason: str | None
    notices: list[str]


@dataclass(frozen=True)
class _Decoding:
    """A batch whose images are being decoded."""

    ids: list[str]
    buffer: int
    futures: list[Future[_Decoded]]

    def batch(self, pixels: np.ndarray) -> Batch:
        try:
            decoded = [future.result() for future in self.futures]
        except BrokenProcessPool as error:
            raise _explained(error) from None
        for notice in (notice for one in decoded for notice in one.notices):
            warnings.warn(notice, ImageWarning, stacklevel=3)
        reasons = [one.reason for one in decoded]
        good = [slot for slot, reason in enumerate(reasons) if reason is None]
        return Batch(self.ids, pixels[: len(good)] if len(good) == len(reasons) else pixels[good], reasons)


def _explained(error: BaseException) -> BaseException:
    if isinstance(error, BrokenProcessPool):
        return FvexportError(
            "a process that decodes images was killed, perhaps for want of memory; use fewer --workers (workers)"
        )
    return error


def _decode(preprocessor: Preprocessor, item: Item, into: np.ndarray) -> _Decoded:
    """Writes the pixels (3, H, W) of an image."""
    if item.data is None:
        return _Decoded(printable(item.error or "cannot be read"), [])
    try:
        into[...] = preprocessor.pixels(item.data)
    except ImageError as error:
        return _Decoded(printable(str(error).replace("the given bytes", item.id)), [])
    return _Decoded(None, [])


# --- in a process that decodes ----------------------------------------------------------------------


_worker: tuple[Preprocessor, np.ndarray] | None = None


def _start_worker(shared: Any, shape: tuple[int, ...], preprocessor: Preprocessor, max_pixels: int | None) -> None:
    global _worker  # noqa: PLW0603  # set once, when the process starts
    import multiprocessing

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Image.MAX_IMAGE_PIXELS = max_pixels
    _worker = preprocessor, np.frombuffer(shared, np.uint8).reshape(shape)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        """Ends this process if the parent was killed: the pool's own pipe would keep it waiting for ever."""
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _decode_into(item: Item, buffer: int, slot: int) -> _Decoded:
    assert _worker is not None
    preprocessor, pixels = _worker
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        reason, _ = _decode(preprocessor, item, pixels[buffer, slot])
    return _Decoded(reason, [str(one.message) for one in caught if issubclass(one.category, ImageWarning)])
