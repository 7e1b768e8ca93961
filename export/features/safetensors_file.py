"""The header of a safetensors file of features, which names every image.

The format wants it before the data. All features of one run have one shape, so the space that the header can need is
known at once: it is left free, the features follow as they come, and the header is written last, filled up with spaces.
Source: the format's description at github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError
from ...core.input_file import open_regular
from ...core.records import RecordError
from .request import Request, read_request
from .sources.source import Source

METADATA = "__metadata__"
REQUEST = "request"
MAX_HEADER_BYTES = 100_000_000
"""Readers of safetensors refuse a longer header."""
LONGEST_VERSION = 200
_TYPES = {"float32": "F32", "float16": "F16"}


def reserved_bytes(request: Request, source: Source) -> int:
    """Bytes that the header can need, a multiple of 8. Raises ConfigError if the format allows no such header."""
    each = request.row_bytes
    # Of a version with a long name, since a run of another version may go on: the rows must not move.
    length = len(json.dumps({METADATA: _metadata(request.replace(fvexport="9" * LONGEST_VERSION))}))
    for index, name in enumerate(source.ids()):
        length += len(_entry(request, name, index, each)) + 1
    if length > MAX_HEADER_BYTES:
        raise ConfigError(
            f"the names of {request.images} images need a header of {length / 1e6:.0f} MB, and safetensors allows "
            f"{MAX_HEADER_BYTES / 1e6:.0f}; write a dataset instead with --format parquet"
        )
    return -(-length // 8) * 8


def check_names(source: Source) -> None:
    """Raises ConfigError for the name that safetensors keeps for itself."""
    if any(name == METADATA for name in source.ids()):
        raise ConfigError(f"{METADATA} is a name that safetensors keeps for itself: rename the image")


def write_header(file: Path, request: Request, ids: list[str], reasons: list[str | None], reserved: int) -> None:
    """Writes the header into the space at the beginning of the file, and brings the file to the disk."""
    each = request.row_bytes
    good = [name for name, reason in zip(ids, reasons, strict=True) if reason is None]
    parts = [f'"{METADATA}":{json.dumps(_metadata(request))}']
    parts += [_entry(request, name, index, each).decode() for index, name in enumerate(good)]
    header = ("{" + ",".join(parts) + "}").encode()
    with file.open("rb+") as stream:
        stream.write(reserved.to_bytes(8, "little") + header.ljust(reserved))
        stream.flush()
        os.fsync(stream.fileno())


def read_header(file: Path) -> tuple[Request, set[str]] | None:
    """The request that a file records and the names of its images; None if it is no such file."""
    try:
        with open_regular(file) as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > MAX_HEADER_BYTES:
                return None
            header = json.loads(stream.read(length))
        return read_request(header.pop(METADATA)[REQUEST]), set(header)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, RecordError):
        return None


def file_bytes(file: Path, request: Request, images: int) -> int:
    """The size that a file with so many images has, by the length of its header."""
    with open_regular(file) as stream:
        return 8 + int.from_bytes(stream.read(8), "little") + images * request.row_bytes


def _entry(request: Request, name: str, index: int, each: int) -> bytes:
    """One image of the header: `"name":{...}`."""
    entry: dict[str, Any] = {
        "dtype": _TYPES[request.dtype], "shape": list(request.shape), "data_offsets": [index * each, (index + 1) * each]
    }  # fmt: skip
    return f"{json.dumps(name, ensure_ascii=False)}:{json.dumps(entry, separators=(',', ':'))}".encode()


def _metadata(request: Request) -> dict[str, str]:
    return {
        "artifact_sha256": request.artifact_sha256,
        "checkpoint_sha256": request.checkpoint_sha256,
        "resolution": request.resolution,
        "backend": request.backend,
        "fvexport": request.fvexport,
        REQUEST: request.to_json(),
    }
