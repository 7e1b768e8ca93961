"""What one program of each kernel computes: its values, and the multiply-adds of each iteration of its main loop.

With these `sass.count` derives how often a loop of the compiled code runs. A kernel that is not listed has no count per
value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Work:
    """What one program computes.

    Attributes:
        values: of its result, at the tile's full size.
        steps: iterations of its main loop, as the source has them.
        multiply_adds: of one iteration, all threads together.
        tensor_cores: whether tensor cores do them.
        tail: whether one more iteration follows outside the loop.
        branch: which side of an `if` runs when both multiply: the one with fewer or with more instructions.
    """

    values: int
    steps: int = 0
    multiply_adds: int = 0
    tensor_cores: bool = True
    tail: bool = False
    branch: Literal["short", "long"] | None = None


Constants = Mapping[str, Any]
Sizes = Mapping[str, int]


def sizes_of(kernel: str, sizes: Sizes, grid: tuple[int, ...]) -> dict[str, int]:
    """The sizes of a call and, for a product whose summed axis is cut, the `parts` that its launch cuts it into."""
    return {**sizes, "parts": grid[1]} if kernel == "split_k_kernel" else dict(sizes)


def work_of(kernel: str, constants: Constants, sizes: Sizes) -> Work | None:
    """The work of one program, None for a kernel that is not known.

    Args:
        kernel: name of the `triton.jit` function.
        constants: what is compiled in, by name.
        sizes: of the call, as `sizes_of` completes them.
    """
    known = _KERNELS.get(kernel)
    return known(constants, sizes) if known else None


def _linear(constants: Constants, sizes: Sizes) -> Work:
    values = constants["BLOCK_M"] * constants["BLOCK_N"]
    steps = -(-sizes["k"] // constants["BLOCK_K"])
    return Work(values, steps, values * constants["BLOCK_K"], constants.get("PRECISION") != "ieee")


def _split_k(constants: Constants, sizes: Sizes) -> Work:
    """Of one of the `parts` that k is cut into."""
    block = constants["BLOCK_K"]
    return _linear(constants, {"k": -(-sizes["k"] // (sizes["parts"] * block)) * block})


def _norm_linear(constants: Constants, sizes: Sizes) -> Work:
    plain = _linear(constants, sizes)
    branch: Literal["short", "long"] = "long" if constants["LIMIT"] < 0 else "short"  # x - mean, or x
    return Work(plain.values, plain.steps, plain.multiply_adds, plain.tensor_cores, branch=branch)


def _row_statistics(constants: Constants, sizes: Sizes) -> Work:
    return Work(constants["BLOCK_M"] * sizes["k"])  # per value read: it writes two per row


def _norm_fp8(constants: Constants, sizes: Sizes) -> Work:
    return Work(constants["BLOCK_M"] * sizes["k"])


def _pass(constants: Constants, sizes: Sizes) -> Work:
    return Work(constants["BLOCK"])


def _mlp(constants: Constants, sizes: Sizes) -> Work:
    rows, width = constants["BLOCK_M"], constants["PARTS"] * constants["PART"]
    steps = -(-constants["HIDDEN"] // constants["BLOCK_H"])
    return Work(rows * constants["C"], steps, 2 * rows * width * constants["BLOCK_H"], constants["PRECISION"] != "ieee")


def _attention(constants: Constants, sizes: Sizes) -> Work:
    rows, keys, width = constants["BLOCK_M"], constants["BLOCK_N"], constants["HEAD_DIM"]
    steps, left = divmod(sizes["tokens"], keys)
    return Work(rows * width, steps, 2 * rows * keys * width, constants["PRECISION"] != "ieee", tail=left > 0)


def _depthwise(constants: Constants, sizes: Sizes) -> Work:
    values = constants["ROWS"] * constants["BLOCK_W"] * constants["BLOCK_C"]
    return Work(values, constants["KERNEL"], constants["KERNEL"] * values, tensor_cores=False)


def _depthwise_pairs(constants: Constants, sizes: Sizes) -> Work:
    values = 2 * constants["ROWS"] * constants["BLOCK_W"] * constants["BLOCK_C"]
    return Work(values, constants["KERNEL"], constants["KERNEL"] * values, tensor_cores=False)


def _depthwise_strips(constants: Constants, sizes: Sizes) -> Work:
    return Work(constants["ROWS"] * constants["STRIP"] * constants["GROUPS"] * constants["BLOCK_C"])


def _stem(constants: Constants, sizes: Sizes) -> Work:
    return Work(constants["BLOCK_M"] * sizes["c"] // constants["SPLIT_N"])


_KERNELS: dict[str, Callable[[Constants, Sizes], Work]] = {
    "linear_kernel": _linear,
    "norm_linear_kernel": _norm_linear,
    "row_statistics_kernel": _row_statistics,
    "mlp_kernel": _mlp,
    "attention_kernel": _attention,
    "depthwise_kernel": _depthwise,
    "depthwise_rows_kernel": _depthwise,
    "depthwise_pairs_kernel": _depthwise_pairs,
    "depthwise_strips_kernel": _depthwise_strips,
    "linear_tma_kernel": _linear,
    "split_k_kernel": _split_k,
    "sum_parts_kernel": _pass,
    "finish_kernel": _pass,
    "linear_fp8_kernel": _linear,
    "norm_fp8_kernel": _norm_fp8,
    "quantize_fp8_kernel": _pass,
    "stem_kernel": _stem,
}
