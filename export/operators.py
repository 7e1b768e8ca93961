"""The fused encoder, operator by operator as it stands in the exported graph, with the size and work of each.

Made from the layers of `encoder.layers`, without PyTorch; tests hold it against the modules themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..encoder.config import FastViTHDConfig
from ..encoder.layers import Kind, Layer, encoder_blocks


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
    for block in encoder_blocks(config, height, width):
        found: list[Operator] = []
        sources = ["x"]  # the input of each layer, and the last one's output
        for layer in block.layers:
            found += _OPERATORS[layer.kind](layer, *sources[-2:])
            sources.append(found[-1].name)
        first, last = block.layers[0], block.layers[-1]
        input_size = first.channels * first.positions * first.stride**2
        yield Block(block.name, block.count, block.stage, last.out_channels, input_size, tuple(found))


def source_of(read: str) -> str:
    """The tensor of which an operator reads a part: `qkv` of `qkv[q]`."""
    return read.partition("[")[0]


def _convolution(layer: Layer, *sources: str) -> list[Operator]:
    """A convolution, which sums `taps` products per output, and its GELU."""
    depthwise, size = layer.kind == "depthwise", layer.out_channels * layer.positions
    taps = layer.kernel**2 * (1 if depthwise else layer.channels)
    conv = Operator(
        layer.name, sources[-1:], size, taps * size, (taps + 1) * layer.out_channels, grouped=depthwise
    )  # fmt: skip
    act = Operator(layer.name.replace("reparam_conv", "act"), (conv.name,), size, pointwise=True)
    return [conv, act] if layer.gelu else [conv]


def _attention(layer: Layer, *sources: str) -> list[Operator]:
    dim, positions, name = layer.channels, layer.positions, layer.name + "."
    size, scores = dim * positions, layer.heads * positions**2
    return [
        Operator("norm", sources[-1:], size),
        Operator(name + "qkv", ("norm",), 3 * size, 3 * dim * size, 3 * dim * (dim + 1)),
        Operator(name + "scores", (name + "qkv[q]", name + "qkv[k]"), scores, positions * size, product=True),
        Operator(name + "softmax", (name + "scores",), scores),
        Operator(name + "values", (name + "softmax", name + "qkv[v]"), size, positions * size, product=True),
        Operator(name + "proj", (name + "values",), size, dim * size, dim * (dim + 1)),
        Operator(name + "residual", (name + "proj", sources[-1]), size),
    ]


def _ffn(layer: Layer, *sources: str) -> list[Operator]:
    """The two products; their residual is the input of the convolution before them."""
    dim, hidden, positions = layer.channels, layer.hidden, layer.positions
    size, wide, macs = dim * positions, hidden * positions, dim * hidden * positions
    return [
        Operator("mlp.fc1", sources[-1:], wide, macs, hidden * (dim + 1)),
        Operator("mlp.act", ("mlp.fc1",), wide, pointwise=True),
        Operator("mlp.fc2", ("mlp.act",), size, macs, dim * (hidden + 1)),
        Operator("mlp.residual", ("mlp.fc2", sources[-2]), size),
    ]


def _gate(layer: Layer, *sources: str) -> list[Operator]:
    out, hidden, size = layer.channels, layer.hidden, layer.channels * layer.positions
    return [
        Operator("se.mean", sources[-1:], out),
        Operator("se.fc1", ("se.mean",), hidden, hidden * out, hidden * (out + 1)),
        Operator("se.relu", ("se.fc1",), hidden, pointwise=True),
        Operator("se.fc2", ("se.relu",), out, hidden * out, out * (hidden + 1)),
        Operator("se.sigmoid", ("se.fc2",), out, pointwise=True),
        Operator("se.gate", (sources[-1], "se.sigmoid"), size),
        Operator("act", ("se.gate",), size, pointwise=True),
    ]


_OPERATORS: dict[Kind, Callable[..., list[Operator]]] = {
    "stem": _convolution, "depthwise": _convolution, "pointwise": _convolution, "attention": _attention, "ffn": _ffn,
    "gate": _gate,
}  # fmt: skip
"""From each kind of layer to its operators, given the inputs of the layer before it and its own."""
