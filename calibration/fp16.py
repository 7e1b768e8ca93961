"""FP16 without overflow: power-of-two scales on the residual stream, and float32 where nothing can be scaled.

FP16 ends at 65504. From the exact extremes of every activation, `plan_fp16` chooses what `fit_fp16` does to a fused
model:

    the stream   Stage s computes 2^e x instead of x. The factor goes into the weights that write the stream (mixers,
                 position encoding, proj, fc2), its inverse into the depthwise convolutions that read it (ConvFFN's,
                 the next embedding's, the last one). LN(2^e x) with eps 4^e is LN(x) with eps.
    the rest     GELU and softmax take no factor, so values before or inside them stay as large as they are. The
                 smallest part around them runs in float32: a ConvFFN, an attention, an embedding, the last block.
                 What an embedding hands to the stage after it is such a value too; then that stage's first
                 convolution joins, and the value crosses between the two in float32.

All factors are powers of two: outputs are equal to the last bit, but for numbers that FP16 holds only as subnormals.
Weights that write the stream get smaller, and under 2^-14 FP16's spacing no longer shrinks: each is off by up to
2^-25, together about sqrt(K) * 2^-26 times their K inputs. The stream they write then peaks between 4094 and 8188 at a
headroom of 8, with a spacing of 4, so only channels that lie 2^20 below the peak feel it: seeded streams of order one
lose nothing at 2^-10, and two to three times FP16's own error at 2^-14. Hence the smallest exponents that suffice. And
weights that read the stream get larger; where one would pass FP16's end, its part runs in float32 too.

Scaled eps (1e-5 * 4^e) may be under FP16's range and need not be in it: it is an attribute of the operator, float32 in
ONNX, where the variance is computed in float32 as well.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import cast

import torch
from torch import nn

from ..core.errors import ConfigError
from ..encoder.config import MIXERS
from ..encoder.fastvithd import FastViTHD
from ..encoder.float32 import InFloat32
from .findings import Fp16Plan

FP16_MAX = torch.finfo(torch.float16).max

WEIGHT_MAX = FP16_MAX / 4
"""Largest weight left in FP16: known exactly, but Winograd convolutions store up to 2.25 times a kernel."""

ISLAND = re.compile(
    r"(stem\.[1-9]\d*|stages\.\d+\.(downsample|pos_emb|blocks\.\d+\.(mlp|token_mixer))|final_conv)(?=[.:]|$)"
)
"""Parts that can run in float32. Not the first convolution: its dtype is that of the pixels."""


def plan_fp16(model: FastViTHD, amax: Mapping[str, float], *, headroom: float = 8.0) -> Fp16Plan:
    """The least that keeps `model` in FP16 on images whose activations are up to `headroom` times larger.

    Args:
        model: in fused form.
        amax: largest absolute activation by tap: `<module>` is its output, `<module>:in` its input, and
            `<attention>:scores` the largest |q k^T|.
        headroom: 1 or more.

    Raises:
        ConfigError: a tap is missing or not finite, or a value passes 65504 where nothing can be done.
    """
    _check_fused(model)
    if not 1 <= headroom < FP16_MAX:
        raise ConfigError(f"headroom is a factor from 1 on; found {headroom}")
    for tap, value in amax.items():
        if not math.isfinite(value):
            raise ConfigError(f"{tap} reaches {value} in float32 already; the checkpoint or an image is broken")
    limit = FP16_MAX / headroom
    streams = [1.0] * len(model.stages)
    islands: set[str] = set()
    peaks: dict[str, float] = {}
    joins = _joins(model)
    for tap, stage in _taps(model):
        if tap not in amax:
            raise ConfigError(f"no activation range for {tap}; calibrate this very model, in fused form")
        peak = amax[tap]
        if peak <= limit:
            continue
        peaks[tap] = peak
        if stage is not None:
            streams[stage] = max(streams[stage], peak)
        else:
            islands |= _islands(tap, peak, joins)
    exponents = tuple(min(0, -math.ceil(math.log2(peak / limit))) for peak in streams)
    islands |= _large_weights(model, exponents)
    order = [name for name, _ in model.named_modules()]
    return Fp16Plan(exponents, tuple(sorted(islands, key=order.index)), peaks, headroom)


def fit_fp16(model: FastViTHD, plan: Fp16Plan) -> FastViTHD:
    """A copy of the fused `model` that is ready for FP16, in the model's own dtype and with the same outputs.

    The last step before quantization or export: inside a float32 part names are `<part>.module.…`.

    Raises:
        ConfigError: the model is not fused, or the plan is of another one.
    """
    _check_fused(model)
    known = {name for name, _ in model.named_modules()}
    strange = [name for name in plan.float32 if name not in known or not ISLAND.fullmatch(name)]
    if strange or len(plan.exponents) != len(model.stages):
        found = f"no part {strange[0]}" if strange else f"{len(model.stages)} stages, not {len(plan.exponents)}"
        raise ConfigError(f"this FP16 plan is of another model: this one has {found}; calibrate again")
    fitted = copy.deepcopy(model)  # and not fused again: equalization's LayerNorm affine would fold back
    joins = _joins(fitted)
    # Float32 first: a half-precision model's weights may not survive the factor.
    islands = {
        name: InFloat32(fitted.get_submodule(name), hands_on=joins.get(name) in plan.float32) for name in plan.float32
    }
    with torch.no_grad():
        for name, exponent in _factors(fitted, plan.exponents):
            fitted.get_parameter(name).mul_(2.0**exponent)
    for stage, exponent in zip(fitted.stages, plan.exponents, strict=True):
        for part in stage.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps *= 4.0**exponent
    for name, island in islands.items():
        parent, _, leaf = name.rpartition(".")
        setattr(fitted.get_submodule(parent), leaf, island)
    return fitted


# --- the network's parts by name ----------------------------------------------------------------


def _taps(model: FastViTHD) -> Iterator[tuple[str, int | None]]:
    """Every value that FP16 would store, but those that cannot grow: (tap, its stage if it is the stream)."""
    for i in range(len(model.stem)):
        yield from ((f"stem.{i}.{part}", None) for part in ("reparam_conv", "act"))
    for s, stage in enumerate(model.stages):
        name = f"stages.{s}"
        if s:
            parts = ("0.reparam_conv", "0.act", "1.reparam_conv", "1.act")
            yield from ((f"{name}.downsample.proj.{part}", None) for part in parts)
        if _attends(s):
            yield f"{name}.pos_emb.reparam_conv", s
        for i in range(len(cast("nn.Sequential", stage.blocks))):
            block = f"{name}.blocks.{i}"
            if _attends(s):
                yield from ((f"{block}.token_mixer{part}", None) for part in (".qkv", ":scores"))
                yield f"{block}.token_mixer.proj", s
                yield f"{block}.mlp.conv:in", s  # after the first addition
            else:
                yield f"{block}.token_mixer.reparam_conv", s
            yield from ((f"{block}.mlp.{part}", None) for part in ("conv", "fc1", "act"))
            yield f"{block}.mlp.fc2", s
            yield block, s
    yield from ((f"final_conv.{part}", None) for part in ("reparam_conv", "se.fc1", "se.fc2", "se", "act"))


def _factors(model: FastViTHD, exponents: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Each parameter that takes a factor, and the exponent of that factor."""
    for s, (stage, e) in enumerate(zip(model.stages, exponents, strict=True)):
        name = f"stages.{s}"
        starts = f"{name}.pos_emb.reparam_conv" if _attends(s) else f"{name}.blocks.0.token_mixer.reparam_conv"
        yield f"{starts}.weight", e
        if _attends(s):
            yield f"{starts}.bias", e
        for i in range(len(cast("nn.Sequential", stage.blocks))):
            block = f"{name}.blocks.{i}"
            if _attends(s):
                yield f"{block}.token_mixer.proj.weight", e
                yield f"{block}.token_mixer.proj.bias", e
            else:
                yield f"{block}.token_mixer.reparam_conv.bias", e
            yield f"{block}.mlp.conv.weight", -e
            yield f"{block}.mlp.fc2.weight", e
            yield f"{block}.mlp.fc2.bias", e
        last = s + 1 == len(exponents)
        yield f"{'final_conv' if last else f'stages.{s + 1}.downsample.proj.0'}.reparam_conv.weight", -e


