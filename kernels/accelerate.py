"""The fused model on the kernels: channels-last from the first convolution to the features.

A feature map is (B, H, W, C), contiguous, which is the same memory as tokens (B, N, C) and as PyTorch's channels-last
(B, C, H, W): nothing is transposed or copied between blocks.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..encoder.fastvithd import (
    Attention,
    AttentionBlock,
    ConvFFN,
    FastViTHD,
    LargeKernelConv,
    MobileOneBlock,
    PatchEmbed,
    RepCPE,
    RepMixer,
    RepMixerBlock,
    SqueezeExcite,
    Stage,
    checked_pixels,
)
from ..encoder.reparameterize import reparameterize
from ..errors import ConfigError
from .attention import attention
from .depthwise import depthwise, taps_first
from .depthwise_rows import float_taps
from .dispatch import SWITCH, check_names, modes_of, switched_on
from .linear_gelu import linear_gelu
from .linear_residual import linear_residual
from .mlp import mlp
from .norm_linear import norm_linear, weight_sums
from .policy import kernel_for
from .table import arch_of


def accelerate(model: FastViTHD, *, kernels: Collection[str] | None = None) -> AcceleratedFastViTHD:
    """The same model on the kernels: the same inputs, the same features (B, N, C) within the dtype's rounding.

    Kernels run on an NVIDIA GPU; elsewhere the result computes the same in PyTorch. Which kernel computes which part
    is `policy.ROWS`'s to say. The model given is left as it was.

    Args:
        model: in any form, in eval mode; fused first where it is not. Parts that run in float32 inside a
            half-precision model stay PyTorch's.
        kernels: names of the kernels and modes that may be used (`dispatch.OPS`, `dispatch.MODES`); `()` uses none.
            By default those that `FVEXPORT_KERNELS` selects.

    Raises:
        ConfigError: a model in training mode, one with layers that fusion does not make (quantized ones), or a name
            that is neither a kernel nor a mode.
    """
    if kernels is None:
        kernels = switched_on(os.environ.get(SWITCH, ""))
    check_names(kernels, "accelerate")
    if any(part.training for part in model.modules()):
        raise ConfigError("accelerate needs a model in eval mode; call model.eval() first")
    # A fused model may have been scaled and cast since: it is taken as it is, not fused again.
    fused = copy.deepcopy(model) if model.form == "fused" else reparameterize(model)
    return AcceleratedFastViTHD(fused.requires_grad_(False), frozenset(kernels))


class AcceleratedFastViTHD(nn.Module):
    """What `accelerate` makes: `pixel_values` (B, 3, H, W) -> `image_features` (B, N, C)."""

    form = "fused"

    def __init__(self, fused: FastViTHD, kernels: frozenset[str]) -> None:
        super().__init__()
        self.config, self.uint8_input = fused.config, fused.uint8_input
        self.first = cast("MobileOneBlock", fused.stem[0]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        body = [_part(part, kernels) for part in list(fused.stem)[1:]]
        for stage in fused.stages:
            assert isinstance(stage, Stage)
            parts = (stage.downsample, stage.pos_emb, *stage.blocks)
            body += [_part(part, kernels) for part in parts if not isinstance(part, nn.Identity)]
        self.body = nn.Sequential(*body, _part(fused.final_conv, kernels))
        self.eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, C). H and W are multiples of 64; raises ConfigError otherwise."""
        dtype = self.first.kernel_conv().weight.dtype
        x = checked_pixels(pixel_values, self.config, dtype, uint8_input=self.uint8_input)
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        return self.body(x.permute(0, 2, 3, 1).contiguous()).flatten(1, 2)


