"""The headers of a tar file: where its members are, without reading them.

`tarfile` takes damage in the middle of a file for its end, keeps every member in memory, and reads as many bytes for a
name as a header claims. Sources: POSIX.1-2024, pax, "ustar Interchange Format" and "pax Interchange Format"; GNU tar's
manual, "Basic Tar Format"; CPython's `tarfile`, which agrees in all that is read here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
_LARGEST_NAME = 1 << 20
"""Bytes of a header that only carries a name or attributes for the next one."""
_PADDING = 1 << 20
"""Bytes after the end marker that are looked at; no program pads with more."""

_REGULAR = b"0\x007"
_NO_DATA = b"123456"
"""Links, devices, folders and FIFOs: whatever size their header has, no data follows."""

_ZEROS = bytes(BLOCK)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}


class Member(NamedTuple):
    """A regular file in a tar file.

    Attributes:
        name: its path.
        offset: of its first byte.
        size: in bytes; -1 if it is stored as a sparse file.
    """

    name: str
    offset: int
    size: int


class TarDamageError(Exception):
    """The rest of a tar file cannot be read; the message says where and why."""


def members(file: BinaryIO, size: int) -> Iterator[Member]:
    """The regular files in a tar file, in order. Reads only headers.

    Args:
        file: the tar file.
        size: of it in bytes.

    Raises:
        TarDamageError: after the last sound member.
        OSError: the disk cannot be read.
    """
    at = 0
    long_name: str | None = None
    attributes: dict[bytes, bytes] = {}
    while True:
        header = _read(file, at, BLOCK)
        if header == _ZEROS:
            _check_end(file, at)
            return
        if len(header) < BLOCK:
            raise TarDamageError(_cut(size) if at else "is empty" if not size else "is not a tar file")
        if not _sound(header):
            kind = next((name for magic, name in _COMPRESSED.items() if not at and header.startswith(magic)), None)
            if kind:
                raise TarDamageError(f"is compressed with {kind}, so images cannot be read by position; decompress it")
            raise TarDamageError(f"is damaged at byte {at}; download it again" if at else "is not a tar file")
        kind_of = header[156:157]
        length = _number(header[124:136], at)
        data = at + BLOCK
        if kind_of in b"LKxXg":
            if length > _LARGEST_NAME:
                raise TarDamageError(f"has a header of {length} bytes at byte {at}; write it again")
            content = _read(file, data, length)
            if len(content) < length:
                raise TarDamageError(_cut(size))
            if kind_of == b"L":
                long_name = _text(content)
            elif kind_of in b"xX":
                attributes = _records(content, at)
            at = data + _blocks(length)
            continue

        name = attributes.get(b"path")
        path = long_name if name is None else name.decode("utf-8", "surrogateescape")
        sparse = kind_of == b"S" or any(key.startswith(b"GNU.sparse.") for key in attributes)
        if b"size" in attributes:
            length = _decimal(attributes[b"size"], at)
        long_name, attributes = None, {}
        if path is None:
            path = _short_name(header)
        if kind_of in _NO_DATA or (kind_of == b"\0" and path.endswith("/")):
            at = data
            continue
        if kind_of == b"S":
            more = header[482]
            while more:  # further headers with the map of a sparse file
                extension = _read(file, data, BLOCK)
                if len(extension) < BLOCK:
                    raise TarDamageError(_cut(size))
                more = extension[504]
                data += BLOCK
        if data + length > size:
            raise TarDamageError(_cut(size))
        if kind_of in _REGULAR or sparse:
            yield Member(path, data, -1 if sparse else length)
        at = data + _blocks(length)


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _check_end(file: BinaryIO, at: int) -> None:
    """Members after the end marker, as `cat a.tar b.tar` makes them, would be lost without notice."""
    file.seek(at)
    rest = file.read(_PADDING)
    if rest.count(0) != len(rest):
        raise TarDamageError(f"goes on after its end marker at byte {at}; join tar files with `tar -A`, not `cat`")


def _cut(size: int) -> str:
    return f"is cut off at byte {size}; download it again"


def _sound(header: bytes) -> bool:
    """Whether the checksum is right, as the sum of unsigned bytes or, as some old programs wrote it, of signed ones."""
    try:
        stored = int(header[148:156].partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return False
    body = header[:148] + header[156:]
    unsigned = sum(body) + 256
    return stored == unsigned or stored == unsigned - 256 * sum(byte > 127 for byte in body)


def _number(field: bytes, at: int) -> int:
    """A size: octal digits, or for 8 GB and more as GNU tar writes it a mark and the number itself."""
    if field[0] == 0o200:
        return int.from_bytes(field[1:], "big")
    try:
        value = int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise TarDamageError(f"is damaged at byte {at}; download it again")
    return value


def _decimal(text: bytes, at: int) -> int:
    if not text.isdigit() or len(text) > 20:
        raise TarDamageError(f"is damaged at byte {at}; download it again")
    return int(text)


def _records(content: bytes, at: int) -> dict[bytes, bytes]:
    """The attributes of a pax header: records `LENGTH KEY=VALUE` and a line break."""
    found = {}
    while content and content[0]:
        digits, _, _ = content[:21].partition(b" ")
        length = _decimal(digits, at)
        record, content = content[:length], content[length:]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if len(record) < length or not equals or not value.endswith(b"\n"):
            raise TarDamageError(f"is damaged at byte {at}; download it again")
        found[key] = value[:-1]
    return found


def _short_name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _blocks(length: int) -> int:
    return -(-length // BLOCK) * BLOCK
