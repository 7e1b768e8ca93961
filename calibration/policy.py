"""Which layers carry Q/DQ for which target, in one table with its reasons.

Everything the table does not name stays in float: GELU, softmax, LayerNorm and squeeze-excite never carry Q/DQ.
Imports nothing heavy: the command line reads the targets from here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from ..core.errors import ConfigError
from ..core.phrases import did_you_mean

QuantTarget = Literal["tensorrt", "onnxruntime-cpu", "openvino"]
QUANT_TARGETS: tuple[QuantTarget, ...] = get_args(QuantTarget)
Format = Literal["int8", "fp8"]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a target's runtime multiplies integers.

    Attributes:
        float_precision: of everything that is not quantized, in the file.
        symmetric: activations are int8 with zero point 0; otherwise uint8 with any zero point.
        integer_bias: biases of matrix products are int32; onnxruntime multiplies integers only beside such a bias.
        saturates: sums of two products saturate on a CPU without VNNI.
        formats: number formats it takes.
        why: one sentence.
    """

    float_precision: Literal["fp32", "fp16"]
    symmetric: bool
    integer_bias: bool
    saturates: bool
    formats: tuple[Format, ...]
    why: str


SCHEMES: dict[QuantTarget, Scheme] = {
    "tensorrt": Scheme(
        float_precision="fp16", symmetric=True, integer_bias=False, saturates=False, formats=("int8", "fp8"),
        why="its explicit INT8 wants zero point 0, and FP16 around it",
    ),
    "onnxruntime-cpu": Scheme(
        float_precision="fp32", symmetric=False, integer_bias=True, saturates=True, formats=("int8",),
        why="its products are uint8 x int8, and a zero point costs nothing",
    ),
    "openvino": Scheme(
        float_precision="fp32", symmetric=False, integer_bias=False, saturates=True, formats=("int8",),
        why="uint8 x int8; what stays float runs in BF16 where the processor has it",
    ),
}  # fmt: skip
"""The columns that quantization reads; those of backends are in export/backend_table.py."""
CPU_TARGETS = tuple(target for target in QUANT_TARGETS if SCHEMES[target].saturates)
"""Quantization targets that multiply uint8 by int8 on the CPU."""


@dataclass(frozen=True)
class Row:
    """One kind of layer.

    Attributes:
        kind: what it is called in reports.
        pattern: of its module's name in the fused model.
        inputs: targets that quantize its input and weight.
        outputs: targets that quantize its output too.
        why: the reason, with the measurement where there is one.
    """

    kind: str
    pattern: str
    inputs: tuple[QuantTarget, ...]
    outputs: tuple[QuantTarget, ...]
    why: str

    def matches(self, name: str) -> bool:
        return re.search(self.pattern, name) is not None


ROWS: tuple[Row, ...] = (
    Row(
        "ConvFFN fc1", r"\.mlp\.fc1$", QUANT_TARGETS, ("onnxruntime-cpu",),
        "nearly half of the work; onnxruntime has integer convolutions with integer outputs only",
    ),
    Row(
        "ConvFFN fc2", r"\.mlp\.fc2$", QUANT_TARGETS, ("onnxruntime-cpu",),
        "nearly half of the work; elsewhere its float output lets the residual Add fuse, the skip branch stays float",
    ),
    Row("attention qkv", r"\.token_mixer\.qkv$", QUANT_TARGETS, (), "a matrix product; its output feeds softmax"),
    Row("attention proj", r"\.token_mixer\.proj$", QUANT_TARGETS, (), "a matrix product beside a residual Add"),
    Row("stem 1x1", r"^stem\.2\.reparam_conv$", (), (), "0.3 % of the work, on the image's own edges"),
    Row(
        "embedding 1x1", r"\.downsample\.proj\.1\.reparam_conv$", (), (),
        "its fused identity makes one weight of each row dominate: 8 bits cost 13 dB (34 to 21) for 1 % of the work",
    ),
    Row(
        "depthwise 3x3 and 7x7", r"\.(token_mixer|pos_emb)\.reparam_conv$|\.mlp\.conv$", (), (),
        "not faster in 8 bits: TensorRT has no good kernel, onnxruntime's is slower than its float one, "
        "OpenVINO's is level with BF16 (1.05x the time at 1024)",
    ),
    Row("embedding 7x7", r"\.downsample\.proj\.0\.reparam_conv$", (), (), "grouped, two channels per input"),
    Row("stem 3x3", r"^stem\.[01]\.reparam_conv$", (), (), "three input channels, then depthwise"),
    Row("final 3x3", r"^final_conv\.reparam_conv$", (), (), "grouped, at the lowest resolution"),
    Row("squeeze-excite", r"\.se\.fc[12]$", (), (), "a handful of values that gate every channel"),
)  # fmt: skip


def row_of(name: str) -> Row | None:
    """The table's row for a module of the fused model, or None where it is no such layer."""
    return next((row for row in ROWS if row.matches(name)), None)


@dataclass(frozen=True)
class Policy:
    """The table for one target and number format.

    Attributes:
        target: the runtime that the file is for.
        fmt: `int8`, or `fp8` (E4M3), which TensorRT alone takes.
        keep: layers that stay in float although the table quantizes them.
        reduce_range: int8 weights from -64 to 64, with which no product of a CPU without VNNI saturates.
    """

    target: QuantTarget
    fmt: Format = "int8"
    keep: frozenset[str] = frozenset()
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if self.target not in QUANT_TARGETS:
            hint = did_you_mean(self.target, QUANT_TARGETS, cutoff=0.3)
            raise ConfigError(f"unknown quantization target {self.target!r}; {hint}")
        if self.fmt not in self.scheme.formats:
            raise ConfigError(f"FP8 runs on TensorRT alone; found --target {self.target}: take --int8 for it")
        if self.reduce_range and not self.scheme.saturates:
            raise ConfigError(
                f"--reduce-range is for INT8 on CPUs ({', '.join(CPU_TARGETS)}); found --target {self.target}, whose "
                "products do not saturate: leave it out"
            )

    @property
    def scheme(self) -> Scheme:
        return SCHEMES[self.target]

    def quantizes(self, name: str) -> bool:
        """Whether the layer of that name carries Q/DQ."""
        row = row_of(name)
        return row is not None and self.target in row.inputs and name not in self.keep

    def quantizes_output(self, name: str) -> bool:
        """Whether its output does too."""
        row = row_of(name)
        return self.quantizes(name) and row is not None and self.target in row.outputs
