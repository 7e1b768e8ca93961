"""Deterministic weights without a checkpoint, under which every branch of the model counts.

PyTorch's own initial values (layer scale 1e-5, BatchNorm 0/1) hide whole blocks: a file that
lost one would still agree. These keep activations of order one through all 44 blocks, with
layer scales near 0.3 and BatchNorm statistics away from 0 and 1. The features mean nothing.
"""

from __future__ import annotations

import re
import zlib

import numpy as np
import torch
from torch import nn

from ..core.errors import ConfigError
from .fastvithd import LayerScale

AFTER_GELU = 1 / 0.652
"""GELU leaves a standard normal input with a root mean square of 0.652."""

GAINS: tuple[tuple[str, float], ...] = (
    # (pattern of the module's name, output RMS over input RMS), first match counts.
    (r"stem\.0\.", 2.0),  # pixels have an RMS near 0.5
    (r"stem\.", AFTER_GELU),
    (r"mixer\.(mixer|conv_)", 0.5),  # three branches, 24 blocks in a row: the stream must not grow
    (r"pos_enc$|reparam_conv$", 0.5),
    (r"(large|small)_conv\.", 0.7),  # two branches
    (r"downsample\.proj\.1\.", 0.8 * AFTER_GELU),  # beside an identity
    (r"final_conv\.conv", 0.7),  # two branches
    (r"se\.fc2$", 2.0),  # gates spread over 0..1
    (r"mlp\.fc2$|^fc2$", 0.5 * AFTER_GELU),
    (r"^[2-9]$", AFTER_GELU),  # the connector's later layers
    (r"qkv$", 1.4),  # attention that looks somewhere, not everywhere
    (r"token_mixer\.proj$|^proj$", 3.0),  # averages of values are small
)


def seed_weights(module: nn.Module, seed: int = 0) -> None:
    """Fills every parameter and buffer in place; equal for equal (seed, names, shapes).

    Each module has a random stream of its own, named by the seed and its name, so neither the
    order of modules nor the number of threads changes a value.
    """
    if seed < 0:
        raise ConfigError(f"a seed is 0 or more; found {seed}")
    with torch.no_grad():
        for name, child in module.named_modules():
            _seed_module(name, child, np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())])))


def _seed_module(name: str, module: nn.Module, rng: np.random.Generator) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        gain = next((g for pattern, g in GAINS if re.search(pattern, name)), 1.0)
        std = gain / module.weight[0].numel() ** 0.5
        _fill(module.weight, std * rng.standard_normal(module.weight.shape, dtype=np.float32))
        if module.bias is not None:
            _fill(module.bias, 0.1 * rng.standard_normal(module.bias.shape))
    elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
        _fill(module.weight, rng.uniform(0.7, 1.3, module.weight.shape))
        _fill(module.bias, 0.1 * rng.standard_normal(module.bias.shape))
        if isinstance(module, nn.BatchNorm2d):
            _fill(module.running_mean, 0.2 * rng.standard_normal(module.weight.shape))
            _fill(module.running_var, rng.uniform(0.6, 1.6, module.weight.shape))
    elif isinstance(module, LayerScale):
        _fill(module.gamma, rng.uniform(0.2, 0.4, module.gamma.shape))


def _fill(tensor: torch.Tensor | None, values: np.ndarray) -> None:
    assert tensor is not None
    tensor.copy_(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)))
