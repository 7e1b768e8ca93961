"""Searching folders for images, with an account of everything that was left out."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ...core.errors import ImageError, ImageWarning
from .read import NO_PIXELS, missing

HIDDEN, OTHER = "hidden", "not an image by its suffix"
LINKED_TWICE, DANGLING = "link to what was found already", "dangling link"
UNREADABLE, SPECIAL = "no permission to read", "not a regular file"

_EXAMPLES = 2
"""How many paths a notice names for each reason."""


@dataclass
class Found:
    """What a search found.

    Attributes:
        files: the images, in order.
        left_out: reason -> the paths that were left out for it.
    """

    files: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    def leave_out(self, reason: str, path: Path) -> None:
        """Notes that `path` is left out."""
        self.left_out.setdefault(reason, []).append(path)

    def add(self, other: Found) -> None:
        """Appends the results of another search."""
        self.files += other.files
        for reason, paths in other.left_out.items():
            self.left_out.setdefault(reason, []).extend(paths)

    def notice(self) -> str:
        """One line that counts what was left out, with examples; empty if nothing was."""
        parts = []
        for reason, paths in sorted(self.left_out.items()):
            names = ", ".join(map(str, sorted(paths)[:_EXAMPLES])) + (", ..." if len(paths) > _EXAMPLES else "")
            parts.append(f"{reason}: {len(paths)} ({names})")
        total = sum(map(len, self.left_out.values()))
        noun = "file or folder" if total == 1 else "files or folders"
        return f"left out {total} {noun}: {'; '.join(parts)}" if parts else ""


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The image files that `paths` stand for, as `search_images` finds them.

    Warns with ImageWarning about everything that was left out of a folder.
    """
    found = search_images(paths)
    if notice := found.notice():
        warnings.warn(notice, ImageWarning, stacklevel=2)
    return found.files


def search_images(paths: Iterable[str | os.PathLike[str]]) -> Found:
    """The image files that `paths` stand for, and what was left out of folders.

    Files stay as given, whatever their suffix. Folders are searched recursively for the suffixes that Pillow can open,
    in sorted order; links are followed. Within a folder, each file and each sub-folder is taken once, under the path
    without a link if there is one, so that loops end. Left out are hidden files and folders, other suffixes, links to
    what was found already or to nothing, sub-folders without permission, and what is no regular file.

    Raises ImageError for a path that is missing, and for a folder without images or without permission.
    """
    found = Found()
    for given in paths:
        if not os.fspath(given):  # which `Path` takes for the current folder
            raise ImageError("the path of the image is empty: give the path of a file or folder")
        path = Path(given)
        try:
            folder = path.is_dir()
            if not folder and not path.exists():
                raise ImageError(missing(path))
        except OSError as error:
            raise ImageError(f"cannot read {path} ({error.strerror}): check its name and permissions") from None
        if not folder:
            found.files.append(path)
            continue
        inside = _Search(path).found
        if not inside.files:
            if inside.left_out.get(UNREADABLE) == [path]:
                raise ImageError(f"no permission to read folder {path}: change its owner or mode (chmod +rx)")
            notice = inside.notice()
            raise ImageError(
                f"no image in folder {path}: looked for files such as .jpg, .png, .webp and .tiff"
                + (f"; {notice}" if notice else "")
            )
        inside.files.sort()
        found.add(inside)
    return found


class _Search:
    """The search of one folder: first all that is no link, then the links."""

    def __init__(self, folder: Path) -> None:
        self.found = Found()
        self._suffixes = image_suffixes()
        self._seen: set[str] = set()
        self._links: list[Path] = []
        self._folder(folder)
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                self._entry(link)

    def _folder(self, folder: Path) -> None:
        """Takes what a folder and its sub-folders contain; links are kept for later."""
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(folder)
            if real in self._seen:
                self.found.leave_out(LINKED_TWICE, folder)
                continue
            self._seen.add(real)
            try:
                with os.scandir(folder) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name)
            except OSError:
                self.found.leave_out(UNREADABLE, folder)
                continue
            for entry in entries:
                path = folder / entry.name
                if entry.name.startswith("."):
                    self.found.leave_out(HIDDEN, path)
                elif entry.is_symlink():
                    self._links.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                else:
                    self._file(path, os.path.join(real, entry.name))  # noqa: PTH118  # strings, for speed

    def _entry(self, link: Path) -> None:
        """Follows a link."""
        real = os.path.realpath(link)
        try:
            mode = Path(real).stat().st_mode
        except PermissionError:
            self.found.leave_out(UNREADABLE, link)
        except OSError:  # also a link to itself
            self.found.leave_out(DANGLING, link)
        else:
            if stat.S_ISDIR(mode):
                self._folder(link)
            else:
                self._file(link, real)

    def _file(self, path: Path, real: str) -> None:
        if path.suffix.lower() not in self._suffixes:
            self.found.leave_out(OTHER, path)
            return
        try:
            regular = stat.S_ISREG(Path(real).stat().st_mode)
        except OSError:
            self.found.leave_out(UNREADABLE, path)
            return
        if not regular:
            self.found.leave_out(SPECIAL, path)
        elif real in self._seen:
            self.found.leave_out(LINKED_TWICE, path)
        else:
            self._seen.add(real)
            self.found.files.append(path)


def image_suffixes() -> set[str]:
    """Suffixes, in lower case and with the dot, of the files whose pixels Pillow can read."""
    known = Image.registered_extensions()  # also loads the plugins, which fill Image.OPEN
    # MPO files (several JPEGs in one) are opened by the JPEG plugin.
    readable = {*Image.OPEN, "MPO"} - NO_PIXELS
    return {suffix for suffix, kind in known.items() if kind in readable}
