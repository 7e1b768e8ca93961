"""Images in tar files, as WebDataset stores them, read by position."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from ....core.errors import ImageError
from ....core.phrases import printable
from ....encoder.image import image_suffixes
from .packed import PackedTexts, TextPacker
from .shards import MAX_IMAGE_BYTES, ShardError, open_shard, overlaps, refuse_all, shard_id, why_unreadable
from .source import Item
from .splits import cut
from .tar_index import Member, TarDamageError, members


@dataclass(frozen=True, kw_only=True)
class TarShard:
    """One tar file.

    Attributes:
        path: of the file.
        size: of it in bytes; -1 if it could not be opened.
        images: how many of them the source has.
        error: why it has no more; it is one more item after the images. None if it has been read to its end.
    """

    path: str
    size: int
    images: int
    error: str | None = None

    @cached_property
    def name(self) -> str:
        """What ids and errors call it."""
        return shard_id(self.path)

    @property
    def items(self) -> int:
        """Images, and one more for an error."""
        return self.images + (self.error is not None)


@dataclass
class TarSource:
    """Images in tar files; about 24 bytes more per image than its key has.

    Attributes:
        shards: in order.
        keys: of the images of all shards, which are the ids.
        offsets: of each image in its file, in bytes, (n) int64.
        sizes: of each image in bytes, (n) int64; -1 if it is stored as a sparse file.
        prefixed: ids are `SHARD/KEY`, because keys are in several shards.
        notices: see `Source`.
    """

    shards: list[TarShard]
    keys: PackedTexts
    offsets: np.ndarray
    sizes: np.ndarray
    prefixed: bool = False
    notices: list[str] = field(default_factory=list)
    kind: str = "tars"
    _digest: str | None = field(default=None, repr=False)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([shard.items for shard in self.shards], dtype=np.int64)

    @cached_property
    def _image_ends(self) -> np.ndarray:
        return np.cumsum([shard.images for shard in self.shards], dtype=np.int64)

    @property
    def digest(self) -> str:
        """See `Source`; hashes names and sizes of the shards, and the key, place and size of each image."""
        if self._digest is None:
            hashed = hashlib.sha256(b"tars\n")
            for shard in self.shards:
                facts = (shard.name, shard.size, shard.images, shard.error, self.prefixed)
                hashed.update(f"{facts!r}\n".encode())
            hashed.update(self.keys.blob)
            for numbers in (self.keys.offsets, self.offsets, self.sizes):
                hashed.update(np.ascontiguousarray(numbers, "<i8").data)
            self._digest = hashed.hexdigest()
        return self._digest

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def __iter__(self) -> Iterator[Item]:
        first = 0
        for shard in self.shards:
            yield from self._images(shard, first)
            if shard.error is not None:
                yield Item(shard.name, None, f"{shard.name} {shard.error}")
            first += shard.images

    def ids(self) -> Iterator[str]:
        """See `Source`."""
        first = 0
        for shard in self.shards:
            for index in range(first, first + shard.images):
                yield image_id(shard, self.keys[index], prefixed=self.prefixed)
            if shard.error is not None:
                yield shard.name
            first += shard.images

    def files(self) -> Iterator[Path]:
        """See `Source`."""
        return (Path(shard.path) for shard in self.shards)

    def part(self, start: int, stop: int) -> TarSource:
        """See `Source`."""
        shards: list[TarShard] = []
        first = last = 0
        for index, low, high in overlaps(self._ends, start, stop):
            shard = self.shards[index]
            inside = range(min(low, shard.images), min(high, shard.images))
            error = shard.error if high > shard.images else None
            before = int(self._image_ends[index]) - shard.images
            first, last = first if shards else before + inside.start, before + inside.stop
            shards.append(replace(shard, images=len(inside), error=error))
        return TarSource(
            shards,
            self.keys.part(first, last),
            self.offsets[first:last].copy(),
            self.sizes[first:last].copy(),
            self.prefixed,
        )

    def splits(self, rows: int) -> list[tuple[int, int]]:
        """See `Source`."""
        return cut(len(self), rows, self._ends)

    def _images(self, shard: TarShard, first: int) -> Iterator[Item]:
        if not shard.images:
            return
        file: BinaryIO | None = None
        lost: str | None = None
        try:
            file, _ = open_shard(shard.path, shard.size)
        except ShardError as error:
            lost = f"{shard.name} {error}"
        try:
            for index in range(first, first + shard.images):
                key = image_id(shard, self.keys[index], prefixed=self.prefixed)
                if file is None:
                    yield Item(key, None, f"{key}: {lost}")
                else:
                    yield _read(file, key, shard.name, int(self.offsets[index]), int(self.sizes[index]))
        finally:
            if file is not None:
                file.close()


def open_tars(paths: Sequence[Path]) -> TarSource:
    """The images in tar files; reads all headers, and no image.

    A member is an image if Pillow reads files with its suffix. Its id is its key, as WebDataset has it: the path up to
    the first dot of the base name. If a key is in several shards, all ids become `SHARD/KEY`, with a notice.

    Raises:
        ImageError: no shard has an image; a shard has two images with one key; two shards with one name have one key.
    """
    suffixes = image_suffixes()
    shards, keys = [], TextPacker()
    offsets, sizes = array("q"), array("q")
    for path in paths:
        before, size, problem = len(keys), -1, None
        try:
            file, size = open_shard(path)
            with file:
                for member in members(file, size):
                    if (key := image_key(member.name, suffixes)) is not None:
                        keys.append(key)
                        offsets.append(member.offset)
                        sizes.append(member.size)
        except (ShardError, TarDamageError) as error:
            problem = str(error)
        except OSError as error:
            problem = why_unreadable(error)
        shards.append(TarShard(path=str(path), size=size, images=len(keys) - before, error=problem))

    if not len(keys):
        refuse_all(
            [(shard.name, shard.error) for shard in shards if shard.error]
            or [(shard.name, "has no member with an image's suffix, such as .jpg or .png") for shard in shards]
        )
    source = TarSource(shards, keys.packed(), _int64(offsets), _int64(sizes))
    _make_unique(source)
    return source


def image_key(name: str, suffixes: set[str]) -> str | None:
    """The key of a member, as WebDataset splits names; None if it is no image, or hidden (`a/.0.jpg`).

    Source: webdataset's `base_plus_ext`.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or "." + extension.rpartition(".")[2].lower() not in suffixes:
        return None
    return printable(f"{folder}{slash}{stem}")


