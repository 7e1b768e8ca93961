"""How a fuzz test runs a reader: within limits of time and memory, and with no error but ours.

A fuzz test writes what a strategy of `mutations` drew to a file, and reads it:

    @fuzz(examples=60, content=json_files(SOUND))
    def test_manifest(content: bytes, folder: Path) -> None:
        (folder / "manifest.json").write_bytes(content)
        with only_our_errors():
            Artifact.open(folder)

`folder` is an empty folder (see conftest.py), the same for all inputs of a test. Beside it, one plain test has to show
that the reader accepts SOUND: a reader that refuses everything would pass.

`FUZZ_EXAMPLES=5000 pytest tests/fuzzing` tries more inputs, other ones each time (`make fuzz`). Hypothesis shrinks what
fails and prints how to see it again.
"""

from __future__ import annotations

import functools
import os
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings

from fvexport.core.errors import FvexportError

MANY = int(os.environ.get("FUZZ_EXAMPLES", "0"))
COUNTS: dict[str, Counter[str]] = {}
"""By test: how many inputs were tried, and how many of them were refused."""

_running: list[Counter[str]] = []


class TookTooLongError(BaseException):
    """A reader is still busy at the end of its time; no reader catches this."""


def fuzz(*, examples: int, **arguments: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a test that gets drawn arguments: `examples` inputs, always the same, or those of FUZZ_EXAMPLES.

    With FUZZ_EXAMPLES, a slow test may ask for fewer than the others by `share`, a fraction.
    """
    share = arguments.pop("share", 1.0)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def counted(*args: Any, **kwargs: Any) -> None:
            count = COUNTS.setdefault(f"{Path(test.__code__.co_filename).stem}::{test.__name__}", Counter())
            count["tried"] += 1
            _running[:] = [count]
            test(*args, **kwargs)

        return settings(
            max_examples=max(examples, int(MANY * share)),
            derandomize=not MANY,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )(given(**arguments)(counted))

    return decorate


@contextmanager
def only_our_errors(*others: type[Exception], seconds: float = 20, memory: int = 3 << 30) -> Iterator[None]:
    """Allows an FvexportError with a message of one clean line, or one of `others`; no other error passes.

    Args:
        others: documented errors of the reader besides FvexportError.
        seconds: after these, TookTooLongError.
        memory: bytes that may be allocated besides what the process has now.
    """
    with warnings.catch_warnings(), _time_limit(seconds), _memory_limit(memory):
        warnings.simplefilter("ignore")
        try:
            yield
        except FvexportError as error:
            message = str(error)
            assert message, "an error says what was found"
            assert all(c.isprintable() or "\ud800" <= c <= "\udfff" for c in message), repr(message)
            assert len(message) < 2000, f"{message[:200]!r}… has {len(message)} characters"
            if _running:
                _running[0]["refused"] += 1
        except others:
            if _running:
                _running[0]["refused"] += 1


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TookTooLongError(f"still reading after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if timer[0]:  # pytest-timeout's
            signal.setitimer(signal.ITIMER_REAL, *timer)


@contextmanager
def _memory_limit(more: int) -> Iterator[None]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
