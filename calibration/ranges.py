"""From a histogram to the range that eight bits cover, and from the range to scale and zero point.

    minmax      everything that was seen
    percentile  all but a share of the values (99.99 %)
    entropy     least Kullback-Leibler divergence between the values before and after (TensorRT's calibrator, after
                S. Migacz, "8-bit Inference with TensorRT", GTC 2017)
    mse         least mean squared error: rounding inside the range against clipping outside

Where a GELU follows, the error is taken after it: what GELU flattens needs no resolution. And `mse` leaves room for what
so many samples cannot have shown: once channels are alike, each of them may pass the largest value seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..errors import ConfigError
from .options import METHODS, Method
from .qdq import FP8, FP8_MAX, Quantizer
from .statistics import Histogram

PERCENTILE = 0.9999
ROOM = 3.0
"""The range grows by this over the square root of the samples: 2 % at 16384, 19 % at 256."""
LEVELS = 255
"""Steps between the ends of an eight-bit range."""


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
    low, high = min(0.0, float(histogram.low)), max(0.0, float(histogram.high))
    if not (abs(low) < torch.inf and abs(high) < torch.inf):
        raise ConfigError("an activation is infinite or undefined: the checkpoint is damaged")
    full = Range(low, high)
    if method == "minmax" or low == high or not histogram.counts.sum():
        return full
    if method == "percentile":
        return _percentile(histogram, full)
    if method == "entropy":
        return _entropy(histogram, full)
    best = _least_error(histogram, full, symmetric, before_gelu)
    room = 1 + (ROOM / samples**0.5 if samples else 0.0)
    return Range(best.low * room, best.high * room)


def _percentile(histogram: Histogram, full: Range) -> Range:
    middles, share = histogram.points()
    below = share.cumsum(0)
    tail = 1 - PERCENTILE
    low = float(middles[(below < tail).sum().clamp_max(len(middles) - 1)])
    high = float(middles[(below < PERCENTILE).sum().clamp_max(len(middles) - 1)])
    return Range(max(full.low, min(low, 0.0)), min(full.high, max(high, 0.0)))


def _least_error(histogram: Histogram, full: Range, symmetric: bool, before_gelu: bool) -> Range:
    """A grid over both ends, refined once around the best."""
    middles, share = histogram.points()
    kept = share > 0
    middles, share = middles[kept].double(), share[kept].double()
    see = F.gelu if before_gelu else lambda x: x
    wanted = see(middles)

    def error(low: Tensor, high: Tensor) -> Tensor:
        """Mean squared error of each candidate (n,): clipping exactly, rounding as uniform noise of its slope."""
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        step = (high - low)[:, None] / LEVELS
        clipped = middles.clamp(low[:, None], high[:, None])
        noise = (see(clipped + step / 4) - see(clipped - step / 4)) ** 2 / 3  # = step^2 / 12 where `see` is x
        return ((see(clipped) - wanted) ** 2 + noise) @ share

    ends = [torch.tensor([full.low, full.high], dtype=torch.float64)]
    best, spans = ends[0], torch.linspace(0.3, 1.0, 36, dtype=torch.float64)
    for _ in range(2):
        pairs = torch.cartesian_prod(spans * best[0], spans * best[1]) if not symmetric else spans[:, None] * best
        scores = error(pairs[:, 0], pairs[:, 1])
        best = pairs[scores.argmin()]
        spans = torch.linspace(0.96, 1.04, 17, dtype=torch.float64)
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
