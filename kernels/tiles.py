"""What several kernels share: their first statement, GELU, matrix products, and which tile a program computes.

Products are x @ weight^T, both row-major with the summed axis last, as `nn.Linear` keeps its weight. Half precision is
multiplied on tensor cores and summed in float32; float32 is multiplied as `PRECISION` says (`ieee`: exactly).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from .language import BY_HARDWARE, INSTALLED, jit, tl

PAIRED = tl.constexpr(1024) if INSTALLED else 1024
"""Values of a tile of which each thread has at least two: a program has at most 512 threads."""


@jit
def begin(PDL: tl.constexpr):
    """The first statement of every kernel. With PDL the next kernel may start, and this one waits for the previous.

    The wait ends when the previous kernel's results are in memory, so nothing global may be read or written before.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@jit
def gelu(x):
    """The exact GELU of a float32 tile."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@jit
def fast_gelu(x, PAIRS: tl.constexpr):
    """GELU of a float32 tile in logistic form, for results in a half type: about 10 instructions instead of 34.

        x / (1 + 2^(x q)),    q = (a t + b) t + c,    t = min(x^2, 40)

    a, b, c minimize the largest error against GELU in float64, which is 2.6e-5 over all x. For normally distributed x
    the error's norm is an eighth of what rounding the result to FP16 adds. Without the clamp q turns positive beyond
    |x| = 11.1.
    """
    t = tl.minimum(x * x, 40.0)
    q = (1.01430183e-3 * t - 0.106775975) * t - 2.30112105
    if PAIRS and x.numel >= PAIRED:  # 2^60: a product of two is finite; below x = -13, x / 2^60 is left
        return x * reciprocal_of_pairs(1.0 + tl.exp2(tl.minimum(x * q, 60.0)))
    elif BY_HARDWARE:  # one instruction, exact to 1 ulp; a division takes nine
        return x * tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=r,r", [1.0 + tl.exp2(x * q)], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return x / (1.0 + tl.exp2(x * q))


@jit
def reciprocal_of_pairs(a):
    """1 / a of float32 values from 1 to 2^60, two of a thread from one reciprocal: 1 / a = b (1 / (a b)).

    The unit that computes 2^x and 1 / x takes 8 cycles for a warp, and others one: GELU takes 12 cycles instead of 16.
    """
    if BY_HARDWARE:
        return tl.inline_asm_elementwise(
            "{ .reg .f32 both; mul.f32 both, $2, $3; rcp.approx.ftz.f32 both, both;"
            " mul.f32 $0, both, $3; mul.f32 $1, both, $2; }",
            "=&r,=&r,r,r", [a], dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return 1.0 / a


@jit
def gelu_as(x, GELU: tl.constexpr, PAIRS: tl.constexpr = False):
    """GELU of a float32 tile in the form that `dispatch.gelu_form` chose: 0 none, 1 by erf, 2 logistic.

    PAIRS: two values share a reciprocal. On an H100 `mlp` is up to 5 % faster with it, other kernels up to 3 % slower.
    """
    if GELU == 1:
        x = gelu(x)
    elif GELU == 2:
        x = fast_gelu(x, PAIRS)
    return x


@jit
def tile_of(program, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Tile row and tile column of a program: GROUP_M rows go together, so that they find their weights in L2."""
    rows = tl.cdiv(m, BLOCK_M)
    columns = tl.cdiv(n, BLOCK_N)
    first = program // (GROUP_M * columns) * GROUP_M
    height = min(rows - first, GROUP_M)
    inside = program % (GROUP_M * columns)
    return first + inside % height, inside // height


@jit
def product(
    x_ptr, weight_ptr, rows, columns, k, stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x[rows] @ weight[columns]^T -> (BLOCK_M, BLOCK_N) float32; rows of x (M, k), weight (N, k) are `stride` apart."""
    inner = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + rows.to(tl.int64)[:, None] * stride + inner[None, :]
    weight_ptrs = weight_ptr + columns.to(tl.int64)[None, :] * stride + inner[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs)
            weight = tl.load(weight_ptrs)
        else:
            x = tl.load(x_ptrs, mask=inner[None, :] < k - start, other=0.0)
            weight = tl.load(weight_ptrs, mask=inner[:, None] < k - start, other=0.0)
        total = tl.dot(x, weight, total, input_precision=PRECISION)
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    return total


@jit
def centred_product(
    x_ptr, weight_ptr, rows, columns, k, means,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(x[rows] - means) @ weight[columns]^T -> (BLOCK_M, BLOCK_N) float32; differences are rounded to x's type."""
    inner = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + rows.to(tl.int64)[:, None] * k + inner[None, :]
    weight_ptrs = weight_ptr + columns.to(tl.int64)[None, :] * k + inner[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        x = tl.load(x_ptrs, mask=inner[None, :] < k - start, other=0.0)
        # Beyond k the weight is zero, whatever stands in x.
        weight = tl.load(weight_ptrs, mask=inner[:, None] < k - start, other=0.0)
        centred = (x.to(tl.float32) - means[:, None]).to(x.dtype)
        total = tl.dot(centred, weight, total, input_precision=PRECISION)
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    return total
