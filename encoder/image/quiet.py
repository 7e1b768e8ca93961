"""Silences Pillow's warnings while images are decoded, in as many threads as decode at the same time."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_lock = threading.Lock()
_uses = 0
_changed: list[Any] = []
"""The lists of filters that have the rule: `warnings.catch_warnings` in any thread begins another one."""

_RULE = ("ignore", None, Warning, re.compile(r"PIL(\.|$)"), 0)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Pillow warns of damaged metadata, and of sizes that we check ourselves: nothing of that is shown, or raised.

    Warnings of other modules, also in other threads, go on as they would. `warnings.catch_warnings` cannot be used:
    threads that leave it in another order than they came restore each other's filters.
    """
    global _uses  # noqa: PLW0603  # as the filters are
    with _lock:
        _uses += 1
        filters: Any = warnings.filters  # a list, whatever its type is declared to be
        if filters[:1] != [_RULE]:
            filters.insert(0, _RULE)
            _changed.append(filters)
    try:
        yield
    finally:
        with _lock:
            _uses -= 1
            if _uses == 0:
                for filters in (*_changed, warnings.filters):  # the last may be a copy
                    with suppress(ValueError):
                        filters.remove(_RULE)
                _changed.clear()
