"""Child processes with time limits. Each is the head of a process group, so that its own children end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .job import Job

GRACE_S = 2.0
"""Between the request to end and the kill."""


@dataclass
class Child:
    """A process that runs a phase.

    Attributes:
        name: for people.
        process: with stdin open.
        deadline: when it is killed, as `time.time()`.
        started: as `time.time()`.
    """

    name: str
    process: subprocess.Popen[bytes]
    deadline: float
    started: float

    def go(self) -> None:
        """Lets a child go on that waits for a line (see `phases.compiled`)."""
        with contextlib.suppress(OSError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.write(b"go\n")
            self.process.stdin.flush()

    def wait(self, deadline: float | None = None) -> str:
        """Waits until it ends or its time is over, and then ends it: `ok`, `over the limit`, or how it ended."""
        until = self.deadline if deadline is None else min(deadline, self.deadline)
        try:
            code = self.process.wait(max(0.0, until - time.time()))
        except subprocess.TimeoutExpired:
            self.end()
            return "over the limit"
        self.end()  # what it left running in its group
        return "ok" if code == 0 else f"exit code {code}" if code > 0 else f"signal {-code}"

    def end(self) -> None:
        """Ends the whole group."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except (ProcessLookupError, PermissionError):
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_S)
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()

    @property
    def seconds(self) -> float:
        """Since it started."""
        return time.time() - self.started


def start(
    name: str, command: Sequence[str], limit_s: float, *, log: Path, folder: Path, env: dict[str, str] | None = None
) -> Child:
    """Starts a command in a folder; its output is appended to `log`.

    Not in the repository's: Python would find the folder `fvexport` there, which is a part of the package.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            cwd=folder, env={**os.environ, **(env or {})},
        )  # fmt: skip
    now = time.time()
    return Child(name, process, now + limit_s, now)


def command_of(job: Job) -> list[str]:
    """What runs a job: `python -m fvexport.benchmarks.studies.gpu.phases`."""
    return [sys.executable, "-m", "fvexport.benchmarks.studies.gpu.phases", job.to_json()]
