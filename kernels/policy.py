"""Which kernel computes which part of the model, in one table with its reasons.

For an H100 in float16 the choices at 256² and 1024², batch 1, were measured
(`benchmarks/results/kernels-h100.json`), except fc1 by `cublas`. The others follow from bytes and FLOPs (see
`tests/kernels/test_policy.py`) and from the performance model in `benchmarks/studies/gpu/model.py`. A part that no row
fits is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from .dispatch import DEFAULTS, DTYPES

HALF = (torch.float16, torch.bfloat16)
HOPPER = ("sm_90",)
FP8_CHANNELS = 384
"""Narrowest ConvFFN whose products are FP8."""


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
        "depthwise 7x7", "depthwise_strips", HALF,
        "70 to 83 instructions per value instead of 100 to 119 in `depthwise_rows`, which is what bounds a 7x7. "
        "Measured on an H100 80GB HBM3: 6.7 us at 64 x 64 positions of 384 channels, `depthwise_rows` 11.5",
        arch=HOPPER,
    ),
    Row(
        "depthwise 7x7", "depthwise_rows", DTYPES,
        "77 to 88 instructions per value instead of 106 to 126, which is what bounds a 7x7; 106 on small maps, "
        "where twice the programs are worth more",
    ),
    Row("depthwise 7x7", "depthwise", DTYPES, "bias in the same pass: each value is read and written once"),
    Row(
        "stem", "stem", HALF,
        "the model's largest tensor is written once; cuDNN's convolution, bias and GELU pass over it five times",
    ),
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
        "7x7 with two outputs per input channel: 89 instructions per value instead of 161 to 249, because each value "
        "of x is loaded once for both",
    ),
    Row("depthwise x2", "depthwise", DTYPES, "bias and GELU in the same pass"),
    Row(
        "ConvFFN", "mlp", HALF,
        "the hidden tensor, 8 of the 11 C values a position that two products move, is never written. Fewer than one "
        "program of 128 rows per processor take longer than two launches: predicted for H100 at 4096 rows, 10.1 us "
        "against 8.7",
        max_channels=96, rows_per_processor=128,
    ),
    Row(
        "ConvFFN", "mlp", HALF,
        "the same, once programs of 64 rows fill the GPU; with fewer rows the two products, cut along channels too, "
        "are done sooner",
        min_channels=97, max_channels=192, rows_per_processor=96,
    ),
    # A ConvFFN that no row above takes is two products, fc1 and fc2. All microseconds are predicted, for an H100 in
    # half precision; programmatic dependent launch takes about 0.9 off each kernel of ours, and split_k has two.
    Row(
        "fc1", "cublas", HALF,
        "measured on an H100 80GB HBM3 with PyTorch's linear and GELU; this kernel itself was not timed: 15.0 us at "
        "1024 rows, 768 -> 3072; linear_tma 16.0. At 64 rows 6.1 and 4.1",
        min_channels=768, max_channels=768, rows_per_processor=4, arch=HOPPER,
    ),
    Row(
        "fc1", "cublas", HALF,
        "the same: 15.2 us at 256 rows, 1536 -> 6144, and 11.8 at 16; linear_tma 15.7 and 13.1",
        min_channels=1536, arch=HOPPER,
    ),
    Row(
        "fc1", "linear_tma", HALF,
        "measured on an H100 80GB HBM3: 13.4 us at 4096 rows, 384 -> 1536; linear 21.6, cuBLAS with GELU in a pass of "
        "its own 20.1. At 1024 rows, 192 -> 768: 3.6, 8.1 and 5.8",
        arch=HOPPER,
    ),
    Row(
        "fc1", "linear", HALF,
        "GELU rides on the product. In one kernel with fc2, a program's result would fill the registers at 64 rows, "
        "and weights would pass from L2 at 64 FLOPs a byte, which does not feed the tensor cores",
    ),
    Row(
        "fc2", "split_k", HALF,
        "predicted at 256 rows, 1536 -> 384: 7.1 us, 5.3 with programmatic dependent launch; linear 8.3, linear_tma "
        "7.4, cuBLAS 7.7",
        min_channels=1536, max_channels=1536, max_rows=256, arch=HOPPER,
    ),
    Row(
        "fc2", "split_k", HALF,
        "predicted at 64 rows, 3072 -> 768: 7.8 us, 6.0 with programmatic dependent launch; linear 14.3, cuBLAS 7.6. "
        "At 16 rows, 6144 -> 1536: 11.7 and 9.9; 45.5 and 11.5",
        min_channels=3072, max_rows=64, arch=HOPPER,
    ),
    Row(
        "fc2", "cublas", HALF,
        "predicted at 1024 rows, 3072 -> 768: 15.1 us; linear_tma 20.1. At 2048 rows, 6144 -> 1536: 64.5 and 96.9. Its "
        "kernels reach 0.8 of the tensor cores' peak where tiles by Triton reach 0.6, and the addition is a small pass",
        min_channels=3072, arch=HOPPER,
    ),
    Row(
        "fc2", "cublas", HALF, "predicted at 32768 rows, 1536 -> 384: 84.6 us; linear_tma 101",
        min_channels=1536, rows_per_processor=64, arch=HOPPER,
    ),
    Row(
        "fc2", "linear_tma", HALF,
        "predicted against linear: 4.9 us to 8.4 at 1024 rows, 768 -> 192; 11.3 to 14.6 at 2048 rows, 1536 -> 384",
        arch=HOPPER,
    ),
    Row("fc2", "linear", HALF, "the addition rides on the product"),
    Row(
        "pointwise", "split_k", HALF,
        "predicted at 16 rows of 1536 channels: 6.6 us, 4.8 with programmatic dependent launch; linear 13.1, "
        "linear_tma 9.6. At 64 rows of 768: 5.8 and 4.0; 5.3 and 5.9",
        min_channels=768, max_rows=64, arch=HOPPER,
    ),
    Row(
        "pointwise", "linear_tma", HALF,
        "predicted against linear: 7.2 us to 8.8 at 1024 rows of 768 channels, 27.8 to 36 at 2048 of 1536",
        arch=HOPPER,
    ),
    Row("pointwise", "linear", HALF, "1x1 convolution and GELU in one pass: saves writing and reading the result once"),
    Row(
        "qkv", "cublas", HALF,
        "predicted with LayerNorm in a pass of its own: 14.8 us at 1024 rows of 768 channels, 49.6 at 2048 of 1536; "
        "norm_linear 21.1 and 85.8, LayerNorm and linear_tma 17.4 and 80.4",
        arch=HOPPER,
    ),
    Row("qkv", "norm_linear", HALF, "the normalized tensor is neither written nor read"),
    Row("attention", "attention", HALF, "reads packed q, k and v in place and writes what proj reads: no copy"),
    Row(
        "proj", "split_k", HALF,
        "predicted at 16 rows of 1536 channels: 6.6 us, 4.8 with programmatic dependent launch; linear 13.1, cuBLAS "
        "7.6. At 64 rows of 768: 5.8 and 4.0; 5.3 and 7.5",
        min_channels=768, max_rows=64, arch=HOPPER,
    ),
    Row(
        "proj", "linear_tma", HALF,
        "predicted against linear: 7.0 us to 8.6 at 1024 rows of 768 channels, 27.0 to 35.4 at 2048 of 1536; cuBLAS "
        "9.8 and 23.8",
        arch=HOPPER,
    ),
    Row("proj", "linear", HALF, "the addition rides on the product: one pass less over the stream"),
    Row("qkv fp8", "scaled_mm", HALF, "cuBLAS with nothing to add; off by default until it is measured"),
    Row("proj fp8", "scaled_mm", HALF, "cuBLAS, and the addition in a pass of its own; off by default"),
    Row("fc2 fp8", "scaled_mm", HALF, "the same", min_channels=FP8_CHANNELS),
    Row(
        "qkv fp8", "linear_fp8", HALF,
        "half the bytes and twice the multiply-adds a clock of half precision; predicted for H100 at 1024 rows, "
        "768 -> 2304: 9.2 us, and 3.9 for norm_fp8",
    ),
    Row(
        "proj fp8", "linear_fp8", HALF,
        "the addition rides on the product; predicted for H100 at 1024 rows of 768 channels: 5.7 us",
    ),
    Row(
        "fc1 fp8", "linear_fp8", HALF,
        "GELU and rounding ride on the product, and the hidden tensor takes half the bytes; predicted for H100 at "
        "4096 rows, 384 -> 1536: 13.1 us, linear_tma in half precision 17.6. Narrower ConvFFNs stay in half precision: "
        "`mlp` never writes their hidden tensor, 8 C bytes a position in FP8, and GELU, which FP8 leaves as it is, "
        "takes longer than their products",
        min_channels=FP8_CHANNELS,
    ),
    Row(
        "fc2 fp8", "linear_fp8", HALF,
        "the addition rides on the product; predicted for H100 at 4096 rows, 1536 -> 384: 10.0 us, linear_tma in half "
        "precision 15.3. At 16 rows, 6144 -> 1536, split_k would win, 11.7 to 13.5, but the layer is quantized either "
        "way",
        min_channels=FP8_CHANNELS,
    ),
    Row("norm fp8", "norm_fp8", HALF, "LayerNorm reads its input once and writes a byte a value for qkv"),
    Row("quantize fp8", "quantize_fp8", HALF, "where what comes before cannot write FP8 itself"),
)  # fmt: skip
"""In order; the first that fits counts. Not here, so PyTorch's: float32 products and attention (exact float32 runs on
FMA units, where cuBLAS has no rival), the first convolution in float32, squeeze-excite."""


def depthwise_part(kernel: int, stride: int, outputs: int) -> str:
    """The part of the model, as ROWS names it, that a grouped convolution with `outputs` per input channel is."""
    if outputs == 2:
        return "depthwise x2"
    return "depthwise 7x7" if (kernel, stride, outputs) == (7, 1, 1) else "depthwise"


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


def in_fp8(part: str, channels: int) -> bool:
    """Whether `accelerate(precision="fp8")` multiplies a layer in FP8: a row of the table fits it on some GPU.

    So whether a layer is quantized depends on the model alone; `kernel_for` says what computes it here.

    Args:
        part: `qkv`, `proj`, `fc1` or `fc2`.
        channels: of the block.
    """
    return any(
        row.part == f"{part} fp8" and row.min_channels <= channels <= (row.max_channels or channels) for row in ROWS
    )
