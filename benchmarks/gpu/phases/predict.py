"""What the performance model predicts, so that each measurement stands beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import latency
from ..job import Job
from ..model import AFTER, BEFORE, predict, total_ms
from ..predicted.device import H100
from ..predicted.scenario import Image, Scenario
from ..scope import COMPILED, EAGER, FOUR, OURS

if TYPE_CHECKING:
    from ..facts import Facts

NAMES = {AFTER: OURS, BEFORE: "before", "Inductor max-autotune": f"{COMPILED}max-autotune", EAGER: EAGER}
"""Contenders of the model by our names."""


def run(job: Job) -> None:
    """Writes `predicted` for each contender and each switched kernel or mode, and `predicted-parts`, for an H100."""
    facts, scope = job.facts(), job.scope
    if job.dry:
        _contenders(facts, FOUR[-1].height, FOUR[-1].batch)
        return
    for size in scope.latency:
        _contenders(facts, size.height, size.batch)
    for size in scope.toggles:
        image = Image(*size)
        for name, kernels in latency.variants().items():
            ms = total_ms(image, Scenario(name, kernels), H100)
            facts("predicted", gpu=H100.name, name=name, size=size.name, ms=ms)


def _contenders(facts: Facts, side: int, batch: int) -> None:
    found = predict(side, batch, changes=False)
    size = f"{side} b{batch}"
    for theirs, ours in NAMES.items():
        if theirs in found.contenders:
            facts("predicted", gpu=found.gpu, name=ours, size=size, ms=found.total(theirs))
    facts("predicted-parts", gpu=found.gpu, size=size, parts={part: row[AFTER] for part, row in found.parts.items()})
