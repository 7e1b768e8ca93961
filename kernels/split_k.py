"""A product of few rows: the summed axis is cut into parts, so that there are programs enough to fill the GPU.

    partial[p] = x[:, part p] @ weight[:, part p]^T,    then    y = end(sum_p partial[p] + bias)

Shapes and ends (GELU, or scale and residual) are those of `linear_residual`. With 16 rows, tiles of a (1536, 6144)
weight are 24 programs: not enough loads are in flight to stream 19 MB from memory. Eight parts make 192.

A first kernel writes float32 sums of each part, a second one adds them in order and computes the end. So the result is
the same in every run, and nothing is kept between launches. A single kernel, in which the last program of a tile adds
the parts, would need counters that are zero before every launch: clearing them is a second launch too, and counters
that outlive the call would be shared by two streams, or by two CUDA graphs. With programmatic dependent launch the
second kernel costs little more than its own work.

FLOPs: 2 M N K.    Bytes: M K + N K + M N values, and 8 P M N of float32 sums, which stay in L2.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import gelu_form, pdl_launch, precision_of
from .language import jit, tl
from .table import Config
from .tiles import begin, gelu_as, product, tile_of

FEW_ROWS = 1024
"""More rows than these have tiles enough to fill a GPU."""
FINISH = {"BLOCK": 256, "num_warps": 2}
"""Values per program of the second kernel: four per thread, and programs for every processor at 16 rows."""


@jit
def split_k_kernel(
    x_ptr, weight_ptr, m, n, k, share, partial_ptr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: a BLOCK_M x BLOCK_N tile of one part. Grid: (cdiv(m, BLOCK_M) * cdiv(n, BLOCK_N), parts).

    x_ptr: (m, k); weight_ptr: (n, k); partial_ptr: (parts, m, n) float32. share: columns of a part, a multiple of
    BLOCK_K; the last part may have fewer. EVEN_K: BLOCK_K divides k.
    """
    begin(PDL)
    tile_m, tile_n = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    part = tl.program_id(1)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    first = part * share
    y = product(
        x_ptr + first, weight_ptr + first, tl.minimum(rows, m - 1), tl.minimum(columns, n - 1),
        tl.minimum(share, k - first), k, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, PRECISION,
    )  # fmt: skip
    place = (part * m + rows).to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(partial_ptr + place, y, mask=(rows[:, None] < m) & (columns[None, :] < n))


@jit
def sum_parts_kernel(
    partial_ptr, bias_ptr, scale_ptr, residual_ptr, size, n, out_ptr,
    PARTS: tl.constexpr, GELU: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK values of the result. Grid: (cdiv(size, BLOCK),); size is m * n.

    partial_ptr: (PARTS, m, n) float32; bias_ptr: (n,); scale_ptr: (n,) or None; residual_ptr: (m, n) or None; out_ptr:
    (m, n). GELU: as `gelu_as` takes it.
    """
    begin(PDL)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    columns = (place % n).to(tl.int32)
    partial_ptrs = partial_ptr + place
    y = tl.load(partial_ptrs, mask=inside, other=0.0)
    for _ in tl.static_range(1, PARTS):
        partial_ptrs += size
        y += tl.load(partial_ptrs, mask=inside, other=0.0)
    y += tl.load(bias_ptr + columns).to(tl.float32)
    y = gelu_as(y, GELU)
    if scale_ptr is not None:
        y *= tl.load(scale_ptr + columns).to(tl.float32)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)


def launch_split_k(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, residual: Tensor | None, config: Config, *,
    gelu: bool = False, modes: int = 0,
) -> Tensor:  # fmt: skip
    """Runs both kernels with the block sizes of `config`, in at most SPLITS parts: all tensors contiguous."""
    n, k = weight.shape
    m = x.numel() // k
    arguments = dict(config.arguments)
    splits, block_k = arguments.pop("SPLITS"), config.blocks["BLOCK_K"]
    share = -(-k // (splits * block_k)) * block_k
    parts = -(-k // share)
    out = x.new_empty(*x.shape[:-1], n)
    partial = x.new_empty(parts, m, n, dtype=torch.float32)
    tiles = -(-m // config.blocks["BLOCK_M"]) * -(-n // config.blocks["BLOCK_N"])
    split_k_kernel[(tiles, parts)](
        x, weight, m, n, k, share, partial, EVEN_K=k % block_k == 0, PRECISION=precision_of(x.dtype), **arguments,
        **pdl_launch(modes, x),
    )  # fmt: skip
    sum_parts_kernel[(-(-m * n // FINISH["BLOCK"]),)](
        partial, bias, scale, residual, m * n, n, out, PARTS=parts, GELU=gelu_form(gelu, x.dtype, modes), **FINISH,
        **pdl_launch(modes, x),
    )  # fmt: skip
    return out
