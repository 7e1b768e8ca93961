"""`torch.compile` of the eager model: compiled in the background, timed when it is this process's turn.

The process compiles at once, says so, waits for a line on its standard input, and only then times. Options: `size`
(height, width, batch), `mode` of torch.compile, `profile` for a profile after the timing.
"""

from __future__ import annotations

import sys
import time

import torch

from .....kernels.timing import device_times, timing
from .. import latency, profiles
from ..job import Job
from ..scope import COMPILED, Size
from . import weights

TIMING_S = 2.0


def run(job: Job) -> None:
    """Writes `compiled` (how long that took), and `latency`."""
    torch.backends.cudnn.benchmark = True  # each convolution by the fastest algorithm there is
    facts, size, mode = job.facts(), Size(*job.options["size"]), job.options["mode"]
    dtype = getattr(torch, job.scope.main)
    model = latency.prepared(weights.load(job), dtype, job.device)
    x = latency.pixels(size, dtype, job.device)
    began = time.time()
    # A dry run traces the model and leaves out the compiler, which takes minutes on a CPU.
    how = {"backend": "eager"} if job.dry else {"mode": mode}
    compiled = torch.compile(model, dynamic=False, **how)

    def call() -> object:
        return compiled(x)

    with torch.inference_mode():
        for _ in range(3):  # compiles, warms up, records its CUDA graph
            call()
        if x.is_cuda:
            torch.cuda.synchronize()
        facts("compiled", name=mode, size=size.name, seconds=time.time() - began)
        if job.options.get("waits"):
            sys.stdin.readline()
        taken = device_times(call, samples=40, budget_s=TIMING_S)
        facts("latency", **latency.fact(timing(f"{COMPILED}{mode}", taken, taken), size, dtype))
        if job.options.get("profile"):
            profiles.write(
                job, f"profile-{job.options['profile']}.json", profiles.by_kernel(call, calls=job.scope.calls)
            )
