"""What a source of images is: a fixed order of images, each with an id."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable


class Item(NamedTuple):
    """One image of a source.

    Attributes:
        id: its path, row id or key; no two of one source are the same.
        data: a file, or the content of one; None where there is an error.
        error: why it cannot be read; None where it can.
    """

    id: str
    data: Path | bytes | None
    error: str | None = None


@runtime_checkable
class Source(Protocol):
    """Images in a fixed order. Can be pickled, and reads no image before it is iterated over.

    Attributes:
        kind: `images`, `tables` or `tars`.
        notices: what the user should know about it, one line each.
    """

    kind: str
    notices: list[str]

    @property
    def digest(self) -> str:
        """SHA-256 of what makes it this source: its kind, and the ids and sizes in order."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]:
        """Every image in order; what cannot be read comes as an item with an error."""
        ...

    def ids(self) -> Iterator[str]:
        """The ids in order; reads no image."""
        ...

    def files(self) -> Iterator[Path]:
        """The files that are read: images, tables, tar files, lists."""
        ...

    def part(self, start: int, stop: int) -> Source:
        """The images `start` to `stop` (not included), without the rest of the list."""
        ...

    def splits(self, rows: int) -> list[tuple[int, int]]:
        """Ranges that cover all, each of about `rows` images, cut where a file or row group ends if possible."""
        ...
