"""Libraries that report their use to their makers are told not to, unless the user has set their variables."""

from __future__ import annotations

import os
from typing import Any

SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime from 1.31; it writes a warning without a home folder, too
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub and transformers
}
"""Environment variables that these libraries read when they are imported. OpenVINO and TensorRT send nothing."""


def set_switches() -> None:
    """Sets those of `SWITCHES` that are not set."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)


def stop_onnxruntime(ort: Any) -> None:
    """Tells onnxruntime, also if it was imported before this package; `ort` is the module."""
    if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":
        ort.disable_telemetry_events()
