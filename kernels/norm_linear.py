"""LayerNorm and the product after it, without writing the normalized tensor.

    y = (x - mean) * rstd @ weight^T + bias,    mean and rstd = (var + eps)^-0.5 over the channels of each row

Since LayerNorm only shifts and scales each row, the product may take x as it is, and the correction has rank one:

    y = rstd * (x @ weight^T - mean * sums) + bias,    sums[n] = sum_k weight[n, k]

x is (..., K), weight (N, K) as in `nn.Linear`, y (..., N). LayerNorm's affine stands in weight and bias (fused form).
A first kernel writes mean and rstd in float32, two values a row; the second multiplies.

Where a mean is many times its row's deviation (all channels equal, for one), the two terms nearly cancel, and float32
sums would not do. Such tiles, and all of float32, multiply x - mean instead: still without writing it.

Where another kernel computes the product faster than this saves, LayerNorm is PyTorch's and `products` multiplies.

FLOPs: 2 M N K + 7 M K.    Bytes: 2 M K + N K + M N values, and 16 M of statistics, instead of 4 M K + N K + M N.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .dispatch import (
    Modes,
    check_product,
    check_same_dtype,
    forward_only,
    on_device_of,
    pdl_launch,
    precision_of,
    runs,
)
from .language import jit, tl
from .products import KERNELS, compute, name_of
from .table import Config, config_for
from .tiles import begin, centred_product, product, tile_of

NORM_EPS = 1e-5

CENTRED_BEYOND = {torch.float16: 64.0, torch.bfloat16: 64.0, torch.float32: -1.0}
"""|mean| / deviation of a row beyond which its tile multiplies x - mean. At 64 float32 sums are off by about 2^-18 of
the product, far under what a half type's rounding costs; float32 itself has no such room."""


