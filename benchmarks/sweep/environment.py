"""What a sweep runs on, as its report tells it."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import datetime, timezone
from typing import cast

from ...core import hardware
from ...core.plain_text import plain_line, storable_line
from ...core.versions import versions_of
from .process_memory import may_go_first
from .result import Environment, Processor
from .sweep_options import Measuring

DISTRIBUTIONS = (
    *("fvexport", "torch", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"),
    *("triton", "transformers"),
)


def find_environment(measuring: Measuring, command: str) -> Environment:
    """The machine as it is now; `command` is what the user typed."""
    memory, cpu = hardware.memory_total(), hardware.cpu()
    cpu["model"] = plain_line(cpu["model"])
    return Environment(
        date=now(),
        command=storable_line(command),
        cpu=cast("Processor", cpu),
        memory_gb=None if memory is None else round(memory / 1e9, 1),
        gpus=tuple(map(plain_line, hardware.gpus())),
        platform=platform.platform(),
        python=platform.python_version(),
        versions=versions_of(*DISTRIBUTIONS),
        settings=asdict(measuring) | {"precedence": may_go_first()},
    )


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
