"""Error statistics between a candidate's features and the reference's."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figures:
    """How far `candidate` is from `reference`, both (B, N, C); or worst of several such.

    Attributes:
        max_abs: largest absolute difference.
        rel_l2: ||candidate - reference|| / ||reference||.
        cosine: mean over tokens of the cosine between the two.
        cosine_min: that of the worst token.
        sqnr_db: signal over error, 20 log10(1 / rel_l2), in dB.
        finite: whether every value of the candidate is finite.
    """

    max_abs: float
    rel_l2: float
    cosine: float
    cosine_min: float
    sqnr_db: float
    finite: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data; infinite and undefined values as None, which JSON can hold."""
        return {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in asdict(self).items()}


def compare(reference: np.ndarray, candidate: np.ndarray) -> Figures:
    """The figures of one pair (B, N, C), computed in float64.

    Raises ValueError where the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: reference {reference.shape}, candidate {candidate.shape}")
    if not np.isfinite(candidate).all():
        return Figures(math.nan, math.nan, math.nan, math.nan, math.nan, finite=False)
    if not np.isfinite(reference).all():  # nothing agrees with it, and no comparison with NaN may pass
        return Figures(math.inf, math.inf, -1.0, -1.0, -math.inf, finite=True)
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    error = float(np.linalg.norm(b - a))
    signal = float(np.linalg.norm(a))
    rel_l2 = error / signal if signal else (0.0 if error == 0 else math.inf)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    dots = (a * b).sum(-1)
    # A token of zeros has no direction: it agrees with zeros alone.
    cosines = np.where(norms > 0, dots / np.where(norms > 0, norms, 1), (a == b).all(-1))
    return Figures(
        max_abs=float(np.abs(b - a).max(initial=0.0)),
        rel_l2=rel_l2,
        cosine=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        sqnr_db=-20 * math.log10(rel_l2) if 0 < rel_l2 < math.inf else (math.inf if rel_l2 == 0 else -math.inf),
        finite=True,
    )


def worst(figures: list[Figures]) -> Figures:
    """The worst of each statistic over several images."""
    if not all(f.finite for f in figures):
        return next(f for f in figures if not f.finite)
    return Figures(
        max_abs=max(f.max_abs for f in figures),
        rel_l2=max(f.rel_l2 for f in figures),
        cosine=min(f.cosine for f in figures),
        cosine_min=min(f.cosine_min for f in figures),
        sqnr_db=min(f.sqnr_db for f in figures),
        finite=True,
    )
