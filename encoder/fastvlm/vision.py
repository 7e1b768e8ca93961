"""What stands in for the vision tower: the eager encoder here, or an exported artifact (`export.runtime`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..exact import exact_float32
from ..fastvithd import FastViTHD
from ..preprocess_config import RELEASED, PreprocessConfig


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
        """Levels 0..255, uint8 (B, 3, H, W), or normalized floats -> tokens (B, N, C), floating; any B at once."""
        ...


class EagerTower:
    """The PyTorch encoder itself, channels-last, in the form that the checkpoint has.

    Args:
        encoder: taken over: moved to `device` and `dtype`.
        device: where it runs.
        dtype: of weights and activations; in float16 the released weights overflow at 1024 x 1024.
        preprocessing: the checkpoint's; levels are normalized by it.
    """

    name = "eager"
    projected = False
    resolution: tuple[int, int] | None = None

    def __init__(
        self, encoder: FastViTHD, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
        preprocessing: PreprocessConfig = RELEASED,
    ) -> None:  # fmt: skip
        self.encoder = encoder.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device, self.dtype, self.preprocessing = torch.device(device), dtype, preprocessing

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Levels 0..255, uint8 (B, 3, H, W), or normalized floats -> tokens (B, N, C) in the tower's dtype."""
        x = pixels.to(self.device)
        x = (x if x.is_floating_point() else self.preprocessing.normalize_tensor(x)).to(self.dtype)
        with exact_float32():
            return self.encoder(x.contiguous(memory_format=torch.channels_last))


@dataclass(frozen=True)
class EncodedImages:
    """Images as the language model sees them, for any number of questions.

    Attributes:
        tokens: for each image (n, d), in the language model's dtype: of one frame, or of overview and tiles together.
        tower: what encoded them; None where there are none.
        preprocess_ms, encoder_ms, connector_ms: what it took; the connector's is 0 where the artifact has it within.
    """

    tokens: tuple[Tensor, ...]
    tower: str | None
    preprocess_ms: float
    encoder_ms: float
    connector_ms: float

    @property
    def counts(self) -> tuple[int, ...]:
        """Visual tokens of each image."""
        return tuple(len(tokens) for tokens in self.tokens)
