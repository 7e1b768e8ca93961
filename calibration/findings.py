"""What calibration finds of a model and an artifact records: how it stays inside FP16, and what each layer costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fp16Plan:
    """How one model is kept inside FP16.

    Attributes:
        exponents: per stage; its stream is multiplied by 2^exponent, 0 or less.
        float32: names of the modules that run in float32.
        peaks: activations that passed 65504 / headroom before, by tap.
        headroom: how many times larger than on the calibration images activations may become.
    """

    exponents: tuple[int, ...]
    float32: tuple[str, ...]
    peaks: dict[str, float]
    headroom: float

    @property
    def needed(self) -> bool:
        """Whether the model has to be changed at all."""
        return any(self.exponents) or bool(self.float32)


@dataclass(frozen=True)
class LayerNoise:
    """One quantized layer.

    Attributes:
        name: of its module.
        kind: as in the policy's table.
        sqnr_db: stricter SQNR of the final features if this layer alone is quantized, see `Figures.strict_sqnr_db`.
        share: of all quantized layers' multiply-adds.
    """

    name: str
    kind: str
    sqnr_db: float
    share: float

    @property
    def noise(self) -> float:
        """Error over signal, as powers."""
        return float(10 ** (-self.sqnr_db / 10))
