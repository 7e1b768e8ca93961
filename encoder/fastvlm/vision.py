"""What stands in for the vision tower: the eager encoder here, or an exported artifact (`export.runtime`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint
from ..connector import Connector
from ..fastvithd import FastViTHD


class VisionTower(Protocol):
    """Something that turns pixels into visual tokens.

    Attributes:
        name: for reports: `eager`, or the artifact's backend.
        projected: the tokens are the connector's: (B, N, width of the language model).
        resolution: the only (height, width) it takes, or None for any multiples of the stride.
    """

    name: str
    projected: bool
    resolution: tuple[int, int] | None

    def encode(self, pixels: Tensor) -> Tensor:
        """Levels 0..255, uint8 (B, 3, H, W), or floats in [0, 1] -> tokens (B, N, C), floating; any B at once."""
        ...


@dataclass(frozen=True)
class EncodedImages:
    """Images as the language model sees them, for any number of questions.

    Attributes:
        tokens: for each image (n, d), in the language model's dtype: of one frame, or of overview and tiles together.
        preprocess_ms, encoder_ms, connector_ms: what it took; the connector's is 0 where the artifact has it within.
    """

    tokens: tuple[Tensor, ...]
    preprocess_ms: float
    encoder_ms: float
    connector_ms: float

    @property
    def counts(self) -> tuple[int, ...]:
        """Visual tokens of each image."""
        return tuple(len(tokens) for tokens in self.tokens)
