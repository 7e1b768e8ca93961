"""What features are compared with: photographs at one resolution, and the eager model's features of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..output_path import put_file, scratch_beside
from .figures import Comparison, Figures


@dataclass(frozen=True)
class Reference:
    """The photographs at one resolution.

    Attributes:
        values: (P, 3, H, W), as the reference takes them.
        features: (P, N, C) float32, of the reference.
        seen: (P, N) bool, the tokens to judge: those that see a part of the photograph, not padding alone.
    """

    values: np.ndarray
    features: np.ndarray
    seen: np.ndarray

    @classmethod
    def of(cls, run: Callable[[np.ndarray], np.ndarray], values: np.ndarray, seen: Sequence[np.ndarray]) -> Reference:
        """What `run` makes of each photograph of `values`, one at a time; `seen` has (N,) bool for each."""
        return cls(values, np.concatenate([run(one[None]) for one in values]), np.stack(seen))

    def save(self, file: Path) -> None:
        """Writes an `.npz` file; killed at any moment, `file` is whole or not there."""
        with scratch_beside(file) as scratch:
            with scratch.open("wb") as stream:
                np.savez(stream, values=self.values, features=self.features, seen=self.seen)
            put_file(scratch, file)

    @classmethod
    def load(cls, file: str) -> Reference:
        """The inverse of `save`; files of earlier versions judge every token."""
        with np.load(file) as known:
            features = known["features"]
            seen = known["seen"] if "seen" in known else np.ones(features.shape[:2], bool)
            return cls(known["values"], features, seen)

    def figures(
        self, run: Callable[[np.ndarray], np.ndarray], *, batch: int = 1, first: np.ndarray | None = None
    ) -> Figures:
        """The worst figures of a function from pixel values (B, 3, H, W) to features (B, N, C).

        Args:
            run: the function.
            batch: images per call. A batch with more images than there are photographs repeats them.
            first: the result of the first call, if it is known.
        """
        found = Comparison()
        count = len(self.values)
        for start in range(0, max(1, count - batch + 1), batch):
            rows = np.resize(np.arange(start, count), batch)
            features = run(self.values[rows]) if first is None or start else first
            for row, photograph in enumerate(rows):
                found.add(self.features[photograph], features[row], picture=int(photograph), seen=self.seen[photograph])
        return found.figures
