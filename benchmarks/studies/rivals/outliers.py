"""Outlier channels, which trained networks have and seeded weights have not."""

from __future__ import annotations

import copy
import zlib
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ....core.errors import ConfigError
from ....encoder.checkpoint import Checkpoint, weights_sha256
from ....encoder.fastvithd import AttentionBlock, ConvBN, ConvFFN


def with_outliers(checkpoint: Checkpoint, sigma: float, seed: int = 0) -> Checkpoint:
    """The same function, with inner channels of very unequal size; the checkpoint given is left alone.

    Each channel that ConvFFN's depthwise convolution or an attention block's LayerNorm hands on grows by a gain
    exp(sigma * N(0, 1)), and the product that takes it (fc1, qkv) shrinks its column by as much. Fusing folds
    LayerNorm's gains into qkv, so that in the fused form ConvFFN's alone are left.

    Raises:
        ConfigError: a negative sigma or seed; a fused encoder, whose BatchNorm and affine are gone.
    """
    if sigma < 0 or seed < 0:
        raise ConfigError(f"sigma and seed of outliers are 0 or more; found {sigma:g} and {seed}")
    if checkpoint.encoder.form == "fused":
        raise ConfigError("outliers need the train or released form; found the fused form")
    encoder = copy.deepcopy(checkpoint.encoder)
    with torch.no_grad():
        for name, module in encoder.named_modules():
            if isinstance(module, ConvFFN):
                assert isinstance(module.conv, ConvBN)
                _move(name, module.conv.bn, module.fc1, sigma, seed)
            elif isinstance(module, AttentionBlock):
                _move(name, module.norm, module.token_mixer.qkv, sigma, seed)
    info = replace(
        checkpoint.info, source=f"{checkpoint.info.source}, outliers {sigma:g}", sha256=weights_sha256(encoder)
    )
    return Checkpoint(encoder, checkpoint.connector, info)


def _move(
    name: str, norm: nn.BatchNorm2d | nn.LayerNorm, taker: nn.Conv2d | nn.Linear, sigma: float, seed: int
) -> None:
    """Multiplies what `norm` puts out by the gains of `name`, and divides `taker`'s columns by them."""
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    gains = np.exp(sigma * rng.standard_normal(norm.weight.shape))
    gain = torch.from_numpy(gains).to(norm.weight)
    norm.weight.mul_(gain)
    norm.bias.mul_(gain)
    taker.weight.div_(gain.reshape(1, -1, *[1] * (taker.weight.ndim - 2)))
