"""A ConvFFN's two products in one kernel: the hidden activations are never in global memory.

    y = residual + gelu(x @ w1^T + b1) @ w2^T + b2

x, residual and y are (..., C); w1 (4C, C), b1 (4C,), w2 (C, 4C), b2 (C,). A program keeps BLOCK_M rows of x and of the
result in registers and walks over the hidden channels, BLOCK_H at a time. Triton's tiles are powers of two and the
model's widths three times one (96, 192, 384), so x and the result are PARTS tiles of PART channels each.

FLOPs: 16 M C^2, and about 40 M C for GELU.
Bytes: 3 M C + 8 C^2 values. Product by product it is 3 M C + 8 C^2 + 8 M C (GELU in the first product's epilogue).
Each program reads all 8 C^2 weights from L2: C M / BLOCK_M times as many values there as x has. It needs M / BLOCK_M
programs to fill the GPU. Both grow worse with C, whose stage has a quarter of the rows of the one before: policy.py
says where it is used.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..core.errors import ConfigError
from .dispatch import Modes, check_same_dtype, forward_only, gelu_form, on_device_of, pdl_launch, precision_of, runs
from .language import jit, tl
from .table import Config, config_for
from .tiles import begin, gelu_as

MAX_CHANNELS = 384
"""Widest C whose result stays in registers."""


@jit
def load_part(base, rows, columns, height, width, stride, EVEN: tl.constexpr):
    """base[rows, columns] of a row-major (height, width) matrix; zero outside. EVEN: nothing is outside."""
    ptrs = base + rows[:, None] * stride + columns[None, :]
    if EVEN:
        return tl.load(ptrs)
    else:
        return tl.load(ptrs, mask=(rows[:, None] < height) & (columns[None, :] < width), other=0.0)


@jit
def store_part(y, part, b2_ptr, residual_ptr, rows, m, out_ptr, C: tl.constexpr, PART: tl.constexpr):
    """Adds bias and residual to one part of the result, and writes it."""
    columns = part * PART + tl.arange(0, PART)
    y += tl.load(b2_ptr + columns, mask=columns < C, other=0.0).to(tl.float32)[None, :]
    place = rows.to(tl.int64)[:, None] * C + columns[None, :]
    inside = (rows[:, None] < m) & (columns[None, :] < C)
    y += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=inside)


@jit
def mlp_kernel(
    x_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, residual_ptr, m, out_ptr,
    C: tl.constexpr, HIDDEN: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, GELU: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M rows. Grid: (cdiv(m, BLOCK_M),). PARTS is 1 or 3, and PARTS * PART >= C.

    x_ptr, residual_ptr, out_ptr: (m, C); w1_ptr: (HIDDEN, C); b1_ptr: (HIDDEN,); w2_ptr: (C, HIDDEN); b2_ptr: (C,).
    """
    begin(PDL)
    EVEN: tl.constexpr = (PARTS * PART == C) and (HIDDEN % BLOCK_H == 0)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    near = tl.minimum(rows, m - 1).to(tl.int64)
    inner = tl.arange(0, PART)
    x0 = load_part(x_ptr, near, inner, m, C, C, EVEN)
    y0 = tl.zeros((BLOCK_M, PART), tl.float32)
    if PARTS == 3:
        x1 = load_part(x_ptr, near, PART + inner, m, C, C, EVEN)
        x2 = load_part(x_ptr, near, 2 * PART + inner, m, C, C, EVEN)
        y1 = tl.zeros((BLOCK_M, PART), tl.float32)
        y2 = tl.zeros((BLOCK_M, PART), tl.float32)
    for start in range(0, HIDDEN, BLOCK_H):
        hidden = start + tl.arange(0, BLOCK_H)
        a = tl.dot(x0, load_part(w1_ptr, hidden, inner, HIDDEN, C, C, EVEN).T, input_precision=PRECISION)
        if PARTS == 3:
            w = load_part(w1_ptr, hidden, PART + inner, HIDDEN, C, C, EVEN)
            a = tl.dot(x1, w.T, a, input_precision=PRECISION)
            w = load_part(w1_ptr, hidden, 2 * PART + inner, HIDDEN, C, C, EVEN)
            a = tl.dot(x2, w.T, a, input_precision=PRECISION)
        b1 = tl.load(b1_ptr + hidden, mask=hidden < HIDDEN, other=0.0)
        a = gelu_as(a + b1.to(tl.float32)[None, :], GELU, PAIRS=True).to(x0.dtype)
        w = load_part(w2_ptr, inner, hidden, C, HIDDEN, HIDDEN, EVEN)
        y0 = tl.dot(a, w.T, y0, input_precision=PRECISION)
        if PARTS == 3:
            w = load_part(w2_ptr, PART + inner, hidden, C, HIDDEN, HIDDEN, EVEN)
            y1 = tl.dot(a, w.T, y1, input_precision=PRECISION)
            w = load_part(w2_ptr, 2 * PART + inner, hidden, C, HIDDEN, HIDDEN, EVEN)
            y2 = tl.dot(a, w.T, y2, input_precision=PRECISION)
    store_part(y0, 0, b2_ptr, residual_ptr, rows, m, out_ptr, C, PART)
    if PARTS == 3:
        store_part(y1, 1, b2_ptr, residual_ptr, rows, m, out_ptr, C, PART)
        store_part(y2, 2, b2_ptr, residual_ptr, rows, m, out_ptr, C, PART)


