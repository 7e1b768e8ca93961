"""Timing candidates side by side on the host's clock: one round runs each once, so that drift affects all alike.

Ratios are taken within rounds. On a shared machine absolute times mean little; the ratio of two runs a second apart
means something, and the median over rounds means more. On a GPU, `kernels.timing` does the same with device time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...kernels.timing import HostClock, Timing, paired


def time_paired(
    candidates: Mapping[str, Callable[[], object]], *, baseline: str, rounds: int = 15, warmup: int = 3
) -> list[Timing]:
    """Times every candidate once per round, in an order that turns with the rounds.

    Args:
        candidates: name -> what to run.
        baseline: the candidate that speed-ups are over.
        rounds: counted rounds.
        warmup: rounds run first and not counted.
    """
    return paired(candidates, baseline=baseline, rounds=rounds, warmup=warmup, sample_ms=0, clock=HostClock())
