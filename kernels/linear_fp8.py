"""A product of FP8 numbers and everything that follows it, in one pass over the result.

    y = end(scale * (x @ weight^T) + bias)      end: GELU, then the residual, then rounding to FP8, each if asked for

x is (..., K) and weight (N, K), both E4M3; scale (N,) is float32: the step of x times the step of each weight row;
bias (N,) has the dtype of the model and of y (..., N), unless y is FP8. ConvFFN's fc1 ends with GELU in FP8, fc2 and
attention's proj with the residual, qkv with neither.

FLOPs: 2 M N K, at twice the rate of half precision.    Bytes: M K + N K, and M N for FP8 or 2 M N (4 M N with a
residual) for a half type.

Sums: products of two E4M3 numbers are exact in float32. The tensor cores of compute capability 8.9 and 9.0 keep about
14 bits of an FP8 sum (DeepSeek-V3, arXiv 2412.19437, section 3.5.2; SageAttention2, arXiv 2411.10958). So with PROMOTE
each block of BLOCK_K products is summed there by itself and added to float32 sums in registers: the error is that of
128 terms whatever K is. tcgen05 (10.0) sums in float32 and takes no promotion.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..core.errors import ConfigError
from .dispatch import DTYPES, FP8, Modes, check_product, forward_only, gelu_form, on_device_of, pdl_launch, runs
from .fp8 import End, check_scale, ended, to_fp8
from .language import jit, tl
from .scaled_mm import launch_scaled_mm, scaled_mm_fits
from .table import Config, config_for
from .tiles import begin, gelu_as, tile_of


@jit
def linear_fp8_kernel(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, residual_ptr, inverse, m, n, k, out_ptr,
    GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PROMOTE: tl.constexpr, EVEN_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: a BLOCK_M x BLOCK_N tile. Grid: (cdiv(m, BLOCK_M) * cdiv(n, BLOCK_N),).

    x_ptr: (m, k) and weight_ptr: (n, k) FP8; scale_ptr: (n,) float32; bias_ptr: (n,); residual_ptr: (m, n) or None;
    inverse: 1 / scale of the result if out_ptr (m, n) is FP8, else None. PROMOTE: add each block's sum in float32.
    EVEN_K: BLOCK_K divides k.
    """
    begin(PDL)
    tile_m, tile_n = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    near_columns = tl.minimum(columns, n - 1)
    inner = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + tl.minimum(rows, m - 1).to(tl.int64)[:, None] * k + inner[None, :]
    weight_ptrs = weight_ptr + near_columns.to(tl.int64)[None, :] * k + inner[:, None]
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs)
            weight = tl.load(weight_ptrs)
        else:
            x = tl.load(x_ptrs, mask=inner[None, :] < k - start, other=0.0)
            weight = tl.load(weight_ptrs, mask=inner[:, None] < k - start, other=0.0)
        if PROMOTE:
            y += tl.dot(x, weight, max_num_imprecise_acc=BLOCK_K)
        else:
            y = tl.dot(x, weight, y)
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    y = y * tl.load(scale_ptr + near_columns)[None, :] + tl.load(bias_ptr + near_columns).to(tl.float32)[None, :]
    y = gelu_as(y, GELU)
    place = rows.to(tl.int64)[:, None] * n + columns[None, :]
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if inverse is not None:
        tl.store(out_ptr + place, to_fp8(y, inverse), mask=inside)
    else:
        tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)


def linear_fp8_reference(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, end: End | None = None) -> Tensor:
    """The same in PyTorch: float32 sums of the same quantized numbers; float64 if bias and scale are."""
    wide = torch.promote_types(bias.dtype, scale.dtype)
    y = F.linear(x.to(wide), weight.to(wide)) * scale.to(wide) + bias.to(wide)
    return ended(y, end or End(), bias.dtype)


