"""Confidence intervals by bootstrap, for the few windows that a benchmark keeps.

What is resampled is the window (one for each round of a sweep), not the call: calls in a row are not independent.
The statistic is the median of the logarithm, so that a ratio and its inverse have the same interval turned round, and
one window in which the machine was busy moves nothing.

With few windows the plain percentile bootstrap is too narrow. The interval is therefore widened as Hesterberg's "What
Teachers Should Know about the Bootstrap" (2015) does: deviations are scaled by sqrt(n / (n - 1)), and percentiles are
taken where Student's t of n - 1 degrees of freedom (n + m - 2 for two samples) has its 2.5 and 97.5 % points.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..bootstrap import resampled

LEVEL = 0.95
RESAMPLES = 10_000
MIN_WINDOWS = 5
"""With fewer no interval is given: coverage falls under 95 %."""


@dataclass(frozen=True)
class Interval:
    """A ratio of medians, and its 95 % interval; `low` and `high` are None with too few windows."""

    value: float
    low: float | None = None
    high: float | None = None

    def beyond(self, threshold: float) -> bool:
        """Whether the whole interval is larger than 1 + `threshold`."""
        return self.low is not None and self.low > 1 + threshold

    def below(self, threshold: float) -> bool:
        """Whether the whole interval is smaller than 1 - `threshold`."""
        return self.high is not None and self.high < 1 - threshold


def median_interval(values: Sequence[float]) -> Interval:
    """The median of positive values, such as ratios taken within rounds, and its interval."""
    return _median_interval(tuple(values))


@functools.lru_cache(maxsize=4096)
def _median_interval(values: tuple[float, ...]) -> Interval:
    """Remembered, since a page says the same of a cell in several places."""
    logs = np.log(np.asarray(values, np.float64))
    center = float(np.median(logs))
    if len(logs) < MIN_WINDOWS:
        return Interval(math.exp(center))
    return _between(center, _medians(logs, 0), len(logs) - 1)


def ratio_interval(base: Sequence[float], new: Sequence[float]) -> Interval:
    """Median of `new` over median of `base`, positive values of two independent runs, and its interval."""
    a, b = np.log(np.asarray(base, np.float64)), np.log(np.asarray(new, np.float64))
    center = float(np.median(b) - np.median(a))
    if min(len(a), len(b)) < MIN_WINDOWS:
        return Interval(math.exp(center))
    return _between(center, _medians(b, 1) - _medians(a, 0), len(a) + len(b) - 2)


def _between(center: float, resampled: np.ndarray, freedom: int) -> Interval:
    from scipy.special import ndtr, stdtrit

    tail = float(ndtr(stdtrit(freedom, (1 - LEVEL) / 2)))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    # Where most windows are equal the resamples may all lie on one side of the median that is shown.
    return Interval(math.exp(center), math.exp(min(low, center)), math.exp(max(high, center)))


def _medians(logs: np.ndarray, stream: int) -> np.ndarray:
    """Medians of resamples (RESAMPLES,), the same in every run, so that the same results give the same report."""
    count = len(logs)
    # Sorted first: which round was which makes no difference, so neither may it to the draw.
    ordered = np.sort(logs)
    center = np.median(ordered)
    spread = center + math.sqrt(count / (count - 1)) * (ordered - center)
    return resampled(spread, lambda samples: np.median(samples, axis=1), RESAMPLES, [stream, count])
