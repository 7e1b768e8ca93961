"""Exact equalization: per-channel scales move through linear operations until each tensor's channels are alike.

One scale per tensor wastes its levels on channels that are small beside the largest. This network lets most of them be
made alike without changing what it computes, as data-free quantization did for other networks
(M. Nagel et al., arXiv 1906.04721) and SmoothQuant for transformers (arXiv 2211.10438):

    depthwise 7x7 -> fc1         the depthwise kernel of a channel is divided, fc1's column multiplied
    LayerNorm -> qkv             LayerNorm gets the scale back as its affine, which costs nothing
    v rows of qkv -> proj        attention mixes positions, never channels
    residual stream, stages 1-3  each block's mixer and 7x7 are depthwise, so that each may carry its stream at a scale
                                 of its own; used where fc2's output, which is added to it, is quantized

Rounding that makes up for its own error (`gptq`) then takes the weights, whose columns are no longer alike.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..encoder.config import MIXERS
from ..encoder.fastvithd import Attention, FastViTHD, RepMixerBlock, Stage
from .histograms import Histogram
from .policy import Policy
from .ranges_file import Stats

QUANTILE = 0.999
"""Channels are made alike at this share of their values: their extremes are too few to go by."""
LARGEST = 1024.0
"""No channel is scaled further: what is a thousand times smaller does not matter, and weights must fit FP16."""

PRIOR = 64
"""Samples that a channel's size is trusted less by. Until many more were seen, one that looks small is taken nearer to
the typical one: scaled up too far it would be clipped on the first picture that wakes it."""

KINDS = ("ffn", "norm", "values", "stream")


@dataclass(frozen=True)
class Equalized:
    """What `equalize` made.

    Attributes:
        model: same outputs, other channel scales.
        stats: the statistics of its activations, by the same exact scaling.
        block_scales: block -> (C,) factor of its output over the original's, where it is not 1.
    """

    model: FastViTHD
    stats: Stats
    block_scales: dict[str, Tensor]


def equalize(model: FastViTHD, stats: Stats, policy: Policy, kinds: Sequence[str] = KINDS) -> Equalized:
    """Moves per-channel scales so that every tensor that `policy` quantizes has channels of one size.

    Args:
        model: the fused encoder; left alone.
        stats: of its activations.
        policy: says which layers matter.
        kinds: which of KINDS to do; all by default.

    Raises:
        ConfigError: the model is not fused, or `stats` lack one of its layers.
    """
    if model.form != "fused":
        raise ConfigError("equalization needs the fused form; call reparameterize(model) first")
    model = copy.deepcopy(model)
    seen = replace(
        stats, histograms=dict(stats.histograms), moments=dict(stats.moments), amax=dict(stats.amax)
    )  # fmt: skip
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, module in modules.items():
            if name.endswith(".mlp.fc1") and "ffn" in kinds and policy.quantizes(name):
                scale = _scale(seen, f"{name}:in")
                _divide_outputs(modules[name.removesuffix("fc1") + "conv"], scale)
                _multiply_inputs(module, scale)
                _rescale(seen, f"{name}:in", 1 / scale)
                seen.amax[f"{name.removesuffix('fc1')}conv"] = float(seen.histograms[f"{name}:in"].amax.max())
            elif isinstance(module, Attention):
                if "norm" in kinds and policy.quantizes(f"{name}.qkv"):
                    scale = _scale(seen, f"{name}.qkv:in", only_large=True)
                    _give_affine(modules, name.removesuffix("token_mixer") + "norm", 1 / scale)
                    _multiply_inputs(module.qkv, scale)
                    _rescale(seen, f"{name}.qkv:in", 1 / scale)
                if "values" in kinds and policy.quantizes(f"{name}.proj"):
                    scale = _scale(seen, f"{name}.proj:in", only_large=True)
                    ones = torch.ones_like(scale)
                    _divide_outputs(module.qkv, torch.cat([ones, ones, scale]))
                    _multiply_inputs(module.proj, scale)
                    _rescale(seen, f"{name}.proj:in", 1 / scale)
        scales = _equalize_streams(model, seen, policy) if "stream" in kinds else {}
    return Equalized(model, seen, scales)


def _equalize_streams(model: FastViTHD, stats: Stats, policy: Policy) -> dict[str, Tensor]:
    """Gives each convolutional block's stream the scale under which its fc2's channels are alike."""
    done: dict[str, Tensor] = {}
    for index, stage in enumerate(cast("list[Stage]", list(model.stages))):
        if MIXERS[index] == "attention":
            continue  # LayerNorm ties the channels of the stream together
        factor: Tensor | None = None  # of the stream that comes in
        for number, block in enumerate(cast("list[RepMixerBlock]", list(stage.blocks))):
            name = f"stages.{index}.blocks.{number}"
            fc2 = f"{name}.mlp.fc2"
            width = model.config.dims[index]
            new = 1 / _scale(stats, fc2) if policy.quantizes_output(fc2) else torch.ones(width)
            mixer, mlp = block.token_mixer.reparam_conv, block.mlp
            _divide_outputs(mixer, 1 / new)
            if factor is not None:
                _divide_inputs(mixer, factor)
            _divide_inputs(mlp.conv, new)
            _divide_outputs(mlp.fc2, 1 / new)
            if fc2 in stats.histograms:
                _rescale(stats, fc2, new)
            factor = done[name] = new
        last = index + 1 == len(model.stages)
        following = "final_conv" if last else f"stages.{index + 1}.downsample.proj.0"
        assert factor is not None
        _divide_inputs(model.get_submodule(f"{following}.reparam_conv"), factor)
    return {name: factor for name, factor in done.items() if not bool((factor == 1).all())}


def _scale(stats: Stats, tap: str, *, only_large: bool = False) -> Tensor:
    """(C,) sizes of a tensor's channels around 1; 1 for a channel that was always zero.

    With `only_large`, 1 for every channel that is not larger than the typical one: behind LayerNorm and softmax a
    channel is small where it hardly varies on these pictures, not by its nature, and others may wake it.
    """
    histogram = stats.histograms.get(tap)
    if histogram is None:
        raise ConfigError(f"the ranges have nothing on {tap}; run `fvexport calibrate` again")
    size = histogram.quantile(QUANTILE).double()
    alive = size > 0
    if not alive.any():
        return torch.ones_like(size)
    seen = histogram.counts.sum(1).double()
    size = ((seen * size.square() + PRIOR * size[alive].median().square()) / (seen + PRIOR)).sqrt()
    middle = size[alive].median() if only_large else size[alive].log().mean().exp()
    return torch.where(alive, size / middle, 1.0).clamp(1.0 if only_large else 1 / LARGEST, LARGEST)


def _rescale(stats: Stats, tap: str, factor: Tensor) -> None:
    """The statistics of x * factor."""
    histogram: Histogram = stats.histograms[tap]
    stats.histograms[tap] = histogram.scaled(factor.float())
    if (moments := stats.moments.get(tap)) is not None:
        stats.moments[tap] = moments.scaled(factor)


def _divide_outputs(layer: nn.Module, scale: Tensor) -> None:
    """Divides each output channel's weight and bias."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    rows = scale.to(layer.weight.device).view(-1, *[1] * (layer.weight.ndim - 1))
    layer.weight.copy_(layer.weight.double() / rows)
    if layer.bias is not None:
        layer.bias.copy_(layer.bias.double() / rows.flatten())


