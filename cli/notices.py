"""Warnings of the library become `note:` lines on stderr, so that stdout stays a table or JSON."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ..core.errors import FvexportWarning, one_line
from ..core.plain_text import plain_text
from . import printing

MOST = 3
"""How many warnings that are alike are printed; the rest are counted."""


@contextmanager
def printed_warnings() -> Iterator[None]:
    """Prints each `FvexportWarning` once while a command runs; other warnings stay as they are."""
    seen: set[str] = set()
    counts: Counter[str] = Counter()

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> None:  # fmt: skip
        if not issubclass(category, FvexportWarning):
            plain = plain_text(str(message))
            standard(message if plain == str(message) else plain, category, filename, lineno, file, line)
            return
        text = one_line(message)
        if text in seen:
            return
        seen.add(text)
        counts[category.__name__] += 1
        if counts[category.__name__] <= MOST:
            printing.notices([text], err=True)

    with warnings.catch_warnings():
        standard: Any = warnings.showwarning
        warnings.simplefilter("always", FvexportWarning)
        warnings.showwarning = show
        try:
            yield
        finally:
            for count in counts.values():
                if count > MOST:
                    printing.notices([f"{count - MOST} more notes like these"], err=True)
