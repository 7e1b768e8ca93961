"""How PyTorch computes where it is the reference: float32 in float32, half products summed in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ....encoder.exact import exact_float32


@contextmanager
def strict() -> Iterator[None]:
    """No TF32, and no sums in half precision. Not for timing: PyTorch may be slower so."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_fp16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction = False
    try:
        with exact_float32():
            yield
    finally:
        matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = before
