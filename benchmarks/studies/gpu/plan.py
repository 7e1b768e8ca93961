"""How the time of a run is divided, and the commands that are no modules of `phases`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A phase's part of the time.

    Attributes:
        phase: its name in `phases.NAMES`.
        share: its part of the time that is left when it starts, beside the phases after it.
        least_s: fewer seconds are not worth its start, so that its limit is never shorter while there is time.
    """

    phase: str
    share: float
    least_s: float


SHARES = (
    Share("environment", 30, 15),
    Share("warm", 45, 60),
    Share("weights", 25, 60),
    Share("quantize", 120, 30),
    Share("predict", 60, 15),
    Share("operators", 70, 20),
    Share("models", 55, 20),
    Share("tests", 140, 30),
    Share("latency", 120, 20),
    Share("compiled", 30, 15),
    Share("profile", 25, 18),
    Share("fp8", 60, 45),
    Share("kernels", 45, 20),
    Share("autotune", 140, 60),
    Share("tune", 90, 30),
    Share("runtimes", 16, 8),
    Share("leftover", 30, 15),
)
"""In the order in which they end; `share` is in seconds of a run of 470, `autotune` is the slow mode of `compiled`."""

BESIDE = frozenset(("environment", "warm", "quantize", "predict", "tests"))
"""Run beside others, so their time counts once."""


def limit_of(phase: str, left_s: float, chosen: frozenset[str]) -> float:
    """Seconds that a phase may take when so many are left for it and the chosen phases after it."""
    names = [s.phase for s in SHARES]
    index = names.index(phase)
    after = [s for s in SHARES[index + 1 :] if s.phase in chosen and s.phase not in BESIDE]
    own = SHARES[index]
    return max(left_s * own.share / (own.share + sum(s.share for s in after)), min(own.least_s, left_s))


def least_of(phase: str) -> float:
    """Seconds under which a phase is left out."""
    return next(s.least_s for s in SHARES if s.phase == phase)
