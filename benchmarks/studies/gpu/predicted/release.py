"""What release 8585578 launched on an H100 in half precision: its block sizes and its choice of kernels.

Predictions "before" are of that release, whatever the tables of `kernels/` say today. `release.json` holds the rows of
its `kernels/configs/*.json` for sm_90 and half types.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from .....kernels.table import Config, Row

FILE = Path(__file__).parent / "release.json"
KERNELS = {
    "depthwise": "depthwise",
    "depthwise 7x7": "depthwise",
    "depthwise x2": "depthwise",
    "pointwise": "linear",
    "fc1": "linear",
    "fc2": "linear",
    "qkv": "norm_linear",
    "attention": "attention",
    "proj": "linear",
}
"""Its choice of a kernel by part of the model, those that do not depend on sizes."""
MLP_CHANNELS, MLP_SMALL, MLP_ROWS = 192, 96, 96
"""It used the fused MLP up to 192 channels: from 96 positions per multiprocessor on, and always up to 96 channels."""


def config(op: str, sizes: Mapping[str, int]) -> Config:
    """Its block sizes for a call."""
    return next(row for row in _rows()[op] if row.fits("sm_90", "half", sizes)).config


def kernel(part: str, channels: int, rows: int, processors: int) -> str | None:
    """The kernel that it used for a part of the model, as `policy.kernel_for` has them; None for PyTorch."""
    if part != "ConvFFN":
        return KERNELS.get(part)
    enough = channels <= MLP_SMALL or rows >= MLP_ROWS * processors
    return "mlp" if channels <= MLP_CHANNELS and enough else None


@functools.lru_cache
def _rows() -> dict[str, tuple[Row, ...]]:
    tables = json.loads(FILE.read_text(encoding="utf-8"))["tables"]
    return {
        op: tuple(
            Row(
                Config.from_dict(row),
                "",
                sizes={name: (low, high) for name, (low, high) in row.get("sizes", {}).items()},
            )
            for row in rows
        )
        for op, rows in tables.items()
    }
