"""What the performance model predicts for the lines of the report; nothing where there is no prediction."""

from __future__ import annotations


def predicted_ms(name: str, size: str) -> float | None:
    """Milliseconds of a contender (`ours`, `torch.compile max-autotune`, `-pdl`) at a size (`1024 b1`)."""
    return None
