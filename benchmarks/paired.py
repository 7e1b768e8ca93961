"""Timing candidates side by side: one round runs each once, so that drift hits all alike.

Ratios are taken within rounds. On a shared machine absolute times mean little; the ratio of two
runs a second apart means something, and the median over rounds means more.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from ..core import hardware
from ..core.versions import versions_of
from ..kernels.timing import HostClock, Timing, paired

__all__ = ["Timing", "environment", "time_paired"]


def time_paired(
    candidates: Mapping[str, Callable[[], object]], *, baseline: str, rounds: int = 15, warmup: int = 3
) -> list[Timing]:
    """Times every candidate once per round by the host's clock, in an order that turns with the rounds.

    Args:
        candidates: name -> what to run.
        baseline: the candidate that speed-ups are over.
        rounds: counted rounds.
        warmup: rounds run first and not counted.
    """
    return paired(candidates, baseline=baseline, rounds=rounds, warmup=warmup, sample_ms=0, clock=HostClock())


def environment() -> dict[str, Any]:
    """What a measurement was taken on: processor, versions, date."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": hardware.cpu()["model"],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions_of("fvexport", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy"),
    }
