"""The walk over the architecture against the modules themselves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from fvexport.encoder.config import VARIANTS
from fvexport.encoder.fastvithd import Attention, ConvFFN, FastViTHD, SqueezeExcite
from fvexport.encoder.layers import Layer, encoder_blocks, encoder_layers

SIZE = (128, 192)


def test_layers_are_those_of_the_model() -> None:
    config = VARIANTS["tiny"]
    model = FastViTHD(config, form="fused")
    shapes: dict[str, torch.Size] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, y: shapes.__setitem__(name, y.shape)

    for name, module in model.named_modules():
        module.register_forward_hook(keep(name))
    with torch.inference_mode():
        model(torch.zeros(1, 3, *SIZE))
    modules = dict(model.named_modules())
    convolutions, blocks = set(), []
    for block in encoder_blocks(config, *SIZE):
        names = [f"{block.name}.{i}" for i in range(block.count)] if block.stage is not None else [block.name]
        names = names if f"{block.name}.0" in modules and block.name.endswith("blocks") else [block.name]
        blocks += names
        for name in names:
            last = block.layers[-1]
            assert shapes[name] == (1, last.out_channels, last.height, last.width)
            for layer in block.layers:
                part = modules[f"{name}.{layer.name}"]
                if layer.kind in ("stem", "depthwise", "pointwise"):
                    assert isinstance(part, nn.Conv2d)
                    assert (part.in_channels, part.out_channels) == (layer.channels, layer.out_channels)
                    assert (part.kernel_size[0], part.stride[0]) == (layer.kernel, layer.stride)
                    assert (part.groups == part.in_channels) == (layer.kind == "depthwise")
                    assert shapes[f"{name}.{layer.name}"][2:] == (layer.height, layer.width)
                    convolutions.add(f"{name}.{layer.name}")
                elif layer.kind == "attention":
                    assert isinstance(part, Attention)
                    assert layer.heads * part.head_dim == layer.channels
                elif layer.kind == "ffn":
                    assert isinstance(part, ConvFFN)
                    assert part.fc1.out_channels == layer.hidden
                    convolutions |= {f"{name}.mlp.fc1", f"{name}.mlp.fc2"}
                else:
                    assert isinstance(part, SqueezeExcite)
                    assert part.fc1.out_channels == layer.hidden
                    convolutions |= {f"{name}.se.fc1", f"{name}.se.fc2"}
    assert blocks == [name for name, _ in model.named_blocks()]
    assert convolutions == {name for name, module in modules.items() if isinstance(module, nn.Conv2d)}


def test_equal_layers_count_together() -> None:
    config = VARIANTS["fastvithd"]
    found = encoder_layers(config, 1024, 1024)
    counted: Counter[Layer] = Counter()
    for block in encoder_blocks(config, 1024, 1024):
        counted.update(dict.fromkeys(block.layers, block.count))
    assert found == counted
    wide = [layer for layer in found if layer.kernel == 7 and layer.stride == 1]
    assert [found[layer] for layer in wide] == [2, 12, 24, 4 + 1, 2 + 1]  # with the position encodings
