"""The first convolution as one implicit matrix product: 3x3, stride 2, from RGB pixels, with bias and GELU.

    y[b, i, j, n] = gelu(bias[n] + sum_{c, u, v} x[b, c, 2 i + u - 1, 2 j + v - 1] * weight[n, 9 c + 3 u + v])

x is (B, 3, H, W) with any strides, zero outside, in the weight's dtype or uint8 levels 0..255, which are exact in a
half type (the model's weight contains 1/255 then). weight is (C, 32): the 27 taps of an output channel, then zeros
(`flat_taps`). y is (B, ceil(H/2), ceil(W/2), C), channels-last as the rest of the model computes. Half types only:
exact float32 products would run on FMA units.

A program gathers the 32 values of BLOCK_M positions once and multiplies them on tensor cores with BLOCK_N output
channels after BLOCK_N, so that registers hold the sums of one such part.

FLOPs: 64 per value of y, and about 10 for GELU.
Bytes: x once, y once (neighbouring positions share pixels through L1). y is the model's largest tensor; cuDNN's
convolution, the bias and GELU as kernels of their own write it three times and read it twice.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..core.errors import ConfigError
from .dispatch import (
    Modes,
    check_same_dtype,
    forward_only,
    gelu_form,
    on_device_of,
    pdl_launch,
    runs,
)
from .language import jit, tl
from .table import Config, config_for
from .tiles import begin, gelu_as

COLORS, KERNEL, STRIDE = 3, 3, 2
TAPS = COLORS * KERNEL * KERNEL
PADDED = 32
"""Taps of a row of `weight`, with the zeros behind them: a multiple of 16, as tensor cores multiply."""


@jit
def tap(
    x_ptrs, x_color, x_row, x_column, above, inside, below, left, right,
    K: tl.constexpr,
):  # fmt: skip
    """Tap K of each position, zero outside the image and beyond the last tap; x_ptrs points to the middle ones."""
    if K >= 27:
        return tl.zeros(x_ptrs.shape, tl.uint8 if x_ptrs.dtype.element_ty == tl.uint8 else tl.int16)
    else:
        DOWN: tl.constexpr = K // 3 % 3 - 1
        RIGHT: tl.constexpr = K % 3 - 1
        valid = inside
        if DOWN == -1:
            valid = above
        elif DOWN == 1:
            valid = below
        if RIGHT == -1:
            valid &= left
        elif RIGHT == 1:
            valid &= right
        x = tl.load(x_ptrs + (K // 9 * x_color + DOWN * x_row + RIGHT * x_column), mask=valid, other=0)
        # As bits: Triton 3.7 fails on sm_100 if taps that were put together are an operand as they are.
        return x if x_ptrs.dtype.element_ty == tl.uint8 else x.to(tl.int16, bitcast=True)


@jit
def gathered(
    x_ptrs, x_color, x_row, x_column, above, inside, below, left, right,
    K: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Taps K, K + STEP and so on up to 32, one axis of 2 after the other.

    Put together from single taps, so that a thread has all those of a position and their order is known when it is
    compiled. How Triton shares out a load of (BLOCK_M, 32) differs between versions, up to twice the instructions.
    """
    if STEP == 32:
        return tap(x_ptrs, x_color, x_row, x_column, above, inside, below, left, right, K)
    else:
        return tl.join(
            gathered(x_ptrs, x_color, x_row, x_column, above, inside, below, left, right, K, 2 * STEP),
            gathered(x_ptrs, x_color, x_row, x_column, above, inside, below, left, right, K + STEP, 2 * STEP),
        )