def _part(part: nn.Module, kernels: frozenset[str]) -> nn.Module:
    """A block, or what stands beside blocks, as a module from (B, H, W, C) to (B, H', W', C')."""
    if isinstance(part, PatchEmbed):
        embed, pointwise = part.proj
        conv = cast("LargeKernelConv", embed).reparam_conv
        return nn.Sequential(_Depthwise(_plain(conv), kernels, gelu=True), _part(pointwise, kernels))
    if isinstance(part, RepCPE):
        return _Depthwise(_plain(part.reparam_conv), kernels)
    if isinstance(part, RepMixerBlock):
        mixer = part.token_mixer
        own = isinstance(mixer, RepMixer)
        return nn.Sequential(
            _Depthwise(_plain(mixer.reparam_conv), kernels) if own else _OnMap(mixer), _ffn(part.mlp, kernels)
        )
    if isinstance(part, AttentionBlock):
        return _AttentionBlock(part, kernels)
    if isinstance(part, MobileOneBlock):
        conv = _plain(part.reparam_conv)
        if not isinstance(part.se, nn.Identity):
            return nn.Sequential(_Depthwise(conv, kernels), _Gated(part))
        if conv.kernel_size == (1, 1):
            return _Pointwise(conv, kernels)
        return _Depthwise(conv, kernels, gelu=True)
    return _OnMap(part)


def _ffn(part: nn.Module, kernels: frozenset[str]) -> nn.Module:
    return _ConvFFN(part, kernels) if isinstance(part, ConvFFN) else _Residual(part)


def _plain(layer: nn.Module) -> nn.Conv2d:
    """A layer that is a convolution with bias and nothing else; raises ConfigError for quantized ones."""
    if type(layer) is not nn.Conv2d:
        raise ConfigError(f"accelerate takes the fused model before quantization; found a {type(layer).__name__}")
    return layer


class _Kernels(nn.Module):
    """Knows which kernels and modes it may use, and chooses by the GPU that its input is on."""

    def __init__(self, kernels: frozenset[str]) -> None:
        super().__init__()
        self.kernels, self.modes = kernels, int(modes_of(kernels))

    def chosen(self, part: str, x: Tensor) -> str | None:
        """The kernel for a part of the model on an input (..., C); None for PyTorch."""
        rows = x.numel() // x.shape[-1]
        return kernel_for(part, x.dtype, x.shape[-1], rows, _processors(x.device), self.kernels, arch=arch_of(x.device))


class _Depthwise(_Kernels):
    """A grouped convolution, and GELU where asked: (B, H, W, C) -> (B, H/s, W/s, m C)."""

    def __init__(self, conv: nn.Conv2d, kernels: frozenset[str], *, gelu: bool = False) -> None:
        super().__init__(kernels)
        assert conv.bias is not None and conv.groups == conv.in_channels
        self.weight = nn.Parameter(taps_first(conv.weight), requires_grad=False)
        self.bias, self.stride, self.gelu, self.channels = conv.bias, conv.stride[0], gelu, conv.in_channels
        wide = conv.kernel_size == (7, 7) and conv.stride == (1, 1)
        self.part = "depthwise 7x7" if wide else "depthwise"
        if conv.out_channels == 2 * conv.in_channels:
            self.part = "depthwise x2"
        self.taps: Tensor  # the weight as it is stored, in float32: prepared again whenever that changes
        self._prepare()
        self.register_load_state_dict_post_hook(_prepare_again)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        return depthwise(
            x, self.weight, self.bias, self.stride, self.gelu, kernel=self.chosen(self.part, x), modes=self.modes,
            taps=self.taps,
        )  # fmt: skip

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Depthwise:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._prepare()
        return self

    def _prepare(self) -> None:
        self.taps = float_taps(self.weight.detach(), self.channels)


def _prepare_again(module: _Depthwise, _keys: object) -> None:
    module._prepare()


class _Pointwise(_Kernels):
    """A 1x1 convolution and GELU: (B, H, W, C) -> (B, H, W, C')."""

    def __init__(self, conv: nn.Conv2d, kernels: frozenset[str]) -> None:
        super().__init__(kernels)
        assert conv.bias is not None
        self.weight, self.bias = _matrix(conv), conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return linear_gelu(x, self.weight, self.bias, kernel=self.chosen("pointwise", x), modes=self.modes)


