"""What the performance model predicts, so that each measurement stands beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .....core.errors import FvexportError, first_line
from .. import latency
from ..facts import Facts
from ..job import Job
from ..model import AFTER, BEFORE, predict, total_ms
from ..predicted.device import H100
from ..predicted.scenario import Image, Scenario
from ..scope import COMPILED, EAGER, FOUR, IN_FP8, OURS, Size

NAMES = {AFTER: OURS, BEFORE: "before", "Inductor max-autotune": f"{COMPILED}max-autotune", EAGER: EAGER}
"""Contenders of the model by our names."""


def run(job: Job) -> None:
    """Writes `predicted` for each contender and each switched kernel or mode, and `predicted-parts`, for an H100.

    A kernel or block size that the model has no counts for leaves out what it is part of: `no-prediction` says why.
    """
    facts, scope = job.facts(), job.scope
    for size in FOUR[-1:] if job.dry else scope.latency:
        with _noted(facts, size.name):
            _contenders(facts, size)
        with _noted(facts, f"{IN_FP8} {size.name}"):
            ms = total_ms(Image(*size), Scenario(IN_FP8, latency.in_use(), precision="fp8"), H100)
            facts("predicted", gpu=H100.name, name=IN_FP8, size=size.name, ms=ms)
    for size in FOUR[-1:] if job.dry else scope.toggles:
        image = Image(*size)
        for name, kernels in [*latency.variants().items()][: 1 if job.dry else None]:
            with _noted(facts, f"{name} {size.name}"):
                ms = total_ms(image, Scenario(name, kernels), H100)
                facts("predicted", gpu=H100.name, name=name, size=size.name, ms=ms)


@contextlib.contextmanager
def _noted(facts: Facts, what: str) -> Iterator[None]:
    try:
        yield
    except FvexportError as error:
        facts("no-prediction", name=what, problem=first_line(error))


def _contenders(facts: Facts, size: Size) -> None:
    found = predict(size.height, size.batch, changes=False)
    for theirs, ours in NAMES.items():
        if theirs in found.contenders:
            facts("predicted", gpu=found.gpu, name=ours, size=size.name, ms=found.total(theirs))
    parts = {part: row[AFTER] for part, row in found.parts.items()}
    facts("predicted-parts", gpu=found.gpu, size=size.name, parts=parts)
