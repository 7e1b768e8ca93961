"""`HeldFolder`: notices that another folder has come to a path since the path was opened."""

from __future__ import annotations

import os
import weakref
from pathlib import Path


class HeldFolder:
    """A folder that is recognized again after renames.

    It holds a descriptor, so that the system gives the folder's number to no other folder, even if it is removed.

    Raises OSError if the folder cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
        self._status = path.stat()
        if os.name == "posix":  # Windows opens no folders, and renames none that has an open file
            descriptor = os.open(path, flags)
            weakref.finalize(self, os.close, descriptor)
            self._status = os.fstat(descriptor)

    def is_at(self, path: Path) -> bool:
        """Whether the path leads to this folder now."""
        try:
            return os.path.samestat(path.stat(), self._status)
        except OSError:
            return False
