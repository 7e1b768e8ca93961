"""Intervals hold the truth as often as they say, whatever the noise; ratios behave as ratios do."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvexport.benchmarks.report.intervals import MIN_WINDOWS, median_interval, ratio_interval

TIMES = st.lists(st.floats(0.01, 1e5), min_size=MIN_WINDOWS, max_size=12)


def draws(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Windows whose median is 1: quiet noise, or noise with a busy machine in every tenth."""
    log = rng.normal(0, 0.02, count)
    if kind == "busy":
        busy = rng.random(count) < 0.1
        log = log + busy * rng.choice([-0.4, 0.4], count)  # both ways, so that the median stays
    return np.exp(log)


@pytest.mark.parametrize("kind", ["quiet", "busy"])
@pytest.mark.parametrize("count", [MIN_WINDOWS, 9])
def test_coverage(kind: str, count: int) -> None:
    """Of 200 intervals of known ratios about 95 % hold the ratio; the draws are the same in every run."""
    rng = np.random.default_rng(count)
    one = two = 0
    for _ in range(200):
        interval = median_interval(3 * draws(kind, count, rng))
        one += interval.low <= 3 <= interval.high
        interval = ratio_interval(draws(kind, count, rng), 1.3 * draws(kind, count, rng))
        two += interval.low <= 1.3 <= interval.high
    assert one / 200 >= 0.92 and two / 200 >= 0.93, (one, two)


def test_an_interval_is_no_wider_than_it_must_be() -> None:
    """With many windows it comes to the textbook's: the median's standard error is sqrt(pi / 2 / n) deviations."""
    rng = np.random.default_rng(0)
    widths = []
    for _ in range(10):
        interval = median_interval(draws("quiet", 200, rng))
        widths.append(math.log(interval.high / interval.low))
    expected = 2 * 1.96 * 0.02 * math.sqrt(math.pi / 2 / 200)
    assert 0.85 < np.mean(widths) / expected < 1.15


def test_known_answers() -> None:
    assert median_interval([2.0] * 6) == median_interval([2.0] * 9)
    same = median_interval([2.0] * 6)
    assert (same.value, same.low, same.high) == pytest.approx((2, 2, 2))
    change = ratio_interval([10.0] * 5, [12.0] * 5)
    assert (change.value, change.low, change.high) == pytest.approx((1.2, 1.2, 1.2))
    assert change.beyond(0.1) and not change.beyond(0.25) and not change.below(0.1)
    assert ratio_interval([12.0] * 5, [9.0] * 5).below(0.2)


@pytest.mark.parametrize("count", range(1, MIN_WINDOWS))
def test_too_few_windows_have_no_interval(count: int) -> None:
    found = [
        median_interval([4.0] * count),
        ratio_interval([1.0] * 9, [4.0] * count),
        ratio_interval([1.0] * count, [4.0] * 9),
    ]
    for interval in found:
        assert interval.value == pytest.approx(4) and interval.low is interval.high is None
        assert not interval.beyond(0) and not interval.below(0)


@settings(max_examples=25, deadline=None)
@given(TIMES, TIMES, st.floats(0.1, 10), st.randoms(use_true_random=False))
def test_ratios(base: list[float], new: list[float], scale: float, rng: random.Random) -> None:
    """The value lies inside; order does not matter; a factor goes through; swapping both inverts the value."""
    found = ratio_interval(base, new)
    assert found.low <= found.value <= found.high
    shuffled = rng.sample(new, len(new))
    assert ratio_interval(base, shuffled) == found
    scaled = ratio_interval(base, [scale * time for time in new])
    for ours, theirs in zip((found.value, found.low, found.high), (scaled.value, scaled.low, scaled.high), strict=True):
        assert theirs == pytest.approx(scale * ours, rel=1e-9)
    assert ratio_interval(new, base).value == pytest.approx(1 / found.value, rel=1e-9)
