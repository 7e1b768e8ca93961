"""FP8 (E4M3) as the kernels use it: how a value is rounded to it, where it is multiplied, and what follows a product.

    q = e4m3(clamp(x / scale, -448, 448)),    x ~ q * scale

rounds to nearest even and saturates, as ONNX's QuantizeLinear does with FP8 (saturate = 1) and as PyTorch's
`.to(torch.float8_e4m3fn)` does after clamping. E4M3 has 4 exponent and 3 mantissa bits, no infinities, and subnormal
numbers down to 2^-9; NaN stays NaN. Scales are static: they come from calibration and are never computed while a model
runs.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..core.errors import ConfigError
from .dispatch import FP8
from .language import jit, tl

FP8_MAX = 448.0
"""Largest number of E4M3."""


@dataclass(frozen=True)
class End:
    """What follows the sums of a product, in this order.

    Attributes:
        gelu: apply GELU.
        residual: (..., N), added.
        out_scale: round the result to FP8 in steps of this size; None leaves it in the dtype of the bias.
    """

    gelu: bool = False
    residual: Tensor | None = None
    out_scale: float | None = None


@jit
def to_fp8(y, inverse):
    """A float32 tile in FP8: y * inverse, saturated and rounded to nearest even; `inverse` is 1 / scale."""
    return tl.clamp(y * inverse, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL).to(tl.float8e4nv)


def fp8_reference(x: Tensor, scale: float) -> Tensor:
    """Any shape and floating dtype -> FP8, as QuantizeLinear is defined: divide, saturate, round to nearest even."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)


def ended(y: Tensor, end: End, dtype: torch.dtype) -> Tensor:
    """What `end` makes of a product's sums (..., N) in PyTorch: FP8, or `dtype`."""
    if end.gelu:
        y = F.gelu(y)
    if end.residual is not None:
        y = y + end.residual.to(y.dtype)
    return y.to(dtype) if end.out_scale is None else fp8_reference(y, end.out_scale)


def is_fp8_layer(layer: nn.Module) -> bool:
    """Whether a layer is one that `calibration.quantize` made for FP8: a weight in FP8, and a scale of its input.

    Such a layer has `weight` (N, K, 1, 1) as a convolution or (K, N) as a product, `weight_scale` (N,), `bias` (N,) and
    `input_quantizer.scale`.
    """
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and weight.dtype == FP8 and hasattr(layer, "input_quantizer")


@dataclass(frozen=True)
class Fp8Layer:
    """The numbers of a quantized layer, as its file has them.

    Attributes:
        weight: (N, K) FP8, contiguous.
        weight_scale: (N,) step of each row, in float64.
        bias: (N,).
        in_scale: step of the input.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor
    in_scale: float

    @classmethod
    def of(cls, layer: nn.Module) -> Fp8Layer:
        """Reads a layer that `is_fp8_layer`; raises ConfigError if its output is quantized too."""
        if not isinstance(getattr(layer, "output_quantizer", nn.Identity()), nn.Identity):
            raise ConfigError("FP8 layers with a quantized output have no kernel; quantize for --target tensorrt")
        weight, scale, bias = (cast("Tensor", getattr(layer, name)) for name in ("weight", "weight_scale", "bias"))
        matrix = weight.flatten(1) if weight.ndim == 4 else weight.T
        quantizer = cast("nn.Module", layer.input_quantizer)
        return cls(matrix.contiguous(), scale.double(), bias, float(cast("Tensor", quantizer.scale)))

    @property
    def scale(self) -> Tensor:
        """(N,) float32 factor of the sums of products."""
        return (self.in_scale * self.weight_scale).float()

    def dequantized(self) -> Tensor:
        """The weight (N, K) in the dtype of the bias."""
        return (self.weight.double() * self.weight_scale[:, None]).to(self.bias.dtype)


def check_scale(op: str, scale: float | None) -> None:
    """Raises ConfigError unless a scale is a positive, finite number (or None)."""
    if scale is not None and not 0.0 < scale < float("inf"):
        raise ConfigError(f"{op} takes a positive, finite scale; found {scale}")
