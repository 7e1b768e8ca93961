"""Libraries that report their use to their makers are told not to, unless the user has set their variables."""

from __future__ import annotations

import os

SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime from 1.31; it writes a warning without a home folder, too
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub and transformers
}
"""Environment variables that these libraries read when they are imported. OpenVINO and TensorRT send nothing."""


def set_switches() -> None:
    """Sets those of `SWITCHES` that are not set."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


def is_off(name: str) -> bool:
    """Whether a variable of `SWITCHES` has the value there."""
    return os.environ.get(name) == SWITCHES[name]
