"""A product by cuBLAS, and what follows it in a pass of its own.

    y = x @ weight^T + bias by `F.linear`,    then in place    y = gelu(y)    or    y = residual + scale * y

Shapes are those of `linear_residual`. Between the two the product is rounded to the tensors' type, as in PyTorch.

Two ends that PyTorch can fuse into cuBLAS's kernel are not used. cuBLAS's GELU is the tanh approximation, which adds an
error as large as FP16's rounding. `torch.addmm(residual, ...)` copies the residual first, and leaves no room for the
bias.

FLOPs: 2 M N K.    Bytes: M K + N K + M N values, and 2 M N for GELU or 3 M N for the residual.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .dispatch import gelu_form, pdl_launch
from .language import jit, tl
from .table import Config
from .tiles import begin, gelu_as


@jit
def finish_kernel(y_ptr, scale_ptr, residual_ptr, size, n, GELU: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """BLOCK values of y, in place. Grid: (cdiv(size, BLOCK),); size is m * n.

    y_ptr: (m, n); scale_ptr: (n,) or None; residual_ptr: (m, n) or None; all of one type. GELU: as `gelu_as` takes it.
    """
    begin(PDL)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    y = gelu_as(tl.load(y_ptr + place, mask=inside, other=0.0).to(tl.float32), GELU)
    if scale_ptr is not None:
        y *= tl.load(scale_ptr + place % n).to(tl.float32)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside)


def launch_cublas(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, residual: Tensor | None, config: Config, *,
    gelu: bool = False, modes: int = 0,
) -> Tensor:  # fmt: skip
    """Multiplies, and runs the kernel with the block size of `config` if something follows: all tensors contiguous."""
    n, k = weight.shape
    y = F.linear(x.view(-1, k), weight, bias)  # as a matrix, for which cuBLAS adds the bias
    if gelu or scale is not None or residual is not None:
        finish_kernel[(-(-y.numel() // config.blocks["BLOCK"]),)](
            y, scale, residual, y.numel(), n, GELU=gelu_form(gelu, x.dtype, modes), **config.arguments,
            **pdl_launch(modes, x),
        )  # fmt: skip
    return y.view(*x.shape[:-1], n)
