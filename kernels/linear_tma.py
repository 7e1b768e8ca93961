"""A product by the copy engine of Hopper and Blackwell (TMA), with all that follows it in the same pass.

    y = gelu(x @ weight^T + bias)    or    y = residual + scale * (x @ weight^T + bias)

Shapes are those of `linear_residual`. x, weight, residual and y go through tensor descriptors, made on the host and
passed as kernel parameters: one instruction fetches a whole tile into shared memory. That frees the registers that
`linear` spends on addresses, so tiles of 128 x 256 fit without spills. Each byte that they read from L2 serves 85
FLOPs, against 64 for 128 x 128. Outside a tensor the copy engine reads zeros and writes nothing.

Requires compute capability 9.0, a half type, N and K multiples of 8, and tensors that begin at multiples of 16 bytes:
`fits` says so, and `linear` computes otherwise.

FLOPs: 2 M N K.    Bytes: M K + N K + M N values, and M N more with a residual.
A launch makes three or four descriptors, about 5 us of Python each, which a CUDA graph pays when it is captured.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dispatch import gelu_form, pdl_launch, processors_of
from .language import jit, tl
from .table import Config
from .tiles import begin, gelu_as, tile_of

ALIGNED = 16
"""Bytes that tensors and their rows have to begin at a multiple of."""
ROW_ALIGNED = 8
"""The same for rows, in values of a half type."""
HALF = (torch.float16, torch.bfloat16)


@jit
def compute_tile(
    tile, x, weight, bias_ptr, scale_ptr, residual, m, n, k, out,
    GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """One BLOCK_M x BLOCK_N tile of the result; arguments as in `linear_tma_kernel`."""
    tile_m, tile_n = tile_of(tile, m, n, BLOCK_M, BLOCK_N, GROUP_M)
    row = tile_m * BLOCK_M
    column = tile_n * BLOCK_N
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        y = tl.dot(x.load([row, start]), weight.load([column, start]).T, y)
    near_columns = tl.minimum(column + tl.arange(0, BLOCK_N), n - 1)
    y += tl.load(bias_ptr + near_columns).to(tl.float32)[None, :]
    y = gelu_as(y, GELU)
    if scale_ptr is not None:
        y *= tl.load(scale_ptr + near_columns).to(tl.float32)[None, :]
    if residual is not None:
        y += residual.load([row, column]).to(tl.float32)
    out.store([row, column], y.to(out.dtype))


@jit
def linear_tma_kernel(
    x, weight, bias_ptr, scale_ptr, residual, m, n, k, out,
    GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PERSISTENT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: a BLOCK_M x BLOCK_N tile, or if PERSISTENT every num_programs-th tile.

    Grid: (cdiv(m, BLOCK_M) * cdiv(n, BLOCK_N),), or if PERSISTENT any smaller one.

    x, weight, residual, out: descriptors of (m, k), (n, k), (m, n) or None, and (m, n), whose blocks are
    (BLOCK_M, BLOCK_K), (BLOCK_N, BLOCK_K), and twice (BLOCK_M, BLOCK_N); bias_ptr: (n,); scale_ptr: (n,) or None; all
    of one half type. GELU: as `gelu_as` takes it.
    """
    begin(PDL)
    first = tl.program_id(0)
    if PERSISTENT:
        tiles = tl.cdiv(m, BLOCK_M) * tl.cdiv(n, BLOCK_N)
        # One loop with that over k: the next tile's first blocks are fetched while this tile's end is computed.
        for tile in tl.range(first, tiles, tl.num_programs(0), flatten=True):
            compute_tile(
                tile, x, weight, bias_ptr, scale_ptr, residual, m, n, k, out, GELU, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M
            )
    else:
        compute_tile(
            first, x, weight, bias_ptr, scale_ptr, residual, m, n, k, out, GELU, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M
        )


def fits(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> bool:
    """Whether contiguous tensors of a product (as `linear_residual` takes them) can go through descriptors."""
    tensors = [t for t in (x, weight, residual) if t is not None]
    aligned = all(t.data_ptr() % ALIGNED == 0 for t in tensors)
    return x.dtype in HALF and aligned and all(size % ROW_ALIGNED == 0 for size in weight.shape)


def launch_linear_tma(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, residual: Tensor | None, config: Config, *,
    gelu: bool = False, modes: int = 0,
) -> Tensor:  # fmt: skip
    """Runs the kernel with the block sizes of `config`: all tensors contiguous, and such as `fits` asks for."""
    n, k = weight.shape
    m = x.numel() // k
    out = x.new_empty(*x.shape[:-1], n)
    tile_m, tile_n, tile_k = (config.blocks[f"BLOCK_{axis}"] for axis in "MNK")
    tiles = -(-m // tile_m) * -(-n // tile_n)
    # With a residual, its tile and the result's would take 128 KiB beside the stages'.
    persistent = int(bool(config.blocks["PERSISTENT"]) and residual is None)
    programs = min(tiles, processors_of(x.device)) if persistent else tiles
    linear_tma_kernel[(programs,)](
        descriptor(x, m, k, tile_m, tile_k), descriptor(weight, n, k, tile_n, tile_k), bias, scale,
        None if residual is None else descriptor(residual, m, n, tile_m, tile_n), m, n, k,
        descriptor(out, m, n, tile_m, tile_n), GELU=gelu_form(gelu, x.dtype, modes),
        **{**config.arguments, "PERSISTENT": persistent}, **pdl_launch(modes, x),
    )  # fmt: skip
    return out


def descriptor(tensor: Tensor, rows: int, columns: int, block_rows: int, block_columns: int) -> Any:
    """A contiguous tensor seen as (rows, columns), moved in blocks of (block_rows, block_columns)."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(tensor, [rows, columns], [columns, 1], [block_rows, block_columns])
