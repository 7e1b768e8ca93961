"""A product and all that follows it, in one pass over the result.

    y = residual + scale * (x @ weight^T + bias)        attention's proj, ConvFFN's fc2

x is (..., K), weight (N, K) as in `nn.Linear`; bias and scale are (N,), residual and y (..., N). Scale is a layer scale
(fused form has it in weight and bias already: None). The same kernel ends with GELU for `linear_gelu`.

FLOPs: 2 M N K.    Bytes: M K + N K + 2 M N values; the addition by itself would take 2 M N more, so would the scale.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..errors import ConfigError
from .dispatch import (
    Modes,
    check_product,
    check_same_dtype,
    forward_only,
    gelu_form,
    on_device_of,
    pdl_launch,
    precision_of,
    runs,
)
from .language import jit, tl
from .table import Config, config_for
from .tiles import begin, gelu_as, product, tile_of


@jit
def linear_kernel(
    x_ptr, weight_ptr, bias_ptr, scale_ptr, residual_ptr, m, n, k, out_ptr,
    GELU: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: a BLOCK_M x BLOCK_N tile. Grid: (cdiv(m, BLOCK_M) * cdiv(n, BLOCK_N),).

    x_ptr: (m, k); weight_ptr: (n, k); bias_ptr: (n,); scale_ptr: (n,) or None; residual_ptr: (m, n) or None; out_ptr:
    (m, n); all of one type. GELU: as `gelu_as` takes it. EVEN_K: BLOCK_K divides k.
    """
    begin(PDL)
    tile_m, tile_n = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    near_columns = tl.minimum(columns, n - 1)
    y = product(
        x_ptr, weight_ptr, tl.minimum(rows, m - 1), near_columns, k, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, PRECISION
    )
    y += tl.load(bias_ptr + near_columns).to(tl.float32)[None, :]
    y = gelu_as(y, GELU)
    if scale_ptr is not None:
        y *= tl.load(scale_ptr + near_columns).to(tl.float32)[None, :]
    place = rows.to(tl.int64)[:, None] * n + columns[None, :]
    inside = (rows[:, None] < m) & (columns[None, :] < n)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)


def linear_residual_reference(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, scale: Tensor | None = None
) -> Tensor:
    """The same in PyTorch: x (..., K), weight (N, K), bias and scale (N,), residual (..., N) -> (..., N)."""
    y = F.linear(x, weight, bias)
    return residual + (y if scale is None else y * scale)


def launch_linear(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, residual: Tensor | None, config: Config, *,
    gelu: bool = False, modes: int = 0,
) -> Tensor:  # fmt: skip
    """Runs the kernel with the block sizes of `config`: all tensors contiguous."""
    n, k = weight.shape
    m = x.numel() // k
    out = x.new_empty(*x.shape[:-1], n)
    tiles = -(-m // config.blocks["BLOCK_M"]) * -(-n // config.blocks["BLOCK_N"])
    linear_kernel[(tiles,)](
        x, weight, bias, scale, residual, m, n, k, out, GELU=gelu_form(gelu, x.dtype, modes),
        EVEN_K=k % config.blocks["BLOCK_K"] == 0, PRECISION=precision_of(x.dtype), **config.arguments,
        **pdl_launch(modes, x),
    )  # fmt: skip
    return out


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, scale: Tensor | None = None, *,
    kernel: str | bool | None = True, modes: int = Modes.NONE,
) -> Tensor:  # fmt: skip
    """A product added to a residual: x (..., K), weight (N, K), all of one dtype -> (..., N), contiguous.

    Args:
        x, weight: any strides.
        bias: (N,).
        residual: (..., N).
        scale: (N,), or None for 1.
        kernel: its name or True; False or None computes in plain PyTorch, whatever the device.
        modes: of `dispatch.Modes`.

    Raises:
        ConfigError: shapes or dtypes that do not fit each other, or a gradient is asked for.
    """
    check_product("linear_residual", x, weight, bias, residual)
    if scale is not None and scale.shape != bias.shape:
        raise ConfigError(f"linear_residual takes a scale {tuple(bias.shape)}; found {tuple(scale.shape)}")
    check_same_dtype("linear_residual", x, weight, bias, residual, scale)
    forward_only("linear_residual", x, weight, bias, residual, scale)
    if not kernel:
        return linear_residual_reference(x, weight, bias, residual, scale)
    return _linear_residual(x, weight, bias, residual, scale, int(modes))


@torch.library.custom_op(
    "fvexport::linear_residual", mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor residual, Tensor? scale, int modes) -> Tensor",
)  # fmt: skip
def _linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, scale: Tensor | None, modes: int
) -> Tensor:
    if not runs("linear", x, weight, bias, residual, *(() if scale is None else (scale,))):
        return linear_residual_reference(x, weight, bias, residual, scale).contiguous()
    n, k = weight.shape
    config = config_for("linear", x, {"m": x.numel() // k, "n": n, "k": k})
    x, weight, bias, residual = (t.contiguous() for t in (x, weight, bias, residual))
    scale = None if scale is None else scale.contiguous()
    with on_device_of(x):
        return launch_linear(x, weight, bias, scale, residual, config, modes=modes)


@_linear_residual.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, scale: Tensor | None, modes: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
