"""Depthwise convolutions with two outputs per input channel: each value of x is loaded once for both.

    y[b, i, j, 2 c + o] = bias[2 c + o] + sum_{u, v} x[b, i * s + u - k // 2, j * s + v - k // 2, c] * taps[o, u, v, c]

x is (B, H, W, C), zero outside; taps (2, k, k, C) float32, the weight's values exactly, those of even output channels
first; y (B, ceil(H/s), ceil(W/s), 2 C). In the model these are the embeddings between stages (7x7, stride 2, GELU) and
the last block (3x3).

A program computes ROWS rows of BLOCK_W positions of the 2 BLOCK_C outputs of BLOCK_C input channels, as
`depthwise_rows` does: once for even outputs, once for odd ones, and interleaves the two where it writes them.

FLOPs: 2 k^2 per value of y.    Bytes: x once, y once.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from torch import Tensor

from .depthwise_rows import add_row, column_of_taps, output_like, store_row, zeros
from .dispatch import gelu_form, pdl_launch
from .language import jit, tl
from .table import Config
from .tiles import begin


@jit
def depthwise_pairs_kernel(
    x_ptr, taps_ptr, bias_ptr, height, width, c, out_ptr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, GELU: tl.constexpr, EVEN_C: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: ROWS x BLOCK_W positions x both outputs of BLOCK_C input channels.

    Grid: (cdiv(H / STRIDE, ROWS) * cdiv(W / STRIDE, BLOCK_W), cdiv(c, BLOCK_C), B). x_ptr: (B, height, width, c);
    taps_ptr: (2, KERNEL, KERNEL, c) float32; bias_ptr: (2 c,); out_ptr: (B, H / STRIDE, W / STRIDE, 2 c). EVEN_C:
    BLOCK_C divides c.
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
    out_ptr += image * out_height * out_width * (2 * c)
    inside = channels < c
    evens = zeros(ROWS, BLOCK_W, BLOCK_C)
    odds = zeros(ROWS, BLOCK_W, BLOCK_C)
    for v in range(KERNEL):  # not unrolled: ptxas would load all columns at once and spill
        x_columns = columns * STRIDE + (v - KERNEL // 2)
        # Unsigned, one comparison covers both ends.
        valid = (x_columns.to(tl.uint32) < width)[:, None]
        if not EVEN_C:
            valid = valid & inside[None, :]
        taps_ptrs = taps_ptr + v * c + channels
        even_taps = column_of_taps(taps_ptrs, inside, c, KERNEL, EVEN_C)
        odd_taps = column_of_taps(taps_ptrs + KERNEL * KERNEL * c, inside, c, KERNEL, EVEN_C)
        x_ptrs = x_ptr + ((top * STRIDE - KERNEL // 2) * width + x_columns[:, None]) * c + channels[None, :]
        for u in tl.static_range(KERNEL + (ROWS - 1) * STRIDE):
            x_row = top * STRIDE + (u - KERNEL // 2)
            x = tl.load(x_ptrs, mask=valid & (x_row.to(tl.uint32) < height), other=0.0).to(tl.float32)
            evens = add_row(evens, x, even_taps, u, ROWS, KERNEL, STRIDE)
            odds = add_row(odds, x, odd_taps, u, ROWS, KERNEL, STRIDE)
            x_ptrs += width * c
    outputs = tl.program_id(1) * (2 * BLOCK_C) + tl.arange(0, 2 * BLOCK_C)
    bias = tl.load(bias_ptr + outputs, mask=outputs < 2 * c, other=0.0).to(tl.float32)
    for row in tl.static_range(ROWS):
        both = tl.interleave(evens[row], odds[row])
        store_row(both, bias, top + row, out_height, columns, out_width, outputs, 2 * c, out_ptr, None, GELU)


def launch_depthwise_pairs(
    x: Tensor, taps: Tensor, bias: Tensor, stride: int, gelu: bool, config: Config, *, modes: int = 0
) -> Tensor:
    """Runs the kernel with the block sizes of `config`: contiguous tensors, taps (2, k, k, C) of `float_taps`."""
    b, height, width, c = x.shape
    out = output_like(x, 2 * c, stride, None)
    tiles = -(-out.shape[1] // config.blocks["ROWS"]) * -(-out.shape[2] // config.blocks["BLOCK_W"])
    depthwise_pairs_kernel[(tiles, -(-c // config.blocks["BLOCK_C"]), b)](
        x, taps, bias, height, width, c, out, KERNEL=taps.shape[1], STRIDE=stride,
        GELU=gelu_form(gelu, x.dtype, modes), EVEN_C=c % config.blocks["BLOCK_C"] == 0, **config.arguments,
        **pdl_launch(modes, x),
    )  # fmt: skip
    return out
