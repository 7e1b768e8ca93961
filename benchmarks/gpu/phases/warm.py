"""Compiles every launch of the encoder into Triton's cache, on all cores, before any other phase needs it."""

from __future__ import annotations

import os
import time

import torch

from ....encoder.config import get_variant
from ....kernels.dispatch import modes_for
from ....kernels.launches import Call, encoder_calls
from ....kernels.table import Config, arch_of, default_config, dtype_class
from ....kernels.warm import warm
from ..job import Job

DRY_ARCH = "sm_90"
"""What a dry run compiles for: no GPU is needed."""
DRY_CALLS = 1


def run(job: Job) -> None:
    """Writes `warm` for each dtype: kernels compiled, seconds; and `warm-problem` for each that does not compile."""
    facts, scope = job.facts(), job.scope
    arch = DRY_ARCH if job.dry else arch_of(torch.device("cuda"))
    config = get_variant(scope.variant)
    for name in (*scope.half, *(("float32",) if scope.exact else ())):
        dtype = getattr(torch, name)
        sizes = scope.operators if name in scope.half else scope.exact
        calls = [c for size in sizes for c in encoder_calls(config, *size, dtype, modes=modes_for(arch))]
        pairs: list[tuple[Call, Config]] = [
            (call, default_config(call.op, arch, dtype_class(dtype), call.sizes)) for call in calls
        ]
        began = time.time()
        found = warm(pairs[:DRY_CALLS] if job.dry else pairs, arch, jobs=os.cpu_count())
        built = {one for several in found for one in several}
        for one in built:
            if one.error:
                facts("warm-problem", dtype=name, kernel=one.kernel, problem=one.error)
        facts(
            "warm", dtype=name, arch=arch, calls=len(found), kernels=len({one.hash for one in built if one.hash}),
            failed=sum(bool(one.error) for one in built), seconds=time.time() - began,
        )  # fmt: skip
