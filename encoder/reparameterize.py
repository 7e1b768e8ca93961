"""Exact fusion: every train or released module becomes its fused twin with the same output.

All sums and products of weights are taken in float64 and rounded once to the module's own
dtype. The module given is left as it was, and shares no storage with the one returned.

What folds: parallel branches and identities into one kernel (arXiv 2206.04040, 2303.14189),
BatchNorm into the convolution before it, layer scales into the product before them,
LayerNorm's affine and head_dim^-0.5 into qkv, and for uint8 images 1/255 into the stem.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import singledispatch
from typing import TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from .fastvithd import (
    AttentionBlock,
    ConvBN,
    FastViTHD,
    LargeKernelConv,
    LayerScale,
    MobileOneBlock,
    RepCPE,
    RepMixer,
    RepMixerBlock,
)

M = TypeVar("M", bound=nn.Module)
Normalization: TypeAlias = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and std per channel, of values in [0, 1]."""


def reparameterize(module: M, *, uint8_input: bool = False, normalization: Normalization | None = None) -> M:
    """The fused form of a model or of any of its blocks, with the same inputs and outputs.

    Args:
        module: a `FastViTHD`, or one of its blocks, in eval mode; a fused one is only copied.
        uint8_input: take uint8 levels 0..255 as `pixel_values`: 1/255 is folded into the stem.
        normalization: with `uint8_input`, mean and std (3 numbers each) that the floating pixel values had: the mean is
            subtracted from the levels, since the stem's zero padding forbids folding it, and 1/std is folded.

    Raises:
        ConfigError: a module in training mode (its BatchNorm has no fixed affine yet), or
            `uint8_input` for something other than a FastViTHD.
    """
    if any(part.training for part in module.modules()):
        raise ConfigError("reparameterize needs a model in eval mode; call model.eval() first")
    with torch.no_grad():
        fused = cast("M", _fuse(module))
    if uint8_input:
        if not isinstance(fused, FastViTHD):
            raise ConfigError(f"uint8_input is for a whole FastViTHD; found {type(module).__name__}")
        if not fused.uint8_input:
            fused.uint8_input = True
            mean, std = normalization or ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
            fused.center_levels(mean)
            stem, source = fused.first_conv, cast("MobileOneBlock", cast("FastViTHD", module).stem[0])
            with torch.no_grad():  # from the branches again: rounded once in half precision too
                merged = hasattr(source, "reparam_conv")
                kernel = stem.weight.double() if merged else mobileone_kernel(source, stem.kernel_size[0], 1)[0]
                spread = 255 * torch.tensor(std, dtype=torch.float64, device=kernel.device)
                stem.weight = _parameter(kernel / spread[:, None, None], stem.weight)
    return fused


def merge_branches(model: FastViTHD) -> FastViTHD:
    """Train form -> released form: parallel branches merged, everything else left standing.

    This is what timm's `reparameterize_model` and Apple's `reparameterize_model` do, and what
    released checkpoints hold; ConvFFN's BatchNorm, layer scales and LayerNorm's affine remain.
    """
    if model.form != "train":
        raise ConfigError(f"only the train form has branches to merge; found the {model.form} form")
    with torch.device("meta"):
        released = FastViTHD(model.config, form="released")
    merged, kept = reparameterize(model).state_dict(), model.state_dict()
    # A name that the train form has too is a module that is not merged.
    released.load_state_dict(
        {name: kept[name].clone() if name in kept else merged[name] for name in released.state_dict()}, assign=True
    )
    return released.requires_grad_(False)


# --- weights: (kernel, bias) pairs in float64 --------------------------------------------------


