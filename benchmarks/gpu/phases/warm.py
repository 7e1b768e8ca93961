"""Compiles every launch of the encoder into Triton's cache, on all cores, before anything else wants them."""

from __future__ import annotations

import os
import time

import torch

from ....encoder.config import get_variant
from ....kernels.dispatch import MODES, modes_for
from ....kernels.launches import Call, encoder_calls
from ....kernels.table import Config, arch_of, default_config, dtype_class
from ....kernels.warm import warm
from ..job import Job

DRY_ARCH = "sm_90"
"""What a dry run compiles for: no GPU is needed."""
DRY_CALLS = 2


def run(job: Job) -> None:
    """Writes `warm` for each dtype: kernels compiled, seconds, and what did not compile."""
    facts, scope = job.facts(), job.scope
    arch = DRY_ARCH if job.dry else arch_of(torch.device("cuda"))
    config = get_variant(scope.variant)
    for name in (*scope.half, *(("float32",) if scope.exact else ())):
        dtype = getattr(torch, name)
        modes = modes_for(arch, MODES)
        sizes = scope.operators if name in scope.half else scope.exact
        pairs: list[tuple[Call, Config]] = []
        for height, width, batch in sizes:
            for call in encoder_calls(config, height, width, batch, dtype, modes=modes):
                pairs.append((call, default_config(call.op, arch, dtype_class(dtype), call.sizes)))
        began = time.time()
        done = warm(pairs[:DRY_CALLS] if job.dry else pairs, arch, dtype, os.cpu_count() or 1)
        facts("warm", dtype=name, arch=arch, launches=len(pairs), seconds=time.time() - began, report=str(done)[:500])
