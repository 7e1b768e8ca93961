"""What a run undoes when it is ended where no exception can pass: its scratch folders and its child processes.

Everything registered here is also undone by the code that registered it, in a `finally`. Only the command line's
signal handlers call `undo_all`, just before they end the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_pending: dict[object, Callable[[], object]] = {}


def register(undo: Callable[[], object]) -> Callable[[], None]:
    """Has `undo` called if the process is ended by a signal; returns what takes that back."""
    key = object()
    _pending[key] = undo

    def forget() -> None:
        _pending.pop(key, None)

    return forget


@contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """Has `undo` called if the process is ended by a signal within the block."""
    forget = register(undo)
    try:
        yield
    finally:
        forget()


def surely(undo: Callable[[], object]) -> None:
    """Calls `undo`, and once more if a signal interrupts it."""
    try:
        undo()
    except BaseException:
        undo()
        raise


def undo_all() -> None:
    """Calls what is registered, the latest first."""
    while _pending:
        _, undo = _pending.popitem()
        with suppress(Exception):  # the others are still undone
            undo()
