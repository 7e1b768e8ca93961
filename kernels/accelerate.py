"""The fused model on the kernels: channels-last from the first convolution to the features.

A feature map is (B, H, W, C), contiguous, which is the same memory as tokens (B, N, C) and as PyTorch's channels-last
(B, C, H, W): nothing is transposed or copied between blocks.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..encoder.exact import exact_float32
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
    check_pixels,
)
from ..encoder.reparameterize import reparameterize
from .attention import attention
from .depthwise import Filters, depthwise, taps_first
from .depthwise_rows import float_taps
from .dispatch import FP8, SWITCH, check_names, modes_of, runs, switched_on
from .fp8 import End, is_fp8_layer
from .fp8_layers import Fp8Product, check_quantized, dequantize_others
from .linear_gelu import linear_gelu
from .linear_residual import linear_residual
from .mlp import mlp
from .norm_fp8 import norm_fp8
from .norm_linear import norm_linear, weight_sums
from .policy import depthwise_part, kernel_for
from .stem import flat_taps, stem
from .table import arch_of, processors_of


def accelerate(
    model: FastViTHD, *, kernels: Collection[str] | None = None, precision: Literal["fp8"] | None = None
) -> AcceleratedFastViTHD:
    """The same model on the kernels: the same inputs, the same features (B, N, C) within the dtype's rounding.

    Kernels run on an NVIDIA GPU; elsewhere the result computes the same in PyTorch. Which kernel computes which part
    is `policy.ROWS`'s to say. The model given is left as it was.

    Args:
        model: in any form, in eval mode; fused first where it is not. Parts that run in float32 inside a
            half-precision model stay PyTorch's.
        kernels: names of the kernels and modes that may be used (`dispatch.OPS`, `dispatch.MODES`); `()` uses none.
            By default those that `FVEXPORT_KERNELS` selects.
        precision: `fp8` for a model that `calibration.quantize` made for FP8: its layers multiply the FP8 numbers and
            scales that they hold, if `policy.in_fp8` says so; the others take their input as it is. A GPU before
            compute capability 8.9, or a CPU, computes the same function in PyTorch. None for every other model.

    Raises:
        ConfigError: a model in training mode, one with layers that fusion does not make (quantized in another way than
            `precision` says), or a name that is neither a kernel nor a mode.
    """
    if kernels is None:
        kernels = switched_on(os.environ.get(SWITCH, ""))
    check_names(kernels, "accelerate")
    check_quantized(model, precision)
    if any(part.training for part in model.modules()):
        raise ConfigError("accelerate needs a model in eval mode; call model.eval() first")
    # A fused model may have been scaled and cast since: it is taken as it is, not fused again.
    fused = copy.deepcopy(model) if model.form == "fused" else reparameterize(model)
    if precision == "fp8":
        dequantize_others(fused)
    return AcceleratedFastViTHD(fused.requires_grad_(False), frozenset(kernels))


class AcceleratedFastViTHD(nn.Module):
    """What `accelerate` makes: `pixel_values` (B, 3, H, W) -> `image_features` (B, N, C)."""

    form = "fused"

    def __init__(self, fused: FastViTHD, kernels: frozenset[str]) -> None:
        super().__init__()
        self.config, self.uint8_input, self.levels = fused.config, fused.uint8_input, fused.levels
        self.first = _Stem(cast("MobileOneBlock", fused.stem[0]), kernels)
        body = [_part(part, kernels) for part in list(fused.stem)[1:]]
        for stage in fused.stages:
            assert isinstance(stage, Stage)
            parts = (stage.downsample, stage.pos_emb, *stage.blocks)
            body += [_part(part, kernels) for part in parts if not isinstance(part, nn.Identity)]
        self.body = nn.Sequential(*body, _part(fused.final_conv, kernels))
        self.eval()

    def input_layout(self, device: torch.device) -> torch.memory_format:
        """The layout that `pixel_values` are read in fastest; others are read, or converted, too."""
        planes = self.first.kernel(device, rows=1 << 20) is not None and runs("stem", self.first.taps)
        return torch.contiguous_format if planes else torch.channels_last

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, C). H and W are multiples of 64; raises ConfigError otherwise."""
        check_pixels(pixel_values, self.config, self.first.conv.weight.dtype, uint8_input=self.uint8_input)
        # What PyTorch computes is not TF32 either. A compiler cannot follow settings; it keeps those it is called with.
        with nullcontext() if torch.compiler.is_compiling() else exact_float32():
            return self.body(self.first(self._pixels(pixel_values))).flatten(1, 2)

    def _pixels(self, x: Tensor) -> Tensor:
        """Levels as they are, unless a mean has to be subtracted: the stem's kernel reads them."""
        return x if isinstance(self.levels, nn.Identity) else self.levels(x).to(self.first.conv.weight.dtype)


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
    if not isinstance(part, ConvFFN):
        return _Residual(part)
    fp8 = is_fp8_layer(part.fc1) or is_fp8_layer(part.fc2)
    return _Fp8ConvFFN(part, kernels) if fp8 else _ConvFFN(part, kernels)


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
        return kernel_for(
            part, x.dtype, x.shape[-1], rows, processors_of(x.device), self.kernels, arch=arch_of(x.device)
        )