@jit
def stem_kernel(
    x_ptr, weight_ptr, bias_ptr, height, width, x_image, x_color, x_row, x_column, out_ptr,
    C: tl.constexpr, GELU: tl.constexpr, PDL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLIT_N: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M positions of one image; SPLIT_N programs share their channels, in whole parts of BLOCK_N.

    Grid: (cdiv(ceil(H / 2) * ceil(W / 2), BLOCK_M), SPLIT_N, B). x_ptr: (B, 3, height, width) with the strides x_image
    to x_column; weight_ptr: (C, 32); bias_ptr: (C,); out_ptr: (B, ceil(H / 2), ceil(W / 2), C).
    """
    begin(PDL)
    PARTS: tl.constexpr = (C + BLOCK_N * SPLIT_N - 1) // (BLOCK_N * SPLIT_N)
    out_width = (width + 1) // 2
    positions = (height + 1) // 2 * out_width
    position = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    image = tl.program_id(2).to(tl.int64)
    out_row = position // out_width
    out_column = position - out_row * out_width
    inside = position < positions
    x_ptrs = x_ptr + image * x_image + 2 * (out_row * x_row + out_column * x_column)
    x = gathered(
        x_ptrs, x_color, x_row, x_column, inside & (out_row > 0), inside, inside & (2 * out_row + 1 < height),
        out_column > 0, 2 * out_column + 1 < width, 0, 1,
    )  # fmt: skip
    x = tl.reshape(x, (BLOCK_M, 32))
    if x_ptr.dtype.element_ty == tl.uint8:
        x = x.to(tl.float32).to(weight_ptr.dtype.element_ty)
    else:
        x = x.to(weight_ptr.dtype.element_ty, bitcast=True)
    taps = tl.arange(0, 32)
    out_ptr += image * positions * C
    for part in tl.static_range(PARTS):
        channels = (tl.program_id(1) * PARTS + part) * BLOCK_N + tl.arange(0, BLOCK_N)
        real = channels < C
        weight = tl.load(weight_ptr + channels[None, :] * 32 + taps[:, None], mask=real[None, :], other=0.0)
        y = tl.dot(x, weight)
        y += tl.load(bias_ptr + channels, mask=real, other=0.0).to(tl.float32)[None, :]
        y = gelu_as(y, GELU)
        place = position[:, None] * C + channels[None, :]
        tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=(position[:, None] < positions) & real[None, :])


def stem_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in PyTorch: x (B, 3, H, W), weight (C, 32), bias (C,) -> (B, ceil(H/2), ceil(W/2), C)."""
    kernel = weight[:, :TAPS].reshape(-1, COLORS, KERNEL, KERNEL)
    return F.gelu(F.conv2d(x.to(weight.dtype), kernel, bias, STRIDE, KERNEL // 2)).permute(0, 2, 3, 1)


def flat_taps(weight: Tensor) -> Tensor:
    """The first convolution's weight (C, 3, 3, 3) as `stem` takes it: (C, 32), contiguous, zeros behind 27 taps."""
    return F.pad(weight.reshape(-1, TAPS), (0, PADDED - TAPS))


def launch_stem(x: Tensor, weight: Tensor, bias: Tensor, config: Config, *, modes: int = 0) -> Tensor:
    """Runs the kernel with the block sizes of `config`: weight and bias contiguous."""
    b, _, height, width = x.shape
    c = len(weight)
    out = weight.new_empty(b, -(-height // STRIDE), -(-width // STRIDE), c)
    tiles = -(-out.shape[1] * out.shape[2] // config.blocks["BLOCK_M"])
    stem_kernel[(tiles, config.blocks["SPLIT_N"], b)](
        x, weight, bias, height, width, *x.stride(), out, C=c, GELU=gelu_form(True, weight.dtype, modes),
        **config.arguments, **pdl_launch(modes, x),
    )  # fmt: skip
    return out


def stem(
    x: Tensor, weight: Tensor, bias: Tensor, *, kernel: str | bool | None = True, modes: int = Modes.NONE
) -> Tensor:
    """The first convolution of the model and its GELU: x (B, 3, H, W) -> (B, ceil(H/2), ceil(W/2), C), contiguous.

    Args:
        x: pixels with any strides, in the weight's dtype, or uint8 levels.
        weight: (C, 32) of `flat_taps`.
        bias: (C,).
        kernel: its name or True; False or None computes in plain PyTorch, whatever the device, which also computes
            float32.
        modes: of `dispatch.Modes`.

    Raises:
        ConfigError: shapes or dtypes that do not fit each other, or a gradient is asked for.
    """
    fits = x.ndim == 4 and x.shape[1] == COLORS and weight.ndim == 2 and weight.shape[1] == PADDED
    if not fits or bias.shape != weight.shape[:1]:
        shapes = [tuple(t.shape) for t in (x, weight, bias)]
        raise ConfigError(f"stem takes x (B, 3, H, W), weight (C, {PADDED}), bias (C,); found {shapes}")
    check_same_dtype("stem", *([] if x.dtype == torch.uint8 else [x]), weight, bias)
    forward_only("stem", x, weight, bias)
    return _stem(x, weight, bias, int(modes)) if kernel else stem_reference(x, weight, bias)


@torch.library.custom_op(
    "fvexport::stem", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor bias, int modes) -> Tensor"
)
def _stem(x: Tensor, weight: Tensor, bias: Tensor, modes: int) -> Tensor:
    b, _, height, width = x.shape
    out_height, out_width, c = -(-height // STRIDE), -(-width // STRIDE), len(weight)
    # One image's offsets are 32-bit in the kernel, and so are those of the row and the column beyond its edges.
    reach = sum((size + 1) * step for size, step in zip(x.shape[1:], x.stride()[1:], strict=True))
    small = reach < 2**31 and out_height * out_width * c < 2**31 and b < 2**16
    if not runs("stem", weight, x, bias) or not x.numel() or not small:
        return stem_reference(x, weight, bias).contiguous()
    sizes = {"m": b * out_height * out_width, "c": c, "levels": int(x.dtype == torch.uint8)}
    config = config_for("stem", weight, sizes)
    weight, bias = weight.contiguous(), bias.contiguous()
    with on_device_of(x):
        return launch_stem(x, weight, bias, config, modes=modes)


@_stem.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, modes: int) -> Tensor:
    return weight.new_empty(x.shape[0], (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2, weight.shape[0])
