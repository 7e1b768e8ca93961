"""Self-attention on packed qkv, flash-style: the scores are never in global memory.

    out[b, i, h] = sum_j softmax_j(q[b, i, h] . k[b, j, h]) v[b, j, h]

qkv is (B, N, 3C) = (B, N, 3, heads, 32), as the qkv product writes it, read in place; the result is (B, N, C). No
mask, and no scale: fused form has head_dim^-0.5 in q's weights. Softmax runs online over blocks of keys (arXiv
2205.14135) in base 2, whose factor log2(e) joins the subtraction of the maximum in one instruction. Sums are float32.

FLOPs: 4 B N^2 C (two products), B N^2 heads exponentials.
Bytes: 4 B N C values (q, k, v in, the result out); keys and values are read again from L2 by each block of queries.
Beside PyTorch's SDPA it saves no pass over the data but what views cost: SDPA's backends take the strided q, k and v.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..core.errors import ConfigError
from .dispatch import FP8, Modes, check_same_dtype, forward_only, on_device_of, pdl_launch, precision_of, runs
from .fp8 import check_scale, fp8_reference, to_fp8
from .language import jit, tl
from .table import Config, config_for
from .tiles import begin

HEAD_DIM = 32
"""The model's, and the only one that the kernel is for."""


@jit
def attend(
    q, top, total, out, base, columns, n, stride, width, dims,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of keys: the running maximum (in base 2), sum and result of each query, brought up to date."""
    k_ptrs = base + width + columns[None, :] * stride + dims[:, None]
    v_ptrs = base + 2 * width + columns[:, None] * stride + dims[None, :]
    if MASKED:
        k = tl.load(k_ptrs, mask=columns[None, :] < n, other=0.0)
        v = tl.load(v_ptrs, mask=columns[:, None] < n, other=0.0)
    else:
        k = tl.load(k_ptrs)
        v = tl.load(v_ptrs)
    scores = tl.dot(q, k, input_precision=PRECISION)
    if MASKED:
        scores = tl.where(columns[None, :] < n, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * 1.4426950408889634)
    weights = tl.exp2(scores * 1.4426950408889634 - new_top[:, None])
    shrink = tl.exp2(top - new_top)
    total = total * shrink + tl.sum(weights, 1)
    out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
    return new_top, total, out


@jit
def attention_kernel(
    qkv_ptr, n, heads, out_ptr, inverse,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one head of one image. Grid: (cdiv(n, BLOCK_M), heads, B).

    qkv_ptr: (B, n, 3, heads, HEAD_DIM) contiguous; out_ptr: (B, n, heads, HEAD_DIM), the same type, or FP8 if inverse
    is 1 / its scale instead of None.
    """
    begin(PDL)
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    width = heads * HEAD_DIM
    stride = 3 * width
    base = qkv_ptr + image * n * stride + head * HEAD_DIM
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, HEAD_DIM)
    q = tl.load(base + rows[:, None] * stride + dims[None, :], mask=rows[:, None] < n, other=0.0)
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    whole = n // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        top, total, out = attend(q, top, total, out, base, columns, n, stride, width, dims, False, PRECISION)
    if whole < n:
        columns = whole + tl.arange(0, BLOCK_N)
        top, total, out = attend(q, top, total, out, base, columns, n, stride, width, dims, True, PRECISION)
    out = out / total[:, None]
    out_ptrs = out_ptr + image * n * width + head * HEAD_DIM + rows[:, None] * width + dims[None, :]
    if inverse is not None:
        tl.store(out_ptrs, to_fp8(out, inverse), mask=rows[:, None] < n)
    else:
        tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=rows[:, None] < n)


def attention_reference(qkv: Tensor, heads: int, out_scale: float | None = None) -> Tensor:
    """The same in PyTorch: packed qkv (B, N, 3C) -> (B, N, C), in FP8 if it has a scale."""
    b, n, width = qkv.shape
    q, k, v = (t.reshape(b, n, heads, width // (3 * heads)).transpose(1, 2) for t in qkv.chunk(3, dim=-1))
    y = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    y = y.transpose(1, 2).reshape(b, n, width // 3)
    return y if out_scale is None else fp8_reference(y, out_scale)


def launch_attention(
    qkv: Tensor, heads: int, config: Config, *, out_scale: float | None = None, modes: int = 0
) -> Tensor:
    """Runs the kernel with the block sizes of `config`: contiguous qkv (B, N, 3C) -> (B, N, C)."""
    b, n, width = qkv.shape
    out = qkv.new_empty(b, n, width // 3, dtype=qkv.dtype if out_scale is None else FP8)
    inverse = None if out_scale is None else 1 / out_scale
    grid = (-(-n // config.blocks["BLOCK_M"]), heads, b)
    attention_kernel[grid](
        qkv, n, heads, out, inverse, HEAD_DIM=HEAD_DIM, PRECISION=precision_of(qkv.dtype), **config.arguments,
        **pdl_launch(modes, qkv),
    )  # fmt: skip
    return out


def attention(
    qkv: Tensor, heads: int, *, out_scale: float | None = None, kernel: str | bool | None = True,
    modes: int = Modes.NONE,
) -> Tensor:  # fmt: skip
    """Self-attention with q scaled already: packed qkv (B, N, 3C), floating -> (B, N, C), contiguous.

    Args:
        qkv: any strides; each token holds q, k and v, each of them `heads` times head_dim channels.
        heads: C / head_dim.
        out_scale: round the result to FP8 in steps of this size; by default it has qkv's dtype.
        kernel: its name or True; False or None computes in plain PyTorch, whatever the device.
        modes: of `dispatch.Modes`.

    Raises:
        ConfigError: a shape that is no packed qkv, a scale that is not positive, or a gradient is asked for.
    """
    if qkv.ndim != 3 or heads < 1 or qkv.shape[2] % (3 * heads) or not qkv.shape[1]:
        raise ConfigError(f"attention takes qkv (B, N, 3 * heads * head_dim); found {tuple(qkv.shape)}, {heads} heads")
    check_same_dtype("attention", qkv)
    check_scale("attention", out_scale)
    forward_only("attention", qkv)
    if not kernel:
        return attention_reference(qkv, heads, out_scale)
    return _attention(qkv, heads, out_scale, int(modes))


@torch.library.custom_op(
    "fvexport::attention", mutates_args=(), schema="(Tensor qkv, int heads, float? out_scale, int modes) -> Tensor"
)
def _attention(qkv: Tensor, heads: int, out_scale: float | None, modes: int) -> Tensor:
    b, n, width = qkv.shape
    kernel = runs("attention", qkv, fp8=out_scale is not None)
    if not kernel or width != 3 * heads * HEAD_DIM or not 0 < b < 2**16:
        return attention_reference(qkv, heads, out_scale).contiguous()
    config = config_for("attention", qkv, {"tokens": n, "batch": b, "heads": heads})
    with on_device_of(qkv):
        return launch_attention(qkv.contiguous(), heads, config, out_scale=out_scale, modes=modes)


@_attention.register_fake
def _(qkv: Tensor, heads: int, out_scale: float | None, modes: int) -> Tensor:
    dtype = qkv.dtype if out_scale is None else FP8
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3, dtype=dtype)
