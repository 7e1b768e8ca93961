"""The whole model in FP8: its features against float64, and its latency, by our products and by cuBLAS's."""

from __future__ import annotations

from dataclasses import asdict

import torch

from .....core.errors import first_line
from .....kernels.accelerate import accelerate
from .....kernels.dispatch import LIBRARY_OPS
from .....kernels.fp8_layers import count_fp8_layers
from .....kernels.timing import Replay
from .. import latency
from ..encoder import fp8_verdicts
from ..job import Job
from ..precise import strict
from ..scope import IN_FP8
from . import quantize, weights

TIMING_S = 1.0


def run(job: Job) -> None:
    """Writes `model` and `latency` at each size, and `toggle` with cuBLAS in the place of our products."""
    facts, scope = job.facts(), job.scope
    dtype = getattr(torch, scope.half[0])
    fused, quantized = weights.load(job), quantize.load(job)
    for size in scope.models:
        with strict():
            for verdict in fp8_verdicts(fused, quantized, size, dtype, job.device):
                facts("model", **asdict(verdict))
    half = quantized.to(job.device, dtype)
    model = accelerate(half, precision="fp8")
    library = accelerate(half, precision="fp8", kernels=latency.in_use() | set(LIBRARY_OPS))
    facts("fp8", layers=count_fp8_layers(model))
    for size in scope.latency:
        if job.left() < 3 * TIMING_S:
            facts("latency-skipped", size=size.name, name=IN_FP8)
            continue
        x = latency.pixels(size, dtype, job.device)
        candidates: dict[str, latency.Run] = {}
        for name, one in ((IN_FP8, model), (f"{IN_FP8}, cuBLAS", library)):
            try:
                candidates[name] = Replay(lambda one=one, x=x: one(x), copies=1)  # type: ignore[misc]
            except Exception as error:
                facts("toggle-failed", size=size.name, name=name, problem=first_line(error))
        for timing in latency.measure(candidates, TIMING_S, scope.rounds) if candidates else []:
            facts("latency", **latency.fact(timing, size, dtype))
