"""A source of images with the data given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Listed:
    """A source of images with the data given."""

    items: tuple[Any, ...]
    digest: str = "0" * 64
    kind = "list"
    notices: ClassVar[list[str]] = []

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def ids(self) -> Iterator[str]:
        return (item.id for item in self.items)

    def files(self) -> Iterator[Any]:
        return (item.data for item in self.items if not isinstance(item.data, bytes | None))

    def part(self, start: int, stop: int) -> Listed:
        return Listed(self.items[start:stop])

    def splits(self, rows: int) -> list[tuple[int, int]]:
        return [(at, min(at + rows, len(self))) for at in range(0, len(self), rows)]
