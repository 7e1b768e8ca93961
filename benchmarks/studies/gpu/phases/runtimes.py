"""ONNX Runtime on CUDA and on TensorRT, if they are installed: the artifact that `fvexport onnx --fp16` makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .....core.errors import FvexportError, first_line
from .....export.artifact import Artifact
from .....export.backend_table import get_backend, why_absent
from .....export.export_options import ExportOptions
from .....export.onnx_export import export_onnx
from .....export.runtime.backends import make_backend
from .....export.runtime.base import TensorBackend
from .....kernels.timing import device_times, timing
from .. import latency
from ..job import Job

MEASURED, DRY_BACKENDS = ("onnxruntime-cuda", "onnxruntime-tensorrt"), ("onnxruntime-cpu",)
TIMING_S = 2.0


def run(job: Job) -> None:
    """Writes `latency` for each backend that is here at the profiled size, and `absent` for each that is not."""
    facts, scope = job.facts(), job.scope
    here = []
    for name in DRY_BACKENDS if job.dry else MEASURED:
        reason = why_absent(get_backend(name))
        if reason is None:
            here.append(name)
        else:
            facts("absent", name=name, problem=reason)
    if not here:
        return
    size, dtype = scope.profiled, getattr(torch, scope.main)
    out = Path(job.scratch) / "artifact"
    try:
        options = ExportOptions(
            height=size.height, width=size.width, batch=size.batch, precision="fp32" if job.dry else "fp16"
        )
        export_onnx(None, out, options=options, variant=scope.variant, parity=False)
    except (FvexportError, ImportError) as error:
        facts("absent", name="export", problem=first_line(error))
        return
    for name in here:
        try:
            taken = device_times(_call(make_backend(Artifact.open(out), name), job), samples=20, budget_s=TIMING_S)
            facts("latency", **latency.fact(timing(name, taken, taken), size, dtype))
        except Exception as error:
            facts("toggle-failed", name=name, size=size.name, problem=first_line(error))


def _call(backend: Any, job: Job) -> Callable[[], object]:
    """One call from tensor to tensor on the GPU, where the backend can; else from and to the host's memory."""
    x = latency.pixels(job.scope.profiled, torch.float32, job.device).contiguous()
    if isinstance(backend, TensorBackend):
        return lambda: backend.run_tensor(x)
    array = x.cpu().numpy()
    return lambda: backend.run(array)
