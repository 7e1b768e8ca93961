"""How checkpoint errors are worded: one line each, whatever a file's names and messages hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...core.errors import CheckpointError, one_line
from ...core.phrases import first_few


def shown(text: object, limit: int = 160) -> str:
    """`text` on one printable line of at most `limit` characters; names in files can hold anything."""
    line = one_line(text)
    return line if len(line) <= limit else line[: limit - 1] + "…"


def some(items: Iterable[object], limit: int = 3) -> str:
    """The first few items and how many follow: `a, b, c and 12 more`."""
    return first_few(map(shown, items), limit)


def unfit(source: object, what: str, mend: str) -> CheckpointError:
    """The error to raise: whose fault it is, what was found, and what mends it."""
    own = Path(str(source)).name  # a file that speaks of itself is named once
    return CheckpointError(f"{shown(source)}: {shown(what, 1500).removeprefix(f'{own} ')}; {shown(mend, 400)}")
