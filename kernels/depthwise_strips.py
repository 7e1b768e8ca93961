"""Depthwise convolutions, stride 1: each thread computes strips of adjacent positions, with all taps in registers.

    y[b, i, j, c] = bias[c] + sum_{u, v} x[b, i + u - k // 2, j + v - k // 2, c] * taps[u, v, c]

x is (B, H, W, C), zero outside; taps (k, k, C) float32, the weight's values exactly; y (B, H, W, C).

A program computes ROWS rows of GROUPS strips of STRIP positions, in BLOCK_C channels. A value of x is loaded and
converted once for all positions of a strip and all rows that use it: (k + ROWS - 1) (k + STRIP - 1) loads for ROWS
STRIP positions, 6.3 per value of y for a 7x7 and 4 x 4 positions, where `depthwise_rows` has 12 to 18. The taps, two
channels of them, and the sums of a thread fill most of its registers, and nothing is a loop, so that ptxas loads ahead.

FLOPs: 2 k^2 per value of y.    Bytes: x once, y once (neighbouring programs share their edges through L1 and L2).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
# ruff: noqa: RUF005 - Triton concatenates tuples, but does not unpack them
from __future__ import annotations

from torch import Tensor

from .depthwise_rows import output_like, zeros
from .dispatch import gelu_form, pdl_launch
from .fp8 import to_fp8
from .language import INTERPRETED, jit, tl
from .table import Config
from .tiles import begin, gelu_as

if tl is not None:
    _BY_HARDWARE = tl.constexpr(not INTERPRETED)


@jit
def all_taps(ptrs, inside, KERNEL: tl.constexpr, C: tl.constexpr, EVEN_C: tl.constexpr):
    """All taps as a tuple of KERNEL^2 tiles (GROUPS, BLOCK_C), row by row; a row of `ptrs` is like the other.

    Tiles of one row would be the same, but Triton's compiler takes ten times as long to spread them over the groups.
    """
    taps = ()
    for index in tl.static_range(KERNEL * KERNEL):
        if EVEN_C:
            taps = taps + (tl.load(ptrs + index * C),)
        else:
            taps = taps + (tl.load(ptrs + index * C, mask=inside, other=0.0),)
    return taps


@jit
def columns_inside(first, width, inside, HALF: tl.constexpr, STRIP: tl.constexpr, WHOLE: tl.constexpr):
    """Which values of each of the 2 HALF + STRIP columns that strips use there are: a tuple of tiles (GROUPS, BLOCK_C).

    With WHOLE three of them are different: the columns before the strips, within them, and after them.
    """
    found = ()
    if WHOLE:
        before = (first > 0)[:, None] & inside
        after = (first + STRIP < width)[:, None] & inside
        for v in tl.static_range(2 * HALF + STRIP):
            found = found + (before if v < HALF else (inside if v < HALF + STRIP else after),)
    else:
        for v in tl.static_range(2 * HALF + STRIP):  # unsigned, one comparison covers both ends
            found = found + (((first + (v - HALF)).to(tl.uint32) < width)[:, None] & inside,)
    return found


@jit
def load_row(ptrs, valid, row_inside, COLUMNS: tl.constexpr, C: tl.constexpr):
    """A row of x as a tuple of COLUMNS tiles (GROUPS, BLOCK_C) in float32."""
    row = ()
    for v in tl.static_range(COLUMNS):
        row = row + (tl.load(ptrs + v * C, mask=valid[v] & row_inside, other=0.0).to(tl.float32),)
    return row


@jit
def add_seven(total, x, v: tl.constexpr, taps, t: tl.constexpr):
    """Adds seven values of x, from the v-th on, times seven taps, from the t-th on."""
    if _BY_HARDWARE:
        # What the loop below compiles to. As one operation it spares Triton's compiler most of its time: that grows
        # with the square of the operations.
        total = tl.inline_asm_elementwise(
            "fma.rn.f32 $0, $1, $8, $15; fma.rn.f32 $0, $2, $9, $0; fma.rn.f32 $0, $3, $10, $0;"
            "fma.rn.f32 $0, $4, $11, $0; fma.rn.f32 $0, $5, $12, $0; fma.rn.f32 $0, $6, $13, $0;"
            "fma.rn.f32 $0, $7, $14, $0;",
            "=&f,f,f,f,f,f,f,f,f,f,f,f,f,f,f,f",
            [
                x[v], x[v + 1], x[v + 2], x[v + 3], x[v + 4], x[v + 5], x[v + 6],
                taps[t], taps[t + 1], taps[t + 2], taps[t + 3], taps[t + 4], taps[t + 5], taps[t + 6], total,
            ],
            dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        for i in tl.static_range(7):
            total += x[v + i] * taps[t + i]
    return total


@jit
def add_row(
    totals, x, taps, u: tl.constexpr, ROWS: tl.constexpr, STRIP: tl.constexpr, KERNEL: tl.constexpr
):  # fmt: skip
    """Adds row u of the input, counted from a program's first, to all sums that it counts in."""
    sums = ()
    for index in tl.static_range(ROWS * STRIP):
        total = totals[index]
        if (u >= index // STRIP) and (u < index // STRIP + KERNEL):
            if KERNEL == 7:
                total = add_seven(total, x, index % STRIP, taps, (u - index // STRIP) * KERNEL)
            else:
                for v in tl.static_range(KERNEL):
                    total += x[index % STRIP + v] * taps[(u - index // STRIP) * KERNEL + v]
        sums = sums + (total,)
    return sums


@jit
def depthwise_strips_kernel(
    x_ptr, taps_ptr, bias_ptr, height, width, inverse, out_ptr,
    C: tl.constexpr, KERNEL: tl.constexpr, GELU: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, STRIP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_C: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: ROWS x (GROUPS STRIP) positions x BLOCK_C channels of the result.

    Grid: (cdiv(H, ROWS) * cdiv(W, GROUPS STRIP), cdiv(C, BLOCK_C), B). x_ptr, out_ptr: (B, height, width, C); taps_ptr:
    (KERNEL, KERNEL, C) float32; bias_ptr: (C,). C is a constant, so that the columns of a strip are offsets in the
    instructions. WHOLE: STRIP divides width, and is KERNEL // 2 at least: a strip is then inside or outside as a
    whole, and so is what it uses of its neighbours. inverse: 1 / scale of the result if that is FP8, else None.
    """
    begin(PDL)
    across = tl.cdiv(width, GROUPS * STRIP)
    top = tl.program_id(0) // across * ROWS
    first = (tl.program_id(0) % across * GROUPS + tl.arange(0, GROUPS)) * STRIP
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    EVEN_C: tl.constexpr = C % BLOCK_C == 0
    HALF: tl.constexpr = KERNEL // 2
    image = tl.program_id(2).to(tl.int64)
    every = tl.zeros((GROUPS, 1), tl.int32) + channels[None, :]
    inside = (first < width)[:, None] & (every < C)
    valid = columns_inside(first, width, inside, HALF, STRIP, WHOLE)
    taps = all_taps(taps_ptr + every, every < C, KERNEL, C, EVEN_C)
    totals = zeros(ROWS * STRIP, GROUPS, BLOCK_C)
    x_ptrs = x_ptr + image * height * width * C
    x_ptrs += ((top - HALF) * width + first[:, None] - HALF) * C + channels[None, :]
    for u in tl.static_range(KERNEL + ROWS - 1):
        row_inside = (top + (u - HALF)).to(tl.uint32) < height
        x = load_row(x_ptrs, valid, row_inside, 2 * HALF + STRIP, C)
        totals = add_row(totals, x, taps, u, ROWS, STRIP, KERNEL)
        x_ptrs += width * C
    bias = tl.load(bias_ptr + channels, mask=channels < C, other=0.0).to(tl.float32)
    out_ptrs = out_ptr + image * height * width * C + (top * width + first[:, None]) * C + channels[None, :]
    for row in tl.static_range(ROWS):
        for column in tl.static_range(STRIP):
            y = gelu_as(totals[row * STRIP + column] + bias[None, :], GELU)
            if inverse is not None:
                y = to_fp8(y, inverse)
            mask = valid[HALF + column] & (top + row < height)
            tl.store(out_ptrs + column * C, y.to(out_ptr.dtype.element_ty), mask=mask)
        out_ptrs += width * C


def launch_depthwise_strips(
    x: Tensor, taps: Tensor, bias: Tensor, stride: int, gelu: bool, config: Config, *, modes: int = 0,
    out_scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Runs the kernel with the block sizes of `config`: contiguous tensors, taps (1, k, k, C) of `float_taps`."""
    b, height, width, c = x.shape
    out = output_like(x, c, stride, out_scale)
    strip, kernel = config.blocks["STRIP"], taps.shape[1]
    tiles = -(-height // config.blocks["ROWS"]) * -(-width // (config.blocks["GROUPS"] * strip))
    depthwise_strips_kernel[(tiles, -(-c // config.blocks["BLOCK_C"]), b)](
        x, taps, bias, height, width, None if out_scale is None else 1 / out_scale, out, C=c, KERNEL=kernel,
        GELU=gelu_form(gelu, x.dtype, modes), WHOLE=width % strip == 0 and strip >= kernel // 2, **config.arguments,
        **pdl_launch(modes, x),
    )  # fmt: skip
    return out
