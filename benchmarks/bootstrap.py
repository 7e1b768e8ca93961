"""The bootstrap: a statistic on resamples of what was measured (Efron and Tibshirani 1993, chapter 13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

AT_ONCE = 1 << 26
"""Bytes of resamples that are held at once."""


def resampled(
    values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], count: int, seed: int | Sequence[int]
) -> np.ndarray:
    """The statistic (count,) of `count` resamples with replacement, the same for the same seed.

    Args:
        values: (items, ...), at least one item.
        statistic: from resamples (R, items, ...) to a value of each (R,).
        count: how many resamples are drawn, each of as many items as there are.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, AT_ONCE // values.nbytes)
    sizes = [min(chunk, count - start) for start in range(0, count, chunk)]
    drawn = (rng.integers(len(values), size=(size, len(values))) for size in sizes)
    return np.concatenate([statistic(values[indices]) for indices in drawn])
