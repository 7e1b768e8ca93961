"""Histograms and moments of an activation: enough to choose any range later, in constant memory.

Extremes are exact, over every value seen. Histograms and covariances are taken at sampled positions, the same number
in each image. A histogram's range doubles when a value is outside it, merging pairs of bins, so that one pass is always
enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

BINS = 256
"""Bins per channel, over [-limit, limit]."""

TENSOR_BINS = 2048
"""Bins of a whole tensor's histogram, if it has no channels, or after they are merged."""

EXPONENTS = (-64, 127)
"""Exponents of the smallest and largest limit: the inverse width of a bin must be a float32 too."""


@dataclass
class Moments:
    """Sums over sampled rows: enough for the mean (K,) and the covariance (K, K).

    The mean of the first rows is subtracted from all, because rounding would destroy the variance of channels that
    vary little around a large value.
    """

    rows: int
    shift: Tensor
    total: Tensor
    outer: Tensor

    @classmethod
    def empty(cls, channels: int) -> Moments:
        return cls(
            0, torch.zeros(channels), torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, channels)
        )

    def add(self, rows: Tensor) -> None:
        """Adds rows (n, K)."""
        rows = rows.float()
        if not self.rows:
            self.shift = rows.mean(0).cpu()
        rows = rows - self.shift.to(rows.device)
        self.rows += len(rows)
        self.total += rows.double().sum(0).cpu()
        if rows.device.type == "cpu":
            self.outer.addmm_(rows.T, rows)  # in place: a second matrix of this size costs more than the product
        else:
            self.outer += (rows.T @ rows).cpu()

    def scaled(self, factors: Tensor) -> Moments:
        """The moments of x * factors, (K,)."""
        outer = (self.outer.double() * factors[:, None] * factors).float()
        return Moments(self.rows, (self.shift * factors).float(), self.total * factors, outer)

    @property
    def mean(self) -> Tensor:
        """(K,) float32."""
        return self.shift + self._rest

    @property
    def centred(self) -> Tensor:
        """(K, K) float32, sums of products about the mean."""
        return torch.addr(self.outer, self._rest, self._rest, alpha=-self.rows)

    @property
    def covariance(self) -> Tensor:
        """(K, K) float32."""
        return self.centred.div_(max(self.rows, 1))

    @property
    def _rest(self) -> Tensor:
        return (self.total / max(self.rows, 1)).float()


class Histogram:
    """Counts of each channel's values over [-limit, limit], in `bins` equal bins.

    Attributes:
        low, high: (C,) exact extremes.
        limit: (C,) powers of two, 0 where nothing but zeros was seen.
        counts: (C, bins).
    """

    def __init__(self, low: Tensor, high: Tensor, limit: Tensor, counts: Tensor) -> None:
        self.low, self.high, self.limit, self.counts = low, high, limit, counts

    @classmethod
    def empty(cls, channels: int, bins: int) -> Histogram:
        return cls(
            torch.full((channels,), torch.inf),
            torch.full((channels,), -torch.inf),
            torch.zeros(channels),
            torch.zeros(channels, bins),
        )

    @property
    def amax(self) -> Tensor:
        """(C,) largest absolute value seen."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def widen(self, low: Tensor, high: Tensor) -> None:
        """Updates the exact extremes (C,)."""
        self.low = torch.minimum(self.low, low.float().cpu())
        self.high = torch.maximum(self.high, high.float().cpu())

    def add(self, rows: Tensor) -> None:
        """Counts sampled values (n, C)."""
        rows = rows.float().cpu()
        self._grow(rows.abs().amax(0))
        channels, bins = self.counts.shape
        half = bins // 2
        # In float64: in float32 a tiny negative value beside a huge one would become 0, and land on the other side.
        scale = torch.where(self.limit > 0, half / self.limit.double(), 0.0)
        # A power of two, and the sum is of integers: a value lands in the same bin whatever the range was before.
        index = (rows * scale).floor_().long().clamp_(-half, half - 1)
        index += torch.arange(channels) * bins + half
        self.counts += torch.bincount(index.flatten(), minlength=channels * bins).view(channels, bins)

    def _grow(self, peak: Tensor) -> None:
        """Doubles ranges, merging pairs of bins, until they hold `peak` (C,)."""
        mantissa, exponent = torch.frexp(peak)  # log2 would round a value just over a power of two down to it
        exponent = (exponent - (mantissa == 0.5).int()).clamp(*EXPONENTS)
        wanted = torch.where(peak > 0, torch.exp2(exponent.float()), 0.0)
        fresh = (self.limit == 0) & (wanted > 0)
        if fresh.any():
            # Zeros counted so far stay in the middle.
            self.limit = torch.where(fresh, wanted, self.limit)
        bins = self.counts.shape[1]
        while (narrow := self.limit < wanted).any():
            old = self.counts[narrow]
            merged = torch.zeros_like(old)
            merged[:, bins // 4 : 3 * bins // 4] = old[:, 0::2] + old[:, 1::2]
            self.counts[narrow] = merged
            self.limit = torch.where(narrow, 2 * self.limit, self.limit)

    def quantile(self, share: float) -> Tensor:
        """(C,) value under which `share` of the absolute sampled values lie; the exact extreme where all do."""
        bins = self.counts.shape[1]
        folded = self.counts[:, bins // 2 :] + self.counts[:, : bins // 2].flip(1)  # by absolute value
        reached = folded.cumsum(1) / folded.sum(1, keepdim=True).clamp_min(1)
        index = (reached < share).sum(1)
        return torch.minimum((index + 1) * self.limit / (bins // 2), self.amax.clamp_min(0))

    def scaled(self, factors: Tensor) -> Histogram:
        """The histogram of x * factors, per channel (C,), factors > 0."""
        return Histogram(self.low * factors, self.high * factors, self.limit * factors, self.counts)

    def merged(self, bins: int = TENSOR_BINS) -> Histogram:
        """One histogram (1, bins) of all channels together; values are taken to lie evenly in their source bins."""
        low, high = self.low.min(), self.high.max()
        limit = self.amax.max()
        if not limit > 0:
            return Histogram(low[None], high[None], torch.zeros(1), torch.zeros(1, bins))
        source = self.counts.shape[1]
        below = F.pad(self.counts.double().cumsum(1), (1, 0))  # at each source edge
        edges = torch.linspace(-1, 1, bins + 1, dtype=torch.float64) * limit
        # A channel of zeros has a limit of 0; its values stay in the bin that begins at 0.
        place = (edges / self.limit.double().clamp_min(2.0 ** EXPONENTS[0])[:, None] + 1) * source / 2
        place[:, 0], place[:, -1] = 0, source  # source bins reach past the extremes
        place.clamp_(0, source)
        start = place.long().clamp_max(source - 1)
        at_edges = torch.lerp(below.gather(1, start), below.gather(1, start + 1), place - start)
        return Histogram(low[None], high[None], limit[None], at_edges.sum(0).diff()[None].float())

    def points(self) -> tuple[Tensor, Tensor]:
        """Bin middles and their share of all values, both (bins,), of a histogram without channels."""
        assert len(self.counts) == 1
        bins = self.counts.shape[1]
        middles = ((torch.arange(bins) + 0.5) * 2 / bins - 1) * self.limit
        return middles, self.counts[0] / self.counts.sum().clamp_min(1)
