"""The files of a folder of features: one shard each, written aside and renamed when it is whole.

`parquet`: `part-00000.parquet`, ... with the columns of `table.py`.
`npy`: what clip-retrieval reads: `img_emb/img_emb_00000.npy` and `metadata/metadata_00000.parquet` with an `image_path`
(the id) for each row of the array; `errors/errors_00000.parquet` (`id`, `error`) lists the images without features.
Source: the output format in clip-retrieval's README.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...core.errors import ArtifactError, first_line
from ...core.plain_text import plain_line
from ...core.records import RecordError
from .pending import Pending
from .pyarrow_package import import_pyarrow
from .request import Request
from .table import features_schema, features_table, metadata_of, request_of

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_BYTES = 32 << 20
"""About how large a row group becomes: what a reader holds at once."""
WRITE_OPTIONS: dict[str, Any] = {
    "compression": "none", "use_dictionary": False, "write_statistics": ["id", "error"]
}  # fmt: skip
"""Floats hardly compress, and a dictionary of them is waste; the null count of `error` says how many failed."""


def row_group_rows(request: Request) -> int:
    """Images in a row group."""
    return max(1, ROW_GROUP_BYTES // request.row_bytes)


class ShardForm(Protocol):
    """How the shards of a folder are named, written and read again."""

    def write(self, folder: Path, aside: Path, index: int, pending: Pending) -> None:
        """Writes shard `index` into `folder`, by way of the folder `aside` on the same file system."""
        ...

    def count(self, folder: Path, index: int) -> tuple[int, int] | None:
        """(images, failed ones) of a shard; None if there is none.

        Raises ArtifactError if it cannot be read, or if it was written for another request than the form's.
        """
        ...

    def request_in(self, folder: Path) -> Request | None:
        """What the first shard's run was asked for; None if the folder holds something else."""
        ...

    def failures(self, folder: Path, index: int) -> Iterator[tuple[str, str]]:
        """(id, reason) of the shard's images without features."""
        ...

    def is_ours(self, folder: Path) -> bool:
        """Whether everything in the folder is of this form."""
        ...


class ParquetShards:
    """A Parquet file for each shard."""

    def __init__(self, request: Request) -> None:
        self._request, self._schema = request, features_schema(request)

    def path(self, folder: Path, index: int) -> Path:
        """The file of a shard."""
        return folder / f"part-{index:05}.parquet"

    def write(self, folder: Path, aside: Path, index: int, pending: Pending) -> None:
        pq = import_pyarrow().parquet
        ids, reasons = pending.entries()
        scratch, position = aside / "part.new", 0
        rows = row_group_rows(self._request)
        with pq.ParquetWriter(scratch, self._schema, **WRITE_OPTIONS) as writer:
            for start in range(0, len(ids), rows):
                why = reasons[start : start + rows]
                good = np.array([reason is None for reason in why])
                part = pending.values(position, int(good.sum()))
                position += len(part)
                if not good.all():
                    whole = np.zeros((len(why), *pending.shape), pending.dtype)
                    whole[good] = part
                    part = whole
                writer.write_table(features_table(ids[start : start + rows], part, why, self._schema))
        put_shard(scratch, self.path(folder, index))

    def count(self, folder: Path, index: int) -> tuple[int, int] | None:
        return _counted(self.path(folder, index), self._request)

    def request_in(self, folder: Path) -> Request | None:
        return _request_in(self.path(folder, 0))

    def failures(self, folder: Path, index: int) -> Iterator[tuple[str, str]]:
        return _failures(self.path(folder, index))

    def is_ours(self, folder: Path) -> bool:
        paths = sorted(folder.iterdir())
        return all(re.fullmatch(r"part-\d{5,}\.parquet", path.name) for path in paths) and _any_is_ours(paths)


