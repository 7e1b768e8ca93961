"""The time to first token as a cell's call: encoder, connector, and a seeded language model's pass over all tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...encoder.config import ConnectorConfig
from ...encoder.connector import Connector
from ...encoder.reparameterize import reparameterize
from ...encoder.seeded import seed_weights
from ..tasks.ttft import Vision, measure_ttft, seeded_language_model
from .loading import Loaded
from .messages import WeightSource
from .result import Cell


class TtftTimer:
    """A `Timer` whose call is one image's time to first token; its parts are kept in `parts`.

    Args:
        cell: of kind `ttft`.
        weights: the checkpoint, whose connector is taken where it fits the language model.
        model: the encoder, loaded.
        pixel_values: (tiles, 3, H, W) float32.
    """

    name = "wall"

    def __init__(self, cell: Cell, weights: WeightSource, model: Loaded, pixel_values: np.ndarray) -> None:
        self.cell, self.model = cell, model
        dtype = self._dtype()
        self.note = f"language model in {str(dtype).removeprefix('torch.')}, connector in float32"
        self.language_model = seeded_language_model(cell.llm, dtype=dtype, device=model.device)  # type: ignore[arg-type]
        width = self.language_model.config.hidden_size
        self.vision = Vision(self._encode, _connector(weights, width).to(model.device))
        self.x = torch.from_numpy(pixel_values).to(model.device)
        self.parts: list[tuple[float, float, float]] = []

    def once(self) -> float:
        """Milliseconds of the three parts together."""
        found = measure_ttft(
            self.vision, self.language_model, self.x, prompt_tokens=self.cell.prompt_tokens or 0, rounds=1, warmup=0
        )
        self.parts.append((found.encoder_ms, found.connector_ms, found.prefill_ms))
        return found.ttft_ms

    def _dtype(self) -> torch.dtype:
        """Of the language model: the cell's own where it is a float the device multiplies well."""
        if self.cell.precision == "bf16":
            return torch.bfloat16
        return torch.float32 if self.cell.precision == "fp32" or self.model.device == "cpu" else torch.float16

    def _encode(self, pixel_values: Tensor) -> Tensor:
        """As many calls as there are tiles: the artifact takes one image."""
        return torch.cat([self._one(tile[None]) for tile in pixel_values])

    def _one(self, pixel_values: Tensor) -> Tensor:
        if self.model.run_tensor is not None:
            return self.model.run_tensor(pixel_values).float()
        return torch.from_numpy(self.model.run(pixel_values.cpu().numpy())).to(pixel_values.device)


def _connector(weights: WeightSource, width: int) -> Connector:
    """The checkpoint's own, or one of the released kind with seeded weights where that is of another width."""
    checkpoint = weights.load()
    connector = checkpoint.connector
    if connector is None or connector.config.out_channels != width:
        config = ConnectorConfig(in_channels=checkpoint.encoder.config.out_channels, out_channels=width)
        connector = Connector(config)
        seed_weights(connector)
    return reparameterize(connector).eval()
