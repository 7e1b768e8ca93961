"""Latency of our encoder, of single kernels and modes switched, and of the eager model in a CUDA graph."""

from __future__ import annotations

import torch

from ....errors import first_line
from ....kernels.timing import Replay
from .. import latency
from ..job import Job
from ..latency import Run
from ..scope import EAGER, OURS, TUNED, Size
from . import weights

MAIN_S, TOGGLE_S = 1.5, 0.6
"""Seconds of timing for ours with the eager model, and for one switched kernel."""


def run(job: Job) -> None:
    """Writes `latency` for ours and eager at each size, then `toggle` for each switched kernel or mode.

    Options: `sizes` (height, width, batch) and `dtype` instead of the scope's; `tuned` to name the results so.
    """
    torch.backends.cudnn.benchmark = True  # each convolution by the fastest algorithm there is
    facts, model = job.facts(), weights.load(job)
    dtype = getattr(torch, job.options.get("dtype", job.scope.main))
    sizes = [Size(*size) for size in job.options["sizes"]] if "sizes" in job.options else job.scope.latency
    eager = latency.prepared(model, dtype, job.device)
    for size in sizes:
        if job.left() < 2 * MAIN_S:
            facts("latency-skipped", size=size.name)
            continue
        x = latency.pixels(size, dtype, job.device)
        name = TUNED if job.options.get("tuned") else OURS
        candidates: dict[str, Run] = {name: latency.ours(eager, x)}
        if name == OURS:
            candidates[EAGER] = latency.in_graph(eager, x)
        for timing in latency.measure(candidates, MAIN_S, job.scope.rounds):
            facts("latency", **latency.fact(timing, size, dtype))
    if "sizes" in job.options:
        return
    for size in job.scope.toggles:
        _toggles(job, size, dtype, eager)


def _toggles(job: Job, size: Size, dtype: torch.dtype, eager: torch.nn.Module) -> None:
    """The defaults against each variant; a variant that fails is a finding and ends nothing."""
    facts, x = job.facts(), latency.pixels(size, dtype, job.device)
    defaults = latency.ours(eager, x)  # type: ignore[arg-type]
    for name, kernels in latency.variants().items():
        if job.left() < 4 * TOGGLE_S:
            facts("latency-skipped", size=size.name, name=name)
            continue
        try:
            other: Replay = latency.ours(eager, x, kernels)  # type: ignore[arg-type]
            _, timing = latency.measure({OURS: defaults, name: other}, TOGGLE_S, job.scope.rounds)
            facts("toggle", **latency.fact(timing, size, dtype))
        except Exception as error:
            facts("toggle-failed", size=size.name, name=name, problem=first_line(error))
