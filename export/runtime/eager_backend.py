"""The PyTorch model itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ...encoder.connector import Connector
from ...encoder.exact import exact_float32
from ...encoder.fastvithd import FastViTHD
from .pixels import as_tensor


class EagerBackend:
    """Runs the eager model, in the dtype of its weights.

    Args:
        encoder: in any form, on any device.
        connector: applied to its features if given.
    """

    name = "eager"

    def __init__(self, encoder: FastViTHD, connector: Connector | None = None) -> None:
        self.encoder = encoder
        self.connector = connector
        weight = next(encoder.parameters())
        self.dtype, self.device = weight.dtype, weight.device
        self.computes = f"PyTorch, {encoder.form} form, {str(self.dtype).removeprefix('torch.')}"

    def run(self, pixel_values: np.ndarray) -> np.ndarray:
        """`pixel_values` (B, 3, H, W), float32 normalized, or uint8 for a uint8 model -> (B, N, C) float32."""
        with self.mode():
            return self.forward(self.pixels(as_tensor(pixel_values))).float().cpu().numpy()

    def pixels(self, pixel_values: Tensor) -> Tensor:
        """`pixel_values` as the model takes them: on its device, and where they are floating in its dtype."""
        x = pixel_values.to(self.device)
        return x.to(self.dtype) if x.is_floating_point() else x

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, C), to be called inside `mode()`."""
        y = self.encoder(x)
        return y if self.connector is None else self.connector(y)

    @contextmanager
    def mode(self) -> Iterator[None]:
        """Without gradients, with float32 in full (no TF32)."""
        with torch.inference_mode(), exact_float32():
            yield
