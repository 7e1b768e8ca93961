"""Modules that quantize exactly as the exported file does: same scales, same rounding.

In eager mode they compute what QuantizeLinear and DequantizeLinear are defined to compute
(https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html: divide, round half to even, saturate); while exporting they
write those two operators, so that the exporter needs to know nothing of quantization.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
MIN_SCALE = 2.0**-14
"""Smallest scale: the least normal FP16 number, since scales take the type of what surrounds them."""


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """QuantizeLinear: x of any floating type -> the type of `zero_point`; `scale` broadcasts against x."""
    with torch._C.DisableTorchFunction():  # no half-precision simulation rounds what one operator does inside
        wide = torch.promote_types(x.dtype, torch.float32)
        y = x.to(wide) / scale.to(wide)
        if zero_point.dtype == FP8:
            return y.clamp(-FP8_MAX, FP8_MAX).to(FP8)
        info = torch.iinfo(zero_point.dtype)
        return (y.round_() + zero_point.to(wide)).clamp_(info.min, info.max).to(zero_point.dtype)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """DequantizeLinear: integers or FP8 -> the type of `scale`."""
    y = q.to(scale.dtype)
    if zero_point is not None and zero_point.dtype != FP8:
        y -= zero_point.to(y.dtype)
    return y * scale


class _KeepsFp8(nn.Module):
    """Keeps FP8 buffers as they are under `.to(dtype)`: they are storage, not values to compute with."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        stored = {k: b for k, b in self._buffers.items() if b is not None and b.dtype == FP8}
        for name in stored:
            del self._buffers[name]
        result = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in stored.items():
            device = fn(torch.empty(0, device=buffer.device)).device
            self._buffers[name] = buffer.to(device)
        return result


class Quantizer(_KeepsFp8):
    """Q/DQ of one tensor with one scale: x -> the nearest value that eight bits hold.

    Args:
        scale: real size of one step.
        zero_point: integer that stands for 0.
        dtype: torch.int8, torch.uint8 or torch.float8_e4m3fn.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float, zero_point: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(max(scale, MIN_SCALE)))
        self.register_buffer("zero_point", torch.tensor(zero_point).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape and dtype."""
        if torch.compiler.is_exporting():
            pair = (self.scale, self.zero_point)
            q = torch.onnx.ops.symbolic("QuantizeLinear", (x, *pair), dtype=self.zero_point.dtype, shape=x.shape)
            return torch.onnx.ops.symbolic("DequantizeLinear", (q, *pair), dtype=x.dtype, shape=x.shape)
        return dequantize(quantize(x, self.scale, self.zero_point), self.scale, self.zero_point)


class QuantizedConv(_KeepsFp8):
    """A 1x1 convolution with Q/DQ on its input and, where asked for, its output: (B, C, H, W) -> (B, C', H, W).

    Args:
        weight: (C', C, 1, 1) int8 or FP8.
        weight_scale: (C',) one step per output channel.
        bias: (C',).
        input_quantizer, output_quantizer: of the activations.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor, input_quantizer: Quantizer,
        output_quantizer: Quantizer | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("weight_zero_point", _zeros(weight_scale, weight.dtype))
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.input_quantizer = input_quantizer
        self.output_quantizer = output_quantizer or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantize_channels(self.weight, self.weight_scale, self.weight_zero_point, axis=0)
        return self.output_quantizer(F.conv2d(self.input_quantizer(x), weight, self.bias))


class QuantizedLinear(_KeepsFp8):
    """A matrix product with Q/DQ on its input: (..., K) -> (..., N).

    Args:
        weight: (K, N) int8 or FP8, as ONNX's MatMul takes it.
        weight_scale: (N,).
        bias: (N,) float, or int32 in steps of input scale times weight scale where `integer_bias`: onnxruntime
            multiplies integers only where the bias is one too.
        input_quantizer: of the activation.
    """

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor
    bias_scale: Tensor

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor, input_quantizer: Quantizer, *,
        integer_bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("weight_zero_point", _zeros(weight_scale, weight.dtype))
        self.integer_bias = integer_bias
        if integer_bias:
            step = input_quantizer.scale * weight_scale
            self.register_buffer("bias", torch.round(bias.double() / step).clamp(-(2**31), 2**31 - 1).to(torch.int32))
            self.register_buffer("bias_scale", step)
        else:
            self.bias = nn.Parameter(bias, requires_grad=False)
        self.input_quantizer = input_quantizer

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantize_channels(self.weight, self.weight_scale, self.weight_zero_point, axis=1)
        bias = dequantize_channels(self.bias, self.bias_scale, axis=0) if self.integer_bias else self.bias
        return self.input_quantizer(x) @ weight + bias


def dequantize_channels(q: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int) -> Tensor:
    """DequantizeLinear with one scale per index of `axis`, and zero points of 0.

    onnxruntime before 1.25 multiplies integers only where a weight's zero points are written out.
    """
    if torch.compiler.is_exporting():
        inputs = (q, scale) if zero_point is None else (q, scale, zero_point)
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", inputs, attrs={"axis": axis}, dtype=scale.dtype, shape=q.shape
        )
    shape = [1] * q.ndim
    shape[axis] = -1
    return dequantize(q, scale.view(shape))


def _zeros(scale: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(scale.shape, device=scale.device).to(dtype)
