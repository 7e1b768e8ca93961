"""Facts as JSON lines: each is written and flushed as it is found, so that a run that is killed keeps what it has."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...json_lines import complete_rows

FILE = "proof.jsonl"
Fact = dict[str, Any]


class Facts:
    """Appends facts to a file that several processes write.

    Args:
        path: of the file.
        phase: that finds them.
        start: of the whole run, as `time.time()`.
    """

    def __init__(self, path: Path, phase: str, start: float) -> None:
        self.path, self.phase, self.start = path, phase, start

    def __call__(self, kind: str, **values: Any) -> Fact:
        """Writes one fact and returns it."""
        fact = {"t": round(time.time() - self.start, 2), "phase": self.phase, "kind": kind, **plain(values)}
        with self.path.open("a", encoding="utf-8") as file:  # one write of one line: lines of two processes do not mix
            file.write(json.dumps(fact, allow_nan=False) + "\n")
        return fact


def read(path: Path) -> list[Fact]:
    """All facts of a file in order; a line that was cut off when its writer was killed is left out."""
    return list(complete_rows(path))


def of(facts: Sequence[Fact], kind: str, **values: Any) -> list[Fact]:
    """The facts of one kind with these values, in order."""
    return [f for f in facts if f["kind"] == kind and all(f.get(name) == value for name, value in values.items())]


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers that are not finite become their names (`nan`), tuples become lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    return value
