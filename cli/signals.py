"""SIGINT, SIGTERM and SIGHUP end a command in the same way: one line, nothing half-written, exit code 128 + signal.

While a command works, a signal becomes KeyboardInterrupt, so that every `finally` on the way is done. That is no use
while modules are imported, which can turn the exception into another one, nor once the command has ended, nor for a
second signal: then what is registered in `core.cleanup` is undone at once, and the process ends.

Imports nothing heavy: this is installed before everything else is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..core.cleanup import undo_all

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module `typing` takes milliseconds in which Ctrl-C would print a traceback
    from types import FrameType
    from typing import Any, NoReturn

WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}


class Ended(BaseException):
    """A signal ends the command."""


class _State:
    """Of this process.

    Attributes:
        pid: that installed the handlers; None before. A forked child inherits them.
        working: a command runs, which an exception ends best.
        received: the first signal that became an exception.
    """

    pid: int | None = None
    working = False
    received: int | None = None


def end_on_signals() -> None:
    """Installs the handlers. A signal that the parent ignores, as `nohup` does SIGHUP, stays ignored."""
    if _State.pid is not None:
        return
    _State.pid = os.getpid()
    for name in WORDS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    sys.unraisablehook = _unraisable


@contextmanager
def working() -> Iterator[None]:
    """While a command runs: a signal becomes KeyboardInterrupt."""
    _State.working = True
    try:
        yield
    finally:
        _State.working = False


def received() -> int | None:
    """The signal that ends the command; None if there was none."""
    return _State.received


def report() -> int:
    """Prints what ended the command, and returns the exit code."""
    number = _State.received or signal.SIGINT
    with suppress(OSError, ValueError):  # after SIGHUP the terminal is gone
        print(WORDS[signal.Signals(number).name], file=sys.stderr, flush=True)  # noqa: T201
    return 128 + number


def _handle(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.pid:
        os._exit(128 + number)  # a forked child; the rest is its parent's to do
    if _State.received is not None or not _State.working or _imports(frame):
        _end_now(number)
    _State.received = number
    raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end_now(number: int) -> NoReturn:
    """Undoes what is registered and ends the process."""
    undo_all()
    _State.received = number
    with suppress(OSError, ValueError):
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h\r")  # a progress bar hides the cursor
    report()
    os._exit(128 + number)


def _unraisable(found: Any) -> None:
    """An exception where Python can only print it and go on, as in `__del__`; the user's wish to end is no such."""
    if issubclass(found.exc_type, KeyboardInterrupt):
        _end_now(_State.received or signal.SIGINT)
    sys.__unraisablehook__(found)
