"""Depthwise convolutions with one output per input channel: up to eight rows per program, taps in float32.

    y[b, i, j, c] = bias[c] + sum_{u, v} x[b, i * s + u - k // 2, j * s + v - k // 2, c] * taps[u, v, c]

x is (B, H, W, C), zero outside; taps (k, k, C) float32, the weight's values exactly; y (B, ceil(H/s), ceil(W/s), C).

A program computes ROWS rows of BLOCK_W positions of BLOCK_C channels. It goes over the taps column by column: the k
taps of a column stay in registers as float32, and each value of x is loaded and converted once for all rows that use
it, k + (ROWS - 1) s times per column of taps instead of k ROWS.

FLOPs: 2 k^2 per value of y.    Bytes: x once, y once (neighbouring programs share their edges through L1 and L2).

A 7x7 is limited by the rate at which instructions are issued: 49 of its 77 to 106 instructions per value of y are
multiplications with addition. `depthwise.py` has the operator, and the kernel for any number of outputs per channel.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
# ruff: noqa: RUF005 - Triton concatenates tuples, but does not unpack them
from __future__ import annotations

from torch import Tensor

from .dispatch import FP8, gelu_form, pdl_launch
from .fp8 import to_fp8
from .language import jit, tl
from .table import Config
from .tiles import begin, gelu_as


@jit
def zeros(COUNT: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr):
    """A tuple of COUNT tiles of float32 zeros."""
    tiles = ()
    for _ in tl.static_range(COUNT):
        tiles = tiles + (tl.zeros((BLOCK_W, BLOCK_C), tl.float32),)
    return tiles


@jit
def column_of_taps(ptrs, inside, c, KERNEL: tl.constexpr, EVEN_C: tl.constexpr):
    """One column of taps as a tuple of KERNEL tiles (1, BLOCK_C); `ptrs` points to its first row."""
    taps = ()
    for u in tl.static_range(KERNEL):
        ptrs_of_row = ptrs + u * KERNEL * c
        tap = tl.load(ptrs_of_row) if EVEN_C else tl.load(ptrs_of_row, mask=inside, other=0.0)
        taps = taps + (tap[None, :],)
    return taps


@jit
def add_row(totals, x, taps, u: tl.constexpr, ROWS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr):
    """Adds row u of the input, counted from a program's first, to those of the ROWS sums that it counts in."""
    sums = ()
    for row in tl.static_range(ROWS):
        if (u >= row * STRIDE) and (u < row * STRIDE + KERNEL):
            sums = sums + (totals[row] + x * taps[u - row * STRIDE],)
        else:
            sums = sums + (totals[row],)
    return sums


@jit
def store_row(total, bias, row, height, columns, width, channels, c, out_ptr, inverse, GELU: tl.constexpr):
    """Adds the bias, applies GELU if GELU is not 0, and writes one row of positions.

    inverse: 1 / scale if the result is FP8, else None.
    """
    y = gelu_as(total + bias[None, :], GELU)
    if inverse is not None:
        y = to_fp8(y, inverse)
    inside = (row < height) & (columns[:, None] < width) & (channels[None, :] < c)
    tl.store(
        out_ptr + (row * width + columns[:, None]) * c + channels[None, :], y.to(out_ptr.dtype.element_ty), mask=inside
    )


@jit
def depthwise_rows_kernel(
    x_ptr, taps_ptr, bias_ptr, height, width, c, inverse, out_ptr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, GELU: tl.constexpr, EVEN_C: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: ROWS x BLOCK_W positions x BLOCK_C channels of the result.

    Grid: (cdiv(H / STRIDE, ROWS) * cdiv(W / STRIDE, BLOCK_W), cdiv(c, BLOCK_C), B). x_ptr: (B, height, width, c);
    taps_ptr: (KERNEL, KERNEL, c) float32; bias_ptr: (c,); out_ptr: (B, H / STRIDE, W / STRIDE, c). EVEN_C: BLOCK_C
    divides c. inverse: 1 / scale of the result if that is FP8, else None.
    """
    begin(PDL)
    out_height = tl.cdiv(height, STRIDE)
    out_width = tl.cdiv(width, STRIDE)
    across = tl.cdiv(out_width, BLOCK_W)
    top = tl.program_id(0) // across * ROWS
    columns = tl.program_id(0) % across * BLOCK_W + tl.arange(0, BLOCK_W)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = tl.program_id(2).to(tl.int64)
    x_ptr += image * height * width * c
    out_ptr += image * out_height * out_width * c
    inside = channels < c
    totals = zeros(ROWS, BLOCK_W, BLOCK_C)
    for v in range(KERNEL):  # not unrolled: ptxas would load all columns at once and spill
        x_columns = columns * STRIDE + (v - KERNEL // 2)
        # Unsigned, one comparison covers both ends.
        valid = (x_columns.to(tl.uint32) < width)[:, None]
        if not EVEN_C:
            valid = valid & inside[None, :]
        taps = column_of_taps(taps_ptr + v * c + channels, inside, c, KERNEL, EVEN_C)
        x_ptrs = x_ptr + ((top * STRIDE - KERNEL // 2) * width + x_columns[:, None]) * c + channels[None, :]
        for u in tl.static_range(KERNEL + (ROWS - 1) * STRIDE):
            x_row = top * STRIDE + (u - KERNEL // 2)
            x = tl.load(x_ptrs, mask=valid & (x_row.to(tl.uint32) < height), other=0.0).to(tl.float32)
            totals = add_row(totals, x, taps, u, ROWS, KERNEL, STRIDE)
            x_ptrs += width * c
    bias = tl.load(bias_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    for row in tl.static_range(ROWS):
        store_row(
            totals[row], bias, top + row, out_height, columns, out_width, channels, c, out_ptr, inverse, GELU
        )  # fmt: skip


def float_taps(weight: Tensor, channels: int) -> Tensor:
    """A weight (k, k, m C) in float32 by output of a channel, for C input channels: (m, k, k, C), contiguous."""
    return weight.float().reshape(*weight.shape[:2], channels, -1).movedim(-1, 0).contiguous()


def output_like(x: Tensor, c: int, stride: int, out_scale: float | None) -> Tensor:
    """An empty result of c channels for x (B, H, W, C): in x's dtype, or FP8 with an out_scale."""
    b, height, width, _ = x.shape
    dtype = x.dtype if out_scale is None else FP8
    return x.new_empty(b, -(-height // stride), -(-width // stride), c, dtype=dtype)


def launch_depthwise_rows(
    x: Tensor, taps: Tensor, bias: Tensor, stride: int, gelu: bool, config: Config, *, modes: int = 0,
    out_scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Runs the kernel with the block sizes of `config`: contiguous tensors, taps (1, k, k, C) of `float_taps`."""
    b, height, width, c = x.shape
    out = output_like(x, c, stride, out_scale)
    tiles = -(-out.shape[1] // config.blocks["ROWS"]) * -(-out.shape[2] // config.blocks["BLOCK_W"])
    depthwise_rows_kernel[(tiles, -(-c // config.blocks["BLOCK_C"]), b)](
        x, taps, bias, height, width, c, None if out_scale is None else 1 / out_scale, out, KERNEL=taps.shape[1],
        STRIDE=stride, GELU=gelu_form(gelu, x.dtype, modes), EVEN_C=c % config.blocks["BLOCK_C"] == 0,
        **config.arguments, **pdl_launch(modes, x),
    )  # fmt: skip
    return out
