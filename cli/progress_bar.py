"""Progress on the terminal: one line, unless the work is quick or stderr is no terminal."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ..core.plain_text import plain_line
from ..core.progress import Progress, silent
from .options import is_verbose
from .printing import progress_line

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

DELAY = 1.0
"""Seconds before the line appears."""
DOWNLOADS = "downloading"
"""How tasks begin whose numbers are bytes."""
LOG_SECONDS = 60.0
"""How often a log says how fast a task goes."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """The progress callback for the library. With `-v` it logs each step instead."""
    if is_verbose(click.get_current_context()):
        yield _Log()
    elif sys.stderr.isatty():
        with _Line() as line:
            yield line
    else:
        yield silent


class _Log:
    """Logs a line when a task begins, and its pace now and then."""

    def __init__(self) -> None:
        self.task, self.words, self.logged = "", "", time.monotonic()

    def note(self, text: str) -> None:
        self.words = text

    def __call__(self, task: str, done: int, total: int | None) -> None:
        log, now = logging.getLogger("fvexport"), time.monotonic()
        if task != self.task:
            self.task, self.words, self.logged = task, "", now
            log.info("%s%s", task, f" ({total})" if total else "")
        elif self.words and now - self.logged > LOG_SECONDS:
            self.logged = now
            log.info("%s %s: %s", task, _count(task, done, total), self.words)


class _Line:
    """One line on stderr that names the current task; removed when the work ends."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.state: tuple[str, int, int | None] = ("starting", 0, None)
        self.words = ""
        self.shown: RichProgress | None = None
        # By a timer, because a phase that takes long does not call back in between.
        self.timer = threading.Timer(DELAY, self._show)
        self.timer.daemon = True

    def __enter__(self) -> _Line:
        self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        with self.lock:
            progress_line(None)
            if self.shown is not None:
                self.shown.stop()

    def _erase(self) -> None:
        """Empties the line; the next update draws it again."""
        sys.stderr.write("\r\x1b[2K")
        sys.stderr.flush()

    def note(self, text: str) -> None:
        with self.lock:
            self.words = plain_line(text)

    def __call__(self, task: str, done: int, total: int | None) -> None:
        with self.lock:
            if plain_line(task) != self.state[0]:
                self.words = ""
            self.state = (plain_line(task), done, total)
            self._update()

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        with self.lock:
            if self.timer.finished.is_set():  # the work ended meanwhile
                return
            self.shown = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[words]}", markup=False),
                console=Console(stderr=True),
                transient=True,
                # With it on, rich would replace sys.stdout, which --json writes to.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._update()
            self.shown.start()
            progress_line(self._erase)

    def _update(self) -> None:
        if self.shown is None:
            return
        task, done, total = self.state
        if not self.shown.tasks or self.shown.tasks[0].description != task:
            # A new row, because rich cannot take a known total back.
            for old in self.shown.task_ids:
                self.shown.remove_task(old)
            self.shown.add_task(task, total=total, count="", words="")
        self.shown.update(
            self.shown.task_ids[0], completed=done, total=total, count=_count(task, done, total), words=self.words
        )


def _count(task: str, done: int, total: int | None) -> str:
    """`3/10`; of a download in megabytes."""
    if total is None:
        return ""
    return f"{done / 1e6:.0f}/{total / 1e6:.0f} MB" if task.startswith(DOWNLOADS) else f"{done}/{total}"
