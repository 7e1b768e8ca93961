"""How PyTorch computes where it is the reference: float32 in float32, half products summed in float32."""

from __future__ import annotations

import torch


def exact_float32() -> None:
    """No TF32 and no sums in half precision, in this whole process."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
