"""The images of a batch, row by row, in whichever form Ray's readers have them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError, ImageError
from ..core.phrases import did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

    from ..encoder.image import ImageLike


def column_cells(batch: dict[str, np.ndarray] | pa.Table, column: str) -> list[Any]:
    """The values of a column, one for each row; raises ConfigError if the batch has no such column."""
    if not isinstance(batch, dict) and not hasattr(batch, "column_names"):
        raise ConfigError(
            f"a batch is a dictionary of NumPy arrays or a pyarrow.Table; found {type(batch).__name__}: leave "
            'batch_format out, or set it to "pyarrow"'
        )
    names = list(batch) if isinstance(batch, dict) else batch.column_names
    if column not in names:
        raise ConfigError(f"the batch has no column {column!r}; {did_you_mean(column, names)} (column=...)")
    if isinstance(batch, dict):
        return list(batch[column])
    import pyarrow as pa

    values = batch.column(column)
    if isinstance(values.type, pa.BaseExtensionType):  # Ray's tensors, of one shape or several
        from ray.data.block import BlockAccessor

        return list(BlockAccessor.for_block(batch.select([column])).to_numpy(column))
    return values.to_pylist()


def image_of(cell: Any) -> ImageLike:
    """What `load_image` takes of a cell: encoded bytes, a path, an array (H, W, 3), or Hugging Face's {bytes, path}.

    Raises ImageError for an empty cell.
    """
    if isinstance(cell, dict):
        content = cell.get("bytes")
        cell = content if content is not None else cell.get("path")
    if cell is None:
        raise ImageError("no image: the cell is empty")
    if isinstance(cell, str):
        return Path(cell)
    return bytes(cell) if isinstance(cell, memoryview | bytearray | np.bytes_) else cell
