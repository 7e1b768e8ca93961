"""The phases of a proof. Each is a module with `run(job)`, and runs in a process of its own: `python -m` this package.

A CUDA error leaves the process that made it unusable, so no phase shares one with another.
"""

from __future__ import annotations

import importlib

from ..job import Job

NAMES = (
    "environment", "warm", "weights", "quantize", "predict", "operators", "models", "tests", "latency", "compiled",
    "profile", "fp8", "kernels", "tune", "runtimes", "leftover",
)  # fmt: skip
"""In the order in which they start."""


def run(job: Job) -> None:
    """Runs the phase that a job names, in this process."""
    importlib.import_module(f"{__name__}.{job.phase}").run(job)
