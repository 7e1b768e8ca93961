"""What a study writes: its figures as JSON, with the machine and versions they were measured on."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import torch

from ...core import hardware
from ...core.versions import versions_of
from ...kernels.table import kernels_digest

out_option = click.option("--out", type=click.Path(path_type=Path), help="Write the figures to this file as JSON.")


def environment() -> dict[str, Any]:
    """What a measurement was taken on: date, processor, versions."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": hardware.cpu()["model"],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions_of("fvexport", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy"),
    }


def gpu_environment() -> dict[str, Any]:
    """Processor, GPU, driver's CUDA, versions and the kernels' digest: what a measurement holds for."""
    found = environment()
    found["versions"] |= versions_of("triton")
    found["kernels"] = kernels_digest()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name, "capability": f"{properties.major}.{properties.minor}",
            "processors": properties.multi_processor_count, "bytes": properties.total_memory,
            "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }  # fmt: skip
    return found


def write_rows(out: Path | None, rows: Sequence[dict[str, Any]], **settings: Any) -> None:
    """Writes `rows` below the environment and the settings that they were measured with; None writes nothing."""
    if out is not None:
        write_json(out, {"environment": environment() | settings, "rows": rows})


def write_json(out: Path, result: dict[str, Any]) -> None:
    """Writes plain data, and makes the folder of the file if it does not exist."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
