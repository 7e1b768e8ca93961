"""Images in tables: Parquet and Arrow files with a column of encoded images or of paths."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from ....core.errors import ImageError
from ....core.phrases import printable
from .packed import PackedTexts, TextPacker
from .path_source import path_item
from .shards import MAX_IMAGE_BYTES, ShardError, open_shard, overlaps, refuse_all, shard_id
from .source import Item
from .splits import cut
from .table_file import TableFile

PATH_NAMES = frozenset({
    "image", "images", "image_path", "image_file", "img", "img_path", "path", "paths", "file", "files", "file_path",
    "file_name", "filepath", "filename",
})  # fmt: skip
"""Names, in lower case, of columns of text that are taken for paths of images without `--image-column`."""

LONGEST_ID = 4096
"""Characters of an id in `--id-column`."""

BATCH, TEXT_BATCH = 64, 4096
"""Rows that are in memory as Python's values at the same time."""


@dataclass(frozen=True, kw_only=True)
class TableShard:
    """One file.

    Attributes:
        path: of it.
        size: in bytes; -1 if it could not be opened.
        groups: rows of each row group.
        start, stop: the rows that the source has.
        error: why none of it can be read; it is one item then. None if it can.
    """

    path: str
    size: int
    groups: tuple[int, ...] = ()
    start: int = 0
    stop: int = 0
    error: str | None = None

    @property
    def items(self) -> int:
        """Rows, or one for an error."""
        return 1 if self.error is not None else self.stop - self.start

    @cached_property
    def name(self) -> str:
        """What ids and errors call it."""
        return shard_id(self.path)

    def place(self, item: int) -> str:
        """The name of an item: `FILE#ROW`, or `FILE` for an error."""
        return self.name if self.error is not None else f"{self.name}#{self.start + item}"


@dataclass
class TableSource:
    """Images in tables. Reads a row group at a time, and only the column with the images.

    Attributes:
        shards: in order.
        image_column: has the images.
        id_column: has the ids; None for `FILE#ROW`.
        ids_of_column: of all items, with an id column.
        notices: see `Source`.
    """

    shards: list[TableShard]
    image_column: str
    id_column: str | None = None
    ids_of_column: PackedTexts | None = None
    notices: list[str] = field(default_factory=list)
    kind: str = "tables"
    _digest: str | None = field(default=None, repr=False)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([shard.items for shard in self.shards], dtype=np.int64)

    @property
    def digest(self) -> str:
        """See `Source`; hashes the columns' names, the files' names, sizes and row counts, and the ids of a column."""
        if self._digest is None:
            hashed = hashlib.sha256(f"tables\n{(self.image_column, self.id_column)!r}\n".encode("utf-8", "replace"))
            for shard in self.shards:
                facts = (shard.name, shard.size, shard.groups, shard.start, shard.stop, shard.error)
                hashed.update(f"{facts!r}\n".encode())
            if self.ids_of_column is not None:
                hashed.update(self.ids_of_column.blob)
                hashed.update(np.ascontiguousarray(self.ids_of_column.offsets, "<i8").data)
            self._digest = hashed.hexdigest()
        return self._digest

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def __iter__(self) -> Iterator[Item]:
        first = 0
        for shard in self.shards:
            if shard.error is None:
                yield from self._rows(shard, first)
            else:
                yield Item(shard.name, None, f"{shard.name} {shard.error}")
            first += shard.items

    def ids(self) -> Iterator[str]:
        """See `Source`."""
        if self.ids_of_column is not None:
            yield from self.ids_of_column
            return
        for shard in self.shards:
            yield from (shard.place(item) if shard.error is None else shard.name for item in range(shard.items))

    def files(self) -> Iterator[Path]:
        """See `Source`."""
        return (Path(shard.path) for shard in self.shards)

    def part(self, start: int, stop: int) -> TableSource:
        """See `Source`."""
        shards: list[TableShard] = []
        for index, low, high in overlaps(self._ends, start, stop):
            shard = self.shards[index]
            if shard.error is None:
                shard = replace(shard, start=shard.start + low, stop=shard.start + high)
            shards.append(shard)
        ids = None if self.ids_of_column is None else self.ids_of_column.part(start, stop)
        return TableSource(shards, self.image_column, self.id_column, ids)

    def splits(self, rows: int) -> list[tuple[int, int]]:
        """See `Source`."""
        ends: list[int] = []
        item = 0
        for shard in self.shards:
            inner = np.cumsum(shard.groups, dtype=np.int64)
            inner = inner[(inner > shard.start) & (inner < shard.stop)] - shard.start + item
            item += shard.items
            ends += [*inner.tolist(), item]
        return cut(item, rows, np.unique(ends))

    def _rows(self, shard: TableShard, first: int) -> Iterator[Item]:
        """The rows of a shard, whose first is item `first`; rows that cannot be read are items with an error."""
        try:
            with TableFile(shard.path, shard.size) as file:
                if file.groups != shard.groups:
                    raise ShardError("changed while it was read; run the command again")
                row = 0
                for group, rows in enumerate(shard.groups):
                    if row < shard.stop and row + rows > shard.start:
                        for value in self._values(file, group):
                            if shard.start <= row < shard.stop:
                                yield self._item(shard, first, row - shard.start, value)
                            row += 1
                    else:
                        row += rows
        except ShardError as error:  # of the opening: `_values` passes on its own
            for item in range(shard.items):
                yield self._item(shard, first, item, error)

    def _values(self, file: TableFile, group: int) -> Iterator[Any]:
        """A value for every row of a group; in place of those that cannot be read, the ShardError that says why."""
        done = 0
        rows = TEXT_BATCH if file.image_kind(self.image_column) == "path" else BATCH
        try:
            for values in file.values(self.image_column, group, rows):
                yield from values
                done += len(values)
        except ShardError as error:
            yield from repeat(error, file.groups[group] - done)

    def _item(self, shard: TableShard, first: int, item: int, value: Any) -> Item:
        name = shard.place(item) if self.ids_of_column is None else self.ids_of_column[first + item]
        if isinstance(value, ShardError):
            return Item(name, None, f"{name}: {shard.name} {value}")
        folder = Path()
        if isinstance(value, tuple):
            content, path = value
            value, folder = (path, Path(shard.path).parent) if content is None else (content, folder)
        if value is None:
            return Item(name, None, f"{name} has no image (null in the column {self.image_column})")
        if isinstance(value, str):
            return path_item(name, folder / value if value else "")
        if len(value) > MAX_IMAGE_BYTES:
            return Item(name, None, f"{name} has {len(value)} bytes; an image may have up to {MAX_IMAGE_BYTES}")
        return Item(name, value)


