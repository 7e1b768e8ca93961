"""What a run was asked for, as its output records it: two runs may share an output if these are the same."""

from __future__ import annotations

import json
import math
from typing import Any

from PIL import Image

from ... import __version__
from ...core.input_file import parse_json
from ...core.records import Document, Name
from ...encoder.preprocess import Preprocessor
from ..artifact import Artifact
from .feature_form import BYTES, DType, Engine, FeatureForm, Form, Pool
from .sources.source import Source


class Request(Document, frozen=True, kw_only=True):
    """What a run was asked for.

    Attributes:
        artifact_sha256: of the artifact's model file.
        checkpoint_sha256: of the weights that it was made from.
        resolution: of the pixels, as HEIGHTxWIDTH.
        preprocessing: how an image becomes pixels, in the terms of the artifact's manifest.
        backend: what computes the features; `auto` if each worker chooses.
        form, pool, dtype: as in `FeatureForm`.
        shard_rows: images in each file of a folder; 0 for one file.
        tokens, channels: of the encoder's features.
        source_sha256: `Source.digest`.
        images: in the source.
        engine: what spreads the work.
        max_pixels: of an image, more of which is refused; None for no limit.
        fvexport: the version; runs of different versions may share an output.
    """

    artifact_sha256: Name
    checkpoint_sha256: Name
    resolution: Name
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
    max_pixels: int | None = None
    fvexport: Name = __version__

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image's features."""
        return (self.channels,) if self.pool == "mean" else (self.tokens, self.channels)

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's features."""
        return math.prod(self.shape) * BYTES[self.dtype]

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


_OPTIONS = {
    "backend": "--backend", "form": "--format", "pool": "--pool", "dtype": "--dtype", "shard_rows": "--shard-rows",
    "engine": "--engine", "max_pixels": "--max-pixels",
}  # fmt: skip


def make_request(
    artifact: Artifact, preprocessor: Preprocessor, backend: str, source: Source, form: FeatureForm,
    engine: Engine = "local",
) -> Request:  # fmt: skip
    """The request of a run."""
    manifest = artifact.manifest
    tokens = manifest.architecture.tokens(preprocessor.height, preprocessor.width)
    channels = manifest.output.shape[-1]
    assert isinstance(channels, int)
    return Request(
        artifact_sha256=manifest.files[artifact.model_path.name].sha256,
        checkpoint_sha256=manifest.checkpoint.sha256,
        resolution=f"{preprocessor.height}x{preprocessor.width}",
        preprocessing=preprocessor.to_dict(),
        backend=backend,
        form=form.form,
        pool=form.pool,
        dtype=form.dtype,
        shard_rows=0 if form.form == "safetensors" else form.rows(tokens, channels),
        tokens=tokens,
        channels=channels,
        source_sha256=source.digest,
        images=len(source),
        engine=engine,
        max_pixels=Image.MAX_IMAGE_PIXELS,
    )


def read_request(text: str | bytes) -> Request:
    """What `to_json` made; raises RecordError, or ValueError for what is no JSON."""
    return Request.from_dict(parse_json(text))
