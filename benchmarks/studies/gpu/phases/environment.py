"""What the measurements hold for: GPU, driver, clocks, versions; and the two ceilings that kernels are held to."""

from __future__ import annotations

import subprocess
from dataclasses import asdict
from typing import Any

from .....kernels.ceilings import ceilings
from ...results import gpu_environment
from ..job import Job

QUERY = (
    "name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.mem", "clocks.max.sm",
    "clocks_event_reasons.active", "temperature.gpu", "power.draw", "power.limit", "persistence_mode",
    "mig.mode.current",
)  # fmt: skip


def run(job: Job) -> None:
    """Writes `environment`, `ceilings` and, after the load, `clocks`."""
    facts = job.facts()
    facts("environment", **gpu_environment(), nvidia_smi=nvidia_smi(), dry=job.dry)
    small: dict[str, Any] = {"copy_bytes": 1 << 20, "side": 64, "samples": 3} if job.dry else {}
    facts("ceilings", **asdict(ceilings(device=job.device, **small)))
    facts("clocks", nvidia_smi=nvidia_smi())


def nvidia_smi() -> dict[str, str]:
    """The state of the first GPU as NVIDIA's tool reports it; empty where there is none."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in answer.splitlines()[0].split(",")] if answer.strip() else []
    return dict(zip(QUERY, values, strict=False))
