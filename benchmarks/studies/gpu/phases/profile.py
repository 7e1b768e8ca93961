"""One profile of our encoder: time by kernel in a replayed graph, and by part of the model without the graph."""

from __future__ import annotations

import torch

from .....kernels.accelerate import accelerate
from .. import latency, profiles
from ..job import Job
from . import weights


def run(job: Job) -> None:
    """Writes `profile-ours.json`, and `profile` with the time of each part."""
    torch.backends.cudnn.benchmark = True  # each convolution by the fastest algorithm there is
    dtype, size = getattr(torch, job.scope.main), job.scope.profiled
    eager = latency.prepared(weights.load(job), dtype, job.device)
    x = latency.pixels(size, dtype, job.device)
    model = accelerate(eager)
    replay = latency.ours(eager, x)
    with torch.inference_mode():
        kernels = profiles.by_kernel(replay, calls=job.scope.calls)
        parts = profiles.by_part(model, x, calls=job.scope.calls)
    profiles.write(job, "profile-ours.json", {**kernels, **parts})
