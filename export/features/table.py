"""The tables of a Parquet dataset of features: `id`, `features`, `error`, and the request in the schema's metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .pyarrow_package import import_pyarrow
from .request import Request, read_request

if TYPE_CHECKING:
    import pyarrow as pa

METADATA_KEY = b"fvexport"


def metadata_of(request: Request) -> dict[bytes, bytes]:
    """The schema's metadata that records a request."""
    return {METADATA_KEY: request.to_json().encode()}


def features_schema(request: Request) -> pa.Schema:
    """`id` text, `features` a fixed-shape tensor (N, C) or (C), `error` text; one of the last two is null."""
    pa = import_pyarrow()
    value = pa.float16() if request.dtype == "float16" else pa.float32()
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("features", pa.fixed_shape_tensor(value, request.shape)),
            pa.field("error", pa.string()),
        ],
        metadata=metadata_of(request),
    )


def features_table(ids: list[str], features: np.ndarray, errors: list[str | None], schema: pa.Schema) -> pa.Table:
    """A table of images in order.

    Args:
        ids: of the images.
        features: (B, N, C) or (B, C) in the schema's type, also for images with an error, where it is not kept.
        errors: None for images that have features.
        schema: as `features_schema` makes it.
    """
    pa = import_pyarrow()
    rows = tensors(features, errors, schema.field("features").type)
    return pa.Table.from_arrays([pa.array(ids, pa.string()), rows, pa.array(errors, pa.string())], schema=schema)


def tensors(features: np.ndarray, errors: list[str | None], kind: pa.FixedShapeTensorType) -> pa.ExtensionArray:
    """Features (B, N, C) or (B, C) as an array of tensors of a type, null where there is an error."""
    pa = import_pyarrow()
    flat = np.ascontiguousarray(features).reshape(-1)
    mask = pa.array([error is not None for error in errors], pa.bool_()) if any(errors) else None
    storage = pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), int(np.prod(kind.shape)), mask=mask)
    return pa.ExtensionArray.from_storage(kind, storage)


def request_of(schema: pa.Schema) -> Request | None:
    """The request that a file's schema records; None for a file of something else. Raises RecordError."""
    text = (schema.metadata or {}).get(METADATA_KEY)
    return None if text is None else read_request(text)
