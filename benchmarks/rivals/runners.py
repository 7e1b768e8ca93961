"""A file on onnxruntime or OpenVINO: pixel values in, features out."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from ...export.backend_table import import_openvino
from .data import Floats

Runtime = Literal["onnxruntime", "openvino"]
Hint = Literal["f32", "bf16"]
Runner: TypeAlias = Callable[[Floats], Floats]
"""(1, 3, H, W) -> (1, N, C)."""


def why_absent(runtime: Runtime) -> str | None:
    """None where `runtime` is installed, else the reason."""
    return None if importlib.util.find_spec(runtime) else f"{runtime} is not installed"


def load(path: Path, runtime: Runtime, threads: int, hint: Hint = "f32") -> Runner:
    """Loads a file; `hint` is what OpenVINO computes its float operators in."""
    return _onnxruntime(path, threads) if runtime == "onnxruntime" else _openvino(path, threads, hint)


def _onnxruntime(path: Path, threads: int) -> Runner:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that spin on for work after a run would slow the candidate that runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name
    return lambda x: session.run(None, {entry: x})[0]


def _openvino(path: Path, threads: int, hint: Hint) -> Runner:
    ov = import_openvino()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": hint}
    request = ov.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda x: request.infer([x], share_inputs=True)[0]
