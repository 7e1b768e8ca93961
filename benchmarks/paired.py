"""Timing candidates side by side: one round runs each once, so that drift hits all alike.

Ratios are taken within rounds. On a shared machine absolute times mean little; the ratio of two
runs a second apart means something, and the median over rounds means more.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from .. import hardware
from ..versions import versions_of


@dataclass(frozen=True)
class Timing:
    """One candidate over all rounds, in milliseconds; ratios are baseline over candidate, per round."""

    name: str
    median_ms: float
    p10_ms: float
    p90_ms: float
    speedup: float
    speedup_p10: float
    speedup_p90: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for index in range(-warmup, rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            candidates[name]()
            if index >= 0:
                seconds[name].append(time.perf_counter() - start)
    return [_timing(name, taken, seconds[baseline]) for name, taken in seconds.items()]


def _timing(name: str, taken: list[float], base: list[float]) -> Timing:
    ratios = [b / t for b, t in zip(base, taken, strict=True)]
    low, high = _p10_p90(taken)
    ratio_low, ratio_high = _p10_p90(ratios)
    return Timing(
        name, 1e3 * statistics.median(taken), 1e3 * low, 1e3 * high, statistics.median(ratios), ratio_low, ratio_high
    )


def _p10_p90(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return deciles[0], deciles[-1]


def environment() -> dict[str, Any]:
    """What a measurement was taken on: processor, versions, date."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": hardware.cpu()["model"],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions_of("fvexport", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy"),
    }
