"""Where this package keeps what it can compute again."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import platformdirs


def cache_folder(kind: str) -> Path:
    """The folder for one kind of files in the user's cache; it may not exist yet.

    On Linux this is `$XDG_CACHE_HOME/fvexport/<kind>`, by default `~/.cache/fvexport/<kind>`. A user without a home
    folder, as in some containers, gets one in the system's folder for temporary files.
    """
    with suppress(RuntimeError):  # raised without a home folder; older releases of platformdirs return `~/.cache`
        folder = platformdirs.user_cache_path("fvexport", appauthor=False)
        if folder.is_absolute():
            return folder / kind
    return Path(tempfile.gettempdir()) / "fvexport" / kind
