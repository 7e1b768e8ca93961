"""`Prediction`: milliseconds of one call of the encoder, by part and by who computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREDICTED = "predicted, not measured"


@dataclass(frozen=True)
class Prediction:
    """Predicted milliseconds of one call of the encoder.

    Attributes:
        gpu, side, batch: what for.
        parts: milliseconds by part of the model and by who computes it: `before`, `after`, and the rivals.
        launches: kernels by who computes it.
        floor: milliseconds below which no kernels of any kind can be, part by part.
        alone: total milliseconds of the release's kernels with today's block sizes, the first row, and one change.
        together: total with this change and all before it.
    """

    gpu: str
    side: int
    batch: int
    parts: Mapping[str, Mapping[str, float]]
    launches: Mapping[str, int]
    floor: Mapping[str, float]
    alone: Mapping[str, float]
    together: Mapping[str, float]

    @property
    def contenders(self) -> tuple[str, ...]:
        """Who computes the encoder, `before` and `after` first."""
        return tuple(self.launches)

    def total(self, contender: str) -> float:
        """Milliseconds of all parts."""
        return sum(row[contender] for row in self.parts.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        totals = {name: self.total(name) for name in self.contenders}
        return {
            "what": PREDICTED, "unit": "ms", "gpu": self.gpu, "resolution": self.side, "batch": self.batch,
            "total": totals, "parts": self.parts, "launches": self.launches, "floor": self.floor,
            "changes_alone": self.alone, "changes_together": self.together,
        }  # fmt: skip