def launch_linear_fp8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, end: End, config: Config, *, modes: int = 0
) -> Tensor:
    """Runs the kernel with the block sizes of `config`: all tensors contiguous."""
    n, k = weight.shape
    m = x.numel() // k
    out = x.new_empty(*x.shape[:-1], n, dtype=bias.dtype if end.out_scale is None else FP8)
    inverse = None if end.out_scale is None else 1 / end.out_scale
    tiles = -(-m // config.blocks["BLOCK_M"]) * -(-n // config.blocks["BLOCK_N"])
    linear_fp8_kernel[(tiles,)](
        x, weight, scale, bias, end.residual, inverse, m, n, k, out, GELU=gelu_form(end.gelu, bias.dtype, modes),
        EVEN_K=k % config.blocks["BLOCK_K"] == 0, **config.arguments, **pdl_launch(modes, x),
    )  # fmt: skip
    return out


def linear_fp8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, end: End | None = None, *,
    kernel: str | bool | None = True, modes: int = Modes.NONE,
) -> Tensor:  # fmt: skip
    """A product of FP8 numbers: x (..., K), weight (N, K) -> (..., N), contiguous, in FP8 or in the dtype of the bias.

    Args:
        x, weight: float8_e4m3fn, any strides.
        scale: (N,) float32, the step of x times the steps of the weight's rows.
        bias: (N,), half or float32.
        end: what follows the sums; nothing by default. Its residual has the dtype of the bias.
        kernel: `linear_fp8` or True, `scaled_mm` for cuBLAS; False or None computes in plain PyTorch.
        modes: of `dispatch.Modes`.

    Raises:
        ConfigError: shapes, dtypes or scales that do not fit, or a gradient is asked for.
    """
    end = end or End()
    check_product("linear_fp8", x, weight, bias, end.residual)
    _check_types(x, weight, scale, bias, end)
    check_scale("linear_fp8", end.out_scale)
    forward_only("linear_fp8", bias, scale, end.residual)
    if not kernel:
        return linear_fp8_reference(x, weight, scale, bias, end).contiguous()
    blas = kernel == "scaled_mm"
    return _linear_fp8(x, weight, scale, bias, end.residual, end.gelu, end.out_scale, blas, int(modes))


def _check_types(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, end: End) -> None:
    if x.dtype != FP8 or weight.dtype != FP8:
        found = ", ".join(str(t.dtype).removeprefix("torch.") for t in (x, weight))
        raise ConfigError(f"linear_fp8 takes x and weight in float8_e4m3fn; found {found}: quantize them first")
    if scale.shape != bias.shape or scale.dtype not in (torch.float32, torch.float64):
        raise ConfigError(
            f"linear_fp8 takes one float32 scale per output, {tuple(bias.shape)}; found {tuple(scale.shape)} in "
            f"{scale.dtype}"
        )
    if not bias.is_floating_point() or (end.residual is not None and end.residual.dtype != bias.dtype):
        found = ", ".join(str(t.dtype).removeprefix("torch.") for t in (bias, end.residual) if t is not None)
        raise ConfigError(
            f"linear_fp8 takes bias and residual of one floating dtype; found {found}: convert them first"
        )


@torch.library.custom_op(
    "fvexport::linear_fp8", mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor scale, Tensor bias, Tensor? residual, bool gelu, float? out_scale, "
    "bool blas, int modes) -> Tensor",
)  # fmt: skip
def _linear_fp8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, gelu: bool,
    out_scale: float | None, blas: bool, modes: int,
) -> Tensor:  # fmt: skip
    end = End(gelu, None if residual is None else residual.contiguous(), out_scale)
    tensors = (x, weight, scale, bias, *(() if residual is None else (residual,)))
    if blas and runs("scaled_mm", *tensors) and scaled_mm_fits(x, weight, bias):
        with on_device_of(x):
            return launch_scaled_mm(x.contiguous(), weight.contiguous(), scale, bias, end, modes=modes)
    fits = scale.dtype == torch.float32 and bias.dtype in DTYPES
    if blas or not fits or not runs("linear_fp8", *tensors):
        return linear_fp8_reference(x, weight, scale, bias, end).contiguous()
    n, k = weight.shape
    config = config_for("linear_fp8", x, {"m": x.numel() // k, "n": n, "k": k})
    x, weight, scale, bias = (t.contiguous() for t in (x, weight, scale, bias))
    with on_device_of(x):
        return launch_linear_fp8(x, weight, scale, bias, end, config, modes=modes)


@_linear_fp8.register_fake
def _(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, gelu: bool,
    out_scale: float | None, blas: bool, modes: int,
) -> Tensor:  # fmt: skip
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=bias.dtype if out_scale is None else FP8)
