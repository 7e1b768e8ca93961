"""Phrases that messages share: the nearest known name, counts, file names, and the first few of a long list."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Collection, Iterable


def did_you_mean(name: object, known: Collection[str], *, cutoff: float = 0.4, sentence: bool = False) -> str:
    """`did you mean 'x'?`, or `known are a, b` if no name is similar.

    Args:
        name: what was given.
        known: the names that exist.
        cutoff: the least similarity of a suggestion, from 0 to 1 (see `difflib.get_close_matches`).
        sentence: begin with a capital letter and end with a period.
    """
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=cutoff)
    if near:
        return f"{'Did' if sentence else 'did'} you mean {near[0]!r}?"
    return f"Known are {', '.join(known)}." if sentence else f"known are {', '.join(known)}"


def counted(count: int, what: str) -> str:
    """`1 cell`, `3 cells`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def printable(text: str) -> str:
    """`text` as any JSON can hold it: bytes of file names that are no UTF-8 are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def signal_name(number: int) -> str:
    """`SIGKILL`, or `signal 99` for one without a name here."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def first_few(items: Iterable[object], limit: int = 3) -> str:
    """The first `limit` items, and how many follow: `a, b, c and 12 more`."""
    words = [str(item) for item in items]
    rest = len(words) - limit
    return ", ".join(words[:limit]) + (f" and {rest} more" if rest > 0 else "")
