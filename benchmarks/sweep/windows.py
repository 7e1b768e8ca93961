"""Latency of a cell from its windows, and whether it has enough of them."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...core.records import Text
from .result import Index, Latency, Milliseconds, Parts, Times, Window, percentile
from .sweep_options import Measuring


@dataclass(frozen=True)
class TimedWindow:
    """One window: latencies of calls in a row.

    Attributes:
        round: counted from 0.
        times_ms: of each call.
        reference: id of the cell measured beside it, empty if there was none.
        reference_ms: the median of that cell's calls around this window.
        parts_ms: encoder, connector and prefill of each call of a `ttft` cell.
    """

    round: Index
    times_ms: Times
    reference: Text = ""
    reference_ms: Milliseconds | None = None
    parts_ms: Parts = ()

    @property
    def median_ms(self) -> float:
        return statistics.median(self.times_ms)


def spread(windows: Sequence[TimedWindow], last: int) -> float:
    """(largest - smallest) / median of the last windows: of their times, or of their ratios to the reference.

    The smaller of the two is returned: on a machine that drifts, times change while ratios do not; if the reference
    itself was disturbed, it is the other way round. Infinite if there are fewer windows.
    """
    recent = windows[-last:]
    if len(recent) < last:
        return float("inf")
    found = [_range([w.median_ms for w in recent])]
    if recent[0].reference and len({w.reference for w in recent}) == 1:
        found.append(_range([w.median_ms / w.reference_ms for w in recent if w.reference_ms]))
    return min(found)


def is_stable(windows: Sequence[TimedWindow], how: Measuring) -> bool:
    """Whether a cell needs no further round."""
    return len(windows) >= how.min_rounds and spread(windows, how.last) <= how.tolerance


def summarize(windows: Sequence[TimedWindow], how: Measuring, timer: str) -> Latency:
    """The latency of a cell; `windows` has at least one.

    If the reference changed (it crashed), only ratios to the one used most are kept.
    """
    times = [t for w in windows for t in w.times_ms]
    reference = Counter(w.reference for w in windows).most_common(1)[0][0]
    kept = tuple(
        Window(w.round, w.median_ms, len(w.times_ms), w.reference_ms if w.reference == reference else None)
        for w in windows
    )
    apart = spread(windows, min(how.last, len(windows)))
    return Latency(
        p50_ms=statistics.median(times), p90_ms=percentile(times, 0.9), p99_ms=percentile(times, 0.99),
        mean_ms=statistics.fmean(times), min_ms=min(times), count=len(times), windows=kept, timer=timer,
        stable=is_stable(windows, how), spread=apart, reference=reference,
    )  # fmt: skip


def unstable_reason(latency: Latency, how: Measuring, ended: str = "") -> str:
    """One sentence on why a latency is unstable; `ended` says what prevented further rounds."""
    rounds = len(latency.windows)
    if rounds < how.min_rounds:
        return f"{ended or 'stopped'} after {rounds} of {how.min_rounds} rounds"
    return (
        f"after {rounds} rounds the last {how.last} windows still differ by {latency.spread:.1%}, "
        f"more than {how.tolerance:.0%}"
    )


def _range(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / statistics.median(values)
