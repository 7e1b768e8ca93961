"""Temporary folders: whether there is a place for them, checked before the work, and errors that say where they are."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .cleanup import surely, undone
from .errors import UnavailableError
from .output_path import why_not_written


def check_temporary_folder() -> None:
    """Raises UnavailableError if no folder takes temporary files, as in a container with a read-only root.

    PyTorch's exporter and compiler and transformers need one, whatever they write.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise UnavailableError(
            "no folder takes temporary files (tried TMPDIR, /tmp, /var/tmp and the current one); set TMPDIR to a "
            "folder that can be written, or mount one (`docker run --tmpfs /tmp`)"
        ) from None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder that is removed at the end, also if a signal ends the process.

    Raises UnavailableError if it cannot be made, or writing in it fails in the block.
    """
    check_temporary_folder()
    fix = "set TMPDIR to another folder"
    # The name comes first: a signal between the making of a folder and the return of its name would leave it.
    folder = Path(tempfile.gettempdir(), f"fvexport-{secrets.token_hex(8)}")

    def remove() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    with undone(remove):
        try:
            try:
                folder.mkdir(mode=0o700)
            except OSError as error:
                reason = why_not_written(error, folder.parent, elsewhere=fix)
                raise UnavailableError(f"cannot make a temporary folder: {reason}") from None
            try:
                yield folder
            except OSError as error:
                if error.filename is not None and not Path(str(error.filename)).is_relative_to(folder):
                    raise  # about another file
                reason = why_not_written(error, folder, elsewhere=fix)
                raise UnavailableError(f"cannot write temporary files in {folder.parent}: {reason}") from error
        finally:
            surely(remove)
