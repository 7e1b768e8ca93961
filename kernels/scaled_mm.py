"""cuBLAS's product of FP8 numbers (`torch._scaled_mm`) in the place of `linear_fp8`, and the passes that follow it.

    y = end(scale * (x @ weight^T) + bias)

Row-wise scales: 1 for each row of x, and `scale` (N,) for each row of the weight, so that bias and scales ride on the
product. GELU, the residual and rounding to FP8 are passes of their own (GELU and rounding share one), which costs fc1
3 M N bytes and fc2 and proj 4 M N: an alternative for qkv, where nothing follows, and to measure `linear_fp8` against.

torch 2.11 requires compute capability 8.9, and K and N that are multiples of 16. Row-wise scales go to cuBLAS on 9.0
and to PyTorch's own CUTLASS kernel elsewhere; only the former is sure to write float16, so `scaled_mm_fits` allows
bfloat16 alone on the other architectures. `use_fast_accum=False`: sums are promoted to float32, as in `linear_fp8`.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .fp8 import End, ended
from .quantize_fp8 import quantize_fp8

MULTIPLE = 16
"""K and N must be multiples of it."""
HOPPER = (9, 0)


def scaled_mm_fits(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether `torch._scaled_mm` takes this product: x (..., K) on a GPU, weight (N, K), bias (N,)."""
    if any(size % MULTIPLE for size in weight.shape) or x.device.type != "cuda":
        return False
    if bias.dtype == torch.bfloat16:
        return True
    return bias.dtype == torch.float16 and torch.cuda.get_device_capability(x.device) == HOPPER


def launch_scaled_mm(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, end: End, *, modes: int = 0) -> Tensor:
    """Runs cuBLAS and what follows: x (..., K), weight (N, K), both FP8 and contiguous -> (..., N), as `end` says.

    scale is (N,) float32, bias (N,) in the half type of the result.
    """
    rows = x.flatten(0, -2)
    y = torch._scaled_mm(
        rows, weight.T, scale_a=_ones(rows.shape[0], x.device), scale_b=scale[None], bias=bias, out_dtype=bias.dtype,
        use_fast_accum=False,
    )  # fmt: skip
    y = y.view(*x.shape[:-1], weight.shape[0])
    if end.out_scale is not None and end.residual is None:
        return quantize_fp8(y, end.out_scale, gelu=end.gelu, modes=modes)
    return ended(y, end, bias.dtype)


@functools.lru_cache(maxsize=64)
def _ones(rows: int, device: torch.device) -> Tensor:
    """(rows, 1) scales of 1; kept, because a CUDA graph reads them at every replay."""
    return torch.ones(rows, 1, device=device)
