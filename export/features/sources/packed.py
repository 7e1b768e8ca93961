"""Many short texts in little memory: one block of bytes, and where each text ends."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

_ERRORS = "surrogatepass"
"""Any `str` of Python survives, also one that stands for a file name that is not UTF-8."""
_BLOCK = 1 << 12


@dataclass(frozen=True)
class PackedTexts:
    """Texts in a fixed order, in their bytes as UTF-8 and 8 bytes more each. `TextPacker` makes one.

    Attributes:
        blob: all texts, one after another.
        offsets: (n + 1) int64; text i is at `blob[offsets[i]:offsets[i + 1]]`.
    """

    blob: bytes | bytearray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        return self.blob[self.offsets[index] : self.offsets[index + 1]].decode("utf-8", _ERRORS)

    def __iter__(self) -> Iterator[str]:
        start = 0
        for block in range(1, len(self.offsets), _BLOCK):
            for stop in self.offsets[block : block + _BLOCK].tolist():  # Python's integers are faster than NumPy's
                yield self.blob[start:stop].decode("utf-8", _ERRORS)
                start = stop

    def part(self, start: int, stop: int) -> PackedTexts:
        """A copy of the texts `start` to `stop` (not included)."""
        offsets = self.offsets[start : stop + 1]
        return PackedTexts(bytes(self.blob[offsets[0] : offsets[-1]]), offsets - offsets[0])

    def repeats(self, name: Callable[[str], str] = str) -> Iterator[tuple[int, int]]:
        """Each text whose `name` is equal to that of an earlier one: the index of the first such text, and its own.

        Needs about 26 bytes per text while it runs: names are compared only if their hashes are equal.
        """
        hashes = np.fromiter((hash(name(text)) for text in self), np.int64, len(self))
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        same = np.concatenate([hashes[1:] == hashes[:-1], [False]])
        del hashes
        starts = np.flatnonzero(same & ~np.concatenate([[False], same[:-1]]))
        ends = np.flatnonzero(~same)
        for start in starts:
            first: dict[str, int] = {}
            for index in order[start : ends[np.searchsorted(ends, start)] + 1]:
                earlier = first.setdefault(name(self[index]), int(index))
                if earlier != index:
                    yield earlier, int(index)


class TextPacker:
    """Builds `PackedTexts`."""

    def __init__(self) -> None:
        self._blob = bytearray()
        self._offsets = array("q", [0])

    def append(self, text: str) -> None:
        """Adds one text at the end."""
        self._blob += text.encode("utf-8", _ERRORS)
        self._offsets.append(len(self._blob))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def packed(self) -> PackedTexts:
        """The texts so far; the packer is not used after this."""
        return PackedTexts(self._blob, np.frombuffer(self._offsets, np.int64))
