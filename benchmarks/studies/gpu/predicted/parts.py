"""The encoder as a list of steps, each in a named part of the model: what tables and profiles are summed by.

A step is what one kernel, or a few in a row, compute: a depthwise convolution with its GELU, a product, a ConvFFN's two
products, attention. Equal steps of a stage stand once with their count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .....encoder.config import MIXERS, FastViTHDConfig
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
    config.check_resolution(height, width)
    c = config.dims[0]
    half = batch * height * width // 4
    yield Step(
        "stem.0", "stem", "stem", {"batch": batch, "height": height, "width": width, "c": c, "m": half, "levels": 0},
        27 * half * c, batch * 3 * height * width + half * c + 28 * c, gelu=True,
    )  # fmt: skip
    yield _depthwise("stem.1", (batch, height // 4, width // 4), c, 3, stride=2, gelu=True)
    yield _product("stem.2", "pointwise", half // 4, c, c, gelu=True)
    for stage, (c, depth) in enumerate(zip(config.dims, config.depths, strict=True)):
        h, w = height // config.strides[stage], width // config.strides[stage]
        yield from _stage(config, stage, (batch, h, w), c, depth)
    h, w = height // config.stride, width // config.stride
    last, c = "final_conv + SE", config.dims[-1]
    out = config.out_channels
    yield _depthwise(last, (batch, h, w), out, 3, multiplier=out // c)
    gate = {"batch": batch, "m": batch * h * w, "c": out, "hidden": config.se_channels}
    weights = 2 * out * config.se_channels + out + config.se_channels
    macs = 2 * batch * out * config.se_channels
    yield Step(last, "gate", "", gate, macs, 3 * gate["m"] * out + weights)


def _stage(config: FastViTHDConfig, stage: int, positions: tuple[int, int, int], c: int, depth: int) -> Iterator[Step]:
    batch, h, w = positions
    m, name = math.prod(positions), f"stage {stage + 1}"
    if stage:
        multiplier = c // config.dims[stage - 1]
        yield _depthwise("embeddings", (batch, h, w), c, 7, stride=2, multiplier=multiplier, gelu=True)
        yield _product("embeddings", "pointwise", m, c, c, gelu=True)
    if MIXERS[stage] == "attention":
        yield _depthwise("RepCPE dw7", (batch, h, w), c, 7)
        part, tokens, heads = f"{name} attention", h * w, config.num_heads(stage)
        yield _product(part, "qkv", m, 3 * c, c, count=depth)
        yield Step(
            part, "attention", "attention", {"tokens": tokens, "batch": batch, "heads": heads, "m": m, "c": c},
            2 * batch * tokens**2 * c, 4 * m * c, depth,
        )  # fmt: skip
        yield _product(part, "proj", m, c, c, residual=True, count=depth)
    else:
        yield _depthwise(f"{name} dw3", (batch, h, w), c, 3, count=depth)
    yield _depthwise(f"{name} dw7", (batch, h, w), c, 7, count=depth)
    hidden = config.mlp_ratio * c
    yield Step(
        f"{name} ConvFFN products", "ffn", "ConvFFN", {"m": m, "c": c, "hidden": hidden},
        2 * m * c * hidden, 3 * m * c + 2 * c * hidden + c + hidden, depth, gelu=True, residual=True,
    )  # fmt: skip


def _product(
    part: str, row: str, m: int, n: int, k: int, *, gelu: bool = False, residual: bool = False, count: int = 1
) -> Step:
    kind: Kind = "qkv" if row == "qkv" else "product"
    values = m * k + m * n * (2 if residual else 1) + n * (k + 1)
    return Step(part, kind, row, {"m": m, "n": n, "k": k}, m * n * k, values, count, gelu, residual)


def _depthwise(
    part: str, image: tuple[int, int, int], c: int, kernel: int, *, stride: int = 1, multiplier: int = 1,
    gelu: bool = False, count: int = 1,
) -> Step:  # fmt: skip
    """`image` is the result's (batch, height, width), `c` its channels."""
    batch, height, width = image
    sizes = {
        "batch": batch, "height": height, "width": width, "c": c, "kernel": kernel, "stride": stride,
        "multiplier": multiplier,
    }  # fmt: skip
    size = batch * height * width * c
    values = size + size * stride**2 // multiplier + (kernel**2 + 1) * c
    row = depthwise_part(kernel, stride, multiplier)
    return Step(part, "depthwise", row, sizes, kernel**2 * size, values, count, gelu=gelu, grouped=True)


def part_names(config: FastViTHDConfig) -> tuple[str, ...]:
    """The parts of the model in order of their first step."""
    return tuple(dict.fromkeys(step.part for step in steps_of(config, config.stride, config.stride, 1)))
