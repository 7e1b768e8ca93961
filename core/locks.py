"""Locks that keep two processes from writing the same result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ArtifactError


@contextmanager
def locked(file: Path, busy: str, *, keep: bool = True) -> Iterator[None]:
    """Holds a lock file while the block runs; the operating system frees it if the process dies.

    Args:
        file: the lock file; it is created if missing.
        busy: the error's message.
        keep: leave the lock file there.

    Raises:
        ArtifactError: another process or another block of this one holds it.
        OSError: the lock file cannot be created.
    """
    import filelock

    lock = filelock.FileLock(file, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise ArtifactError(busy) from None
    try:
        yield
    finally:
        if not keep:
            with suppress(OSError):  # Windows removes no open file, but filelock does at the release
                file.unlink()
        lock.release()
        if keep:
            file.touch()  # filelock removes it on Windows
