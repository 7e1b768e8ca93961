"""What an export is asked for. Everything that can be refused is refused here, before work begins.

Imports nothing heavy: the command line reads its choices from here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from ..calibration.policy import CPU_TARGETS, SCHEMES, Policy, QuantTarget
from ..core.errors import ConfigError
from ..core.hardware import products_saturate
from ..encoder.config import FastViTHDConfig
from .limits import MAX_BATCH
from .precision import PRECISIONS, QUANTIZED, Precision

InputKind = Literal["float", "uint8"]
IoKind = Literal["fp32", "model"]

AUTO = "auto"
OPSETS = range(18, 24)
DEFAULT_OPSET = 20
"""The first opset with Gelu as one operator; runtimes from 2024 on read it."""
BF16_OPSET = 22
"""The first opset whose Conv takes bfloat16."""
QDQ_OPSET = 19
"""The first opset whose QuantizeLinear takes float16 and makes FP8."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """One export.

    Attributes:
        height, width: image size in pixels; with `dynamic_res` the size it is traced and checked at.
        batch: images per call, or None for any number.
        dynamic_res: height and width may be any multiples of 64 at run time.
        precision: of weights and activations; `int8` and `fp8` quantize what the target's policy names.
        projector: append the connector, so that the output fits the LLM's embeddings.
        input: `float` takes pixel_values in [0, 1]; `uint8` takes 0..255.
        io: dtype of inputs and outputs, `fp32` or that of the model.
        opset: ONNX operator set; None for 20, or 22 with bf16.
        simplify: run onnxsim.
        target: the runtime that a quantized file is for. None and `auto` take the fastest of this machine for INT8, and
            TensorRT for FP8; `resolved` says which. Only for quantized files.
        reduce_range: INT8 weights from -64 to 64, with which 8-bit products do not saturate on CPUs without VNNI. None
            does so where the target is a CPU's and this CPU saturates. Only for INT8 on CPUs.
        attention_plugin: attention as one node that TensorRT gives to this project's kernel (experimental).
    """

    height: int = 1024
    width: int = 1024
    batch: int | None = 1
    dynamic_res: bool = False
    precision: Precision = "fp32"
    projector: bool = False
    input: InputKind = "float"
    io: IoKind = "fp32"
    opset: int | None = None
    simplify: bool = True
    target: QuantTarget | Literal["auto"] | None = None
    attention_plugin: bool = False
    reduce_range: bool | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("input", self.input, get_args(InputKind)),
            ("io", self.io, get_args(IoKind)),
        ):
            if value not in known:
                raise ConfigError(f"unknown {name} {value!r}; known are {', '.join(known)}")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch must be at least 1 or dynamic; found {self.batch}")
        if self.batch is not None and self.batch > MAX_BATCH:
            raise ConfigError(f"batch must be at most {MAX_BATCH} or dynamic; found {self.batch}")
        if self.opset is not None:
            if self.opset not in OPSETS:
                raise ConfigError(f"--opset goes from {OPSETS.start} to {OPSETS.stop - 1}; found {self.opset}")
            if self.precision == "bf16" and self.opset < BF16_OPSET:
                raise ConfigError(f"bfloat16 convolutions need opset {BF16_OPSET} or later; found --opset {self.opset}")
            if self.quantized and self.opset < QDQ_OPSET:
                raise ConfigError(f"Q/DQ needs opset {QDQ_OPSET} or later; found --opset {self.opset}")
        if not self.quantized:
            if self.target is not None:
                raise ConfigError(f"--target is for --int8 and --fp8; leave it out with --{self.precision}")
            if self.reduce_range is not None:
                raise ConfigError(f"--reduce-range is for --int8; leave it out with --{self.precision}")
        elif not self.chooses_target:
            _ = self.policy
            if self.attention_plugin and self.target != "tensorrt":
                raise ConfigError(f"--attention-plugin is for TensorRT; found --target {self.target}")
        elif self.reduce_range and (self.precision == "fp8" or self.attention_plugin):
            _ = replace(self, target="tensorrt")  # refuses it

    def check(self, config: FastViTHDConfig) -> None:
        """Raises ConfigError where the architecture has no such resolution."""
        config.check_resolution(self.height, self.width)

    @property
    def quantized(self) -> bool:
        """Whether the file carries Q/DQ."""
        return self.precision in QUANTIZED

    @property
    def chooses_target(self) -> bool:
        """Whether the quantization target is left to the machine."""
        return self.target in (None, AUTO)

    def resolved(self) -> ExportOptions:
        """The same options, with a target and a weight range chosen for this machine if none were given."""
        if not self.quantized or (not self.chooses_target and self.reduce_range is not None):
            return self
        target, reduced = self.target, self.reduce_range
        if self.chooses_target:
            target = "tensorrt"  # the only one that takes FP8 and the plugin
            if self.precision == "int8" and not self.attention_plugin:
                from .backend_table import fastest_quant_target

                target = fastest_quant_target(cpu_only=bool(reduced)).target
        if reduced is None:
            reduced = target in CPU_TARGETS and products_saturate()
        return replace(self, target=target, reduce_range=reduced)

    @property
    def policy(self) -> Policy:
        """Which layers a quantized file quantizes, and how."""
        assert self.quantized
        options = self.resolved()
        target = cast("QuantTarget", options.target)
        return Policy(target, "fp8" if self.precision == "fp8" else "int8", reduce_range=bool(options.reduce_range))

    @property
    def float_precision(self) -> Precision:
        """Of everything that is not quantized."""
        return SCHEMES[self.policy.target].float_precision if self.quantized else self.precision

    @property
    def effective_opset(self) -> int:
        """The opset that is written."""
        return self.opset or (BF16_OPSET if self.precision == "bf16" else DEFAULT_OPSET)

    @property
    def resolution(self) -> str:
        """`1024`, or `512x384` where the sides differ (height first)."""
        return str(self.height) if self.height == self.width else f"{self.height}x{self.width}"

    def default_name(self, variant: str) -> str:
        """The folder an artifact goes to when none is named."""
        parts = [variant, "dynamic" if self.dynamic_res else self.resolution, self.precision]
        if self.quantized:
            parts.append(self.policy.target)
            if self.policy.reduce_range:
                parts.append("reduced")
        if self.batch != 1:
            parts.append(f"b{self.batch}" if self.batch else "batch")
        if self.projector:
            parts.append("projector")
        if self.input == "uint8":
            parts.append("uint8")
        if self.attention_plugin:
            parts.append("plugin")
        return "-".join(parts)
