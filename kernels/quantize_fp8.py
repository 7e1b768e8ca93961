"""Rounding of a tensor to FP8, and the GELU before it if there is one.

    q = e4m3(clamp(gelu(x) / scale, -448, 448))

x has any shape; `scale` is static. For tensors whose producer cannot write FP8 itself: what PyTorch computes, a product
in float, or cuBLAS's product before GELU.

FLOPs: 1 per value, about 10 more for GELU.    Bytes: 3 per value in half precision.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .dispatch import FP8, Modes, check_same_dtype, forward_only, gelu_form, on_device_of, pdl_launch, runs
from .fp8 import check_scale, fp8_reference, to_fp8
from .language import jit, tl
from .table import Config, config_for
from .tiles import begin, gelu_as

MAX_VALUES = 2**31
"""Offsets are 32-bit in the kernel."""


@jit
def quantize_fp8_kernel(x_ptr, inverse, size, out_ptr, GELU: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One program: BLOCK values. Grid: (cdiv(size, BLOCK),).

    x_ptr: (size,); inverse: 1 / scale; out_ptr: (size,) FP8. GELU: as `gelu_as` takes it.
    """
    begin(PDL)
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + places, mask=places < size, other=0.0).to(tl.float32)
    tl.store(out_ptr + places, to_fp8(gelu_as(x, GELU), inverse), mask=places < size)


def quantize_fp8_reference(x: Tensor, scale: float, gelu: bool = False) -> Tensor:
    """The same in PyTorch: any shape and floating dtype -> FP8."""
    return fp8_reference(F.gelu(x) if gelu else x, scale)


def launch_quantize_fp8(x: Tensor, scale: float, gelu: bool, config: Config, *, modes: int = 0) -> Tensor:
    """Runs the kernel with the block size of `config` on a contiguous tensor."""
    out = torch.empty_like(x, dtype=FP8)
    quantize_fp8_kernel[(-(-x.numel() // config.blocks["BLOCK"]),)](
        x, 1 / scale, x.numel(), out, GELU=gelu_form(gelu, x.dtype, modes), **config.arguments, **pdl_launch(modes, x)
    )
    return out


def quantize_fp8(
    x: Tensor, scale: float, *, gelu: bool = False, kernel: str | bool | None = True, modes: int = Modes.NONE
) -> Tensor:
    """Rounds a tensor of any shape to FP8, contiguous.

    Args:
        x: half or float32, any strides.
        scale: of the result: its real size is the result times this.
        gelu: apply GELU first.
        kernel: its name or True; False or None computes in plain PyTorch, whatever the device.
        modes: of `dispatch.Modes`.

    Raises:
        ConfigError: not a floating tensor, a scale that is not positive and finite, or a gradient is asked for.
    """
    check_same_dtype("quantize_fp8", x)
    check_scale("quantize_fp8", scale)
    forward_only("quantize_fp8", x)
    if not kernel:
        return quantize_fp8_reference(x, scale, gelu).contiguous()
    return _quantize_fp8(x, scale, gelu, int(modes))


@torch.library.custom_op(
    "fvexport::quantize_fp8", mutates_args=(), schema="(Tensor x, float scale, bool gelu, int modes) -> Tensor"
)
def _quantize_fp8(x: Tensor, scale: float, gelu: bool, modes: int) -> Tensor:
    if not runs("quantize_fp8", x) or x.numel() >= MAX_VALUES:
        return quantize_fp8_reference(x, scale, gelu).contiguous()
    config = config_for("quantize_fp8", x, {"m": x.numel()})
    with on_device_of(x):
        return launch_quantize_fp8(x.contiguous(), scale, gelu, config, modes=modes)


@_quantize_fp8.register_fake
def _(x: Tensor, scale: float, gelu: bool, modes: int) -> Tensor:
    return x.new_empty(x.shape, dtype=FP8)
