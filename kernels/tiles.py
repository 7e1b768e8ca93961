"""What several kernels share: GELU, matrix products, and which tile a program computes.

Products are x @ weight^T, both row-major with the summed axis last, as `nn.Linear` keeps its weight. Half precision is
multiplied on tensor cores and summed in float32; float32 is multiplied as `PRECISION` says (`ieee`: exactly).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from .language import jit, tl


@jit
def gelu(x):
    """The exact GELU of a float32 tile."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


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
    x_ptr, weight_ptr, rows, columns, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x[rows] @ weight[columns]^T -> (BLOCK_M, BLOCK_N) float32; x is (M, k), weight (N, k)."""
    inner = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + rows.to(tl.int64)[:, None] * k + inner[None, :]
    weight_ptrs = weight_ptr + columns.to(tl.int64)[None, :] * k + inner[:, None]
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
