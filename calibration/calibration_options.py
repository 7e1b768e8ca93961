"""What a calibration is asked for. Imports nothing heavy: the command line reads its choices from here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, get_args

from ..core.errors import ConfigError

Method = Literal["weighted", "mse", "minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT_SAMPLES = 64
FP16_SAMPLES = 4
"""Pictures that FP16's largest values are looked for on where none are named; the headroom covers the rest."""


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """One calibration, and the bound that its quantized model has to meet.

    Attributes:
        calib: a folder, a list, an image, or `sample` (also None) for scikit-image's photographs.
        ranges: a file that `fvexport calibrate` wrote, instead of calibrating now.
        samples: pictures; crops are taken where there are fewer photographs. None for 64, or 4 for FP16's extremes.
        method: how ranges are chosen.
        seed: of crops.
        min_sqnr: dB that the quantized features must reach, by the lower of the plain and the centred SQNR; the most
            sensitive layers stay in float for it.
        min_cosine: the same bound as a cosine, see `bound`.
    """

    calib: str | os.PathLike[str] | None = None
    ranges: str | os.PathLike[str] | None = None
    samples: int | None = None
    method: Method = "weighted"
    seed: int = 0
    min_sqnr: float | None = None
    min_cosine: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"unknown calibration method {self.method!r}; known are {', '.join(METHODS)}")
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"--samples must be at least 1; found {self.samples}")
        if self.ranges is not None and self.calib is not None:
            raise ConfigError("--ranges holds the calibration that --calib would make; give one of them")
        if self.min_sqnr is not None and not 0 < self.min_sqnr < 200:
            raise ConfigError(f"--min-sqnr is in dB, above 0; found {self.min_sqnr:g}")
        if self.min_cosine is not None and not 0 < self.min_cosine < 1:
            raise ConfigError(f"--min-cosine goes from 0 to 1; found {self.min_cosine:g}")

    @property
    def bound(self) -> float | None:
        """The SQNR to reach in dB; a cosine c stands for noise of power 1 / c^2 - 1 beside a signal of power 1."""
        import math

        bounds = [] if self.min_sqnr is None else [self.min_sqnr]
        if self.min_cosine is not None:
            bounds.append(-10 * math.log10(1 / self.min_cosine**2 - 1))
        return max(bounds, default=None)