def mlp_reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, residual: Tensor) -> Tensor:
    """The same in PyTorch: x and residual (..., C), w1 (hidden, C), w2 (C, hidden) -> (..., C)."""
    return residual + F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def parts_of(c: int) -> tuple[int, int]:
    """(PART, PARTS): the power-of-two tiles that hold C channels, at least 16 wide as tensor cores want them."""
    if c % 3 == 0 and c // 3 >= 16 and (c // 3) & (c // 3 - 1) == 0:
        return c // 3, 3
    return max(16, 1 << (c - 1).bit_length()), 1


def launch_mlp(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, residual: Tensor, config: Config, *, modes: int = 0
) -> Tensor:
    """Runs the kernel with the block sizes of `config`: all tensors contiguous."""
    hidden, c = w1.shape
    m = x.numel() // c
    out = torch.empty_like(x)
    part, parts = parts_of(c)
    mlp_kernel[(-(-m // config.blocks["BLOCK_M"]),)](
        x, w1, b1, w2, b2, residual, m, out, C=c, HIDDEN=hidden, PART=part, PARTS=parts,
        GELU=gelu_form(True, x.dtype, modes), PRECISION=precision_of(x.dtype), **config.arguments,
        **pdl_launch(modes, x),
    )  # fmt: skip
    return out


def mlp(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, residual: Tensor, *, kernel: str | bool | None = True,
    modes: int = Modes.NONE,
) -> Tensor:  # fmt: skip
    """Both products of a ConvFFN and the addition, all of one dtype and any strides -> (..., C), contiguous.

    Args:
        x, residual: (..., C).
        w1, b1: (hidden, C) and (hidden,).
        w2, b2: (C, hidden) and (C,).
        kernel: its name or True; False or None computes in plain PyTorch, whatever the device, which also computes a
            C over 384.
        modes: of `dispatch.Modes`.

    Raises:
        ConfigError: shapes or dtypes that do not fit each other, or a gradient is asked for.
    """
    tensors = (x, w1, b1, w2, b2, residual)
    fits = x.ndim >= 1 and w1.ndim == 2 and w1.shape[1] == x.shape[-1] and b1.shape == w1.shape[:1]
    if not fits or w2.shape != w1.shape[::-1] or b2.shape != x.shape[-1:] or residual.shape != x.shape:
        shapes = [tuple(t.shape) for t in tensors]
        raise ConfigError(
            f"mlp takes x (..., C), w1 (D, C), b1 (D,), w2 (C, D), b2 (C,), residual as x; found {shapes}"
        )
    check_same_dtype("mlp", *tensors)
    forward_only("mlp", *tensors)
    return _mlp(*tensors, int(modes)) if kernel else mlp_reference(*tensors)


@torch.library.custom_op(
    "fvexport::mlp", mutates_args=(),
    schema="(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor residual, int modes) -> Tensor",
)  # fmt: skip
def _mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, residual: Tensor, modes: int) -> Tensor:
    tensors = (x, w1, b1, w2, b2, residual)
    hidden, c = w1.shape
    if not runs("mlp", *tensors) or c > MAX_CHANNELS:
        return mlp_reference(*tensors).contiguous()
    config = config_for("mlp", x, {"m": x.numel() // c, "c": c, "hidden": hidden})
    x, w1, b1, w2, b2, residual = (t.contiguous() for t in tensors)
    with on_device_of(x):
        return launch_mlp(x, w1, b1, w2, b2, residual, config, modes=modes)


@_mlp.register_fake
def _(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, residual: Tensor, modes: int) -> Tensor:
    return x.new_empty(x.shape)
