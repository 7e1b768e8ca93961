"""The fused encoder, operator by operator as it stands in the exported graph, with the size and work of each.

Written from the config alone, without PyTorch; tests hold it against the modules themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..encoder.config import MIXERS, FastViTHDConfig


@dataclass(frozen=True)
class Operator:
    """One node of the graph; sizes are of one image.

    Attributes:
        name: its module's, within its block; or what it does.
        inputs: the tensors that it reads: other operators' names, or `x`, the block's input; `qkv[q]` is a part of one.
        size: elements of its output.
        macs: multiply-adds.
        weights: elements of its weights.
        grouped: a convolution of few channels per group, which tensor cores do not help.
        pointwise: works element by element on its first input, so that it can ride in that one's kernel.
        product: of two activations: what a count of the layers alone leaves out.
    """

    name: str
    inputs: tuple[str, ...]
    size: int
    macs: int = 0
    weights: int = 0
    grouped: bool = False
    pointwise: bool = False
    product: bool = False


@dataclass(frozen=True)
class Block:
    """Operators of one block, in order; equal ones in a row stand as one.

    Attributes:
        name: module's name; `stages.2.blocks` for all of a stage.
        count: how many there are.
        stage: counted from 0, or None outside the stages.
        dim: channels of its output.
        input_size: elements of its input, one image.
        operators: the last one's output is the block's.
    """

    name: str
    count: int
    stage: int | None
    dim: int
    input_size: int
    operators: tuple[Operator, ...]


def operators(config: FastViTHDConfig, height: int, width: int) -> Iterator[Block]:
    """The fused encoder's blocks for one image of `height` x `width` pixels, in order."""
    config.check_resolution(height, width)
    c, pixels = config.dims[0], height * width
    half, size = c * pixels // 4, c * pixels // 16
    yield _single("stem.0", None, c, 3 * pixels, _conv_act("", "x", half, 27, 28 * c))
    yield _single("stem.1", None, c, half, _conv_act("", "x", size, 9, 10 * c, grouped=True))
    yield _single("stem.2", None, c, size, _conv_act("", "x", size, c, c * (c + 1)))
    for stage, (dim, depth) in enumerate(zip(config.dims, config.depths, strict=True)):
        positions = pixels // config.strides[stage] ** 2
        if stage:
            before, size = size, dim * positions
            large = _conv_act("proj.0.", "x", size, 49, 50 * dim, grouped=True)
            mixed = _conv_act("proj.1.", "proj.0.act", size, dim, dim * (dim + 1))
            yield _single(f"stages.{stage}.downsample", stage, dim, before, (*large, *mixed))
        attends = MIXERS[stage] == "attention"
        if attends:
            conv = Operator("reparam_conv", ("x",), size, 49 * size, 50 * dim, grouped=True)
            yield _single(f"stages.{stage}.pos_emb", stage, dim, size, (conv,))
        parts = _attention_block(config, dim, positions) if attends else _repmixer_block(config, dim, positions)
        yield Block(f"stages.{stage}.blocks", depth, stage, dim, size, parts)
    yield _single("final_conv", None, config.out_channels, size, _final_conv(config, size))


def source_of(read: str) -> str:
    """The tensor of which an operator reads a part: `qkv` of `qkv[q]`."""
    return read.partition("[")[0]


def _single(name: str, stage: int | None, dim: int, input_size: int, parts: tuple[Operator, ...]) -> Block:
    return Block(name, 1, stage, dim, input_size, parts)


def _conv_act(
    prefix: str, source: str, size: int, taps: int, weights: int, *, grouped: bool = False
) -> tuple[Operator, ...]:
    """A convolution that sums `taps` products per output, and its GELU."""
    conv = Operator(f"{prefix}reparam_conv", (source,), size, taps * size, weights, grouped=grouped)
    return conv, Operator(f"{prefix}act", (conv.name,), size, pointwise=True)


def _conv_ffn(config: FastViTHDConfig, source: str, dim: int, positions: int) -> tuple[Operator, ...]:
    size, ratio = dim * positions, config.mlp_ratio
    return (
        Operator("mlp.conv", (source,), size, 49 * size, 50 * dim, grouped=True),
        Operator("mlp.fc1", ("mlp.conv",), ratio * size, ratio * dim * size, ratio * dim * (dim + 1)),
        Operator("mlp.act", ("mlp.fc1",), ratio * size, pointwise=True),
        Operator("mlp.fc2", ("mlp.act",), size, ratio * dim * size, dim * (ratio * dim + 1)),
        Operator("mlp.residual", ("mlp.fc2", source), size),
    )


def _repmixer_block(config: FastViTHDConfig, dim: int, positions: int) -> tuple[Operator, ...]:
    size, mixer = dim * positions, "token_mixer.reparam_conv"
    conv = Operator(mixer, ("x",), size, 9 * size, 10 * dim, grouped=True)
    return (conv, *_conv_ffn(config, mixer, dim, positions))


def _attention_block(config: FastViTHDConfig, dim: int, positions: int) -> tuple[Operator, ...]:
    size, name = dim * positions, "token_mixer."
    scores = dim // config.head_dim * positions**2
    return (
        Operator("norm", ("x",), size),
        Operator(name + "qkv", ("norm",), 3 * size, 3 * dim * size, 3 * dim * (dim + 1)),
        Operator(name + "scores", (name + "qkv[q]", name + "qkv[k]"), scores, positions * size, product=True),
        Operator(name + "softmax", (name + "scores",), scores),
        Operator(name + "values", (name + "softmax", name + "qkv[v]"), size, positions * size, product=True),
        Operator(name + "proj", (name + "values",), size, dim * size, dim * (dim + 1)),
        Operator(name + "residual", (name + "proj", "x"), size),
        *_conv_ffn(config, name + "residual", dim, positions),
    )


def _final_conv(config: FastViTHDConfig, size: int) -> tuple[Operator, ...]:
    out, hidden, size = config.out_channels, config.se_channels, 2 * size
    return (
        Operator("reparam_conv", ("x",), size, 9 * size, 10 * out, grouped=True),
        Operator("se.mean", ("reparam_conv",), out),
        Operator("se.fc1", ("se.mean",), hidden, hidden * out, hidden * (out + 1)),
        Operator("se.relu", ("se.fc1",), hidden, pointwise=True),
        Operator("se.fc2", ("se.relu",), out, hidden * out, out * (hidden + 1)),
        Operator("se.sigmoid", ("se.fc2",), out, pointwise=True),
        Operator("se.gate", ("reparam_conv", "se.sigmoid"), size),
        Operator("act", ("se.gate",), size, pointwise=True),
    )
