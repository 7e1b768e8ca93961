"""Which of the encoder's calls a model makes, and how long they are predicted to take: what `tune` does first."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from ..core.gpus import H100_REACHED, get_chip
from ..encoder.config import MIXERS, FastViTHDConfig
from .dispatch import DEFAULTS
from .launches import Call
from .policy import ROWS, depthwise_part, kernel_for

ISSUE = 15e12
"""FLOP/s of depthwise convolutions on an H100, whose rates decide the order."""
LAUNCH_US = 2.3
"""Microseconds that a kernel in a CUDA graph takes at least."""


def used(call: Call, config: FastViTHDConfig, dtype: torch.dtype, arch: str, names: Collection[str] = DEFAULTS) -> bool:
    """Whether the policy takes a call's kernel for some part of the model of that size.

    Calls of kernels without a row, which other kernels bring along, are used if they are among `names`.
    """
    if not any(row.kernel == call.op for row in ROWS):
        return call.op in names
    channels, rows = _shape(call.sizes, config)
    if torch.cuda.is_available():
        processors = torch.cuda.get_device_properties(0).multi_processor_count
    else:
        processors = get_chip("h100").processors

    def chosen(part: str, width: int) -> str | None:
        return kernel_for(part, dtype, width, rows, processors, names, arch=arch)

    def fused(part: str) -> bool:
        """Whether one kernel computes the product together with its neighbour."""
        return part in ("fc1", "fc2") and chosen("ConvFFN", min(call.sizes["n"], channels)) is not None

    return any(chosen(part, channels) == call.op and not fused(part) for part in _parts(call.sizes))


def predicted_us(call: Call, config: FastViTHDConfig, dtype: torch.dtype) -> float:
    """Microseconds of all calls of that size in one call of the encoder: the longer of arithmetic and traffic."""
    sizes, item = call.sizes, dtype.itemsize
    channels, rows = _shape(sizes, config)
    if "kernel" in sizes:
        outputs = sizes["batch"] * sizes["height"] * sizes["width"] * sizes["c"]
        arithmetic = 2 * outputs * sizes["kernel"] ** 2 / ISSUE
        traffic = item * (outputs + rows * channels) / H100_REACHED.memory
    elif "hidden" in sizes:
        arithmetic = 4 * sizes["m"] * sizes["c"] * sizes["hidden"] / H100_REACHED.tensor
        traffic = item * (3 * sizes["m"] * sizes["c"] + 2 * sizes["c"] * sizes["hidden"]) / H100_REACHED.memory
    elif "tokens" in sizes:
        arithmetic = 4 * rows * sizes["tokens"] * channels / H100_REACHED.tensor
        traffic = item * 4 * rows * channels / H100_REACHED.memory
    elif "levels" in sizes:
        arithmetic = 2 * rows * sizes["c"] * 27 / H100_REACHED.tensor
        traffic = item * rows * (sizes["c"] + 3 * 4) / H100_REACHED.memory  # a position has four pixels
    else:
        m, n, k = (sizes.get(name, channels) for name in ("m", "n", "k"))
        arithmetic = 2 * m * n * k / H100_REACHED.tensor
        traffic = item * (m * n + m * k + n * k) / H100_REACHED.memory
    return _count(call, config) * (LAUNCH_US + 1e6 * max(arithmetic, traffic))


def _shape(sizes: Mapping[str, int], config: FastViTHDConfig) -> tuple[int, int]:
    """Channels and rows of the input, as the policy counts them."""
    if "kernel" in sizes:
        positions = sizes["batch"] * sizes["height"] * sizes["width"]
        return sizes["c"] // sizes.get("multiplier", 1), positions * sizes.get("stride", 1) ** 2
    if "levels" in sizes:
        return 3, sizes["m"]
    if "tokens" in sizes:
        return sizes["heads"] * config.head_dim, sizes["batch"] * sizes["tokens"]
    width = next((sizes[name] for name in ("k", "c") if name in sizes), config.dims[0])
    return width, sizes.get("m", 0)


def _parts(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The parts of a model that a call of those sizes may compute."""
    if "kernel" in sizes:
        return (depthwise_part(sizes["kernel"], sizes.get("stride", 1), sizes.get("multiplier", 1)),)
    if "hidden" in sizes:
        return ("ConvFFN",)
    if "tokens" in sizes:
        return ("attention",)
    if "levels" in sizes:
        return ("stem",)
    if {"n", "k"} <= sizes.keys():
        if sizes["n"] == sizes["k"]:
            return ("pointwise", "proj")
        if sizes["n"] < sizes["k"]:
            return ("fc2",)
        return ("qkv", "fc1") if sizes["n"] == 3 * sizes["k"] else ("fc1",)
    return tuple(dict.fromkeys(row.part for row in ROWS))


def _count(call: Call, config: FastViTHDConfig) -> int:
    """How often one call of the encoder makes such a call; 1 for what stands between stages."""
    sizes, (channels, _) = call.sizes, _shape(call.sizes, config)
    channels = min(channels, sizes.get("n", channels))
    if sizes.get("stride", 1) > 1 or sizes.get("multiplier", 1) > 1 or channels not in config.dims:
        return 1
    stage = config.dims.index(channels)
    if sizes.get("n") == sizes.get("k", 0) and MIXERS[stage] != "attention":
        return 1  # a pointwise convolution; in the attention stages it has the size of proj
    return config.depths[stage]