def open_tables(paths: Sequence[Path], image_column: str | None = None, id_column: str | None = None) -> TableSource:
    """The images in tables; reads what the files say of their columns and rows, and the ids if a column has them.

    Without a name, the column with the images is the only one of binary data or of Hugging Face's images, or else the
    only one of text with a name in `PATH_NAMES`. Paths in a column of text are relative to the current folder; those
    of Hugging Face's images, which are for images without bytes, to the folder of the table.

    Raises:
        ImageError: no table can be read or has the columns; no rows; an id is null, too long, or in two rows.
        UnavailableError: pyarrow is not installed.
    """
    shards: list[TableShard] = []
    ids = TextPacker()
    chosen = image_column
    for path in paths:
        shard = TableShard(path=str(path), size=_size(path))
        try:
            with TableFile(shard.path) as file:
                column = _image_column(file, chosen)
                shard = replace(shard, groups=file.groups, stop=sum(file.groups), size=file.size)
                listed = [] if id_column is None else _read_ids(file, shard, id_column)
            chosen = column
        except ShardError as error:
            shard = replace(shard, groups=(), stop=0, error=str(error))
            listed = [shard.name]
        shards.append(shard)
        if id_column is not None:
            for name in listed:
                ids.append(name)
    if all(shard.error for shard in shards):
        refuse_all([(shard.name, shard.error or "") for shard in shards])
    if not any(shard.items for shard in shards):
        refuse_all([(shard.name, "has no rows") for shard in shards])
    assert chosen is not None
    source = TableSource(shards, chosen, id_column, None if id_column is None else ids.packed())
    _check_unique(source)
    return source


def _size(path: Path) -> int:
    try:
        file, size = open_shard(path)
    except ShardError:
        return -1
    file.close()
    return size


def _image_column(file: TableFile, name: str | None) -> str:
    """The name of the column with the images. Raises ShardError if the table has no such column."""
    if name is not None:
        if file.image_kind(name) is None:
            what = "no column" if file.column_type(name) is None else "no images or paths in the column"
            raise ShardError(f"has {what} {name!r} (columns: {file.columns()}); name another with --image-column")
        return name
    kinds = {name: file.image_kind(name) for name in file.names}
    found = [name for name, kind in kinds.items() if kind in ("bytes", "image")]
    if not found:
        found = [name for name, kind in kinds.items() if kind == "path" and name.lower() in PATH_NAMES]
    if len(found) != 1:
        many = "several columns that may have the images" if found else "no column that is surely the images"
        raise ShardError(f"has {many} (columns: {file.columns()}); name one with --image-column")
    return found[0]


def _read_ids(file: TableFile, shard: TableShard, column: str) -> list[str]:
    """The ids of a shard's rows. Raises ShardError if the column is missing or damaged, and ImageError for a null."""
    kind = file.column_type(column)
    if kind is None or not (file.is_text(kind) or file.is_integer(kind)):
        what = "no column" if kind is None else "no text or integers in the column"
        raise ShardError(f"has {what} {column!r} (columns: {file.columns()}); name another with --id-column")
    ids: list[str] = []
    for group in range(len(file.groups)):
        for values in file.values(column, group, TEXT_BATCH):
            for value in values:
                name = printable(str(value))
                if value is None or not name or len(name) > LONGEST_ID:
                    found = "null" if value is None else f"of {len(name)} characters"
                    raise ImageError(
                        f"row {len(ids)} of {shard.name} has no usable id (it is {found} in the column "
                        f"{column}); an id has 1 to {LONGEST_ID} characters: use another --id-column"
                    )
                ids.append(name)
    return ids


def _check_unique(source: TableSource) -> None:
    """Raises ImageError if an id is in two rows."""
    if source.ids_of_column is None:
        return
    twice = min(source.ids_of_column.repeats(), key=lambda pair: pair[1], default=None)
    if twice is not None:
        ends = np.cumsum([shard.items for shard in source.shards])
        places = [
            source.shards[index].place(inside) for item in twice for index, inside, _ in overlaps(ends, item, item + 1)
        ]
        raise ImageError(
            f"the id {source.ids_of_column[twice[0]]} is in two rows ({places[0]} and {places[1]}); use another "
            "--id-column, or leave it out for ids such as FILE#ROW"
        )