def bn_affine(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as x * scale + shift, both (C,) in float64."""
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    return scale, bn.bias.double() - bn.running_mean.double() * scale


def conv_kernel(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """A convolution's (C_out, C_in / groups, k, k) kernel and (C_out,) bias in float64."""
    weight = conv.weight.double()
    return weight, weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.to(torch.float64, copy=True)


def conv_bn_kernel(block: ConvBN) -> tuple[Tensor, Tensor]:
    """Kernel and bias of convolution then BatchNorm, as one convolution."""
    kernel, bias = conv_kernel(block.conv)
    scale, shift = bn_affine(block.bn)
    return kernel * scale[:, None, None, None], bias * scale + shift


def identity_kernel(channels: int, groups: int, size: int, like: Tensor) -> Tensor:
    """The (C, C / groups, k, k) kernel in float64 that returns its input."""
    per_group = channels // groups
    kernel = torch.zeros(channels, per_group, size, size, dtype=torch.float64, device=like.device)
    index = torch.arange(channels, device=like.device)
    kernel[index, index % per_group, size // 2, size // 2] = 1
    return kernel


def pad_kernel(kernel: Tensor, size: int) -> Tensor:
    """A smaller odd kernel centred in a `size` x `size` one."""
    margin = (size - kernel.shape[-1]) // 2
    return nn.functional.pad(kernel, [margin] * 4)


def mobileone_kernel(block: MobileOneBlock, size: int, groups: int) -> tuple[Tensor, Tensor]:
    """The sum of a train-form block's branches as one `size` x `size` kernel and bias."""
    kernels: list[tuple[Tensor, Tensor]] = []
    for branch in block.branches():
        if isinstance(branch, ConvBN):
            kernel, bias = conv_bn_kernel(branch)
            kernels.append((pad_kernel(kernel, size), bias))
        else:
            assert isinstance(branch, nn.BatchNorm2d)
            scale, shift = bn_affine(branch)
            kernel = identity_kernel(len(scale), groups, size, scale)
            kernels.append((kernel * scale[:, None, None, None], shift))
    return sum(k for k, _ in kernels), sum(b for _, b in kernels)  # type: ignore[return-value]


# --- modules -----------------------------------------------------------------------------------


@singledispatch
def _fuse(module: nn.Module) -> nn.Module:
    """Whatever has nothing to fold itself: a copy with its children fused."""
    clone = _shell(module)
    for name, child in module.named_children():
        setattr(clone, name, _fuse(child))
    return clone


@_fuse.register
def _(model: FastViTHD) -> nn.Module:
    clone = _fuse_children(model)
    clone.form = "fused"
    return clone


@_fuse.register
def _(block: ConvBN) -> nn.Module:
    return _conv_like(block.conv, *conv_bn_kernel(block))


@_fuse.register
def _(block: MobileOneBlock) -> nn.Module:
    if hasattr(block, "reparam_conv"):
        return _fuse_children(block)
    if not block.conv_kxk:
        raise ConfigError("a MobileOne block of identity alone is fused by the RepMixer that holds it")
    conv = block.kernel_conv()
    kernel, bias = mobileone_kernel(block, conv.kernel_size[0], conv.groups)
    clone = _fuse_children(block, drop=("conv_kxk", "conv_scale", "identity"))
    clone.reparam_conv = _conv_like(conv, kernel, bias)
    return clone


@_fuse.register
def _(block: LargeKernelConv) -> nn.Module:
    if hasattr(block, "reparam_conv"):
        return _fuse_children(block)
    large, large_bias = conv_bn_kernel(block.large_conv)
    small, small_bias = conv_bn_kernel(block.small_conv)
    clone = _fuse_children(block, drop=("large_conv", "small_conv"))
    clone.reparam_conv = _conv_like(
        block.large_conv.conv, large + pad_kernel(small, large.shape[-1]), large_bias + small_bias
    )
    return clone


@_fuse.register
def _(block: RepCPE) -> nn.Module:
    if hasattr(block, "reparam_conv"):
        return _fuse_children(block)
    conv = block.pos_enc
    kernel, bias = conv_kernel(conv)
    clone = _fuse_children(block, drop=("pos_enc",))
    one = identity_kernel(conv.out_channels, conv.groups, conv.kernel_size[0], kernel)
    clone.reparam_conv = _conv_like(conv, kernel + one, bias)
    return clone


@_fuse.register
def _(block: RepMixer) -> nn.Module:
    if hasattr(block, "reparam_conv"):
        return _fuse_children(block)
    conv = block.mixer.kernel_conv()
    size, groups = conv.kernel_size[0], conv.groups
    mixer, mixer_bias = mobileone_kernel(block.mixer, size, groups)
    norm, norm_bias = mobileone_kernel(block.norm, size, groups)
    gamma = block.layer_scale.gamma.double().flatten()
    one = identity_kernel(conv.out_channels, groups, size, gamma)
    clone = _fuse_children(block, drop=("norm", "mixer", "layer_scale"))
    clone.reparam_conv = _conv_like(
        conv, one + gamma[:, None, None, None] * (mixer - norm), gamma * (mixer_bias - norm_bias)
    )
    return clone


@_fuse.register
def _(block: RepMixerBlock) -> nn.Module:
    clone = _fuse_children(block)
    _fold_layer_scale(clone, "layer_scale", clone.mlp.fc2)
    return clone


@_fuse.register
def _(block: AttentionBlock) -> nn.Module:
    clone = _fuse_children(block)
    attention = clone.token_mixer
    _fold_layer_scale(clone, "layer_scale_1", attention.proj)
    _fold_layer_scale(clone, "layer_scale_2", clone.mlp.fc2)

    qkv, norm = attention.qkv, clone.norm
    weight = qkv.weight.double()  # (3C, C)
    bias = weight.new_zeros(len(weight)) if qkv.bias is None else qkv.bias.double()
    if norm.elementwise_affine:
        bias = bias + weight @ norm.bias.double()
        weight = weight * norm.weight.double()
        clone.norm = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False).eval()
    rows = weight.new_ones(len(weight))
    rows[: qkv.in_features] = attention.scale  # the first C rows make q
    attention.scale = 1.0
    attention.qkv = _linear_like(qkv, weight * rows[:, None], bias * rows)
    return clone


# --- making modules without touching the old ones ----------------------------------------------


def _shell(module: M) -> M:
    """A copy of one module: own parameters and buffers, no children yet."""
    clone = copy.copy(module)
    clone._parameters = {k: None if p is None else _parameter(p, p) for k, p in module._parameters.items()}
    clone._buffers = {k: None if b is None else b.clone() for k, b in module._buffers.items()}
    clone._modules = dict.fromkeys(module._modules)  # keeps the order; filled by the caller
    for name, value in vars(clone).items():
        if "hooks" in name and isinstance(value, dict):
            vars(clone)[name] = type(value)()  # hooks belong to the module they were put on
    return clone


def _fuse_children(module: M, drop: tuple[str, ...] = ()) -> M:
    clone = _shell(module)
    for name in drop:
        clone._modules.pop(name, None)
    for name in list(clone._modules):
        child = module._modules[name]
        if child is not None:
            setattr(clone, name, _fuse(child))
    return clone


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    value = value.to(like.dtype)
    return nn.Parameter(value.clone() if value.data_ptr() == like.data_ptr() else value, requires_grad=False)


def _filled(make: Callable[[], M], weight: Tensor, bias: Tensor, like: Tensor) -> M:
    with torch.device("meta"):
        module = make().eval()
    module.weight = _parameter(weight, like)
    module.bias = _parameter(bias, like)
    return module


def _conv_like(conv: nn.Conv2d, kernel: Tensor, bias: Tensor) -> nn.Conv2d:
    def make() -> nn.Conv2d:
        size, stride, padding = (cast("tuple[int, int]", v) for v in (conv.kernel_size, conv.stride, conv.padding))
        return nn.Conv2d(conv.in_channels, conv.out_channels, size, stride, padding, groups=conv.groups)

    return _filled(make, kernel, bias, conv.weight)


def _linear_like(linear: nn.Linear, weight: Tensor, bias: Tensor) -> nn.Linear:
    return _filled(lambda: nn.Linear(linear.in_features, linear.out_features), weight, bias, linear.weight)


def _fold_layer_scale(block: nn.Module, name: str, layer: nn.Conv2d | nn.Linear) -> None:
    """Moves `block.name`'s factors into the rows of the layer before it (a copy of ours)."""
    scale = getattr(block, name)
    if isinstance(scale, LayerScale):
        gamma = scale.gamma.double().flatten()
        rows = gamma.reshape(-1, *[1] * (layer.weight.ndim - 1))
        assert layer.bias is not None
        layer.weight = _parameter(layer.weight.double() * rows, layer.weight)
        layer.bias = _parameter(layer.bias.double() * gamma, layer.bias)
        setattr(block, name, nn.Identity().eval())
