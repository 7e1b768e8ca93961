"""Confidence intervals by resampling items, the same items for both sides of a comparison.

Source: Efron and Tibshirani 1993, chapter 13 (percentile intervals); paired as in Koehn 2004 for BLEU. Shares have
Wilson's interval (1927), which stays honest where all items agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..bootstrap import resampled

RESAMPLES = 2000
LEVEL = 0.95
Z = 1.959964
"""Quantile of the normal distribution for `LEVEL`."""

Figure = Callable[[np.ndarray], float]
"""Mean statistics (S,) of some items -> a metric."""


@dataclass(frozen=True)
class Interval:
    """A figure, and what it may be on other items of the same kind: `low` to `high` at `LEVEL`."""

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
) -> Interval:
    """How far a metric lies from the reference's, and how sure that is.

    Args:
        ours, reference: statistics of the same items, (items, S), at least one.
        figure: from their mean to the metric.
        resamples: how often items are drawn, as many as there are, with replacement.
        seed: of the draws.
    """
    both = np.concatenate([ours, reference], axis=1)
    width = ours.shape[1]

    def differences(samples: np.ndarray) -> np.ndarray:
        return np.array([figure(means[:width]) - figure(means[width:]) for means in samples.mean(axis=1)])

    drawn = resampled(both, differences, resamples, seed)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(differences(both[None])[0]), float(low), float(high))


def average(values: np.ndarray) -> Interval:
    """The mean of (items,) values, at least one, with its percentile interval."""
    column = values[:, None].astype(np.float64)
    return paired_difference(column, np.zeros_like(column))


def share(agreeing: np.ndarray) -> Interval:
    """The share of items for which something holds, (items,) of truth values, at least one."""
    count, value = len(agreeing), float(np.mean(agreeing))
    scale = 1 + Z**2 / count
    middle = (value + Z**2 / (2 * count)) / scale
    half = Z / scale * (value * (1 - value) / count + Z**2 / (4 * count**2)) ** 0.5
    return Interval(value, max(0.0, middle - half), min(1.0, middle + half))