class _Stem(_Kernels):
    """The first convolution and GELU: pixels (B, 3, H, W), in its dtype or uint8 -> (B, H/2, W/2, C)."""

    def __init__(self, block: MobileOneBlock, kernels: frozenset[str]) -> None:
        super().__init__(kernels)
        self.block = block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.taps: Tensor  # the convolution's weight as the kernel takes it
        self._flatten_taps()
        self.register_load_state_dict_post_hook(_flatten_again)  # type: ignore[no-untyped-call]

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution."""
        return self.block.kernel_conv()

    def kernel(self, device: torch.device, rows: int) -> str | None:
        """The kernel for `rows` positions of the result; None for PyTorch."""
        plain = type(self.conv) is nn.Conv2d and self.conv.bias is not None  # not quantized
        processors, arch = processors_of(device), arch_of(device)
        dtype = self.conv.weight.dtype
        return kernel_for("stem", dtype, 3, rows, processors, self.kernels, arch=arch) if plain else None

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.conv.weight, self.conv.bias
        if bias is not None and (kernel := self.kernel(x.device, x.numel() // 12)):
            return stem(x, self.taps, bias, kernel=kernel, modes=self.modes)
        y = self.block(x.to(weight.dtype).contiguous(memory_format=torch.channels_last))
        return y.permute(0, 2, 3, 1).contiguous()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Stem:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._flatten_taps()
        return self

    def _flatten_taps(self) -> None:
        self.taps = flat_taps(self.conv.weight.detach())


def _flatten_again(module: _Stem, _keys: object) -> None:
    module._flatten_taps()


class _Depthwise(_Kernels):
    """A grouped convolution, and GELU where asked: (B, H, W, C) -> (B, H/s, W/s, m C)."""

    def __init__(self, conv: nn.Conv2d, kernels: frozenset[str], *, gelu: bool = False) -> None:
        super().__init__(kernels)
        assert conv.bias is not None and conv.groups == conv.in_channels
        self.weight = nn.Parameter(taps_first(conv.weight), requires_grad=False)
        self.bias, self.stride, self.gelu, self.channels = conv.bias, conv.stride[0], gelu, conv.in_channels
        self.part = depthwise_part(conv.kernel_size[0], conv.stride[0], conv.out_channels // conv.in_channels)
        self.taps: Tensor  # the weight as it is stored, in float32: prepared again whenever that changes
        self._prepare()
        self.register_load_state_dict_post_hook(_prepare_again)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor, out_scale: float | None = None) -> Tensor:
        """With an out_scale the result is FP8, in steps of that size."""
        return depthwise(
            x, Filters(self.weight, self.taps), self.bias, self.stride, self.gelu,
            kernel=self.chosen(self.part, x), modes=self.modes, out_scale=out_scale,
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
        if self.chosen("ConvFFN", y) == "mlp":
            return mlp(y, self.w1, self.b1, self.w2, self.b2, x, modes=self.modes)
        y = linear_gelu(y, self.w1, self.b1, kernel=self.chosen("fc1", y), modes=self.modes)
        return linear_residual(y, self.w2, self.b2, x, kernel=self.chosen("fc2", y), modes=self.modes)


class _AttentionBlock(_Kernels):
    """x + attention(LN(x)), then x + ConvFFN(x), on (B, H, W, C)."""

    def __init__(self, block: AttentionBlock, kernels: frozenset[str]) -> None:
        super().__init__(kernels)
        self.attention = (
            _attention(block.norm, block.token_mixer, kernels)
            if isinstance(block.token_mixer, Attention)
            else _Residual(nn.Sequential(block.norm, block.token_mixer), on_map=False)
        )
        self.ffn = _ffn(block.mlp, kernels)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.attention(x.flatten(1, 2)).view(x.shape))


def _attention(norm: nn.LayerNorm, part: Attention, kernels: frozenset[str]) -> nn.Module:
    fp8 = is_fp8_layer(part.qkv) or is_fp8_layer(part.proj)
    return _Fp8Attention(norm, part, kernels) if fp8 else _Attention(norm, part, kernels)


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


def _sum_again(module: _Attention | _Fp8Attention, _keys: object) -> None:
    module._sum_weights()


class _Fp8ConvFFN(_Kernels):
    """x + ConvFFN(x) on (B, H, W, C), with one product or both in FP8."""

    def __init__(self, part: ConvFFN, kernels: frozenset[str]) -> None:
        super().__init__(kernels)
        self.conv = _Depthwise(_plain(part.conv), kernels)
        self.fc1, self.fc2 = (
            Fp8Product(name, layer, kernels) if is_fp8_layer(layer) else _Matrix(_plain(layer))
            for name, layer in (("fc1", part.fc1), ("fc2", part.fc2))
        )

    def forward(self, x: Tensor) -> Tensor:
        fc1, fc2 = self.fc1, self.fc2
        if isinstance(fc1, Fp8Product):
            out_scale = fc2.in_scale if isinstance(fc2, Fp8Product) else None
            writes_fp8 = self.conv.chosen(self.conv.part, x) is not None
            q = self.conv(x, fc1.in_scale) if writes_fp8 else fc1.quantized(self.conv(x))
            y = fc1(q, End(gelu=True, out_scale=out_scale))
        else:
            y = self.conv(x)
            y = linear_gelu(y, fc1.weight, fc1.bias, kernel=self.chosen("fc1", y), modes=self.modes)
        if isinstance(fc2, Fp8Product):
            return fc2(y if y.dtype == FP8 else fc2.quantized(y), End(residual=x))
        return linear_residual(y, fc2.weight, fc2.bias, x, kernel=self.chosen("fc2", y), modes=self.modes)


class _Fp8Attention(_Kernels):
    """x + attention(LN(x)) on tokens (B, N, C), with qkv, proj or both in FP8."""

    def __init__(self, norm: nn.LayerNorm, part: Attention, kernels: frozenset[str]) -> None:
        super().__init__(kernels)
        self.norm = norm
        # LayerNorm's affine is in a float qkv already: see `dequantize_others`.
        self.qkv: Fp8Product | nn.Linear = Fp8Product("qkv", part.qkv, kernels) if is_fp8_layer(part.qkv) else part.qkv
        self.proj: Fp8Product | nn.Linear = (
            Fp8Product("proj", part.proj, kernels) if is_fp8_layer(part.proj) else part.proj
        )
        self.heads = self.qkv.weight.shape[1] // part.head_dim
        self.sums: Tensor | None = None  # of a float qkv's weight, as in `_Attention`
        self._sum_weights()
        self.register_load_state_dict_post_hook(_sum_again)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        norm, proj = self.norm, self.proj
        if isinstance(self.qkv, Fp8Product):
            kernel = self.chosen("norm fp8", x)
            q = norm_fp8(x, norm.weight, norm.bias, self.qkv.in_scale, norm.eps, kernel=kernel, modes=self.modes)
            qkv = self.qkv(q, End())
        else:
            kernel = self.chosen("qkv", x)
            qkv = norm_linear(
                x, self.qkv.weight, self.qkv.bias, norm.eps, sums=self.sums, kernel=kernel, modes=self.modes
            )
        kernel = self.chosen("attention", x)
        if isinstance(proj, Fp8Product):
            y = attention(qkv, self.heads, out_scale=proj.in_scale, kernel=kernel, modes=self.modes)
            return proj(y, End(residual=x))
        y = attention(qkv, self.heads, kernel=kernel, modes=self.modes)
        return linear_residual(y, proj.weight, proj.bias, x, kernel=self.chosen("proj", y), modes=self.modes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Fp8Attention:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._sum_weights()
        return self

    def _sum_weights(self) -> None:
        self.sums = None if isinstance(self.qkv, Fp8Product) else weight_sums(self.qkv.weight)


class _Matrix(nn.Module):
    """The weight (C', C) and bias of a 1x1 convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        self.weight, self.bias = _matrix(conv), conv.bias


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
