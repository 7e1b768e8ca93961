"""Latency of our encoder, of single kernels and modes switched, and of the eager model in a CUDA graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch

from .....core.errors import first_line
from .....encoder.fastvithd import FastViTHD
from .....kernels.timing import Replay, check_alive
from .. import facts, latency
from ..job import Job
from ..latency import Run
from ..scope import EAGER, OURS, Size
from . import weights

Makers = dict[str, Callable[[], Run]]

MAIN_S, TOGGLE_S = 1.5, 0.6
"""Seconds of timing for ours with the eager model, and for one switched kernel."""


def run(job: Job) -> None:
    """Writes `latency` for ours and eager at each size, then `toggle` for each switched kernel or mode.

    What the file of facts has already is not timed again: after an error that makes the GPU unusable, the same phase
    goes on in a new process. Options: `sizes` (height, width, batch), `dtype` and `label` of ours, for other results.
    """
    torch.backends.cudnn.benchmark = True  # each convolution by the fastest algorithm there is
    model, other = weights.load(job), "sizes" in job.options
    dtype = getattr(torch, job.options.get("dtype", job.scope.main))
    eager = latency.prepared(model, dtype, job.device)
    sizes = [Size(*size) for size in job.options["sizes"]] if other else list(job.scope.latency)
    name = job.options.get("label", OURS)
    for size in sizes:
        if job.left() < 2 * MAIN_S:
            job.facts()("latency-skipped", size=size.name)
            continue
        x = latency.pixels(size, dtype, job.device)
        makers: Makers = {name: functools.partial(latency.ours, eager, x)}
        if not other:
            makers[EAGER] = functools.partial(latency.in_graph, eager, x)
        _time(job, size, dtype, makers, done=set() if other else known(job, "latency", size))
    if not other:
        for size in job.scope.toggles:
            _toggles(job, size, dtype, eager)


def known(job: Job, kind: str, size: Size) -> set[str]:
    """Names that the facts have a result for, or a failure."""
    found = facts.read(Path(job.out) / facts.FILE)
    return {f["name"] for f in found if f["kind"] in (kind, f"{kind}-failed") and f["size"] == size.name}


def _time(job: Job, size: Size, dtype: torch.dtype, makers: Makers, done: set[str]) -> None:
    """Times what can be captured, side by side; what cannot is a finding."""
    note = job.facts()
    candidates: dict[str, Run] = {}
    for name, make in makers.items():
        if name in done:
            continue
        try:
            candidates[name] = make()
        except Exception as error:
            note("latency-failed", name=name, size=size.name, problem=first_line(error))
            _alive()
    for timing in latency.measure(candidates, MAIN_S, job.scope.rounds) if candidates else []:
        note("latency", **latency.fact(timing, size, dtype))


def _toggles(job: Job, size: Size, dtype: torch.dtype, eager: FastViTHD) -> None:
    """What is in use against each variant; a variant that fails is a finding."""
    note, x, done = job.facts(), latency.pixels(size, dtype, job.device), known(job, "toggle", size)
    base = latency.ours(eager, x)
    for name, kernels in latency.variants().items():
        if name in done:
            continue
        if job.left() < 4 * TOGGLE_S:
            note("latency-skipped", size=size.name, name=name)
            continue
        try:
            other: Replay = latency.ours(eager, x, kernels)
            _, timing = latency.measure({OURS: base, name: other}, TOGGLE_S, job.scope.rounds)
            note("toggle", **latency.fact(timing, size, dtype))
        except Exception as error:
            note("toggle-failed", size=size.name, name=name, problem=first_line(error))
            _alive()


def _alive() -> None:
    """Ends the process if the GPU is lost to it."""
    if torch.cuda.is_available():
        check_alive()
