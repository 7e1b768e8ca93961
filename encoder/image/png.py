"""PNG files without their metadata.

Pillow refuses a PNG whose text or colour profile is over 1 MB, though its pixels are sound. Source of the layout: the
PNG specification, section 5 (chunks: length, type, data, CRC).
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"

MOST_TEXT = 2**20
"""Longest text, in bytes, that is left as it is: Pillow's own limit."""

MOST_XMP = 2**26
"""How much of a compressed XMP text is searched for the orientation, in bytes."""

_KEPT = (b"tRNS", b"eXIf")
"""Chunks that are not critical, and yet change what an image looks like."""

_XMP, _RAW_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"
"""Keywords of the texts in which Pillow finds an orientation."""


def without_metadata(file: BinaryIO) -> BinaryIO:
    """A PNG file's chunks that its first frame needs, and its orientation; any other file as it is, from the start.

    Damage is left in place for the decoder to report.
    """
    if file.read(len(SIGNATURE)) != SIGNATURE:
        file.seek(0)
        return file
    kept = io.BytesIO()
    kept.write(SIGNATURE)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        critical = not kind[0] & 0x20
        if critical or kind in _KEPT:
            kept.write(head + file.read(length + 4))
        elif kind in (b"iTXt", b"zTXt", b"tEXt"):
            kept.write(_orientation_text(head + file.read(length + 4)))
        else:
            file.seek(length + 4, io.SEEK_CUR)
        if kind == b"IEND":
            break
    kept.write(head if len(head) < 8 else b"")
    kept.seek(0)
    return kept


def _orientation_text(chunk: bytes) -> bytes:
    """A text chunk if it may hold an orientation, shortened if it is long; nothing otherwise."""
    keyword, _, rest = chunk[8:-4].partition(b"\0")
    if keyword not in (_XMP, _RAW_EXIF):
        return b""
    if len(chunk) <= MOST_TEXT and not _inflates_beyond(chunk[4:8], rest, MOST_TEXT):
        return chunk
    if keyword != _XMP or chunk[4:8] != b"iTXt":
        return b""
    found = re.search(rb"tiff:Orientation(=\"|>)[0-9]", _inflated(rest, MOST_XMP))
    if found is None:
        return b""
    body = b"iTXt" + _XMP + b"\0\0\0\0\0" + found[0]
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _inflates_beyond(kind: bytes, rest: bytes, limit: int) -> bool:
    if kind == b"zTXt":
        return len(_decompressed(rest[1:], limit + 1)) > limit
    return kind == b"iTXt" and len(_inflated(rest, limit + 1)) > limit


def _inflated(rest: bytes, limit: int) -> bytes:
    """The text of an iTXt chunk after its keyword, at most `limit` bytes: flag, method, language, translation, text."""
    text = rest[2:].split(b"\0", 2)[-1]
    return _decompressed(text, limit) if rest[:1] == b"\1" else text[:limit]


def _decompressed(data: bytes, limit: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, limit)
    except zlib.error:  # the decoder's to judge
        return b""
