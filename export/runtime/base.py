"""What every backend is."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Backend(Protocol):
    """Something that turns pixels into features.

    Attributes:
        name: as in the table of targets.
        computes: how it computes, in words for a report.
    """

    name: str
    computes: str

    def run(self, pixel_values: np.ndarray) -> np.ndarray:
        """`pixel_values` (B, 3, H, W), float32 or uint8 -> features (B, N, C) float32."""
        ...