def image_id(shard: TarShard, key: str, *, prefixed: bool) -> str:
    """The id of an image: its key, after the name of its shard if that is needed."""
    return f"{printable(Path(shard.path).stem)}/{key}" if prefixed else key


def _read(file: BinaryIO, key: str, name: str, offset: int, size: int) -> Item:
    if size < 0:
        return Item(key, None, f"{key} is stored as a sparse file in {name}; write the tar file without --sparse")
    if size > MAX_IMAGE_BYTES:
        return Item(key, None, f"{key} in {name} has {size} bytes; an image may have up to {MAX_IMAGE_BYTES}")
    try:
        file.seek(offset)
        content = file.read(size)
    except OSError as error:
        return Item(key, None, f"{key}: {name} {why_unreadable(error)}")
    if len(content) < size:
        return Item(key, None, f"{key}: {name} became shorter while it was read; run the command again")
    return Item(key, content)


def _make_unique(source: TarSource) -> None:
    """Gives the ids a prefix if a key is in several shards. Raises ImageError if that is not enough."""
    ends = np.cumsum([shard.images for shard in source.shards])

    def shard_of(image: int) -> int:
        return int(np.searchsorted(ends, image, side="right"))

    for first, again in source.keys.repeats():
        if shard_of(first) == shard_of(again):
            _refuse_twice(source.shards[shard_of(first)], source.keys[first])
        if not source.prefixed:
            source.prefixed = True
            names = [source.shards[shard_of(image)].name for image in (first, again)]
            source.notices.append(
                f"keys are in several shards ({source.keys[first]} in {names[0]} and {names[1]}): "
                "ids are SHARD/KEY in this run"
            )
    if source.prefixed:
        ids = TextPacker()
        for image, key in enumerate(source.keys):
            ids.append(image_id(source.shards[shard_of(image)], key, prefixed=True))
        for first, again in ids.packed().repeats():
            one, other = (source.shards[shard_of(image)] for image in (first, again))
            if one is other:
                _refuse_twice(one, source.keys[first])
            raise ImageError(
                f"{one.name} and {other.name} have one name and both have the key "
                f"{source.keys[first]}; rename one of them"
            )


def _refuse_twice(shard: TarShard, key: str) -> NoReturn:
    """A key with two images: names both, for which the shard's headers are read again."""
    names: list[str] = []
    suffixes = image_suffixes()
    try:
        file, size = open_shard(shard.path)
        with file:
            found: Iterator[Member] = members(file, size)
            names = [member.name for member in found if image_key(member.name, suffixes) == key]
    except (ShardError, TarDamageError, OSError):
        pass  # the names found before a cut are enough
    raise ImageError(
        f"{shard.name} has {len(names) or 'several'} images with the key {key} "
        f"({printable(', '.join(names[:2]))}); keep one image per key"
    )


def _int64(numbers: array[int]) -> np.ndarray:
    return np.frombuffer(numbers, np.int64) if numbers else np.empty(0, np.int64)
