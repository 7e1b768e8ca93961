"""Which kernel computes which part of the model, in one table with its reasons.

None of it has been measured yet: the rows follow from bytes and FLOPs (`ffn_floor`), and wait for `python -m
fvexport.benchmarks.kernels` on a GPU. A part that no row fits is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from .dispatch import DEFAULTS, DTYPES

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Row:
    """One choice.

    Attributes:
        part: of the model.
        kernel: that computes it, by its name in `dispatch.OPS`.
        dtypes: of weights and activations.
        why: the reason, and what measured it where something did.
        max_channels: widest input, 0 for any.
        rows_per_processor: least positions (B * H * W) for each multiprocessor of the GPU.
        arch: architectures it is for (`sm_90`), all if empty.
        min_channels: narrowest input.
        max_rows: most positions (B * H * W), 0 for any.
    """

    part: str
    kernel: str
    dtypes: tuple[torch.dtype, ...]
    why: str
    max_channels: int = 0
    rows_per_processor: int = 0
    arch: tuple[str, ...] = ()
    min_channels: int = 0
    max_rows: int = 0

    def fits(self, dtype: torch.dtype, channels: int, rows: int, processors: int, arch: str) -> bool:
        """Whether it is for inputs of that dtype and size on that GPU."""
        if dtype not in self.dtypes or (self.arch and arch not in self.arch):
            return False
        wide_enough = channels >= self.min_channels and (not self.max_channels or channels <= self.max_channels)
        few_enough = not self.max_rows or rows <= self.max_rows
        return wide_enough and few_enough and rows >= self.rows_per_processor * processors


ROWS: tuple[Row, ...] = (
    Row(
        "depthwise 7x7", "depthwise_mma", HALF,
        "tensor cores: 31 to 46 instructions per value instead of 77 to 88, and 0.34 (sm_90) or 0.44 (sm_80) clocks of "
        "tensor cores per value; sm_86, sm_89 and sm_120 would take 1.7. Under 4 positions per multiprocessor its "
        "programs are too few",
        rows_per_processor=4, arch=("sm_80", "sm_90"),
    ),
    Row(
        "depthwise 7x7", "depthwise_rows", DTYPES,
        "77 to 88 instructions per value instead of 106, which is what bounds a 7x7",
    ),
    Row("depthwise 7x7", "depthwise", DTYPES, "bias in the same pass: each value is read and written once"),
    Row(
        "depthwise", "depthwise_rows", DTYPES,
        "bias and GELU in the same pass; 3x3 is bound by bytes, and takes 17 to 20 instructions per value instead of "
        "22 to 28",
    ),
    Row(
        "depthwise", "depthwise", DTYPES,
        "bias and GELU in the same pass: each value is read and written once",
    ),
    Row(
        "depthwise x2", "depthwise_pairs", DTYPES,
        "7x7 with two outputs per input channel: 88 instructions per value instead of 246, because each value of x is "
        "loaded once for both",
    ),
    Row("depthwise x2", "depthwise", DTYPES, "bias and GELU in the same pass"),
    Row(
        "ConvFFN", "mlp", HALF,
        "the hidden tensor, 8 of the 11 C values a position that two products move, is never written; one wave of "
        "programs takes no longer than two launches",
        max_channels=96,
    ),
    Row(
        "ConvFFN", "mlp", HALF,
        "the same, once programs of 64 rows fill the GPU; with fewer rows the two products, cut along channels too, "
        "are done sooner",
        max_channels=192, rows_per_processor=96,
    ),
    Row(
        "ConvFFN", "linear", HALF,
        "wider: a program's result fills the registers at 64 rows, so weights pass from L2 at 64 FLOPs a byte, which "
        "no longer feeds the tensor cores; GELU and addition ride on the two products",
    ),
    Row("pointwise", "linear", HALF, "1x1 convolution and GELU in one pass: saves writing and reading the result once"),
    Row("qkv", "norm_linear", HALF, "the normalized tensor is neither written nor read"),
    Row("attention", "attention", HALF, "reads packed q, k and v in place and writes what proj reads: no copy"),
    Row("proj", "linear", HALF, "the addition rides on the product: one pass less over the stream"),
)  # fmt: skip
"""In order; the first that fits counts. Not here, so PyTorch's: float32 products and attention (exact float32 runs on
FMA units, where cuBLAS has no rival), the first convolution, squeeze-excite."""


def kernel_for(
    part: str, dtype: torch.dtype, channels: int, rows: int, processors: int, allowed: Collection[str] = DEFAULTS,
    *, arch: str = "",
) -> str | None:  # fmt: skip
    """The kernel for a part of the model, or None for PyTorch.

    Args:
        part: as the table names it.
        dtype: of its input.
        channels: of its input.
        rows: positions of all images together.
        processors: multiprocessors of the GPU, 0 where there is none.
        allowed: kernels that may be used.
        arch: the GPU's architecture (`sm_90`); rows for particular architectures fit no other.
    """
    for row in ROWS:
        if row.part == part and row.kernel in allowed and row.fits(dtype, channels, rows, processors, arch):
            return row.kernel
    return None


@dataclass(frozen=True)
class Limits:
    """What bounds a kernel on a GPU, from its maker's data sheet.

    Attributes:
        flops: dense FP16 tensor-core FLOPs per second.
        memory: bytes per second from global memory.
        cache: bytes per second from L2.
        processors: multiprocessors.
    """

    flops: float
    memory: float
    cache: float
    processors: int


A100 = Limits(312e12, 1.555e12, 5120 * 1.41e9, 108)
"""NVIDIA's A100 white paper: 40 GB, 5120 bytes per clock from L2 at 1.41 GHz."""


def ffn_floor(channels: int, rows: int, limits: Limits, *, block: int, ratio: int = 4) -> dict[str, float]:
    """Seconds that a ConvFFN's two products take at the very least, in half precision: `mlp`, and `linear` twice.

    Both do the same FLOPs on the processors that have a program, and move x, residual and result. `linear` moves the
    hidden tensor too; `mlp` has one program for `block` rows, and each of them reads all weights from L2.
    """
    hidden = ratio * channels
    weights = 2 * channels * hidden * 2.0  # bytes
    flops = 2 * 2 * channels * hidden * rows
    streams = 3 * rows * channels * 2
    programs = -(-rows // block)
    waves = -(-programs // limits.processors)
    each = block * 2 * 2 * channels * hidden / (limits.flops / limits.processors)
    return {
        "mlp": max(waves * each, (streams + weights) / limits.memory, programs * weights / limits.cache),
        "linear": max(flops / limits.flops, (streams + weights + 2 * rows * hidden * 2) / limits.memory),
    }
