"""The one table of number formats: our short names, the names of torch, NumPy and ONNX, and their widths."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Precision of a model -> the name that torch, NumPy and ONNX give it."""

BITS = {
    "fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "fp4": 4,
    "int64": 64, "int32": 32, "int8": 8, "uint8": 8, "bool": 8, "int4": 4,
}  # fmt: skip
"""Width of one value."""


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of torch for a name such as `fp16`, `float16` or `uint8`."""
    import torch

    found: torch.dtype = getattr(torch, DTYPES.get(name, name))
    return found
