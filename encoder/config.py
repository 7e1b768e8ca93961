"""The architecture of FastViTHD as data: what is chosen, and everything that follows from it.

Source: "FastVLM: Efficient Vision Encoding for Vision Language Models" (arXiv 2412.13303),
section 3 and appendix; the public code apple/ml-fastvlm and timm `fastvit_mci3`.
This module imports nothing heavy: the command line reads it for its help.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from ..core.errors import ConfigError
from ..core.phrases import did_you_mean

MIXERS = ("repmixer", "repmixer", "repmixer", "attention", "attention")
"""The token mixer of each stage: convolutions in three, self-attention in two."""

MAX_SIDE = 8192
"""Longest image side accepted: stage 4's attention alone would hold 65536 tokens here."""


MAX_CONNECTOR_LAYERS = 16
"""Most linear layers of a connector; the released ones have two."""


@dataclass(frozen=True)
class FastViTHDConfig:
    """One FastViTHD. The defaults are the released encoder (125 M parameters with its CLIP head).

    Attributes:
        depths: blocks in each of the five stages.
        dims: channels of each stage; every stage doubles the one before.
        mlp_ratio: hidden over input channels of each ConvFFN.
        head_dim: channels of one attention head.
        se_ratio: squeeze-excite bottleneck over its channels, in the last convolution.
    """

    depths: tuple[int, ...] = (2, 12, 24, 4, 2)
    dims: tuple[int, ...] = (96, 192, 384, 768, 1536)
    mlp_ratio: int = 4
    head_dim: int = 32
    se_ratio: float = 1 / 16

    def __post_init__(self) -> None:
        if len(self.depths) != len(MIXERS) or len(self.dims) != len(MIXERS):
            raise ConfigError(f"FastViTHD has {len(MIXERS)} stages; found depths {self.depths} and dims {self.dims}")
        if min(self.depths) < 1 or min(self.dims) < 1:
            raise ConfigError(f"depths and dims must be positive; found {self.depths} and {self.dims}")
        if self.mlp_ratio < 1 or self.head_dim < 1 or self.se_ratio <= 0:
            raise ConfigError(
                "mlp_ratio, head_dim and se_ratio must be positive; "
                f"found {self.mlp_ratio}, {self.head_dim} and {self.se_ratio}"
            )
        for before, after in zip(self.dims, self.dims[1:], strict=False):
            if after % before:
                raise ConfigError(f"each stage's dim must be a multiple of the one before; found {self.dims}")
        for dim, mixer in zip(self.dims, MIXERS, strict=True):
            if mixer == "attention" and dim % self.head_dim:
                raise ConfigError(f"attention dims must be multiples of head_dim {self.head_dim}; found {dim}")

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per position of each stage's output: (4, 8, 16, 32, 64)."""
        return tuple(4 * 2**stage for stage in range(len(self.dims)))

    @property
    def stride(self) -> int:
        """Input pixels per side of one visual token (64)."""
        return self.strides[-1]

    @property
    def out_channels(self) -> int:
        """Channels of one visual token (3072)."""
        return 2 * self.dims[-1]

    @property
    def se_channels(self) -> int:
        """Bottleneck channels of the squeeze-excite in the last convolution."""
        return max(1, int(self.out_channels * self.se_ratio))

    def num_heads(self, stage: int) -> int:
        """Attention heads of a stage, counted from 0."""
        return self.dims[stage] // self.head_dim

    def check_resolution(self, height: int, width: int) -> None:
        """Raises ConfigError unless both sides are multiples of the stride within bounds."""
        s = self.stride
        for side in (height, width):
            if side < s or side > MAX_SIDE:
                raise ConfigError(f"resolution {height}x{width} is out of range: sides go from {s} to {MAX_SIDE}")
        if height % s or width % s:
            near_h, near_w = (max(s, round(side / s) * s) for side in (height, width))
            near = f"{near_h}" if near_h == near_w else f"{near_h}x{near_w}"
            raise ConfigError(f"resolution {height}x{width} is not a multiple of {s}; the nearest is --res {near}")

    def stage_resolutions(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """(height, width) of each stage's output for an image of `height` x `width` pixels."""
        self.check_resolution(height, width)
        return tuple((height // s, width // s) for s in self.strides)

    def tokens(self, height: int, width: int) -> int:
        """Visual tokens of an image of `height` x `width` pixels."""
        self.check_resolution(height, width)
        return (height // self.stride) * (width // self.stride)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FastViTHDConfig:
        """A config from plain data; raises ConfigError for unknown or missing keys."""
        missing = [f.name for f in fields(cls) if f.name not in data]
        if missing:
            raise ConfigError(f"not a FastViTHD config: {', '.join(missing)} missing")
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"not a FastViTHD config: {error}") from None


@dataclass(frozen=True)
class ConnectorConfig:
    """The projector between encoder and LLM, as LLaVA's `mm_projector_type` names it.

    Attributes:
        kind: `identity`, `linear` or `mlp{k}x_gelu` (k linear layers with GELU between them).
        in_channels: channels of a visual token.
        out_channels: width of the LLM's embeddings.
    """

    kind: str = "mlp2x_gelu"
    in_channels: int = 3072
    out_channels: int = 896

    def __post_init__(self) -> None:
        if self.kind == "identity" and self.in_channels != self.out_channels:
            raise ConfigError(f"an identity connector cannot map {self.in_channels} to {self.out_channels} channels")
        _ = self.num_layers

    @property
    def num_layers(self) -> int:
        """Linear layers: 0 for `identity`, 1 for `linear`, k for `mlp{k}x_gelu`."""
        if self.kind in ("identity", "linear"):
            return ("identity", "linear").index(self.kind)
        match = re.fullmatch(r"mlp([0-9]{1,2})x_gelu", self.kind)
        if match and 0 < int(match[1]) <= MAX_CONNECTOR_LAYERS:
            return int(match[1])
        known = f"identity, linear and mlp1x_gelu to mlp{MAX_CONNECTOR_LAYERS}x_gelu"
        raise ConfigError(f"unknown connector {self.kind[:80]!r}; known are {known}")


VARIANTS: dict[str, FastViTHDConfig] = {
    "fastvithd": FastViTHDConfig(),
    "tiny": FastViTHDConfig(depths=(1, 1, 2, 1, 1), dims=(8, 16, 32, 64, 128)),
}
"""Named architectures: the released one, and a small one for tests and quick trials."""


def get_variant(name: str) -> FastViTHDConfig:
    """The config of a named variant; raises ConfigError with the nearest name otherwise."""
    if name in VARIANTS:
        return VARIANTS[name]
    raise ConfigError(f"unknown variant {name!r}; {did_you_mean(name, VARIANTS)}")


def variant_name(config: FastViTHDConfig) -> str:
    """The name under which `config` stands in VARIANTS, or `custom`."""
    return next((name for name, known in VARIANTS.items() if known == config), "custom")
