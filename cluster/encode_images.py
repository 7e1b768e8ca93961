"""`EncodeImages`: a step of a Ray Data pipeline that turns batches of images into batches of features."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import ConfigError, ImageError
from ..core.hardware import usable_processes
from ..core.phrases import printable
from ..encoder.preprocess import Preprocessor
from ..export.artifact import Artifact
from ..export.features.feature_form import DType, FeatureForm, Pool, named
from ..export.features.table import tensors
from ..export.runtime.encoder import Encoder
from .cells import column_cells, image_of
from .shipping import ShippedArtifact

if TYPE_CHECKING:
    import pyarrow as pa

AHEAD = 2
"""Batches of the encoder that are decoded ahead of it."""


class EncodeImages:
    """A callable class for `map_batches`: images of one column -> `features` and `error`.

    >>> ds.map_batches(
    ...     fvexport.ray.EncodeImages, fn_constructor_args=("artifact",), fn_constructor_kwargs={"column": "bytes"},
    ...     batch_size=32, num_cpus=4, concurrency=2,
    ... )

    A batch is a dictionary of NumPy arrays or a `pyarrow.Table` (`batch_format="pyarrow"`), and the result is of the
    same kind: the batch without the images' column, and

    - `features` (B, N, C), or (B, C) with `pool="mean"`, of type `dtype`. Where an image failed they are NaN in NumPy
      arrays and null in tables.
    - `error`: None, or why the image has no features. A row that comes with an error is not tried.

    The column holds encoded images (bytes), Hugging Face's {bytes, path}, decoded images (H, W, 3) uint8, or paths.
    A column `id`, if there is one, names images in errors. Images are decoded in threads while the encoder runs.

    Args:
        artifact: a folder that every node has at this path, or what `ship` returned.
        column: of the images.
        pool: `mean` averages the tokens.
        dtype: of the features.
        backend, resolution, threads: as `Encoder` takes them; by default as many threads as Ray assigned CPUs.
        batch_size: images per call of the encoder; by default the artifact's own, 1 if it takes any number.
        decoders: threads that decode; by default as many as Ray assigned CPUs.
        keep: leave the images' column in the result.

    Raises ArtifactError, ConfigError and UnavailableError as `Encoder` does.
    """

    def __init__(
        self, artifact: str | os.PathLike[str] | Artifact | ShippedArtifact, *, column: str = "image",
        pool: Pool = "none", dtype: DType = "float32", backend: str = "auto",
        resolution: tuple[int, int] | None = None, batch_size: int | None = None, threads: int | None = None,
        decoders: int | None = None, keep: bool = False,
    ) -> None:  # fmt: skip
        for name, value in (("batch_size", batch_size), ("decoders", decoders), ("threads", threads)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} must be a whole number of at least 1; found {value!r}")
        cpus = assigned_cpus()
        opened = artifact.open() if isinstance(artifact, ShippedArtifact) else artifact
        self.encoder = Encoder(opened, backend, resolution=resolution, threads=threads or cpus)
        self.form = FeatureForm(form="parquet", pool=pool, dtype=dtype)
        self.column, self.keep = column, keep
        self.batch_size = batch_size or self.encoder.batch[0]
        self.decoders = ThreadPoolExecutor(decoders or cpus or usable_processes(), "decode")

    def __call__(self, batch: Any) -> Any:
        """Encodes a batch; raises ConfigError if it has no column of images."""
        cells = column_cells(batch, self.column)
        table = not isinstance(batch, dict)
        columns = batch.column_names if table else list(batch)
        known, names = (column_cells(batch, one) if one in columns else None for one in ("error", "id"))
        # A column of None alone comes as one of NaN.
        errors = [error if isinstance(error, str) and error else None for error in known or [None] * len(cells)]
        shape = self.form.shape(*self.encoder.shape)
        features = np.full((len(cells), *shape), 0 if table else np.nan, self.form.dtype)
        for rows, pixels in self._batches(cells, errors):
            self._encode(rows, pixels, features, errors)
        if names is not None:
            errors = [error and named(error, str(name)) for error, name in zip(errors, names, strict=True)]
        return self._table(batch, features, errors) if table else self._arrays(batch, features, errors)

    def _batches(self, cells: list[Any], errors: list[str | None]) -> Iterator[tuple[list[int], list[np.ndarray]]]:
        """Rows and pixels of up to `batch_size` images that can be decoded; the others' errors are filled in."""
        rows: list[int] = []
        pixels: list[np.ndarray] = []
        pending = (
            (row, self.decoders.submit(_decode, self.encoder.preprocessor, cell))
            for row, cell in enumerate(cells)
            if errors[row] is None
        )
        for row, future in _ahead(pending, AHEAD * self.batch_size + 1):
            try:
                pixels.append(future.result())
            except ImageError as error:
                errors[row] = printable(str(error))
                continue
            rows.append(row)
            if len(rows) == self.batch_size:
                yield rows, pixels
                rows, pixels = [], []
        if rows:
            yield rows, pixels

    def _encode(
        self, rows: list[int], pixels: list[np.ndarray], features: np.ndarray, errors: list[str | None]
    ) -> None:
        try:
            values, reasons = self.form.finish(self.encoder.run(np.stack(pixels)))
        except MemoryError:
            for row in rows:
                errors[row] = f"not enough memory to encode {len(rows)} at once: use a smaller batch size"
            return
        for row, value, reason in zip(rows, values, reasons, strict=True):
            errors[row] = reason
            if reason is None:
                features[row] = value

    def _arrays(self, batch: Any, features: np.ndarray, errors: list[str | None]) -> dict[str, np.ndarray]:
        kept = {name: values for name, values in batch.items() if self.keep or name != self.column}
        return kept | {"features": features, "error": np.array(errors, dtype=object)}

    def _table(self, batch: pa.Table, features: np.ndarray, errors: list[str | None]) -> pa.Table:
        import pyarrow as pa

        dropped = {"features", "error"} | (set() if self.keep else {self.column})
        kept = batch.select([name for name in batch.column_names if name not in dropped])
        kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(features.dtype), features.shape[1:])
        kept = kept.append_column("features", tensors(features, errors, kind))
        return kept.append_column("error", pa.array(errors, pa.string()))


def _decode(preprocessor: Preprocessor, cell: Any) -> np.ndarray:
    return preprocessor.pixels(image_of(cell))


def _ahead(pending: Iterable[tuple[int, Future[np.ndarray]]], count: int) -> Iterator[tuple[int, Future[np.ndarray]]]:
    """The same in order, with up to `count` submitted before the first is returned."""
    waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
    for one in pending:
        waiting.append(one)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def assigned_cpus() -> int | None:
    """CPUs that Ray assigned to this worker, at least 1; None outside of a Ray worker."""
    with contextlib.suppress(ImportError):
        import ray

        if ray.is_initialized():
            context: Any = ray.get_runtime_context()
            if context.get_actor_id() is not None or context.get_task_id() is not None:
                return max(1, int(context.get_assigned_resources().get("CPU", 0)))
    return None
