"""Paths that begin with `~`."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ConfigError


def expand_home(path: str | os.PathLike[str]) -> Path:
    """The path with `~` or `~user` replaced by that user's home folder.

    Raises ConfigError where there is none, as for a user of a container without an entry in its passwd file.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        found = "this user has no home folder" if Path(path).parts[0] == "~" else "there is no such user"
        raise ConfigError(f"cannot find {os.fspath(path)} ({found}); write out the path") from None