class NpyShards:
    """An array, a table of ids and a table of failures for each shard."""

    FOLDERS = ("img_emb", "metadata", "errors")

    def __init__(self, request: Request) -> None:
        self._request, self._metadata = request, metadata_of(request)
        import_pyarrow()  # before the work

    def paths(self, folder: Path, index: int) -> tuple[Path, Path, Path]:
        """The files of a shard; the last is written last."""
        emb, metadata, errors = (folder / name for name in self.FOLDERS)
        return (
            emb / f"img_emb_{index:05}.npy",
            metadata / f"metadata_{index:05}.parquet",
            errors / f"errors_{index:05}.parquet",
        )

    def write(self, folder: Path, aside: Path, index: int, pending: Pending) -> None:
        ids, reasons = pending.entries()
        pa = import_pyarrow()
        array, names, errors = self.paths(folder, index)
        for path in (array, names, errors):
            path.parent.mkdir(exist_ok=True)
        scratch = aside / "part.new"
        with scratch.open("wb") as stream, pending.rows.open("rb") as rows:
            shape = (pending.good, *pending.shape)
            header = {"descr": pending.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            shutil.copyfileobj(rows, stream, 1 << 20)
        put_shard(scratch, array)
        good = [name for name, reason in zip(ids, reasons, strict=True) if reason is None]
        bad = [(name, reason) for name, reason in zip(ids, reasons, strict=True) if reason is not None]
        for path, columns in (
            (names, {"image_path": good}),
            (errors, {"id": [name for name, _ in bad], "error": [reason for _, reason in bad]}),
        ):
            table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
            pa.parquet.write_table(table.replace_schema_metadata(self._metadata), scratch)
            put_shard(scratch, path)

    def count(self, folder: Path, index: int) -> tuple[int, int] | None:
        array, names, errors = self.paths(folder, index)
        failed = _rows(errors, self._request)  # the last to be written
        if failed is None:
            return None
        good = _rows(names, self._request)
        with _reading(array):
            rows = len(np.load(array, mmap_mode="r", allow_pickle=False))  # fails for one that is cut off
        if good != rows:
            raise ArtifactError(f"{array} has {rows} rows and {names} has {good or 0}; {DAMAGED_FIX}")
        return good + failed, failed

    def request_in(self, folder: Path) -> Request | None:
        return _request_in(self.paths(folder, 0)[2])

    def failures(self, folder: Path, index: int) -> Iterator[tuple[str, str]]:
        return _failures(self.paths(folder, index)[2])

    def is_ours(self, folder: Path) -> bool:
        if {path.name for path in folder.iterdir()} != set(self.FOLDERS):
            return False
        pattern = re.compile(r"(img_emb_\d{5,}\.npy|(metadata|errors)_\d{5,}\.parquet)")
        inside = [path for name in self.FOLDERS if (folder / name).is_dir() for path in (folder / name).iterdir()]
        tables = [path for path in inside if path.suffix == ".parquet"]
        return all(pattern.fullmatch(path.name) for path in inside) and _any_is_ours(tables)


DAMAGED_FIX = "remove the folder, or begin again with --force (force=True)"


def put_shard(scratch: Path, path: Path) -> None:
    """Brings a file to the disk and gives it its name."""
    with scratch.open("rb+") as stream:
        os.fsync(stream.fileno())
    scratch.replace(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What pyarrow raises of a damaged file becomes ArtifactError."""
    pa = import_pyarrow()
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read ({first_line(error)}); {DAMAGED_FIX}") from None


def _footer(path: Path) -> tuple[Any, Any] | None:
    """A Parquet file's metadata and schema; None if there is no file. Raises ArtifactError if it cannot be read."""
    if not path.exists():
        return None
    with _reading(path), import_pyarrow().parquet.ParquetFile(path) as file:
        return file.metadata, file.schema_arrow


def _failures(path: Path) -> Iterator[tuple[str, str]]:
    """(id, error) of the rows with an error, batch by batch."""
    with _reading(path), import_pyarrow().parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["id", "error"]):
            for row in batch.filter(batch.column("error").is_valid()).to_pylist():
                yield plain_line(str(row["id"])), plain_line(str(row["error"]))


def _any_is_ours(paths: Iterable[Path]) -> bool:
    """Whether one of the files records a request; others may be damaged."""
    for path in paths:
        with suppress(ArtifactError):
            if _request_in(path) is not None:
                return True
    return False


def _request_in(path: Path) -> Request | None:
    footer = _footer(path)
    return None if footer is None else _request(path, footer[1])


def _request(path: Path, schema: pa.Schema) -> Request | None:
    try:
        return request_of(schema)
    except (RecordError, ValueError) as error:
        raise ArtifactError(f"{path} has damaged metadata ({error}); {DAMAGED_FIX}") from None


def _rows(path: Path, request: Request) -> int | None:
    footer = _footer(path)
    if footer is None:
        return None
    _check_request(path, footer[1], request)
    return int(footer[0].num_rows)


def _counted(path: Path, request: Request) -> tuple[int, int] | None:
    """(rows, rows with an error) of a Parquet file."""
    footer = _footer(path)
    if footer is None:
        return None
    metadata, schema = footer
    _check_request(path, schema, request)
    column = schema.get_field_index("error")
    last = metadata.num_columns - 1
    if column < 0:
        raise ArtifactError(f"{path} has no column `error`; {DAMAGED_FIX}")
    failed = 0
    for group in range(metadata.num_row_groups):
        found = metadata.row_group(group).column(last)  # of the leaves, in the order of the columns: `error` is last
        if found.path_in_schema != "error" or not found.is_stats_set:
            raise ArtifactError(f"{path} was not written by this command; {DAMAGED_FIX}")
        failed += found.num_values - found.statistics.null_count
    return int(metadata.num_rows), failed


def _check_request(path: Path, schema: pa.Schema, request: Request) -> None:
    found = _request(path, schema)
    if found is None or found.differs(request):
        raise ArtifactError(f"{path} belongs to another run; {DAMAGED_FIX}")
