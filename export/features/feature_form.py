"""What is written of each image: its form, pooling and type."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ...core.errors import ConfigError
from ...core.phrases import did_you_mean

if TYPE_CHECKING:
    import numpy as np

Form = Literal["safetensors", "parquet", "npy"]
Pool = Literal["none", "mean"]
DType = Literal["float32", "float16"]
Engine = Literal["local", "ray"]

BYTES: dict[DType, int] = {"float32": 4, "float16": 2}
"""Of one value."""

SHARD_BYTES = 256 << 20
"""About how large a shard becomes where its number of rows is not given."""
MAX_SHARD_ROWS = 100_000


BEYOND = "features beyond the range of float16: use --dtype float32"
UNDEFINED = "infinite or undefined features: encode it with an fp32 file"
"""What an image has that cannot be written."""


def named(reason: str, name: str) -> str:
    """Why image `name` has no features, where the reason could not name it."""
    if reason in (BEYOND, UNDEFINED):
        return f"{name} has {reason}"
    return reason.replace("the given bytes", name)


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
        choices: tuple[tuple[str, object, tuple[str, ...]], ...] = (
            ("format", self.form, get_args(Form)),
            ("pool", self.pool, get_args(Pool)),
            ("dtype", self.dtype, get_args(DType)),
        )
        for name, value, known in choices:
            if value not in known:
                raise ConfigError(f"unknown {name} {value!r}; {did_you_mean(value, known)}")
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
        each = math.prod(self.shape(tokens, channels)) * BYTES[self.dtype]
        return max(1, min(MAX_SHARD_ROWS, SHARD_BYTES // each))

    def finish(self, features: np.ndarray) -> tuple[np.ndarray, list[str | None]]:
        """Features (B, N, C) float32 as they are written, and for each image why it has none.

        The mean is taken in float64.
        """
        import numpy as np

        reasons: list[str | None] = [None] * len(features)
        if self.pool == "mean":
            features = features.mean(axis=1, dtype=np.float64)
        with np.errstate(over="ignore"):
            values = features.astype(self.dtype, copy=False)
        for index, one in enumerate(values):
            if not np.isfinite(one).all():
                finite = bool(np.isfinite(features[index]).all())
                reasons[index] = BEYOND if finite else UNDEFINED
        return values, reasons
