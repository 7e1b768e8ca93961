"""The encoder as a list of steps, each in a named part of the model: what tables and profiles are summed by.

A step is what one kernel, or a few in a row, compute: a depthwise convolution with its GELU, a product, a ConvFFN's two
products, attention. Equal steps of a stage stand once with their count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .....encoder.config import FastViTHDConfig
from .....encoder.layers import Layer, LayerBlock, encoder_blocks
from .....kernels.policy import depthwise_part
from .device import Device

Kind = Literal["stem", "depthwise", "product", "ffn", "qkv", "attention", "gate"]
HALF = 2
"""Bytes of a value."""


@dataclass(frozen=True)
class Step:
    """One step of the encoder.

    Attributes:
        part: that it belongs to.
        kind: what it computes.
        row: the part of the model as `kernels.policy` names it, empty where no kernel of ours computes it.
        sizes: of the call, by name, as `kernels.launches.Call` has them.
        macs: multiply-adds, those of depthwise convolutions included.
        values: read and written at least: inputs, results and weights, each once.
        count: of equal steps.
        gelu, residual: what rides on the result.
    """

    part: str
    kind: Kind
    row: str
    sizes: Mapping[str, int]
    macs: int
    values: int
    count: int = 1
    gelu: bool = False
    residual: bool = False
    grouped: bool = field(default=False, repr=False)

    @property
    def channels(self) -> int:
        """Of the input, as the policy asks for them."""
        if self.kind == "depthwise":
            return self.sizes["c"] // self.sizes["multiplier"]
        return self.sizes["k"] if "k" in self.sizes else self.sizes["c"]

    @property
    def rows(self) -> int:
        """Positions of the input of all images together, as the policy asks for them."""
        if self.kind == "depthwise":
            return self.sizes["batch"] * self.sizes["height"] * self.sizes["width"] * self.sizes["stride"] ** 2
        return self.sizes["m"]

    @property
    def results(self) -> int:
        """Values of its result."""
        if self.kind == "depthwise":
            return self.sizes["batch"] * self.sizes["height"] * self.sizes["width"] * self.sizes["c"]
        return self.sizes["m"] * self.sizes.get("n", self.sizes.get("c", 1))

    def floor(self, device: Device) -> float:
        """Seconds below which no kernel can compute it: bytes from L2 where they may lie there, FLOPs of products."""
        size = HALF * self.values
        rate = max(device.cache, device.memory) if size < device.cache_size else device.memory
        return max(size / rate, 0.0 if self.grouped else 2 * self.macs / device.tensor)


def steps_of(config: FastViTHDConfig, height: int, width: int, batch: int) -> Iterator[Step]:
    """The fused encoder's steps for `batch` images of `height` x `width` pixels, in order of the data.

    Blocks repeat a stage's steps; a stage's first step of each kind stands for all of them.
    """
    for block in encoder_blocks(config, height, width):
        for layer in block.layers:
            yield from _steps(layer, _part_of(block, layer), batch, block.count)


def _part_of(block: LayerBlock, layer: Layer) -> str:
    if block.stage is None:
        return "final_conv + SE" if block.name == "final_conv" else block.name
    if block.name.endswith("downsample"):
        return "embeddings"
    if block.name.endswith("pos_emb"):
        return "RepCPE dw7"
    kind = {"depthwise": f"dw{layer.kernel}", "ffn": "ConvFFN products"}.get(layer.kind, layer.kind)
    return f"stage {block.stage + 1} {kind}"


def _steps(layer: Layer, part: str, batch: int, count: int) -> Iterator[Step]:
    c, out, hidden, m = layer.channels, layer.out_channels, layer.hidden, batch * layer.positions
    if layer.kind == "stem":
        height, width = layer.stride * layer.height, layer.stride * layer.width
        sizes = {"batch": batch, "height": height, "width": width, "c": out, "m": m, "levels": 0}
        values = batch * c * height * width + m * out + (c * layer.kernel**2 + 1) * out
        yield Step(part, "stem", "stem", sizes, c * layer.kernel**2 * m * out, values, gelu=layer.gelu)
    elif layer.kind == "depthwise":
        yield _depthwise(layer, part, batch, count)
    elif layer.kind == "pointwise":
        yield _product(part, "pointwise", m, out, c, gelu=layer.gelu)
    elif layer.kind == "attention":
        tokens = layer.positions
        yield _product(part, "qkv", m, 3 * c, c, count=count)
        sizes = {"tokens": tokens, "batch": batch, "heads": layer.heads, "m": m, "c": c}
        yield Step(part, "attention", "attention", sizes, 2 * m * tokens * c, 4 * m * c, count)
        yield _product(part, "proj", m, c, c, residual=True, count=count)
    elif layer.kind == "ffn":
        values = 3 * m * c + 2 * c * hidden + c + hidden
        yield Step(
            part, "ffn", "ConvFFN", {"m": m, "c": c, "hidden": hidden}, 2 * m * c * hidden, values, count, gelu=True,
            residual=True,
        )  # fmt: skip
    else:
        sizes = {"batch": batch, "m": m, "c": out, "hidden": hidden}
        values = 3 * m * out + 2 * out * hidden + out + hidden
        yield Step(part, "gate", "", sizes, 2 * batch * out * hidden, values)


def _product(
    part: str, row: str, m: int, n: int, k: int, *, gelu: bool = False, residual: bool = False, count: int = 1
) -> Step:
    kind: Kind = "qkv" if row == "qkv" else "product"
    values = m * k + m * n * (2 if residual else 1) + n * (k + 1)
    return Step(part, kind, row, {"m": m, "n": n, "k": k}, m * n * k, values, count, gelu, residual)


def _depthwise(layer: Layer, part: str, batch: int, count: int) -> Step:
    sizes = {
        "batch": batch, "height": layer.height, "width": layer.width, "c": layer.out_channels, "kernel": layer.kernel,
        "stride": layer.stride, "multiplier": layer.outputs,
    }  # fmt: skip
    results, taps = batch * layer.positions * layer.out_channels, layer.kernel**2
    values = results + results * layer.stride**2 // layer.outputs + (taps + 1) * layer.out_channels
    row = depthwise_part(layer.kernel, layer.stride, layer.outputs)
    return Step(part, "depthwise", row, sizes, taps * results, values, count, gelu=layer.gelu, grouped=True)