def _joins(model: FastViTHD) -> dict[str, str]:
    """Part -> the one that alone takes its output, so that between two in float32 nothing need be half."""
    firsts = [f"stages.{s}.{'pos_emb' if _attends(s) else 'blocks.0.token_mixer'}" for s in range(len(model.stages))]
    line = [f"stem.{i}" for i in range(1, len(model.stem))] + firsts[:1]
    embeddings = {f"stages.{s}.downsample": first for s, first in enumerate(firsts) if s}
    return dict(pairwise(line)) | embeddings


def _islands(tap: str, peak: float, joins: Mapping[str, str]) -> set[str]:
    """What must run in float32 for this value never to be stored in FP16.

    The first convolution's values and the features have no such part. They may use up the headroom, no more.
    """
    part = ISLAND.match(tap)
    if part is None or tap == "final_conv.act":
        if peak > FP16_MAX:
            raise ConfigError(
                f"the model cannot run in FP16: {tap} reaches {peak:.3g}; use --bf16, or leave out --fp16"
            )
        return set()
    name = part[0]
    at_its_end = (tap == f"{name}.act" and name.startswith("stem")) or tap == f"{name}.proj.1.act"
    return {name, joins[name]} if at_its_end else {name}


def _large_weights(model: FastViTHD, exponents: tuple[int, ...]) -> set[str]:
    """Parts with a weight that FP16 would not hold once it has its factor."""
    factors = dict(_factors(model, exponents))
    found: set[str] = set()
    for name, value in model.named_parameters():
        peak = math.ldexp(float(value.detach().abs().amax()), factors.get(name, 0))
        if peak > WEIGHT_MAX:
            found |= _islands(name, peak, {})
    return found


def _attends(stage: int) -> bool:
    return MIXERS[stage] == "attention"


def _check_fused(model: FastViTHD) -> None:
    if model.form != "fused" or any(isinstance(part, InFloat32) for part in model.modules()):
        raise ConfigError(f"FP16 is fitted once, to the fused form; found the {model.form} form, or a fitted model")
