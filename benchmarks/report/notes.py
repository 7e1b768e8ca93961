"""What a reader has to know beside the figures: cells without one, unstable ones, backends that are absent."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ..sweep.result import Result
from .load import Run

MEANING = {
    "failed": "ended with an error",
    "timeout": "gave no answer in time",
    "oom": "ran out of memory",
    "crashed": "crashed",
    "skipped": "was not reached",
    "unstable": "is not stable",
}


@dataclass(frozen=True)
class Note:
    """Cells of which the same is to be said."""

    status: str
    meaning: str
    reason: str
    cells: tuple[str, ...]


def notes(run: Run) -> list[Note]:
    """Cells that are not `ok`, by status and reason; then those that do not pass their parity."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in run.results:
        if result.status != "ok":
            groups[result.status, result.reason].append(result)
    everywhere = Counter(map(_place, run.results))
    found = [
        Note(status, MEANING[status], reason, _names(cells, everywhere))
        for status in MEANING
        for (of, reason), cells in sorted(groups.items())
        if of == status
    ]
    failing = [r for r in run.results if r.parity is not None and r.parity.status != "pass"]
    if failing:
        cells = tuple(
            name(r) + (f" ({level:.1f} dB)" if r.parity and (level := r.parity.strict_sqnr_db) is not None else "")
            for r in failing
        )
        found.append(Note("parity", "is not the same model", "beyond what its precision may lose", cells))
    return found


def name(result: Result) -> str:
    """A cell in a sentence: `openvino int8 at 1024`."""
    return result.cell.series + _place(result)


def _place(result: Result) -> str:
    cell = result.cell
    batch = f", batch {cell.batch}" if cell.batch > 1 else ""
    llm = f" + {cell.llm}" if cell.llm else ""
    return f"{llm} at {cell.resolution}{batch}"


def _names(results: Sequence[Result], everywhere: Counter[str]) -> tuple[str, ...]:
    """Each by its name, but `each of the 19 cells at 512` where it is of all that the run has there."""
    here = Counter(map(_place, results))
    whole = {place for place, count in here.items() if count == everywhere[place] > 2}
    names = [name(result) for result in results if _place(result) not in whole]
    return (*(f"each of the {here[place]} cells{place}" for place in here if place in whole), *names)
