"""Speed over eager: sweeps time cells beside a fast reference; reports say how much faster than eager each is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from ..sweep.result import Cell, Result
from .load import Loaded

BASELINE = "eager train fp32"
"""Speed-ups are relative to this series: the train form in PyTorch."""


def over_eager(loaded: Loaded) -> Loaded:
    """The same runs with the eager train form in float32 as the reference, if it was measured.

    Both were measured beside the same reference, so their ratio within a round is the ratio of their ratios. For rounds
    without eager (it was stable before), the median of its ratios is used.
    """
    return replace(loaded, runs=tuple(replace(run, results=beside_eager(run.results)) for run in loaded.runs))


def beside_eager(results: Sequence[Result]) -> tuple[Result, ...]:
    """The same for the results of one run, in order."""
    eager = {_place(r.cell): r for r in results if r.cell.series == BASELINE and r.measured and r.latency}
    return tuple(_over(result, eager.get(_place(result.cell))) for result in results)


def _place(cell: Cell) -> tuple[object, ...]:
    llm = (cell.llm, cell.prompt_tokens, cell.tiles)
    return cell.height, cell.width, cell.batch, cell.threads, cell.variant, cell.checkpoint, cell.weights, *llm


def _over(result: Result, eager: Result | None) -> Result:
    latency, base = result.latency, eager.latency if eager else None
    if latency is None or base is None or eager is None or latency.reference != base.reference or not base.ratios:
        return result
    ratios = {w.round: w.median_ms / w.reference_ms for w in base.windows if w.reference_ms}
    usual = statistics.median(base.ratios)
    windows = tuple(
        replace(w, reference_ms=w.reference_ms and w.reference_ms * ratios.get(w.round, usual)) for w in latency.windows
    )
    return replace(result, latency=replace(latency, windows=windows, reference=eager.cell.id))
