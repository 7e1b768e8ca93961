"""Differences between runs, cell by cell, with confidence intervals; and which of them are regressions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..sweep.result import Result
from .intervals import MIN_WINDOWS, Interval, ratio_interval
from .load import Loaded, Run

DEFAULT_THRESHOLD = 0.05
QUIET = 1.1
"""A round is undisturbed where the reference took at most so many times its shortest."""

Finding = Literal["slower", "faster", "same", "unclear", "broken"]


@dataclass(frozen=True)
class Difference:
    """One cell in the baseline and in another run.

    Attributes:
        place: the cell, without what differs between machines.
        run: label of the other run.
        base, new: both results.
        change: time of `new` over time of `base`, with its interval; None where one of them has no time.
        finding: `slower` or `faster` where the whole interval lies beyond the threshold, `same` where it lies within,
            `broken` where the cell ran or passed its parity in the baseline and no longer does, else `unclear`.
        reason: one sentence for `unclear` and `broken`.
    """

    place: str
    run: str
    base: Result
    new: Result
    change: Interval | None
    finding: Finding
    reason: str = ""

    @property
    def regression(self) -> bool:
        return self.finding in ("slower", "broken")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        change = self.change
        return {
            "cell": self.place,
            "run": self.run,
            "finding": self.finding,
            "change": None if change is None else change.value - 1,
            "low": None if change is None or change.low is None else change.low - 1,
            "high": None if change is None or change.high is None else change.high - 1,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Comparison:
    """All differences from the baseline.

    Attributes:
        baseline: label of the run that is compared with.
        threshold: as a share: 0.05 is 5 %.
        relative: whether times over the reference cell's were compared, instead of times.
        differences: the largest slow-down first, broken cells before all.
        alone: cells that only one of the two runs has.
    """

    baseline: str
    threshold: float
    relative: bool
    differences: tuple[Difference, ...]
    alone: int

    @property
    def regressions(self) -> list[Difference]:
        return [difference for difference in self.differences if difference.regression]


def compare_runs(loaded: Loaded, *, threshold: float = DEFAULT_THRESHOLD, relative: bool = False) -> Comparison | None:
    """Every other run against the baseline; None with one run alone.

    Args:
        loaded: runs, one of them the baseline.
        threshold: how large a difference has to be, as a share.
        relative: compare times over the reference cell's in the same round, which a slow day does not change.
    """
    base = loaded.baseline
    others = [run for run in loaded.runs if not run.baseline]
    if base is None or not others:
        return None
    differences: list[Difference] = []
    alone = 0
    for run in others:
        pairs = _pairs(base, run)
        alone += len(base.results) + len(run.results) - 2 * len(pairs)
        differences += [_difference(run.label, a, b, threshold, relative) for a, b in pairs]
    differences.sort(key=_weight)
    return Comparison(base.label, threshold, relative, tuple(differences), alone)


def _pairs(base: Run, new: Run) -> list[tuple[Result, Result]]:
    """The same cells of both; of several at one place (other threads, other weights) only those that are equal."""
    known: dict[str, list[Result]] = defaultdict(list)
    for result in base.results:
        known[result.cell.place].append(result)
    places: dict[str, list[Result]] = defaultdict(list)
    for result in new.results:
        places[result.cell.place].append(result)
    pairs = []
    for place, found in places.items():
        if len(found) == 1 == len(known[place]):
            pairs.append((known[place][0], found[0]))
        else:
            ids = {result.cell.id: result for result in known[place]}
            pairs += [(ids[result.cell.id], result) for result in found if result.cell.id in ids]
    return pairs


def _difference(run: str, base: Result, new: Result, threshold: float, relative: bool) -> Difference:
    place = new.cell.place
    if "skipped" in (base.status, new.status) or not base.measured:
        which = new if base.measured or base.status == "skipped" else base
        if not base.measured and new.measured:
            return Difference(place, run, base, new, None, "unclear", f"the baseline has no time: {base.status}")
        return Difference(place, run, base, new, None, "unclear", f"not measured: {which.status}")
    if not new.measured:
        return Difference(place, run, base, new, None, "broken", f"{new.status}: {new.reason}")
    a, b = quiet_ratios(base, new) if relative else (times(base, relative=False), times(new, relative=False))
    if not a or not b:
        return Difference(place, run, base, new, None, "unclear", "one of the two was not timed beside a reference")
    change = ratio_interval(a, b)
    was, now = (result.parity.status if result.parity else None for result in (base, new))
    if was == "pass" and now in ("fail", "non-finite"):
        return Difference(place, run, base, new, change, "broken", "passed its parity in the baseline, fails it now")
    if change.low is None or change.high is None:
        few = min(len(a), len(b))
        return Difference(
            place, run, base, new, change, "unclear", f"{few} rounds are too few to judge; {MIN_WINDOWS} are needed"
        )
    finding: Finding = "unclear"
    if change.beyond(threshold):
        finding = "slower"
    elif change.below(threshold):
        finding = "faster"
    elif change.low >= 1 - threshold and change.high <= 1 + threshold:
        finding = "same"
    return Difference(
        place, run, base, new, change, finding, "" if finding != "unclear" else "the interval is too wide"
    )


def times(result: Result, relative: bool) -> list[float]:
    """What is resampled: one time for each round, or one ratio to the reference."""
    if result.latency is None:
        return []
    if relative:
        return result.latency.ratios
    return [window.median_ms for window in result.latency.windows] or [result.latency.p50_ms]


def quiet_ratios(base: Result, new: Result) -> tuple[list[float], list[float]]:
    """Ratios to the reference of both, of rounds in which the reference was undisturbed; of all where too few were.

    A machine that others share may alternate between two speeds, of which some cells take more than the reference does:
    medians over different shares of slow rounds then differ, though nothing has changed.
    """
    a, b = (result.latency.quiet_ratios(QUIET) if result.latency else [] for result in (base, new))
    if min(len(a), len(b)) >= MIN_WINDOWS:
        return a, b
    return times(base, relative=True), times(new, relative=True)


def _weight(difference: Difference) -> tuple[object, ...]:
    order: Sequence[Finding] = ("broken", "slower", "unclear", "same", "faster")
    change = difference.change.value if difference.change else 0.0
    return order.index(difference.finding), -change, difference.run, difference.place
