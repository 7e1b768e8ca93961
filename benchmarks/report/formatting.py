"""Numbers as text: three significant digits and a unit."""

from __future__ import annotations

import math

from .intervals import Interval

THIN = "\u202f"
"""Thousands separator: a narrow no-break space."""


def three(value: float) -> str:
    """Three significant digits, never as a power of ten: `0.123`, `6.80`, `54.8`, `1 347`."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "∞"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    if len(text.replace(",", "").replace(".", "").lstrip("-0")) > 3 and decimals:  # 9.996 became 10.00
        text = f"{value:,.{decimals - 1}f}"
    return text.replace(",", THIN)


def milliseconds(value: float) -> str:
    """`54.8 ms`, or `12.3 s` from ten seconds on."""
    return f"{three(value)} ms" if value < 9_999.5 else f"{three(value / 1e3)} s"


def megabytes(value: float) -> str:
    """`540 MB` or `2.31 GB`."""
    return f"{three(value)} MB" if value < 999.5 else f"{three(value / 1e3)} GB"


def times(value: float) -> str:
    """A ratio: `1.24×`."""
    return f"{value:.2f}×" if value < 9.995 else f"{three(value)}×"


def times_interval(interval: Interval) -> str:
    """`1.24× (1.19 to 1.30)`, or the ratio alone where there is no interval."""
    if interval.low is None or interval.high is None:
        return times(interval.value)
    return f"{times(interval.value)} ({times(interval.low)[:-1]} to {times(interval.high)[:-1]})"


def percent(share: float) -> str:
    """A change with its sign: `+5.2 %`, `−12 %`."""
    value = 100 * share
    text = f"{abs(value):.1f}" if abs(value) < 9.95 else f"{abs(value):.0f}"
    sign = "" if float(text) == 0 else "−" if value < 0 else "+"
    return f"{sign}{text} %"


def percent_interval(change: Interval) -> str:
    """`+5.2 % (+3.0 to +7.1)`, or the change alone."""
    if change.low is None or change.high is None:
        return percent(change.value - 1)
    return f"{percent(change.value - 1)} ({percent(change.low - 1)[:-2]} to {percent(change.high - 1)[:-2]})"


def decibels(sqnr_db: float | None, *, exact: bool = False) -> str:
    """`42.1 dB`; `exact` for features that are equal bit by bit."""
    if sqnr_db is None:
        return "exact" if exact else ""
    return f"{sqnr_db:.1f} dB"
