"""One Parquet or Arrow file: its columns, its row groups, and the values of single columns in small batches."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

from ....core.errors import first_line
from ....core.phrases import first_few
from ..pyarrow_package import import_pyarrow
from .shards import ShardError, open_shard

ColumnKind = Literal["bytes", "image", "path"]
"""Encoded images; Hugging Face's structs of `bytes` and `path`; paths."""


class TableFile:
    """A Parquet file, or an Arrow file in the file or the stream format; a context manager.

    Every method raises ShardError if the file cannot be read.

    Attributes:
        size: of the file in bytes.
        schema: its pyarrow schema.
        names: of the columns.
        groups: rows of each row group or record batch.
    """

    def __init__(self, path: str, size: int | None = None) -> None:
        self._pa = import_pyarrow()
        self._held = contextlib.ExitStack()
        file, self.size = open_shard(path, size)
        self._held.enter_context(file)
        try:
            with self._errors():
                magic = file.read(8)
                file.seek(0)
                self._reader: _Parquet | _Arrow
                if path.lower().endswith(".parquet"):
                    self._reader = _Parquet(self._pa, file)
                else:
                    self._reader = _Arrow(self._pa, file, magic)
                self.schema: Any = self._reader.schema
                self.names: list[str] = self.schema.names  # fails for names that are not UTF-8
                self.groups: tuple[int, ...] = tuple(self._reader.groups())
            # Rows of images need bytes. A wrong number would be the length of everything that follows.
            if min(self.groups, default=0) < 0 or sum(self.groups) > (1 << 20) + 8 * self.size:
                raise ShardError(f"claims {sum(self.groups)} rows in {self.size} bytes; write it again")
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> TableFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def columns(self) -> str:
        """The names and types of the columns, for messages."""
        with self._errors():
            listed = [f"{field.name} ({str(field.type)[:40]})" for field in self.schema]
        return first_few(listed, 20) or "none"

    def column_type(self, name: str) -> Any:
        """The type of a column, without the dictionary if it has one; None if there is no such column, or two."""
        if self.names.count(name) != 1:
            return None
        kind = self.schema.field(self.names.index(name)).type
        return kind.value_type if self._pa.types.is_dictionary(kind) else kind

    def image_kind(self, name: str) -> ColumnKind | None:
        """How a column can have images; None if it cannot."""
        kind = self.column_type(name)
        if kind is None:
            return None
        if self._is_binary(kind):
            return "bytes"
        if self.is_text(kind):
            return "path"
        if self._pa.types.is_struct(kind):
            with self._errors():
                fields = {field.name: field.type for field in kind}
            empty = self._pa.types.is_null  # the type of a column in which pyarrow finds nulls alone
            if len(fields) == kind.num_fields and fields.keys() >= {"bytes"}:
                content, path = fields["bytes"], fields.get("path", self._pa.null())
                if (self._is_binary(content) or empty(content)) and (self.is_text(path) or empty(path)):
                    return None if empty(content) and empty(path) else "image"
        return None

    def is_text(self, kind: Any) -> bool:
        """Whether a type is text."""
        types = self._pa.types
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))

    def is_integer(self, kind: Any) -> bool:
        """Whether a type is a whole number."""
        return bool(self._pa.types.is_integer(kind))

    def _is_binary(self, kind: Any) -> bool:
        types = self._pa.types
        return bool(
            types.is_binary(kind)
            or types.is_large_binary(kind)
            or types.is_fixed_size_binary(kind)
            or types.is_binary_view(kind)
        )

    def values(self, column: str, group: int, rows: int) -> Iterator[list[Any]]:
        """The values of a column in one row group, in lists of at most `rows`; of structs, (bytes, path).

        Groups are read in ascending order. Raises ShardError in place of the rows from which on the group is damaged.
        """
        left = self.groups[group]
        with self._errors():
            batches = self._reader.batches(column, group, rows)
        while left:
            with self._errors():
                batch = next(batches, None)
                if batch is None:
                    raise ShardError(f"has fewer rows in row group {group} than it claims; write it again")
                array = batch.column(column)
                array.validate(full=True)  # offsets of a damaged file would be followed out of the memory it has
            for start in range(0, min(len(array), left), rows):
                with self._errors():
                    listed = self._listed(array.slice(start, min(rows, left)))
                left -= len(listed)
                yield listed

    def _listed(self, array: Any) -> list[Any]:
        if self._pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if not self._pa.types.is_struct(array.type):
            return list(array.to_pylist())
        import pyarrow.compute as pc

        contents = pc.struct_field(array, "bytes").to_pylist()
        if array.type.get_field_index("path") < 0:
            return [(content, None) for content in contents]
        return list(zip(contents, pc.struct_field(array, "path").to_pylist(), strict=True))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What pyarrow raises for damaged files becomes a ShardError."""
        try:
            yield
        except (self._pa.ArrowException, OSError, ValueError, MemoryError, OverflowError, EOFError) as error:
            if isinstance(error, MemoryError):
                raise ShardError("needs more memory than there is; write it with smaller row groups") from None
            raise ShardError(f"cannot be read ({first_line(error)}); download or write it again") from None


class _Parquet:
    def __init__(self, pa: Any, file: BinaryIO) -> None:
        self._file = pa.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        self.schema = self._file.schema_arrow

    def groups(self) -> Iterator[int]:
        metadata = self._file.metadata
        return (metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))

    def batches(self, column: str, group: int, rows: int) -> Iterator[Any]:
        return iter(self._file.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False))


class _Arrow:
    """Read by way of mapped memory, so that only the columns asked for are read from the disk."""

    def __init__(self, pa: Any, file: BinaryIO, magic: bytes) -> None:
        self._pa = pa
        if magic.startswith(b"FEA1"):
            raise ValueError("it is in the old format Feather 1")
        self._memory = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._is_file = magic.startswith(b"ARROW1")
        self.schema = self._open(None).schema
        self._streams: dict[str, tuple[Any, int]] = {}

    def _open(self, column: int | None) -> Any:
        options = self._pa.ipc.IpcReadOptions(included_fields=None if column is None else [column], use_threads=False)
        opened = self._pa.ipc.open_file if self._is_file else self._pa.ipc.open_stream
        return opened(self._pa.BufferReader(self._memory), options=options)

    def groups(self) -> Iterator[int]:
        if not len(self.schema):
            return
        # Where columns are compressed, the one whose values are smallest is unpacked.
        widths = [self._pa.types.is_primitive(field.type) for field in self.schema]
        reader = self._open(widths.index(True) if any(widths) else 0)
        if self._is_file:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index).num_rows
        else:
            for batch in reader:
                yield batch.num_rows

    def batches(self, column: str, group: int, rows: int) -> Iterator[Any]:
        reader, at = self._streams.get(column) or (self._open(self.schema.names.index(column)), 0)
        if self._is_file:
            batch = reader.get_batch(group)
        else:
            for _ in range(group + 1 - at):
                batch = next(iter(reader), None)
        self._streams[column] = reader, group + 1
        return iter([] if batch is None else [batch])