class _ConvFFN(_Kernels):
    """x + ConvFFN(x) on (B, H, W, C)."""

    def __init__(self, part: ConvFFN, kernels: frozenset[str]) -> None:
        super().__init__(kernels)
        fc1, fc2 = _plain(part.fc1), _plain(part.fc2)
        assert fc1.bias is not None and fc2.bias is not None
        self.conv = _Depthwise(_plain(part.conv), kernels)
        self.w1, self.b1, self.w2, self.b2 = _matrix(fc1), fc1.bias, _matrix(fc2), fc2.bias

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        kernel = self.chosen("ConvFFN", y)
        if kernel == "mlp":
            return mlp(y, self.w1, self.b1, self.w2, self.b2, x, modes=self.modes)
        y = linear_gelu(y, self.w1, self.b1, kernel=kernel, modes=self.modes)
        return linear_residual(y, self.w2, self.b2, x, kernel=kernel, modes=self.modes)


class _AttentionBlock(_Kernels):
    """x + attention(LN(x)), then x + ConvFFN(x), on (B, H, W, C)."""

    def __init__(self, block: AttentionBlock, kernels: frozenset[str]) -> None:
        super().__init__(kernels)
        self.attention = (
            _Attention(block.norm, block.token_mixer, kernels)
            if isinstance(block.token_mixer, Attention)
            else _Residual(nn.Sequential(block.norm, block.token_mixer), on_map=False)
        )
        self.ffn = _ffn(block.mlp, kernels)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.attention(x.flatten(1, 2)).view(x.shape))


class _Attention(_Kernels):
    """x + attention(LN(x)) on tokens (B, N, C)."""

    def __init__(self, norm: nn.LayerNorm, part: Attention, kernels: frozenset[str]) -> None:
        super().__init__(kernels)
        if type(part.qkv) is not nn.Linear or norm.elementwise_affine:
            found = "LayerNorm's affine" if norm.elementwise_affine else type(part.qkv).__name__
            raise ConfigError(f"accelerate takes the fused model before quantization; found {found}")
        self.heads = part.qkv.in_features // part.head_dim
        self.qkv, self.proj, self.eps = part.qkv, part.proj, norm.eps
        self.sums: Tensor  # of qkv's weight as it is stored: summed again whenever that changes
        self._sum_weights()
        self.register_load_state_dict_post_hook(_sum_again)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        qkv = norm_linear(
            x, self.qkv.weight, self.qkv.bias, self.eps, sums=self.sums, kernel=self.chosen("qkv", x), modes=self.modes
        )
        y = attention(qkv, self.heads, kernel=self.chosen("attention", x), modes=self.modes)
        return linear_residual(y, self.proj.weight, self.proj.bias, x, kernel=self.chosen("proj", y), modes=self.modes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Attention:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._sum_weights()
        return self

    def _sum_weights(self) -> None:
        self.sums = weight_sums(self.qkv.weight)


def _sum_again(module: _Attention, _keys: object) -> None:
    module._sum_weights()


class _Gated(nn.Module):
    """Squeeze-excite and GELU of the last block, on (B, H, W, C), in PyTorch."""

    def __init__(self, block: MobileOneBlock) -> None:
        super().__init__()
        gate = cast("SqueezeExcite", block.se)
        self.fc1, self.fc2 = gate.fc1, gate.fc2

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(F.relu(self.fc1(x.mean((1, 2))[:, :, None, None])))  # (B, C, 1, 1)
        return F.gelu(x * gate.sigmoid().permute(0, 2, 3, 1))


class _OnMap(nn.Module):
    """Any module from (B, C, H, W) to (B, C', H', W'), on (B, H, W, C): a part in float32 inside a half model."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


class _Residual(nn.Module):
    """x + part(x), for a part in float32 inside a half model."""

    def __init__(self, part: nn.Module, *, on_map: bool = True) -> None:
        super().__init__()
        self.part = _OnMap(part) if on_map else part

    def forward(self, x: Tensor) -> Tensor:
        return x + self.part(x)


def _matrix(conv: nn.Conv2d) -> nn.Parameter:
    """A 1x1 convolution's weight (C', C, 1, 1) as a product takes it: (C', C)."""
    return nn.Parameter(conv.weight.flatten(1).contiguous(), requires_grad=False)


@lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0
