"""A source of images as a Ray data source: blocks of `id`, `image` and `error`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.errors import first_line
from ..core.input_file import read_bytes
from ..export.features.sources.shards import MAX_IMAGE_BYTES
from ..export.features.sources.source import Item, Source

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Datasource

BLOCK_BYTES = 16 << 20
"""About how many bytes of encoded images a block has at most."""


def ray_source(source: Source, *, block_rows: int, task_rows: int, folder: str) -> Datasource:
    """A Ray data source of the same images, in blocks of `block_rows`.

    Args:
        source: the images; each task carries its own part of it.
        block_rows: images in a block, fewer if they have more than `BLOCK_BYTES`.
        task_rows: images that one task reads, about.
        folder: where relative paths start.
    """
    from ray.data import Datasource
    from ray.data.block import BlockMetadata
    from ray.data.datasource import ReadTask

    class SourceOfImages(Datasource):
        """Cut along the source's own splits, however many tasks Ray would like."""

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            del parallelism
            tasks = []
            for start, stop in source.splits(task_rows):
                metadata = BlockMetadata(num_rows=stop - start, size_bytes=None, input_files=None, exec_stats=None)
                read: Callable[[], Iterator[pa.Table]]
                read = partial(_blocks, source.part(start, stop), block_rows, folder)
                tasks.append(ReadTask(read, metadata, schema=_schema()))
            return tasks

        def get_name(self) -> str:
            return "Images"

    made: Callable[[], Datasource] = SourceOfImages
    return made()


def _schema() -> pa.Schema:
    import pyarrow as pa

    image = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
    return pa.schema([("id", pa.string()), ("image", image), ("error", pa.string())])


def enter(folder: str) -> None:
    """Makes relative paths start where they do for the driver; the process is a worker of this run alone."""
    with contextlib.suppress(OSError):  # a node that has no such folder reads nothing by a relative path
        os.chdir(folder)


def _blocks(source: Source, block_rows: int, folder: str) -> Iterator[pa.Table]:
    """Runs on a worker."""
    import pyarrow as pa

    enter(folder)
    rows: list[dict[str, Any]] = []
    size = 0
    for item in source:
        row = _row(item)
        rows.append(row)
        size += len((row["image"] or {}).get("bytes") or b"")
        if len(rows) >= block_rows or size >= BLOCK_BYTES:
            yield pa.Table.from_pylist(rows, _schema())
            rows, size = [], 0
    if rows:
        yield pa.Table.from_pylist(rows, _schema())


def _row(item: Item) -> dict[str, Any]:
    """A path stays a path, which the encoder's worker opens."""
    if item.data is None:
        return {"id": item.id, "image": None, "error": item.error or "no image"}
    if isinstance(item.data, bytes):
        return {"id": item.id, "image": {"bytes": item.data, "path": None}, "error": None}
    path = os.fspath(item.data)
    try:
        path.encode()
    except UnicodeEncodeError:  # a name that Arrow has no text for
        try:
            return {"id": item.id, "image": {"bytes": read_bytes(path, MAX_IMAGE_BYTES), "path": None}, "error": None}
        except OSError as error:
            return {"id": item.id, "image": None, "error": f"cannot read {item.id}: {first_line(error)}"}
    return {"id": item.id, "image": {"bytes": None, "path": path}, "error": None}