def _divide_inputs(layer: nn.Module, scale: Tensor) -> None:
    """Divides each input channel's weights; of a grouped convolution, one channel is one group."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    scale = scale.to(layer.weight.device)
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        assert layer.groups == layer.in_channels
        rows = scale.repeat_interleave(layer.out_channels // layer.groups)
        layer.weight.copy_(layer.weight.double() / rows[:, None, None, None])
    else:
        layer.weight.copy_(layer.weight.double() / scale.view(1, -1, *[1] * (layer.weight.ndim - 2)))


def _multiply_inputs(layer: nn.Module, scale: Tensor) -> None:
    _divide_inputs(layer, 1 / scale)


def _give_affine(modules: dict[str, nn.Module], name: str, weight: Tensor) -> None:
    """Replaces a LayerNorm without affine by one with this weight (C,) and no shift."""
    old = modules[name]
    assert isinstance(old, nn.LayerNorm)
    parent = modules[name.rpartition(".")[0]]
    norm = nn.LayerNorm(old.normalized_shape, eps=old.eps).eval().requires_grad_(False)
    like = next(p for p in parent.parameters() if p.is_floating_point())
    norm.to(like)
    before = 1.0 if old.weight is None else old.weight.double()
    norm.weight.copy_(weight.to(like.device) * before)
    norm.bias.zero_()
    if old.bias is not None:
        norm.bias.copy_(old.bias.double() * weight.to(like.device))
    setattr(parent, name.rpartition(".")[2], norm)
    modules[name] = norm
