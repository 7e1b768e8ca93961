"""What a run was asked for, as its output records it: two runs may share an output if these are the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from ... import __version__
from ...core.errors import ConfigError
from ...core.records import Document, Name
from ..runtime.encoder import Encoder
from .source import Source

Form = Literal["safetensors", "parquet", "npy"]
Pool = Literal["none", "mean"]
DType = Literal["float32", "float16"]
Engine = Literal["local", "ray"]

SHARD_BYTES = 256 << 20
"""About how large a shard becomes where its number of rows is not given."""
MAX_SHARD_ROWS = 100_000


@dataclass(frozen=True, kw_only=True)
class FeatureForm:
    """What is written.

    Attributes:
        form: one safetensors file, a folder of Parquet files, or a folder of NumPy arrays.
        pool: `mean` averages the tokens, so that an image has (C) instead of (N, C).
        dtype: of the features.
        shard_rows: images in each file of a folder; None for files of about `SHARD_BYTES`.
    """

    form: Form = "safetensors"
    pool: Pool = "none"
    dtype: DType = "float32"
    shard_rows: int | None = None

    def __post_init__(self) -> None:
        if self.shard_rows is None:
            return
        if self.form == "safetensors":
            raise ConfigError("--shard-rows (shard_rows) has no effect on one .safetensors file; leave it out")
        if self.shard_rows < 1:
            raise ConfigError(f"--shard-rows must be at least 1; found {self.shard_rows}")

    def shape(self, tokens: int, channels: int) -> tuple[int, ...]:
        """The shape of one image's features: (N, C), or (C) of pooled ones."""
        return (channels,) if self.pool == "mean" else (tokens, channels)

    def rows(self, tokens: int, channels: int) -> int:
        """Images in each file of a folder."""
        if self.shard_rows is not None:
            return self.shard_rows
        each = int(np.prod(self.shape(tokens, channels))) * np.dtype(self.dtype).itemsize
        return max(1, min(MAX_SHARD_ROWS, SHARD_BYTES // each))

    def finish(self, features: np.ndarray) -> tuple[np.ndarray, list[str | None]]:
        """Features (B, N, C) float32 as they are written, and for each image why it has none.

        The mean is taken in float64.
        """
        reasons: list[str | None] = [None] * len(features)
        if self.pool == "mean":
            features = features.mean(axis=1, dtype=np.float64)
        with np.errstate(over="ignore"):
            values = features.astype(self.dtype, copy=False)
        for index, one in enumerate(values):
            if not np.isfinite(one).all():
                finite = bool(np.isfinite(features[index]).all())
                reasons[index] = (
                    "features exceed the range of float16: use --dtype float32"
                    if finite
                    else "infinite or undefined features: encode it with an fp32 file"
                )
        return values, reasons


class Request(Document, frozen=True, kw_only=True):
    """What a run was asked for.

    Attributes:
        artifact_sha256: of the artifact's model file.
        checkpoint_sha256: of the weights that it was made from.
        preprocessing: how an image becomes pixels, as the artifact's manifest has it, at the run's resolution.
        backend: what computes the features.
        form, pool, dtype: as in `FeatureForm`.
        shard_rows: images in each file of a folder; 0 for one file.
        tokens, channels: of the encoder's features.
        source_sha256: `Source.digest`.
        images: in the source.
        engine: what spreads the work.
        fvexport: the version; runs of different versions may share an output.
    """

    artifact_sha256: Name
    checkpoint_sha256: Name
    preprocessing: dict[str, Any]
    backend: Name
    form: Form
    pool: Pool
    dtype: DType
    shard_rows: int
    tokens: int
    channels: int
    source_sha256: Name
    images: int
    engine: Engine = "local"
    fvexport: Name = __version__

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image's features."""
        return (self.channels,) if self.pool == "mean" else (self.tokens, self.channels)

    def differs(self, other: Request) -> list[str]:
        """What is not the same in another request, in words: `artifact`, `--pool (mean, now none)`."""
        found = []
        if (self.artifact_sha256, self.checkpoint_sha256) != (other.artifact_sha256, other.checkpoint_sha256):
            found.append("artifact")
        if (self.source_sha256, self.images) != (other.source_sha256, other.images):
            found.append(f"source ({self.images} images, now {other.images})")
        if self.preprocessing != other.preprocessing:
            found.append("preprocessing or --res")
        for name, option in _OPTIONS.items():
            old, new = getattr(self, name), getattr(other, name)
            if old != new:
                found.append(f"{option} ({old}, now {new})")
        return found

    def to_json(self) -> str:
        """One line, the same for the same request."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @property
    def key(self) -> str:
        """Hex digits that name this request."""
        content = {name: value for name, value in self.to_dict().items() if name != "fvexport"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


_OPTIONS = {
    "backend": "--backend", "form": "--format", "pool": "--pool", "dtype": "--dtype", "shard_rows": "--shard-rows",
    "engine": "--engine",
}  # fmt: skip


def make_request(encoder: Encoder, source: Source, form: FeatureForm, engine: Engine = "local") -> Request:
    """The request of a run."""
    manifest, (tokens, channels) = encoder.artifact.manifest, encoder.shape
    return Request(
        artifact_sha256=manifest.files[encoder.artifact.model_path.name].sha256,
        checkpoint_sha256=manifest.checkpoint.sha256,
        preprocessing=encoder.preprocessor.to_dict(),
        backend=encoder.chosen.name,
        form=form.form,
        pool=form.pool,
        dtype=form.dtype,
        shard_rows=0 if form.form == "safetensors" else form.rows(tokens, channels),
        tokens=tokens,
        channels=channels,
        source_sha256=source.digest,
        images=len(source),
        engine=engine,
    )


def read_request(text: str | bytes) -> Request:
    """What `to_json` made; raises RecordError, or ValueError for what is no JSON."""
    return Request.from_dict(msgspec.json.decode(text))
