"""From a histogram to the range that eight bits cover, and from the range to scale and zero point.

    minmax      everything that was seen
    percentile  all but a share of the values (99.99 %)
    entropy     least Kullback-Leibler divergence between the values before and after (TensorRT's calibrator, after
                S. Migacz, "8-bit Inference with TensorRT", GTC 2017)
    mse         least mean squared error: rounding inside the range against clipping outside
    weighted    the same, with clipping weighing CLIPPING times: the default

Where a GELU follows, the error is taken after it: what GELU flattens needs no resolution. And both leave room for
what so many samples cannot have shown: once channels are alike, each of them may pass the largest value seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..core.errors import ConfigError
from .calibration_options import METHODS, Method
from .histograms import Histogram
from .qdq import FP8, FP8_MAX, Quantizer

PERCENTILE = 0.9999
ROOM = 3.0
"""The range grows by this over the square root of the samples: 2 % at 16384, 19 % at 256."""
LEVELS = 255
"""Steps between the ends of an eight-bit range."""
CLIPPING = 100.0
"""What clipping's squared error weighs in `weighted`: it has one sign, falls on the values that a network made large on
purpose, and does not average out in the sums that follow. On a trained model it is worth 5 to 10 dB."""
EXACT_STEPS = 4
"""Steps around 0 within which `mse` rounds exactly."""
SPANS = tuple(
    tuple(ratio**power for power in powers)
    for ratio, powers in ((0.75, range(17)), (0.94, range(-4, 5)), (0.985, range(-3, 4)), (0.995, range(-2, 3)))
)
"""What `mse` tries, as shares of each end: down to 1 % of it, then finer and finer around the best."""


@dataclass(frozen=True)
class Range:
    """The values from `low` <= 0 to `high` >= 0 that a tensor's eight bits cover."""

    low: float
    high: float

    def quantizer(self, dtype: torch.dtype) -> Quantizer:
        """Q/DQ over this range: uint8 with a zero point, int8 or FP8 around 0."""
        peak = max(-self.low, self.high)
        if dtype == FP8:
            return Quantizer(peak / FP8_MAX if peak else 1.0, 0, dtype)
        if dtype == torch.int8:
            return Quantizer(peak / 127 if peak else 1.0, 0, dtype)
        step = (self.high - self.low) / LEVELS
        return Quantizer(step, round(-self.low / step), dtype) if step else Quantizer(1.0, 0, dtype)


def choose_range(
    histogram: Histogram, method: Method, *, symmetric: bool, before_gelu: bool = False, samples: int = 0
) -> Range:
    """The range of one tensor (a histogram without channels).

    Args:
        histogram: of its values.
        method: one of METHODS.
        symmetric: the range is [-a, a], otherwise any that holds 0.
        before_gelu: take errors after a GELU.
        samples: positions that were seen, for `mse`'s room; 0 for none.

    Raises:
        ConfigError: an unknown method, or values that are not finite.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown calibration method {method!r}; known are {', '.join(METHODS)}")
    low, high = float(histogram.low), float(histogram.high)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError("an activation is infinite or undefined: the checkpoint is damaged")
    full = Range(min(0.0, low), max(0.0, high))
    if method == "minmax" or full.low == full.high or not histogram.counts.sum():
        return full
    if method == "percentile":
        return _percentile(histogram, full)
    if method == "entropy":
        return _entropy(histogram, full)
    best = _least_error(histogram, full, symmetric, before_gelu, CLIPPING if method == "weighted" else 1.0)
    room = 1 + (ROOM / samples**0.5 if samples else 0.0)
    return Range(best.low * room, best.high * room)


def _percentile(histogram: Histogram, full: Range) -> Range:
    """Leaves out half of the share at each end, to the outer edge of a bin."""
    bins = histogram.counts.shape[1]
    below = histogram.counts[0].double().cumsum(0)
    outside = (1 - PERCENTILE) / 2 * below[-1]
    first, last = int((below <= outside).sum()), int((below < below[-1] - outside).sum())
    width, limit = 2 * float(histogram.limit) / bins, float(histogram.limit)
    low, high = first * width - limit, (last + 1) * width - limit
    return Range(max(full.low, min(low, 0.0)), min(full.high, max(high, 0.0)))


def _least_error(histogram: Histogram, full: Range, symmetric: bool, before_gelu: bool, clipping: float) -> Range:
    """A grid over both ends, finer and finer around the best."""
    middles, share = histogram.points()
    kept = share > 0
    ends = torch.tensor([full.low, full.high], dtype=torch.float64)
    # Extremes are of all values, counts of samples that may have missed them: each stands for one value more.
    once = (1 if clipping > 1 else 0) / histogram.counts.sum().double()
    middles = torch.cat([middles[kept].double(), ends])
    share = torch.cat([share[kept].double(), once.expand(2)])
    see = F.gelu if before_gelu else lambda x: x
    wanted = see(middles)

    def error(low: Tensor, high: Tensor) -> Tensor:
        """Mean squared error of each candidate (n,): clipping, and rounding as uniform noise of its slope.

        Where values crowd around 0 beside outliers, most of them round to 0, which is no noise: there it is exact.
        """
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        step = (high - low)[:, None] / LEVELS
        clipped = middles.clamp(low[:, None], high[:, None])
        noise = (see(clipped + step / 4) - see(clipped - step / 4)) ** 2 / 3  # = step^2 / 12 where `see` is x
        exact = (see((clipped / step).round() * step) - wanted) ** 2
        lost = clipping * (see(clipped) - wanted) ** 2
        crowded = middles.abs() < EXACT_STEPS * step
        if clipping > 1:
            crowded &= clipped == middles
        return torch.where(crowded, exact, lost + noise) @ share

    best = ends
    for spans in SPANS:
        shares = torch.tensor(spans, dtype=torch.float64)
        pairs = shares[:, None] * best if symmetric else torch.cartesian_prod(shares * best[0], shares * best[1])
        best = pairs[error(pairs[:, 0], pairs[:, 1]).argmin()]
    low, high = float(best[0]), float(best[1])
    return Range(max(low, full.low), min(high, full.high))


def _entropy(histogram: Histogram, full: Range) -> Range:
    """The symmetric limit of least divergence; the ends of the values seen cut it where they are closer."""
    bins = histogram.counts.shape[1] // 2
    counts = histogram.counts[0]
    folded = (counts[bins:] + counts[:bins].flip(0)).double()  # by absolute value
    limit = float(histogram.limit)
    best, chosen = torch.inf, limit
    for stop in range(128, bins + 1, 8):
        reference = folded[:stop].clone()
        reference[-1] += folded[stop:].sum()
        divergence = _divergence(reference, folded[:stop])
        if divergence < best:
            best, chosen = divergence, limit * stop / bins
    return Range(max(full.low, -chosen), min(full.high, chosen))


def _divergence(reference: Tensor, inside: Tensor, levels: int = 128) -> float:
    """KL(reference || inside at `levels` values), both normalized; bins without values stay without."""
    index = torch.arange(len(inside)) * levels // len(inside)
    filled = inside > 0
    totals = torch.zeros(levels, dtype=torch.float64).index_add_(0, index, inside)
    occupied = torch.zeros(levels, dtype=torch.float64).index_add_(0, index, filled.double())
    coarse = torch.where(filled, (totals / occupied.clamp_min(1))[index], 0.0)
    p, q = reference / reference.sum(), coarse / coarse.sum().clamp_min(1e-300)
    seen = (p > 0) & (q > 0)
    missed = (p > 0) & ~seen
    return float((p[seen] * (p[seen] / q[seen]).log()).sum() + p[missed].sum() * 20)
