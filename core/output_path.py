"""Writing a result: check the path before the work, write to a temporary name, clean up afterwards."""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ArtifactError

# Temporary paths in use by this process. A killed run's may have our process id: in containers ids repeat.
_ACTIVE: set[Path] = set()


def check_place(out: Path, need_bytes: int) -> None:
    """Raises ArtifactError if `out` cannot be written, or its disk has less than `need_bytes` free."""
    parent = out.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise ArtifactError(f"cannot write {out}: {parent} is not a folder; choose another --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"cannot write {out}: no permission in {parent}; choose another --out")
    free = shutil.disk_usage(parent).free
    if free < need_bytes:
        raise ArtifactError(
            f"cannot write {out}: {need_bytes / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free on its disk; "
            "free some space or choose another --out"
        )


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A temporary path beside `out`; whatever is there at the end is removed."""
    scratch = new_scratch(out)
    _ACTIVE.add(scratch)
    try:
        yield scratch
    finally:
        remove(scratch)
        _ACTIVE.discard(scratch)


def new_scratch(out: Path) -> Path:
    """A path beside `out` that no other run uses."""
    return out.absolute().parent / f".{out.name}.writing-{os.getpid()}-{secrets.token_hex(4)}"


def prepare(out: Path) -> None:
    """Creates the parent folder of `out`, and removes what killed runs left in it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.absolute().parent.glob(f".{glob.escape(out.name)}.writing-*"):
        match = re.fullmatch(r".*\.writing-(\d+)-[0-9a-f]+", leftover.name, re.DOTALL)
        if match and leftover not in _ACTIVE and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            remove(leftover)


@contextmanager
def os_errors(out: Path) -> Iterator[None]:
    """Turns an OSError while writing `out` into ArtifactError."""
    try:
        yield
    except OSError as error:
        named = error.filename is not None and Path(os.fsdecode(error.filename)).absolute()
        if named and not named.is_relative_to(out.absolute().parent):
            raise  # about another file
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise ArtifactError(f"cannot write {out}: {reason}; free some space or choose another --out") from error


def remove(path: Path) -> None:
    """Removes a file, a link (not its target) or a whole folder; a missing path is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    """Whether a process with that id runs, also another user's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
