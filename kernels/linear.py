"""A product and all that follows it, in one pass over the result: the kernel that runs on every architecture.

    y = gelu(x @ weight^T + bias)    or    y = residual + scale * (x @ weight^T + bias)

x is (..., K), weight (N, K) as in `nn.Linear`; bias and scale are (N,), residual and y (..., N). The operators
`linear_gelu` and `linear_residual` use it, or `linear_tma`, `split_k` or `cublas` in its place.

FLOPs: 2 M N K, and about 10 M N for GELU.
Bytes: M K + N K + M N values, and M N with a residual; GELU or the addition by itself would take 2 M N more.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from torch import Tensor

from .dispatch import gelu_form, pdl_launch, precision_of
from .language import jit, tl
from .table import Config
from .tiles import begin, gelu_as, product, tile_of


@jit
def linear_kernel(
    x_ptr, weight_ptr, bias_ptr, scale_ptr, residual_ptr, m, n, k, out_ptr,
    GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: a BLOCK_M x BLOCK_N tile. Grid: (cdiv(m, BLOCK_M) * cdiv(n, BLOCK_N),).

    x_ptr: (m, k); weight_ptr: (n, k); bias_ptr: (n,); scale_ptr: (n,) or None; residual_ptr: (m, n) or None; out_ptr:
    (m, n); all of one type. GELU: as `gelu_as` takes it. EVEN_K: BLOCK_K divides k.
    """
    begin(PDL)
    tile_m, tile_n = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    near_columns = tl.minimum(columns, n - 1)
    y = product(
        x_ptr, weight_ptr, tl.minimum(rows, m - 1), near_columns, k, k, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, PRECISION
    )
    y += tl.load(bias_ptr + near_columns).to(tl.float32)[None, :]
    y = gelu_as(y, GELU)
    if scale_ptr is not None:
        y *= tl.load(scale_ptr + near_columns).to(tl.float32)[None, :]
    place = rows.to(tl.int64)[:, None] * n + columns[None, :]
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)


def launch_linear(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, residual: Tensor | None, config: Config, *,
    gelu: bool = False, modes: int = 0,
) -> Tensor:  # fmt: skip
    """Runs the kernel with the block sizes of `config`: all tensors contiguous."""
    n, k = weight.shape
    m = x.numel() // k
    out = x.new_empty(*x.shape[:-1], n)
    tiles = -(-m // config.blocks["BLOCK_M"]) * -(-n // config.blocks["BLOCK_N"])
    linear_kernel[(tiles,)](
        x, weight, bias, scale, residual, m, n, k, out, GELU=gelu_form(gelu, x.dtype, modes),
        EVEN_K=k % config.blocks["BLOCK_K"] == 0, PRECISION=precision_of(x.dtype), **config.arguments,
        **pdl_launch(modes, x),
    )  # fmt: skip
    return out
