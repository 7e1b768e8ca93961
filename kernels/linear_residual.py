"""A product and all that follows it, in one pass over the result.

    linear_residual:  y = residual + scale * (x @ weight^T + bias)      attention's proj, ConvFFN's fc2
    linear_gelu:      y = gelu(x @ weight^T + bias)                     ConvFFN's fc1, and 1x1 convolutions with GELU

x is (..., K), weight (N, K) as in `nn.Linear`; bias and scale are (N,), residual and y (..., N). Scale is a layer scale
(fused form has it in weight and bias already: None). Channels-last 1x1 convolutions are such products.

FLOPs: 2 M N K, and about 10 M N for GELU.
Bytes: M K + N K + M N values, and M N of residual. Product, GELU or addition one by one take 2 M N more each.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from .language import jit, tl
from .tiles import gelu, product, tile_of


@jit
def linear_kernel(
    x_ptr, weight_ptr, bias_ptr, scale_ptr, residual_ptr, m, n, k, out_ptr,
    GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: a BLOCK_M x BLOCK_N tile. Grid: (cdiv(m, BLOCK_M) * cdiv(n, BLOCK_N),).

    x_ptr: (m, k); weight_ptr: (n, k); bias_ptr: (n,); scale_ptr: (n,) or None; residual_ptr: (m, n) or None; out_ptr:
    (m, n); all of one type. EVEN_K: BLOCK_K divides k.
    """
    tile_m, tile_n = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    near_columns = tl.minimum(columns, n - 1)
    y = product(
        x_ptr, weight_ptr, tl.minimum(rows, m - 1), near_columns, k, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, PRECISION
    )
    y += tl.load(bias_ptr + near_columns).to(tl.float32)[None, :]
    if GELU:
        y = gelu(y)
    if scale_ptr is not None:
        y *= tl.load(scale_ptr + near_columns).to(tl.float32)[None, :]
    place = rows.to(tl.int64)[:, None] * n + columns[None, :]
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)
