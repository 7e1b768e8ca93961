"""The layers that `calibration.quantize` made for FP8, on the kernels: which of them multiply in FP8, and the rest.

The numbers are the model's own: its FP8 weights, the step of each weight row and of each input, and its equalized
LayerNorms and convolutions. Nothing is calibrated again. A layer that the policy leaves in half precision keeps its
FP8 weight, dequantized, and takes its input as it is: one rounding less than the quantized model has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..encoder.fastvithd import AttentionBlock
from .dispatch import modes_of
from .fp8 import End, Fp8Layer, is_fp8_layer
from .linear_fp8 import linear_fp8
from .policy import in_fp8, kernel_for
from .quantize_fp8 import quantize_fp8
from .table import arch_of, processors_of


def check_quantized(model: nn.Module, precision: str | None) -> None:
    """Raises ConfigError unless a model's quantized layers are those that a precision (`fp8` or None) multiplies."""
    found = [type(layer).__name__ for layer in model.modules() if is_fp8_layer(layer)]
    if precision not in (None, "fp8"):
        raise ConfigError(f"unknown precision {precision!r}; accelerate takes 'fp8', or None for the model's own dtype")
    if precision is None and found:
        raise ConfigError(
            f"accelerate takes the fused model before quantization; found a {found[0]}: precision='fp8' multiplies it"
        )
    if precision == "fp8" and not found:
        raise ConfigError(
            "precision='fp8' takes a model with FP8 layers, and found none; calibration.quantize makes them of a fused "
            "model with Policy('tensorrt', 'fp8'), as `fvexport onnx --fp8` does"
        )


def count_fp8_layers(model: nn.Module) -> int:
    """How many layers of a model multiply FP8 numbers, on the kernels or quantized in PyTorch."""
    return sum(isinstance(layer, Fp8Product) or is_fp8_layer(layer) for layer in model.modules())


def dequantize_others(model: nn.Module) -> None:
    """Replaces the FP8 layers that the policy does not multiply in FP8 by float ones, in place.

    LayerNorm's affine, which equalization added, goes into every float qkv product after it: `norm_linear` takes none.
    """
    for module in list(model.modules()):
        for leaf, layer in list(module.named_children()):
            if is_fp8_layer(layer) and not in_fp8(leaf, _channels(leaf, Fp8Layer.of(layer))):
                setattr(module, leaf, _float_layer(layer))
        if isinstance(module, AttentionBlock):
            _fold_affine(module)


def _channels(leaf: str, layer: Fp8Layer) -> int:
    """Channels of the block that a layer is in."""
    return layer.weight.shape[0 if leaf == "fc2" else 1]


def _float_layer(layer: nn.Module) -> nn.Module:
    numbers = Fp8Layer.of(layer)
    n, k = numbers.weight.shape
    is_conv = cast("Tensor", layer.weight).ndim == 4
    plain = nn.Conv2d(k, n, 1) if is_conv else nn.Linear(k, n)
    plain.weight = nn.Parameter(numbers.dequantized().view(n, k, *((1, 1) if is_conv else ())), requires_grad=False)
    plain.bias = nn.Parameter(numbers.bias, requires_grad=False)
    return plain.eval()


def _fold_affine(block: AttentionBlock) -> None:
    """Moves LayerNorm's affine into the qkv product, if that is a float one: W (g z + b) + c = (W g) z + (W b + c)."""
    norm, qkv = block.norm, getattr(block.token_mixer, "qkv", None)
    if not isinstance(norm, nn.LayerNorm) or not norm.elementwise_affine or type(qkv) is not nn.Linear:
        return
    weight, shift = qkv.weight.double(), None if norm.bias is None else norm.bias.double()
    with torch.no_grad():
        if shift is not None:
            qkv.bias.copy_(qkv.bias.double() + weight @ shift)
        qkv.weight.copy_(weight * norm.weight.double())
    plain = nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)
    block.norm = plain.to(qkv.weight.device).eval()


class Fp8Product(nn.Module):
    """A quantized layer: x (..., K) in FP8 -> what `End` says of the product, (..., N).

    Its weight and scales keep their types under `.to(dtype)`; its bias, and with it the result, follows.

    Args:
        part: `qkv`, `proj`, `fc1` or `fc2`, as the policy has them.
        layer: that `is_fp8_layer`.
        kernels: names of the kernels and modes that may be used.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, part: str, layer: nn.Module, kernels: frozenset[str]) -> None:
        super().__init__()
        numbers = Fp8Layer.of(layer)
        self.part, self.kernels, self.modes = part, kernels, int(modes_of(kernels))
        self.in_scale = numbers.in_scale
        self.register_buffer("weight", numbers.weight)
        self.register_buffer("scale", numbers.scale)
        self.bias = nn.Parameter(numbers.bias, requires_grad=False)

    def forward(self, x: Tensor, end: End) -> Tensor:
        """The product of an input in FP8, in steps of `in_scale`."""
        kernel = self.chosen(f"{self.part} fp8", x)
        return linear_fp8(x, self.weight, self.scale, self.bias, end, kernel=kernel, modes=self.modes)

    def quantized(self, x: Tensor) -> Tensor:
        """An input of any floating dtype in FP8, in steps of `in_scale`."""
        return quantize_fp8(x, self.in_scale, kernel=self.chosen("quantize fp8", x), modes=self.modes)

    def chosen(self, part: str, x: Tensor) -> str | None:
        """The kernel for a part on an input (..., C) in a model of the bias's dtype; None for PyTorch."""
        channels, device = x.shape[-1], x.device
        return kernel_for(
            part, self.bias.dtype, channels, x.numel() // channels, processors_of(device), self.kernels,
            arch=arch_of(device),
        )  # fmt: skip

    def get_extra_state(self) -> dict[str, float]:
        """The step of the input: a number that launches take, and no tensor."""
        return {"in_scale": self.in_scale}

    def set_extra_state(self, state: Any) -> None:
        """Takes what `get_extra_state` gave."""
        self.in_scale = float(state["in_scale"])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fp8Product:
        kept = {name: self._buffers.pop(name) for name in ("weight", "scale")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            assert buffer is not None
            self._buffers[name] = buffer.to(fn(torch.empty(0, device=buffer.device)).device)
        return self
