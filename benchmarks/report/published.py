"""What the FastVLM paper (arXiv 2412.13303) published: a curve to hold one's own against, of another machine."""

from __future__ import annotations

from dataclasses import dataclass

MACHINE = "M1 Max, Core ML (paper)"
NOTE = (
    "Published figures of the FastVLM paper (arXiv 2412.13303): an Apple M1 Max through Core ML on its Neural Engine, "
    "one image per call. Another machine and another runtime: a landmark, not a rival. Its table 4 gives longer times "
    "(10.1, 122.6 and 235.6 ms at 256, 768 and 1024)."
)


@dataclass(frozen=True)
class Published:
    """A published time in milliseconds at a square resolution; `llm` for a time to first token."""

    resolution: int
    ms: float
    llm: str | None = None


LATENCY = (Published(256, 6.8), Published(768, 54.8), Published(1024, 116.3))
TTFT = (
    Published(1024, 166.0, "qwen2-0.5b"),
    Published(1024, 233.0, "qwen2-1.5b"),
    Published(1024, 641.0, "qwen2-7b"),
)

VARIANT = "fastvithd"
"""The only architecture that the figures are of."""
