"""Locks that keep two processes from writing the same result."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from .cleanup import surely, undone
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

    def free() -> None:
        if not lock.is_locked:
            return
        if not keep:
            with suppress(OSError):  # Windows removes no open file, but filelock does at the release
                file.unlink()
        lock.release()
        if keep:
            file.touch()  # filelock removes it on Windows

    with nullcontext() if keep else undone(free):
        try:
            lock.acquire()
            yield
        except filelock.Timeout as error:
            if error.lock_file != lock.lock_file:
                raise
            raise ArtifactError(busy) from None
        finally:
            surely(free)


def try_lock(descriptor: int) -> bool | None:
    """Locks an open file until the descriptor is closed or the process dies, without waiting.

    Not through filelock: where the file system has no locks, it falls back to a file that names a process, and two
    containers have the same numbers for theirs.

    Returns:
        True if this descriptor has the lock now, False if another one has it, None if the file system has no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK) else None
    return True
