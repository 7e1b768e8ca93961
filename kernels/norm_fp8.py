"""LayerNorm written in FP8, for the product after it (attention's qkv).

    q = e4m3(clamp(((x - mean) * rstd * weight + bias) / scale, -448, 448))

mean and rstd = (var + eps)^-0.5 are those of each row; x is (..., K), weight and bias (K,) are LayerNorm's affine
(equalization puts its channel scales there) or None; `scale` is static. One pass, one row per program.

FLOPs: about 9 M K.    Bytes: 3 M K in half precision, where LayerNorm and a quantization pass take 7 M K.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..core.errors import ConfigError
from .dispatch import FP8, Modes, check_same_dtype, forward_only, on_device_of, pdl_launch, runs
from .fp8 import check_scale, fp8_reference, to_fp8
from .language import jit, tl
from .table import Config, config_for
from .tiles import begin

NORM_EPS = 1e-5
MAX_CHANNELS = 8192
"""A program holds a whole row in registers."""


@jit
def norm_fp8_kernel(
    x_ptr, weight_ptr, bias_ptr, m, k, eps, inverse, out_ptr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M rows. Grid: (cdiv(m, BLOCK_M),); BLOCK_K >= k.

    x_ptr: (m, k); weight_ptr, bias_ptr: (k,) or None; inverse: 1 / scale; out_ptr: (m, k) FP8.
    """
    begin(PDL)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inner = tl.arange(0, BLOCK_K)
    inside = (rows[:, None] < m) & (inner[None, :] < k)
    place = rows.to(tl.int64)[:, None] * k + inner[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
    # Around the first channel: a row of equal channels has exactly its mean.
    pivot = tl.load(x_ptr + rows.to(tl.int64) * k, mask=rows < m, other=0.0).to(tl.float32)
    shifted = tl.where(inside, x - pivot[:, None], 0.0)
    centred = tl.where(inside, shifted - (tl.sum(shifted, 1) / k)[:, None], 0.0)
    y = centred * (1.0 / tl.sqrt(tl.sum(centred * centred, 1) / k + eps))[:, None]
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + inner, mask=inner < k, other=0.0).to(tl.float32)[None, :]
    if bias_ptr is not None:
        y += tl.load(bias_ptr + inner, mask=inner < k, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + place, to_fp8(y, inverse), mask=inside)


def norm_fp8_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: float, eps: float = NORM_EPS
) -> Tensor:
    """The same in PyTorch: x (..., K), weight and bias (K,) or None -> (..., K) FP8."""
    wide = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (None if t is None else t.to(wide) for t in (weight, bias))
    return fp8_reference(F.layer_norm(x.to(wide), x.shape[-1:], weight, bias, eps), scale)


def launch_norm_fp8(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: float, eps: float, config: Config, *, modes: int = 0
) -> Tensor:
    """Runs the kernel with the rows per program of `config`: all tensors contiguous."""
    k = x.shape[-1]
    m = x.numel() // k
    out = torch.empty_like(x, dtype=FP8)
    norm_fp8_kernel[(-(-m // config.blocks["BLOCK_M"]),)](
        x, weight, bias, m, k, eps, 1 / scale, out, BLOCK_K=max(16, 1 << (k - 1).bit_length()), **config.arguments,
        **pdl_launch(modes, x),
    )  # fmt: skip
    return out


def norm_fp8(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: float, eps: float = NORM_EPS, *,
    kernel: str | bool | None = True, modes: int = Modes.NONE,
) -> Tensor:  # fmt: skip
    """LayerNorm over the last axis, rounded to FP8: x (..., K) -> (..., K), contiguous.

    Args:
        x: half or float32, any strides.
        weight, bias: (K,) of x's dtype, or None.
        scale: of the result: its real size is the result times this.
        eps: of LayerNorm.
        kernel: its name or True; False or None computes in plain PyTorch, whatever the device.
        modes: of `dispatch.Modes`.

    Raises:
        ConfigError: shapes, dtypes or a scale that do not fit, or a gradient is asked for.
    """
    if not x.ndim or any(t is not None and t.shape != x.shape[-1:] for t in (weight, bias)):
        shapes = [tuple(t.shape) for t in (x, weight, bias) if t is not None]
        raise ConfigError(f"norm_fp8 takes x (..., K), weight (K,), bias (K,); found {shapes}")
    check_same_dtype("norm_fp8", x, weight, bias)
    check_scale("norm_fp8", scale)
    forward_only("norm_fp8", x, weight, bias)
    if not kernel:
        return norm_fp8_reference(x, weight, bias, scale, eps).contiguous()
    return _norm_fp8(x, weight, bias, scale, eps, int(modes))


@torch.library.custom_op(
    "fvexport::norm_fp8", mutates_args=(),
    schema="(Tensor x, Tensor? weight, Tensor? bias, float scale, float eps, int modes) -> Tensor",
)  # fmt: skip
def _norm_fp8(x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: float, eps: float, modes: int) -> Tensor:
    k = x.shape[-1]
    if not runs("norm_fp8", x, *(t for t in (weight, bias) if t is not None)) or k > MAX_CHANNELS:
        return norm_fp8_reference(x, weight, bias, scale, eps).contiguous()
    config = config_for("norm_fp8", x, {"m": x.numel() // k, "k": k})
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    with on_device_of(x):
        return launch_norm_fp8(x.contiguous(), weight, bias, scale, eps, config, modes=modes)


@_norm_fp8.register_fake
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: float, eps: float, modes: int) -> Tensor:
    return x.new_empty(x.shape, dtype=FP8)
