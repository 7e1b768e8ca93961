"""Compiles every launch of the encoder into Triton's cache, on all cores, before any other phase needs it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from .....core.hardware import usable_processes
from .....encoder.config import get_variant
from .....kernels.dispatch import MODES, modes_for
from .....kernels.launches import Call, encoder_calls, existing
from .....kernels.share import used
from .....kernels.table import Config, arch_of, default_config, dtype_class
from .....kernels.warm import warm
from ..job import Job
from ..latency import variants
from ..operator_cases import Case, Random, awkward_cases, kernels_of

DRY_ARCH = "sm_90"
"""What a dry run compiles for: no GPU is needed."""
DRY_CALLS = 1
NONE = Config({})
Pair = tuple[Call, Config]


def run(job: Job) -> None:
    """Writes `warm`: kernels compiled, seconds; and `warm-problem` for each that does not compile."""
    facts = job.facts()
    arch = DRY_ARCH if job.dry else arch_of(torch.device("cuda"))
    began = time.time()
    pairs = [*_encoder(job, arch), *_switched(job, arch), *_awkward(job, arch)]
    found = warm(pairs[:DRY_CALLS] if job.dry else pairs, arch, jobs=usable_processes())
    built = {one for several in found for one in several}
    failed = [one for one in built if one.error]
    for one in failed:
        facts("warm-problem", kernel=one.kernel, problem=one.error)
    kernels = len({one.hash for one in built if one.hash})
    facts("warm", arch=arch, calls=len(pairs), kernels=kernels, failed=len(failed), seconds=time.time() - began)


def _encoder(job: Job, arch: str) -> Iterator[Pair]:
    """The calls of the encoder, at all sizes and in all dtypes of the run."""
    scope = job.scope
    config = get_variant(scope.variant)
    for name in (*scope.half, *(("float32",) if scope.exact else ())):
        dtype = getattr(torch, name)
        for size in scope.operators if name in scope.half else scope.exact:
            for call in encoder_calls(config, *size, dtype, modes=modes_for(arch)):
                yield call, default_config(call.op, arch, dtype_class(dtype), call.sizes)


def _switched(job: Job, arch: str) -> Iterator[Pair]:
    """The calls of the encoder without a mode, as the phase `latency` times it with each of them switched."""
    config, dtype = get_variant(job.scope.variant), getattr(torch, job.scope.main)
    for names in variants().values():
        modes = modes_for(arch, names)
        for size in job.scope.toggles if modes != modes_for(arch) else ():
            for call in existing(encoder_calls(config, *size, dtype, modes=modes), arch, dtype):
                if used(call, config, dtype, arch, names):
                    yield call, default_config(call.op, arch, dtype_class(dtype), call.sizes)


def _awkward(job: Job, arch: str) -> Iterator[Pair]:
    """The calls of the awkward cases, which choose their block sizes themselves."""
    small = {"channels": 64} if job.dry else {}
    for name in (*job.scope.half, "float32"):
        dtype = getattr(torch, name)
        for case in awkward_cases(Random(dtype, job.device), **small):
            for kernel in kernels_of(case.op, dtype, arch):
                for modes in (MODES, ()):
                    yield _call(case, kernel, int(modes_for(arch, modes))), NONE


def _call(case: Case, kernel: str, modes: int) -> Call:
    return Call(case.op, {}, lambda _config: case.run(*case.tensors, kernel=kernel, modes=modes))
