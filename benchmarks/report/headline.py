"""The answer at the top: what is fastest at each resolution, while it is still the same model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ..sweep.result import Result
from .compare import times
from .intervals import Interval, median_interval, ratio_interval
from .load import Run

QUANTIZED = ("int8", "fp8")


@dataclass(frozen=True, kw_only=True)
class Best:
    """The fastest cell at one resolution and batch, of those that pass their parity.

    Attributes:
        resolution, batch, variant: of all that were compared.
        fastest: the one with the smallest median.
        ties: others whose interval of the difference to it includes none, fastest first.
        float_fastest: the fastest without quantization, which may be `fastest` itself; None where there is none.
        float_ties: as `ties`, to `float_fastest`, of those without quantization.
        candidates: how many were compared.
        failing: how many were timed and left out, since they do not pass or have no parity.
    """

    resolution: str
    batch: int
    variant: str
    fastest: Result
    ties: tuple[Result, ...]
    float_fastest: Result | None
    float_ties: tuple[Result, ...]
    candidates: int
    failing: int


def headline(run: Run) -> list[Best]:
    """One row for each resolution and batch that something passed at."""
    groups: dict[tuple[int, int, str, str], list[Result]] = defaultdict(list)
    for result in run.measured:
        cell = result.cell
        if cell.kind != "ttft":
            groups[cell.batch, cell.pixels, cell.resolution, cell.variant].append(result)
    rows = []
    for (batch, _, resolution, variant), found in sorted(groups.items()):
        passing = sorted(filter(passes, found), key=median_ms)
        if not passing:
            continue
        fastest, *others = passing
        plain = [r for r in passing if r.cell.precision not in QUANTIZED]
        rows.append(
            Best(
                resolution=resolution, batch=batch, variant=variant, fastest=fastest, ties=_ties(fastest, others),
                float_fastest=plain[0] if plain else None, float_ties=_ties(plain[0], plain[1:]) if plain else (),
                candidates=len(passing), failing=len(found) - len(passing),
            )
        )  # fmt: skip
    return rows


def passes(result: Result) -> bool:
    """Whether its features were compared, and agree as far as its precision allows."""
    return result.parity is not None and result.parity.status == "pass"


def median_ms(result: Result) -> float:
    """Of one call, over all rounds."""
    assert result.latency is not None
    return result.latency.p50_ms


def speedup(result: Result) -> Interval | None:
    """Over the reference cell, from the ratios within rounds; None where there was no reference."""
    ratios = times(result, relative=True)
    return median_interval([1 / ratio for ratio in ratios]) if ratios else None


def reference_name(run: Run) -> str:
    """What speed-ups are over, in words: the curve of the cell that others were measured beside."""
    series = {result.cell.id: result.cell.series for result in run.results}
    timed = [result for result in run.measured if result.cell.kind != "ttft" and result.latency]
    found = {series[r.latency.reference] for r in timed if r.latency and r.latency.reference in series}
    return " or ".join(sorted(found)) or "the reference"


def _ties(fastest: Result, others: Iterable[Result]) -> tuple[Result, ...]:
    ties = []
    for other in others:
        change = paired(fastest, other)
        if change.low is not None and change.low <= 1:
            ties.append(other)
    return tuple(ties)


def paired(base: Result, new: Result) -> Interval:
    """Time of `new` over `base`: round by round where both were measured in the same rounds.

    In other rounds the machine may have been slower as a whole: then of their ratios to one reference, if there is one.
    """
    assert base.latency is not None and new.latency is not None
    rounds = {window.round: window.median_ms for window in base.latency.windows}
    ratios = [w.median_ms / rounds[w.round] for w in new.latency.windows if w.round in rounds]
    if len(ratios) == len(rounds) == len(new.latency.windows):
        return median_interval(ratios)
    shared = base.latency.reference == new.latency.reference and bool(base.latency.ratios and new.latency.ratios)
    return ratio_interval(times(base, relative=shared), times(new, relative=shared))
