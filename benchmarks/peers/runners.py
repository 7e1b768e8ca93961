"""Runs any file on onnxruntime or OpenVINO with its plain API: pixel values in, features out."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ...export.backend_table import import_openvino
from .photos import Floats

Runtime = Literal["onnxruntime", "openvino"]
Hint = Literal["f32", "bf16"]
Runner: TypeAlias = Callable[[Floats], Floats]
"""(1, 3, H, W) -> (1, N, C)."""


def why_absent(runtime: Runtime) -> str | None:
    """None where `runtime` is installed, else the reason."""
    return None if importlib.util.find_spec(runtime) else f"{runtime} is not installed"


def load(path: Path, runtime: Runtime, threads: int = 0, hint: Hint = "f32") -> Runner:
    """Loads a file; `hint` is what OpenVINO computes float operators in. 0 threads: as many as the runtime wants."""
    if runtime == "onnxruntime":
        return run_onnxruntime(str(path), onnxruntime_options(threads))
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    return run_openvino(path, settings)


def onnxruntime_options(threads: int) -> Any:
    """`SessionOptions` for sessions that are timed side by side."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that spin on for work after a run would slow the candidate that runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def run_onnxruntime(source: str | bytes, options: Any) -> Runner:
    """Opens a session of a model's path or bytes on the CPU."""
    import onnxruntime as ort

    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def run_openvino(path: Path, settings: dict[str, Any]) -> Runner:
    """Compiles a file for the CPU; the result is overwritten by the next call."""
    request = import_openvino().Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda x: request.infer([x], share_inputs=True)[0]
