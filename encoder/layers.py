"""The fused encoder layer by layer, with names and sizes: the one walk over its architecture.

Written from the config alone, without PyTorch; tests hold it against the modules themselves. Visitors turn its layers
into operators of the graph (export/operators), launches of kernels, and benchmark cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from .config import MIXERS, FastViTHDConfig

Kind = Literal["stem", "depthwise", "pointwise", "attention", "ffn", "gate"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a fused block; equal ones have equal sizes, whatever their names.

    Attributes:
        kind: `stem` is the first convolution; `ffn` is fc1, GELU, fc2 and the residual; `gate` is squeeze-excite and
            GELU.
        name: name of its convolution, or prefix of its layers, within the block.
        channels, out_channels: of its input and output.
        height, width: of its output.
        kernel, stride: of its convolution.
        gelu: whether GELU follows the convolution.
        hidden: hidden channels of `ffn` and `gate`.
        heads: attention heads.
    """

    kind: Kind
    name: str = field(compare=False)
    channels: int
    out_channels: int
    height: int
    width: int
    kernel: int = 1
    stride: int = 1
    gelu: bool = False
    hidden: int = 0
    heads: int = 0

    @property
    def positions(self) -> int:
        """Positions of its output, of one image."""
        return self.height * self.width

    @property
    def outputs(self) -> int:
        """Output channels per input channel."""
        return self.out_channels // self.channels


@dataclass(frozen=True)
class LayerBlock:
    """Layers of one block, in order.

    Attributes:
        name: the module's name; `stages.2.blocks` for all of a stage, which are equal.
        count: how many there are.
        stage: counted from 0, or None outside the stages.
        layers: the last one's output is the block's.
    """

    name: str
    count: int
    stage: int | None
    layers: tuple[Layer, ...]


def encoder_blocks(config: FastViTHDConfig, height: int, width: int) -> Iterator[LayerBlock]:
    """The fused encoder's blocks for one image of `height` x `width` pixels, in order."""
    sizes = config.stage_resolutions(height, width)
    c, half, quarter = config.dims[0], (height // 2, width // 2), sizes[0]
    conv = "reparam_conv"
    yield LayerBlock("stem.0", 1, None, (_layer("stem", conv, 3, c, half, kernel=3, stride=2, gelu=True),))
    yield LayerBlock("stem.1", 1, None, (_layer("depthwise", conv, c, c, quarter, kernel=3, stride=2, gelu=True),))
    yield LayerBlock("stem.2", 1, None, (_layer("pointwise", conv, c, c, quarter, gelu=True),))
    for stage, (dim, depth, size) in enumerate(zip(config.dims, config.depths, sizes, strict=True)):
        name = f"stages.{stage}"
        if stage:
            before = config.dims[stage - 1]
            large = _layer("depthwise", f"proj.0.{conv}", before, dim, size, kernel=7, stride=2, gelu=True)
            mixed = _layer("pointwise", f"proj.1.{conv}", dim, dim, size, gelu=True)
            yield LayerBlock(f"{name}.downsample", 1, stage, (large, mixed))
        if MIXERS[stage] == "attention":
            position = _layer("depthwise", conv, dim, dim, size, kernel=7)
            yield LayerBlock(f"{name}.pos_emb", 1, stage, (position,))
            mixer = _layer("attention", "token_mixer", dim, dim, size, heads=config.num_heads(stage))
        else:
            mixer = _layer("depthwise", f"token_mixer.{conv}", dim, dim, size, kernel=3)
        wide = _layer("depthwise", "mlp.conv", dim, dim, size, kernel=7)
        ffn = _layer("ffn", "mlp", dim, dim, size, hidden=config.mlp_ratio * dim)
        yield LayerBlock(f"{name}.blocks", depth, stage, (mixer, wide, ffn))
    dim, out = config.dims[-1], config.out_channels
    last = _layer("depthwise", conv, dim, out, sizes[-1], kernel=3)
    gate = _layer("gate", "se", out, out, sizes[-1], hidden=config.se_channels)
    yield LayerBlock("final_conv", 1, None, (last, gate))


def encoder_layers(config: FastViTHDConfig, height: int, width: int) -> dict[Layer, int]:
    """Layer -> how many of its sizes the encoder has, in the order of their last occurrence.

    So a position encoding, whose convolution equals those of the blocks after it, is counted with them.
    """
    found: dict[Layer, int] = {}
    for block in encoder_blocks(config, height, width):
        for layer in block.layers:
            found[layer] = found.pop(layer, 0) + block.count
    return found


def _layer(kind: Kind, name: str, channels: int, out_channels: int, size: tuple[int, int], **rest: Any) -> Layer:
    return Layer(
        kind=kind, name=name, channels=channels, out_channels=out_channels, height=size[0], width=size[1], **rest
    )
