"""Confidence intervals by resampling items, the same items for both sides of a comparison.

Source: Efron and Tibshirani 1993, chapter 13 (percentile intervals); paired as in Koehn 2004 for BLEU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95

Figure = Callable[[np.ndarray], float]
"""Mean statistics (S,) of some items -> a metric."""


@dataclass(frozen=True)
class Difference:
    """A metric's difference between two candidates on the same items.

    Attributes:
        value: candidate minus reference.
        low, high: the percentile interval at `LEVEL`.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def mean(statistics: np.ndarray) -> float:
    """The figure of a metric that is a mean over items."""
    return float(statistics[0])


def paired_difference(
    ours: np.ndarray, reference: np.ndarray, figure: Figure = mean, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """How far a metric lies from the reference's, and how sure that is.

    Args:
        ours, reference: statistics of the same items, (items, S), at least one.
        figure: from their mean to the metric.
        resamples: how often items are drawn, as many as there are, with replacement.
        seed: of the draws.
    """
    both = np.concatenate([ours, reference], axis=1)
    width = ours.shape[1]

    def difference(means: np.ndarray) -> float:
        return figure(means[:width]) - figure(means[width:])

    rng = np.random.default_rng(seed)
    drawn = [difference(both[rng.integers(len(both), size=len(both))].mean(axis=0)) for _ in range(resamples)]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(difference(both.mean(axis=0)), float(low), float(high))