@jit
def row_statistics_kernel(x_ptr, m, k, eps, out_ptr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr):
    """Mean and (variance + eps)^-0.5 of BLOCK_M rows. Grid: (cdiv(m, BLOCK_M),); BLOCK_K >= k.

    x_ptr: (m, k); out_ptr: (2, m) float32, means first.
    """
    begin(PDL)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inner = tl.arange(0, BLOCK_K)
    inside = (rows[:, None] < m) & (inner[None, :] < k)
    x = tl.load(x_ptr + rows.to(tl.int64)[:, None] * k + inner[None, :], mask=inside, other=0.0).to(tl.float32)
    # Around the first channel: a row of equal channels has exactly its mean.
    pivot = tl.load(x_ptr + rows.to(tl.int64) * k, mask=rows < m, other=0.0).to(tl.float32)
    mean = pivot + tl.sum(tl.where(inside, x - pivot[:, None], 0.0), 1) / k
    centred = tl.where(inside, x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / k
    tl.store(out_ptr + rows, mean, mask=rows < m)
    tl.store(out_ptr + m + rows, 1.0 / tl.sqrt(variance + eps), mask=rows < m)


@jit
def norm_linear_kernel(
    x_ptr, weight_ptr, bias_ptr, sums_ptr, statistics_ptr, m, n, k, out_ptr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, LIMIT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: a BLOCK_M x BLOCK_N tile. Grid: (cdiv(m, BLOCK_M) * cdiv(n, BLOCK_N),).

    x_ptr: (m, k); weight_ptr: (n, k); bias_ptr: (n,), all of one type; sums_ptr: (n,) float32; statistics_ptr: (2, m)
    float32; out_ptr: (m, n). EVEN_K: BLOCK_K divides k. LIMIT: |mean| * rstd beyond which a tile is centred first.
    """
    begin(PDL)
    tile_m, tile_n = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    near_rows = tl.minimum(rows, m - 1)
    near_columns = tl.minimum(columns, n - 1)
    mean = tl.load(statistics_ptr + near_rows)
    rstd = tl.load(statistics_ptr + m + near_rows)
    bias = tl.load(bias_ptr + near_columns).to(tl.float32)
    if tl.max(tl.abs(mean) * rstd, 0) > LIMIT:
        total = centred_product(
            x_ptr, weight_ptr, near_rows, near_columns, k, mean, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
        )
    else:
        total = product(x_ptr, weight_ptr, near_rows, near_columns, k, k, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, PRECISION)
        total -= mean[:, None] * tl.load(sums_ptr + near_columns)[None, :]
    y = total * rstd[:, None] + bias[None, :]
    out_ptrs = out_ptr + rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=(rows[:, None] < m) & (columns[None, :] < n))


def norm_linear_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float = NORM_EPS) -> Tensor:
    """The same in PyTorch: x (..., K), weight (N, K), bias (N,) -> (..., N)."""
    return F.linear(F.layer_norm(x, x.shape[-1:], eps=eps), weight, bias)


def rows_per_program(m: int, block_k: int) -> int:
    """Rows of a program of statistics, a power of two: 32 values per thread, but not fewer than about 128 programs."""
    most = max(1, min(4096 // block_k, m // 128))
    return 1 << (most.bit_length() - 1)


def launch_norm_linear(
    x: Tensor, weight: Tensor, bias: Tensor, sums: Tensor, eps: float, config: Config, *, modes: int = 0
) -> Tensor:
    """Runs both kernels with the block sizes of `config`: all tensors contiguous, sums float32 (N,)."""
    n, k = weight.shape
    m = x.numel() // k
    out = x.new_empty(*x.shape[:-1], n)
    statistics = x.new_empty(2, m, dtype=torch.float32)
    block_k = max(16, 1 << (k - 1).bit_length())
    rows = rows_per_program(m, block_k)
    row_statistics_kernel[(-(-m // rows),)](
        x, m, k, eps, statistics, BLOCK_M=rows, BLOCK_K=block_k, **pdl_launch(modes, x)
    )
    tiles = -(-m // config.blocks["BLOCK_M"]) * -(-n // config.blocks["BLOCK_N"])
    norm_linear_kernel[(tiles,)](
        x, weight, bias, sums, statistics, m, n, k, out, EVEN_K=k % config.blocks["BLOCK_K"] == 0,
        PRECISION=precision_of(x.dtype), LIMIT=CENTRED_BEYOND[x.dtype], **config.arguments,
        **pdl_launch(modes, x),
    )  # fmt: skip
    return out


def norm_linear(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = NORM_EPS, *, sums: Tensor | None = None,
    kernel: str | bool | None = True, modes: int = Modes.NONE,
) -> Tensor:  # fmt: skip
    """LayerNorm without affine, then a product: x (..., K), all of one dtype -> (..., N), contiguous.

    Args:
        x: any strides.
        weight, bias: (N, K) and (N,).
        eps: of LayerNorm.
        sums: the rows of `weight` summed, (N,) float32: `weight_sums(weight)`, where it was computed before.
        kernel: `norm_linear` or True; or one of `products.KERNELS`, after LayerNorm in PyTorch; False or None computes
            in plain PyTorch, whatever the device.
        modes: of `dispatch.Modes`.

    Raises:
        ConfigError: shapes or dtypes that do not fit each other, or a gradient is asked for.
    """
    check_product("norm_linear", x, weight, bias)
    check_same_dtype("norm_linear", x, weight, bias)
    forward_only("norm_linear", x, weight, bias)
    if not kernel:
        return norm_linear_reference(x, weight, bias, eps)
    name = "norm_linear" if kernel in (True, "norm_linear") else name_of(kernel)
    sums = weight_sums(weight) if sums is None else sums
    return _norm_linear(x, weight, bias, sums, eps, name, int(modes))


def weight_sums(weight: Tensor) -> Tensor:
    """The rows of a weight (N, K) summed in float64, as (N,) float32."""
    return weight.double().sum(1).float()


@torch.library.custom_op(
    "fvexport::norm_linear", mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor sums, float eps, str kernel, int modes) -> Tensor",
)  # fmt: skip
def _norm_linear(x: Tensor, weight: Tensor, bias: Tensor, sums: Tensor, eps: float, kernel: str, modes: int) -> Tensor:
    if kernel in KERNELS:
        found = compute(kernel, F.layer_norm(x, x.shape[-1:], eps=eps), weight, bias, modes=modes)
        return norm_linear_reference(x, weight, bias, eps).contiguous() if found is None else found
    if not runs(kernel, x, weight, bias, sums):
        return norm_linear_reference(x, weight, bias, eps).contiguous()
    n, k = weight.shape
    config = config_for("norm_linear", x, {"m": x.numel() // k, "n": n, "k": k})
    x, weight, bias, sums = (t.contiguous() for t in (x, weight, bias, sums))
    with on_device_of(x):
        return launch_norm_linear(x, weight, bias, sums, eps, config, modes=modes)


@_norm_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, sums: Tensor, eps: float, kernel: str, modes: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
