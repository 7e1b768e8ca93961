"""Depthwise convolutions on tensor cores, stride 1: taps as diagonal matrices of 8 channels.

    y[b, i, j, c] = bias[c] + sum_{u, v} x[b, i + u - k // 2, j + v - k // 2, c] * weight[u, v, c]

x is (B, H, W, C), zero outside; weight (k, k, C); y (B, H, W, C). A tensor core multiplies 16 x 16 by 16 x 8 values
(mma.m16n8k16). For 8 channels and two taps of one row, v and v + 1, the factors are

    A (16 positions, 16): A[j, 8 t + e] = x[..., j + v + t - k // 2, e], which are 16 bytes of x for each tap,
    B (16, 8): B[8 t + e, n] = weight[u, v + t, n] if e = n, else 0.

So 7 of 8 products are with zero, and still each instruction does the work of eight multiplications with addition per
thread. The last column of an odd kernel is paired with zeros. Products are exact and are summed in float32, as in the
other kernels. An infinite or NaN value of x makes the results of its 8 channels NaN, because 0 * inf is NaN.

A program computes ROWS rows of BLOCK_W positions of BLOCK_C channels. It goes over pairs of columns of taps: their k
diagonal matrices stay in registers, and each row of x is loaded once for all rows of y that use it.

FLOPs: 2 k^2 per value of y, 16 k (k + 1) with the zeros.    Bytes: x once, y once.

Compiled for sm_90 the 7x7 takes 31 to 42 instructions per value instead of 77 to 106 in `depthwise_rows`; seven of them
are on tensor cores. GPUs that multiply half types with sums in float32 at a quarter of an H100's rate
(sm_86, sm_89, sm_120) gain nothing.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
# ruff: noqa: RUF005 - Triton concatenates tuples, but does not unpack them
from __future__ import annotations

from torch import Tensor

from .depthwise_rows import output_like
from .dispatch import gelu_form, pdl_launch
from .fp8 import to_fp8
from .language import jit, tl
from .table import Config
from .tiles import begin, gelu_as


@jit
def diagonal_matrices(ptrs, mask, diagonal, c, KERNEL: tl.constexpr):
    """A pair of columns of taps as a tuple of KERNEL tiles (groups, 16, 8); `ptrs` points to the first row of each."""
    matrices = ()
    for u in tl.static_range(KERNEL):
        # A row's eight channels are loaded at once, then all but the diagonal is set to zero.
        taps = tl.load(ptrs + u * KERNEL * c, mask=mask, other=0.0)
        matrices = matrices + (tl.where(diagonal, taps, 0.0),)
    return matrices


@jit
def multiply_row(totals, x, matrices, u: tl.constexpr, ROWS: tl.constexpr, KERNEL: tl.constexpr):
    """Adds row u of the input, counted from a program's first, to those of the ROWS sums that it counts in."""
    sums = ()
    for row in tl.static_range(ROWS):
        if (u >= row) and (u < row + KERNEL):
            sums = sums + (tl.dot(x, matrices[u - row], totals[row]),)
        else:
            sums = sums + (totals[row],)
    return sums


@jit
def depthwise_mma_kernel(
    x_ptr, weight_ptr, bias_ptr, height, width, c, inverse, out_ptr,
    KERNEL: tl.constexpr, GELU: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: ROWS x BLOCK_W positions (16 or more) x BLOCK_C channels (8 per warp or more) of the result.

    Grid: (cdiv(height, ROWS) * cdiv(width, BLOCK_W), cdiv(c, BLOCK_C), B). x_ptr, out_ptr: (B, height, width, c);
    weight_ptr: (KERNEL, KERNEL, c); bias_ptr: (c,); of a half type. inverse: 1 / scale of the result if that is FP8,
    else None.
    """
    begin(PDL)
    GROUPS: tl.constexpr = BLOCK_C // 8
    across = tl.cdiv(width, BLOCK_W)
    top = tl.program_id(0) // across * ROWS
    columns = tl.program_id(0) % across * BLOCK_W + tl.arange(0, BLOCK_W)
    image = tl.program_id(2).to(tl.int64)
    x_ptr += image * height * width * c
    out_ptr += image * height * width * c
    group = (tl.program_id(1) * BLOCK_C + tl.arange(0, GROUPS) * 8)[:, None]  # first channel of each
    inner = tl.arange(0, 16)  # 8 t + e
    x_channels = (group + inner[None, :] % 8)[:, None, :]  # (GROUPS, 1, 16)
    channels = (group + tl.arange(0, 8)[None, :])[:, None, :]  # (GROUPS, 1, 8)
    diagonal = (inner[:, None] % 8 == tl.arange(0, 8)[None, :])[None, :, :]  # (1, 16, 8)
    totals = ()
    for _ in tl.static_range(ROWS):
        totals = totals + (tl.zeros((GROUPS, BLOCK_W, 8), tl.float32),)
    for pair in range((KERNEL + 1) // 2):
        v = pair * 2 + inner // 8  # column of the tap
        tap_ptrs = weight_ptr + v[None, :, None] * c + channels
        real = v < KERNEL
        matrices = diagonal_matrices(tap_ptrs, real[None, :, None] & (channels < c), diagonal, c, KERNEL)
        x_columns = columns[:, None] + (v - KERNEL // 2)[None, :]  # (BLOCK_W, 16)
        # Unsigned, one comparison covers both ends. Behind the last tap x may be infinite, so it is not loaded.
        valid = ((x_columns.to(tl.uint32) < width) & real[None, :])[None, :, :] & (x_channels < c)
        x_ptrs = x_ptr + ((top - KERNEL // 2) * width + x_columns)[None, :, :] * c + x_channels
        for u in tl.static_range(KERNEL + ROWS - 1):
            x_row = top + (u - KERNEL // 2)
            x = tl.load(x_ptrs, mask=valid & (x_row.to(tl.uint32) < height), other=0.0)
            totals = multiply_row(totals, x, matrices, u, ROWS, KERNEL)
            x_ptrs += width * c
    bias = tl.load(bias_ptr + channels, mask=channels < c, other=0.0).to(tl.float32)
    for row in tl.static_range(ROWS):
        y = gelu_as(totals[row] + bias, GELU)
        if inverse is not None:
            y = to_fp8(y, inverse)
        inside = (top + row < height) & (columns < width)[None, :, None] & (channels < c)
        out_ptrs = out_ptr + ((top + row) * width + columns)[None, :, None] * c + channels
        tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=inside)


def launch_depthwise_mma(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, gelu: bool, config: Config, *, modes: int = 0,
    out_scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Runs the kernel with the block sizes of `config`: contiguous tensors of a half type, weight (k, k, C)."""
    assert stride == 1
    b, height, width, c = x.shape
    out = output_like(x, c, 1, out_scale)
    tiles = -(-height // config.blocks["ROWS"]) * -(-width // config.blocks["BLOCK_W"])
    depthwise_mma_kernel[(tiles, -(-c // config.blocks["BLOCK_C"]), b)](
        x, weight, bias, height, width, c, None if out_scale is None else 1 / out_scale, out,
        KERNEL=weight.shape[0], GELU=gelu_form(gelu, x.dtype, modes), **config.arguments, **pdl_launch(modes, x),
    )  # fmt: skip
    return out
