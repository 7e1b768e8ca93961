"""The timing cache: what TensorRT measured of single layers, so that the next build need not.

The file holds TensorRT's own bytes, as `trtexec --timingCacheFile` reads and writes them. Two builds at once do not
lose each other's entries: the file is locked, read again and combined before it is written beside and renamed.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ...core.cache import cache_folder, make_cache
from ...core.errors import ArtifactError, ConfigError
from ...core.input_file import read_bytes
from ...core.output_path import put_file, scratch_beside
from .api import Api
from .engine_section import TimingCacheUse

LOCK_SECONDS = 60.0
LIMIT = 1 << 30
"""Most bytes of a cache; a build adds a few megabytes."""


def default_path(api: Api, gpu: str | None) -> Path:
    """In the user's cache, one file per flavour, version and GPU."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{api.flavour}-{api.version}-{gpu or 'any-gpu'}")
    return cache_folder("timing") / f"{name}.cache"


class TimingCache:
    """One build's use of a timing cache file.

    Args:
        path: the file; made where it is missing.
        named: whether the user named it; one of ours that cannot be used is done without.

    Attributes:
        notices: what a user should read: a damaged or foreign file that was set aside.
        loaded_bytes: of the file that TensorRT took.
    """

    def __init__(self, path: Path, *, named: bool = True) -> None:
        self.path = path
        self.named = named
        self.usable = True
        self.notices: list[str] = []
        self.loaded_bytes = 0

    def attach(self, config: Any, refused: Callable[[], bool]) -> None:
        """Gives the file's content to a builder's configuration; what TensorRT refuses is set aside.

        Args:
            config: the builder's configuration.
            refused: whether TensorRT's logger spoke of a cache that it cannot read; the call returns an empty one then.

        Raises ConfigError, before the build, for a file that the user named and that cannot be read or written.
        """
        stored = b""
        try:
            if self.named:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            else:
                make_cache(self.path)
            if not os.access(self.path.parent, os.W_OK):
                raise PermissionError(errno.EACCES, "no permission in its folder")
            if self.path.exists():
                stored = read_bytes(self.path, LIMIT)
            if stored:
                cache = _parsed(config, stored)
                if cache is not None and not refused() and config.set_timing_cache(cache, False):
                    self.loaded_bytes = len(stored)
                    return
                aside = self.path.with_name(f"{self.path.name}.refused")
                put_file(self.path, aside)
                self.notices.append(
                    f"the timing cache {self.path} is damaged, or of another TensorRT or GPU; it is now {aside.name}"
                )
        except OSError as error:
            reason = f"the timing cache {self.path} cannot be used: {error.strerror}"
            if self.named:
                raise ConfigError(f"{reason}; choose another --timing-cache") from None
            self.notices.append(reason)
            self.usable = False
        config.set_timing_cache(config.create_timing_cache(b""), True)

    def save(self, config: Any) -> None:
        """Writes what the build knows now, with what other builds wrote meanwhile. The engine is worth more: where this
        fails, that is a notice.
        """
        cache = config.get_timing_cache()
        if cache is None or not self.usable:
            return
        import filelock

        try:
            with ExitStack() as held, scratch_beside(self.path) as scratch:
                lock = filelock.FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=LOCK_SECONDS)
                with suppress(filelock.Timeout):  # another build that saves now; one that hangs holds up no engine
                    held.enter_context(lock)
                if self.path.is_file():
                    other = _parsed(config, read_bytes(self.path, LIMIT))
                    if other is not None:
                        cache.combine(other, True)
                scratch.write_bytes(bytes(cache.serialize()))
                if not self.named:
                    scratch.chmod(0o600)
                put_file(scratch, self.path)
        except (OSError, ArtifactError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            self.notices.append(f"the timing cache {self.path} was not written: {reason}")

    @property
    def use(self) -> TimingCacheUse:
        """For the manifest."""
        return TimingCacheUse(file=str(self.path), loaded_bytes=self.loaded_bytes)


def _parsed(config: Any, stored: bytes) -> Any:
    """TensorRT's cache of these bytes, or None where it refuses them."""
    try:
        return config.create_timing_cache(stored)
    except Exception:  # pybind turns TensorRT's refusals into several kinds
        return None
