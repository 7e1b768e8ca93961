"""JPEG files without damaged metadata.

Pillow does not recognize a JPEG in which an application segment is shorter than its kind should be, though its pixels
are sound. Source of the layout: ITU-T T.81, annex B (a marker, then for most segments a length and the data).
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

SIGNATURE = b"\xff\xd8\xff"

_APP0, _APP1, _APP14, _APP15, _COMMENT, _SCAN = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE, 0xDA
_SHORTEST = {_APP0: 14, _APP1: 0, _APP14: 12}
"""Segments that decide about colours (JFIF, Adobe) or the orientation (EXIF, XMP): the least they hold when sound."""


def without_metadata(file: BinaryIO) -> BinaryIO | None:
    """A JPEG file from the start, without the segments that no pixel depends on; None if it is no such file."""
    file.seek(0)
    if file.read(2) != SIGNATURE[:2]:
        return None
    kept = io.BytesIO()
    kept.write(SIGNATURE[:2])
    while len(head := file.read(4)) == 4:
        mark, marker, length = struct.unpack(">BBH", head)
        if mark != 0xFF or length < 2:
            return None
        data = file.read(length - 2)
        metadata = _APP0 <= marker <= _APP15 or marker == _COMMENT
        if not metadata or len(data) >= _SHORTEST.get(marker, length):
            kept.write(head + data)
        if marker == _SCAN:
            kept.write(file.read())
            kept.seek(0)
            return kept
    return None
