"""Where this package keeps what it can compute again, and whether what is found there can be trusted.

A cache is read back as if this user had computed it. So its folders belong to this user and have mode 0700, and a
folder or file that another user owns or can write to is neither read nor written.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import shutil
import tempfile
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import platformdirs

from .cleanup import register
from .errors import ConfigError, FvexportWarning
from .shell import quoted

_OTHERS_WRITE = 0o022
_told: set[Path] = set()


def cache_folder(kind: str) -> Path:
    """The folder for one kind of files in the user's cache; it may not exist yet, see `make_cache`.

    On Linux this is `$XDG_CACHE_HOME/fvexport/<kind>`, by default `~/.cache/fvexport/<kind>`. A user without a home
    folder, as in some containers, gets `fvexport-<user id>/<kind>` in the system's folder for temporary files.
    """
    with suppress(RuntimeError):  # raised without a home folder; older releases of platformdirs return `~/.cache`
        folder = platformdirs.user_cache_path("fvexport", appauthor=False)
        if folder.is_absolute():
            return folder / kind
    name = f"fvexport-{os.getuid()}" if hasattr(os, "getuid") else "fvexport"  # Windows' folder is the user's own
    return Path(tempfile.gettempdir()) / name / kind


def check_cache(file: Path) -> None:
    """Raises PermissionError if a cache file, or one of the cache's folders above it, is not this user's alone.

    What is missing is no error. The error's `strerror` says what was found, and its `filename` where.
    """
    if not hasattr(os, "getuid"):
        return
    for path in (file.parent.parent, file.parent, file):
        if path == file.parent.parent and file.parent != cache_folder(file.parent.name):
            continue  # a folder that the caller named: what is above it is not ours
        with suppress(FileNotFoundError, NotADirectoryError):
            # Of a link both count: another user's link leads where that user wants.
            for status in (path.lstat(), path.stat()):
                if status.st_uid != os.geteuid():
                    raise PermissionError(errno.EPERM, f"belongs to another user (uid {status.st_uid})", str(path))
            if status.st_mode & _OTHERS_WRITE:
                raise PermissionError(errno.EPERM, "can be written by other users", str(path))


def make_cache(file: Path) -> None:
    """Makes the folders of a cache file with mode 0700, and checks them; raises OSError, also as `check_cache` does."""
    file.parent.parent.parent.mkdir(parents=True, exist_ok=True)
    for folder in (file.parent.parent, file.parent):
        folder.mkdir(mode=0o700, exist_ok=True)
    check_cache(file)


def is_trusted(file: Path) -> bool:
    """Whether a cache file can be read, or would be this user's alone; if not, a warning says why, once for each path.

    Warns:
        FvexportWarning: the file, or a folder of the cache, is another user's or can be written by others.
    """
    try:
        check_cache(file)
    except OSError as error:
        path = Path(error.filename or file)
        if path not in _told:
            _told.add(path)
            fix = "remove it, or set XDG_CACHE_HOME to a folder of your own"
            warnings.warn(f"the cache {path} is ignored ({error.strerror}); {fix}", FvexportWarning, stacklevel=2)
        return False
    return True


def has_blanks(path: Path | str) -> bool:
    """Whether a path has a blank, which `torch.compile` does not quote when it calls the C++ compiler."""
    return re.search(r"\s", str(path)) is not None


def keep_compilers_caches() -> None:
    """Has `torch.compile` keep its code in the user's cache, and Triton where the user has no home.

    Their defaults are `torchinductor_<user>` in the folder for temporary files, which any user can make first, and
    `~/.triton`. Folders that the user has named in the environment stay.

    Raises:
        ConfigError: what the user has named there is a file.
    """
    homeless = not Path(os.path.expanduser("~")).is_absolute()  # noqa: PTH111 - Path.expanduser raises
    kinds = {"TORCHINDUCTOR_CACHE_DIR": "inductor"} | ({"TRITON_CACHE_DIR": "triton"} if homeless else {})
    for variable, kind in kinds.items():
        if named := os.environ.get(variable):  # of an empty one they would take the current folder
            if os.path.lexists(named) and not Path(named).is_dir():
                raise ConfigError(f"{variable} is {quoted(named)}, which is no folder; set it to one")
            continue
        if kind == "triton" and os.environ.get("TRITON_HOME"):
            continue
        file = cache_folder(kind) / "any"
        with suppress(OSError):  # a read-only home: the compiler says what it needs
            if not has_blanks(file) and is_trusted(file):
                make_cache(file)
                os.environ[variable] = str(file.parent)
                continue
        folder = os.environ[variable] = tempfile.mkdtemp(prefix="fvexport-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        register(partial(shutil.rmtree, folder, ignore_errors=True))
