"""What an export is asked for. Everything that can be refused is refused here, before work begins.

Imports nothing heavy: the command line reads its choices from here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ..calibration.policy import SCHEMES, Policy, QuantTarget
from ..encoder.config import FastViTHDConfig
from ..errors import ConfigError

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
InputKind = Literal["float", "uint8"]
IoKind = Literal["fp32", "model"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
QUANTIZED: tuple[Precision, ...] = ("int8", "fp8")
DEFAULT_TARGET: QuantTarget = "tensorrt"
OPSETS = range(18, 24)
DEFAULT_OPSET = 20
"""The first opset with Gelu as one operator; runtimes from 2024 on read it."""
BF16_OPSET = 22
"""The first opset whose Conv takes bfloat16."""
QDQ_OPSET = 19
"""The first opset whose QuantizeLinear takes float16 and makes FP8."""


@dataclass(frozen=True)
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
        target: the runtime that a quantized file is for; None for tensorrt, and without meaning otherwise.
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
    target: QuantTarget | None = None
    attention_plugin: bool = False

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
        if self.opset is not None:
            if self.opset not in OPSETS:
                raise ConfigError(f"--opset goes from {OPSETS.start} to {OPSETS.stop - 1}; found {self.opset}")
            if self.precision == "bf16" and self.opset < BF16_OPSET:
                raise ConfigError(f"bfloat16 convolutions need opset {BF16_OPSET} or later; found --opset {self.opset}")
            if self.quantized and self.opset < QDQ_OPSET:
                raise ConfigError(f"Q/DQ needs opset {QDQ_OPSET} or later; found --opset {self.opset}")
        if self.quantized:
            _ = self.policy
            if self.attention_plugin and self.policy.target != "tensorrt":
                raise ConfigError(f"--attention-plugin is for TensorRT; found --target {self.policy.target}")
        elif self.target is not None:
            raise ConfigError(f"--target is for --int8 and --fp8; leave it out with --{self.precision}")

    def check(self, config: FastViTHDConfig) -> None:
        """Raises ConfigError where the architecture has no such resolution."""
        config.check_resolution(self.height, self.width)

    @property
    def quantized(self) -> bool:
        """Whether the file carries Q/DQ."""
        return self.precision in QUANTIZED

    @property
    def policy(self) -> Policy:
        """Which layers a quantized file quantizes."""
        assert self.quantized
        return Policy(self.target or DEFAULT_TARGET, "fp8" if self.precision == "fp8" else "int8")

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
        if self.batch != 1:
            parts.append(f"b{self.batch}" if self.batch else "batch")
        if self.projector:
            parts.append("projector")
        if self.input == "uint8":
            parts.append("uint8")
        if self.attention_plugin:
            parts.append("plugin")
        return "-".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return asdict(self)


def parse_resolution(text: str) -> tuple[int, int]:
    """`1024` -> (1024, 1024); `512x384` -> (512, 384), height first. Raises ConfigError."""
    sides = [side.strip() for side in text.lower().split("x")]
    if len(sides) <= 2 and all(side.isdecimal() for side in sides):
        height, width = int(sides[0]), int(sides[-1])
        return height, width
    raise ConfigError(f"resolution must look like 1024 or 512x384 (height x width); found {text!r}")


def parse_batch(text: str) -> int | None:
    """`4` -> 4; `dynamic` -> None. Raises ConfigError."""
    if text == "dynamic":
        return None
    if text.isdecimal():
        return int(text)
    raise ConfigError(f"batch must be a number or 'dynamic'; found {text!r}")
