"""Which photographs calibrate, and which test: no scene is on both sides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ...calibration.photos import CalibrationData, calibration_data
from ...encoder.image import sample_images
from ...encoder.preprocess import Preprocessor

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

CALIBRATION = (
    *("astronaut", "brick", "clock_motion", "coins", "hubble_deep_field", "motorcycle_left", "motorcycle_right"),
    "retina",
)
TEST = ("camera", "chelsea", "coffee", "grass", "gravel", "ihc", "moon", "rocket")
"""Each half has textures, grey pictures and colours. The motorcycle's two views show one scene."""


@dataclass(frozen=True)
class Photographs:
    """What every tool calibrates on and every file is tested on.

    Attributes:
        listing: the calibration photographs, one path a line: what `--calib` takes.
        samples: calibration inputs; beyond the photographs' number they are crops.
        resolution: side of the square in pixels.
    """

    listing: Path
    samples: int
    resolution: int

    @classmethod
    def write(
        cls, listing: Path, samples: int, resolution: int, names: Iterable[str] = CALIBRATION
    ) -> Photographs:  # fmt: skip
        """Writes the list of the photographs `names`; raises UnavailableError where scikit-image is not installed."""
        paths = sample_images()
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{paths[name].resolve()}\n" for name in names), encoding="utf-8")
        return cls(listing, samples, resolution)

    @cached_property
    def calibration(self) -> CalibrationData:
        """The choice of crops: the one that our own calibration makes of the list."""
        return calibration_data(self.listing, self.samples)

    def sample(self, index: int) -> Floats:
        """One calibration input (1, 3, H, W) in [0, 1]."""
        pixels = self.calibration.pixels(index, self._preprocessor)[None]
        return np.divide(pixels, 255, dtype=np.float32)

    def tests(self) -> dict[str, Floats]:
        """The test inputs by name, each (1, 3, H, W) in [0, 1]."""
        paths = sample_images()
        return {name: self._preprocessor(paths[name]) for name in TEST}

    @property
    def _preprocessor(self) -> Preprocessor:
        return Preprocessor(self.resolution, self.resolution)
