"""Depthwise convolutions, channels-last, with bias and where asked GELU.

    y[b, i, j, c] = bias[c] + sum_{u, v} x[b, i * s + u - k // 2, j * s + v - k // 2, c // m] * weight[u, v, c]

x is (B, H, W, C), zero outside; weight (k, k, m * C), taps first so that channels lie side by side; y (B, H/s, W/s,
m * C). Every grouped convolution of the model is one: k 3 or 7, stride s 1 or 2, m 1 or 2 outputs per input channel
(embeddings and the last block).

The operator has four kernels. `depthwise`, here, takes any m. `depthwise_rows` (m = 1), `depthwise_pairs` (m = 2) and
`depthwise_strips` (m = 1, s = 1) need fewer instructions per value; they take the weight in float32 too
(`float_taps`), prepared once.

A program computes ROWS rows of BLOCK_W positions of BLOCK_C channels. It walks over the taps column by column: a value
of x is read once for all rows that it counts in, k + (ROWS - 1) s times instead of k ROWS.

FLOPs: 2 k^2 values of y.    Bytes: x once, y once (neighbouring programs share their edges through L1 and L2).
RepMixer's 3x3 and the 7x7 after it are not one kernel: the 3x3's result is the residual stream, so it is written
anyway, and one read of it is all that there is to save, for nine times the 3x3's work at every tile's edge.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..core.errors import ConfigError
from .depthwise_pairs import launch_depthwise_pairs
from .depthwise_rows import float_taps, launch_depthwise_rows, output_like, store_row
from .depthwise_strips import launch_depthwise_strips
from .dispatch import FP8, Modes, check_same_dtype, forward_only, gelu_form, on_device_of, pdl_launch, runs
from .fp8 import check_scale, fp8_reference
from .language import jit, tl
from .table import Config, config_for
from .tiles import begin

MAX_KERNEL = 7
"""Largest kernel of the model; the rows of one are unrolled."""


@jit
def add_tap(total, x, weight_ptrs, row: tl.constexpr, inside, c, KERNEL: tl.constexpr):
    """Adds x * weight[row] where the kernel has such a row; weight_ptrs points to the first row of a column."""
    if (row >= 0) and (row < KERNEL):
        weight = tl.load(weight_ptrs + row * KERNEL * c, mask=inside, other=0.0).to(tl.float32)
        total += x * weight[None, :]
    return total


@jit
def depthwise_kernel(
    x_ptr, weight_ptr, bias_ptr, height, width, c, inverse, out_ptr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, MULTIPLIER: tl.constexpr, GELU: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: ROWS (1, 2 or 4) x BLOCK_W positions x BLOCK_C channels of the result.

    Grid: (cdiv(H / STRIDE, ROWS) * cdiv(W / STRIDE, BLOCK_W), cdiv(c, BLOCK_C), B). x_ptr: (B, height, width, c /
    MULTIPLIER); weight_ptr: (KERNEL, KERNEL, c); bias_ptr: (c,); out_ptr: (B, H / STRIDE, W / STRIDE, c); one type.
    inverse: 1 / scale of the result if that is FP8, else None.
    """
    begin(PDL)
    out_height = tl.cdiv(height, STRIDE)
    out_width = tl.cdiv(width, STRIDE)
    across = tl.cdiv(out_width, BLOCK_W)
    top = tl.program_id(0) // across * ROWS
    columns = tl.program_id(0) % across * BLOCK_W + tl.arange(0, BLOCK_W)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = tl.program_id(2).to(tl.int64)
    c_in = c // MULTIPLIER
    x_ptr += image * height * width * c_in
    out_ptr += image * out_height * out_width * c
    x_channels = channels // MULTIPLIER
    inside = channels < c
    total0 = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    if ROWS > 1:
        total1 = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    if ROWS > 2:
        total2 = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
        total3 = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    for v in range(KERNEL):  # not unrolled: the whole kernel at once would want more registers than there are
        x_columns = columns * STRIDE + (v - KERNEL // 2)
        valid = ((x_columns >= 0) & (x_columns < width))[:, None] & inside[None, :]
        taps = weight_ptr + v * c + channels
        for u in tl.static_range(KERNEL + (ROWS - 1) * STRIDE):
            x_row = top * STRIDE + (u - KERNEL // 2)
            ptrs = x_ptr + (x_row * width + x_columns[:, None]) * c_in + x_channels[None, :]
            x = tl.load(ptrs, mask=valid & (x_row >= 0) & (x_row < height), other=0.0).to(tl.float32)
            total0 = add_tap(total0, x, taps, u, inside, c, KERNEL)
            if ROWS > 1:
                total1 = add_tap(total1, x, taps, u - STRIDE, inside, c, KERNEL)
            if ROWS > 2:
                total2 = add_tap(total2, x, taps, u - 2 * STRIDE, inside, c, KERNEL)
                total3 = add_tap(total3, x, taps, u - 3 * STRIDE, inside, c, KERNEL)
    bias = tl.load(bias_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    store_row(total0, bias, top, out_height, columns, out_width, channels, c, out_ptr, inverse, GELU)
    if ROWS > 1:
        store_row(total1, bias, top + 1, out_height, columns, out_width, channels, c, out_ptr, inverse, GELU)
    if ROWS > 2:
        store_row(total2, bias, top + 2, out_height, columns, out_width, channels, c, out_ptr, inverse, GELU)
        store_row(total3, bias, top + 3, out_height, columns, out_width, channels, c, out_ptr, inverse, GELU)


def depthwise_reference(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, gelu: bool = False, out_scale: float | None = None
) -> Tensor:
    """The same in PyTorch: x (B, H, W, C), weight (k, k, m C), bias (m C,) -> (B, H/s, W/s, m C)."""
    kernel = weight.permute(2, 0, 1)[:, None]  # (m C, 1, k, k)
    y = F.conv2d(x.permute(0, 3, 1, 2), kernel, bias, stride, weight.shape[0] // 2, groups=x.shape[3])
    y = (F.gelu(y) if gelu else y).permute(0, 2, 3, 1)
    return y if out_scale is None else fp8_reference(y, out_scale)


def taps_first(weight: Tensor) -> Tensor:
    """A grouped convolution's weight (m C, 1, k, k) as `depthwise` takes it: (k, k, m C), contiguous."""
    return weight[:, 0].permute(1, 2, 0).contiguous()


def launch_depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, gelu: bool, config: Config, *, modes: int = 0,
    out_scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Runs the kernel with the block sizes of `config`: all tensors contiguous."""
    b, height, width, c_in = x.shape
    kernel, _, c = weight.shape
    out = output_like(x, c, stride, out_scale)
    tiles = -(-out.shape[1] // config.blocks["ROWS"]) * -(-out.shape[2] // config.blocks["BLOCK_W"])
    depthwise_kernel[(tiles, -(-c // config.blocks["BLOCK_C"]), b)](
        x, weight, bias, height, width, c, None if out_scale is None else 1 / out_scale, out, KERNEL=kernel,
        STRIDE=stride, MULTIPLIER=c // c_in, GELU=gelu_form(gelu, x.dtype, modes), **config.arguments,
        **pdl_launch(modes, x),
    )  # fmt: skip
    return out


class Filters(NamedTuple):
    """A weight (k, k, m C) of `depthwise`, with `float_taps(weight, C)`, which all kernels but `depthwise` read."""

    weight: Tensor
    taps: Tensor | None


def depthwise(
    x: Tensor, weight: Tensor | Filters, bias: Tensor, stride: int = 1, gelu: bool = False, *,
    kernel: str | bool | None = True, modes: int = Modes.NONE, out_scale: float | None = None,
) -> Tensor:  # fmt: skip
    """A depthwise convolution of x (B, H, W, C), padded by k // 2 -> (B, ceil(H/s), ceil(W/s), m C), contiguous.

    Args:
        x: any strides; a channels-last feature map is `map.permute(0, 2, 3, 1)`, with no copy.
        weight: (k, k, m C), k odd; output channel c takes input channel c // m (`taps_first`). `Filters` bring taps
            that were prepared before.
        bias: (m C,).
        stride: s.
        gelu: apply GELU to the result.
        kernel: a name of KERNELS, or True for `depthwise`; False or None computes in plain PyTorch, whatever the
            device. PyTorch also computes what the kernel does not: kernels over 7 x 7, strides over 2, and m other than
            1 in `depthwise_rows` and `depthwise_strips` and other than 2 in `depthwise_pairs`; in `depthwise_strips`
            also stride 2.
        modes: of `dispatch.Modes`.
        out_scale: round the result to FP8 in steps of this size; by default it has x's dtype.

    Raises:
        ConfigError: shapes or dtypes that do not fit each other, an unknown kernel, or a gradient is asked for.
    """
    weight, taps = weight if isinstance(weight, Filters) else Filters(weight, None)
    fits = x.ndim == 4 and weight.ndim == 3 and weight.shape[0] == weight.shape[1] and weight.shape[0] % 2 == 1
    if not fits or not x.shape[3] or weight.shape[2] % x.shape[3] or bias.shape != weight.shape[2:] or stride < 1:
        shapes = [tuple(t.shape) for t in (x, weight, bias)]
        raise ConfigError(f"depthwise takes x (B, H, W, C), weight (k, k, m C), bias (m C,), k odd; found {shapes}")
    check_same_dtype("depthwise", x, weight, bias)
    forward_only("depthwise", x, weight, bias, taps)
    check_scale("depthwise", out_scale)
    if not kernel:
        return depthwise_reference(x, weight, bias, stride, gelu, out_scale)
    name = kernel if isinstance(kernel, str) else "depthwise"
    if name not in KERNELS:
        raise ConfigError(f"depthwise has no kernel {name!r}; it has {', '.join(KERNELS)}")
    wanted = (weight.shape[2] // x.shape[3], *weight.shape[:2], x.shape[3])
    if taps is not None and (taps.shape != wanted or taps.dtype != torch.float32):
        raise ConfigError(f"depthwise takes taps {wanted} in float32; found {tuple(taps.shape)}, {taps.dtype}")
    return _depthwise(x, weight, bias, stride, gelu, int(modes), taps, name, out_scale)


KERNELS = ("depthwise", "depthwise_rows", "depthwise_pairs", "depthwise_strips")
"""The kernels of this operator, by their names in `dispatch.OPS`."""


@torch.library.custom_op(
    "fvexport::depthwise", mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, int stride, bool gelu, int modes, Tensor? taps=None, "
    "str kernel='depthwise', float? out_scale=None) -> Tensor",
)  # fmt: skip
def _depthwise(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, gelu: bool, modes: int, taps: Tensor | None = None,
    kernel: str = "depthwise", out_scale: float | None = None,
) -> Tensor:  # fmt: skip
    b, height, width, c_in = x.shape
    size, _, c = weight.shape
    outputs = c // c_in
    # One image's offsets are 32-bit in the kernel.
    small = height * width * c < 2**31 and b < 2**16
    able = {
        "depthwise": True,
        "depthwise_rows": outputs == 1,
        "depthwise_pairs": outputs == 2 and out_scale is None,
        "depthwise_strips": outputs == 1 and stride == 1,
    }
    fp8 = out_scale is not None
    if not runs(kernel, x, weight, bias, fp8=fp8) or size > MAX_KERNEL or stride > 2 or not small or not able[kernel]:
        return depthwise_reference(x, weight, bias, stride, gelu, out_scale).contiguous()
    sizes = {
        "batch": b, "height": -(-height // stride), "width": -(-width // stride), "c": c, "kernel": size,
        "stride": stride, "multiplier": outputs,
    }  # fmt: skip
    config = config_for(kernel, x, sizes)
    x, weight, bias = (t.contiguous() for t in (x, weight, bias))
    with on_device_of(x):
        if kernel == "depthwise":
            return launch_depthwise(x, weight, bias, stride, gelu, config, modes=modes, out_scale=out_scale)
        taps = float_taps(weight, c_in) if taps is None else taps.contiguous()
        if kernel == "depthwise_pairs":
            return launch_depthwise_pairs(x, taps, bias, stride, gelu, config, modes=modes)
        launch = launch_depthwise_strips if kernel == "depthwise_strips" else launch_depthwise_rows
        return launch(x, taps, bias, stride, gelu, config, modes=modes, out_scale=out_scale)


@_depthwise.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, gelu: bool, modes: int, taps: Tensor | None = None,
    kernel: str = "depthwise", out_scale: float | None = None,
) -> Tensor:  # fmt: skip
    b, height, width, _ = x.shape
    dtype = x.dtype if out_scale is None else FP8
    shape = (b, (height + stride - 1) // stride, (width + stride - 1) // stride, weight.shape[2])
    return x.new_empty(shape, dtype=dtype)
