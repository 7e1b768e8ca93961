"""Searching folders for images, with an account of everything that was left out."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterable, Iterator
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
        inside = Found()
        inside.files += map(Path, images_in(path, inside))
        found.add(inside)
    return found


def images_in(folder: Path, found: Found) -> Iterator[str]:
    """The paths of the images in a folder, in the order and with the errors of `search_images`.

    They are texts, which take a fourth of the memory, and are freed as they are used.

    Args:
        folder: to search.
        found: is told what was left out, before the first path.
    """
    search = _Search(folder, found)
    files = search.files
    if not files:
        if found.left_out.get(UNREADABLE) == [folder]:
            raise ImageError(f"no permission to read folder {folder}: change its owner or mode (chmod +rx)")
        notice = found.notice()
        raise ImageError(
            f"no image in folder {folder}: looked for files such as .jpg, .png, .webp and .tiff"
            + (f"; {notice}" if notice else "")
        )
    files.sort(key=_order, reverse=True)
    while files:
        yield files.pop().replace("\0", os.sep)


def _order(path: str) -> str:
    """Sorts as `Path` does: name by name, and on Windows without regard to case."""
    return os.path.normcase(path)


class _Search:
    """The search of one folder: first all that is no link, then the links.

    Attributes:
        files: the images, with NUL in place of the separator: so they sort name by name.
    """

    def __init__(self, folder: Path, found: Found) -> None:
        self.files: list[str] = []
        self.found = found
        self._suffixes = image_suffixes()
        self._read: set[str] = set()  # the real paths of folders, all of whose files have been taken
        self._seen: set[str] = set()  # those of other folders, and of files that a link led to
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
            if real in self._seen or real in self._read:
                self.found.leave_out(LINKED_TWICE, folder)
                continue
            self._seen.add(real)
            try:
                with os.scandir(folder) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name)
            except OSError:
                self.found.leave_out(UNREADABLE, folder)
                continue
            self._read.add(real)
            before = str(folder / "x")[:-1]
            for entry in entries:
                if entry.name.startswith("."):
                    self.found.leave_out(HIDDEN, folder / entry.name)
                elif entry.is_symlink():
                    self._links.append(folder / entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(folder / entry.name)
                else:
                    self._file(before + entry.name, os.path.join(real, entry.name), linked=False)  # noqa: PTH118

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
                self._file(str(link), real, linked=True)

    def _file(self, path: str, real: str, *, linked: bool) -> None:
        # Texts, because millions of files are looked at.
        if os.path.splitext(path)[1].lower() not in self._suffixes:  # noqa: PTH122
            self.found.leave_out(OTHER, Path(path))
            return
        try:
            regular = stat.S_ISREG(os.stat(real).st_mode)  # noqa: PTH116
        except OSError:
            self.found.leave_out(UNREADABLE, Path(path))
            return
        if not regular:
            self.found.leave_out(SPECIAL, Path(path))
        elif real in self._seen or (linked and self._has_taken(real)):
            self.found.leave_out(LINKED_TWICE, Path(path))
        else:
            if linked:
                self._seen.add(real)
            self.files.append(path.replace(os.sep, "\0"))

    def _has_taken(self, real: str) -> bool:
        """Whether a file was found in its own folder, where hidden files and other suffixes are left out."""
        folder, name = os.path.split(real)
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
        return folder in self._read and not name.startswith(".") and suffix in self._suffixes


def image_suffixes() -> set[str]:
    """Suffixes, in lower case and with the dot, of the files whose pixels Pillow can read."""
    known = Image.registered_extensions()  # also loads the plugins, which fill Image.OPEN
    # MPO files (several JPEGs in one) are opened by the JPEG plugin.
    readable = {*Image.OPEN, "MPO"} - NO_PIXELS
    return {suffix for suffix, kind in known.items() if kind in readable}
