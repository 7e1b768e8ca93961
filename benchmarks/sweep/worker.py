"""The process of one cell: jobs as lines on stdin, answers on stdout (see `messages`), everything else on stderr.

Started by `worker_process.Worker` alone.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from ...core.errors import FvexportError, first_line, lacks_memory
from .messages import (
    Answer,
    Describe,
    Failed,
    File,
    Job,
    Load,
    Make,
    Ready,
    TakeWindow,
    Weights,
    WeightSource,
    WindowTaken,
    read_job,
    to_line,
)
from .process_memory import die_first
from .result import Status

if TYPE_CHECKING:
    from .cell_runner import CellRunner
    from .file_builder import FileBuilder


class Server:
    """Does one job after another, and keeps what the next one needs."""

    def __init__(self) -> None:
        self.running: CellRunner | None = None
        self._builder: FileBuilder | None = None

    def answer(self, job: Job[Any]) -> Answer:
        """Does a job."""
        match job:
            case Load():
                return self.load(job)
            case TakeWindow():
                return self.window(job)
            case Describe():
                return self.describe(job)
            case Make():
                return self.make(job)
        raise AssertionError(job)

    def load(self, job: Load) -> Ready:
        """The cell of the job, ready to be timed."""
        _pin(job.cpus)
        from .cell_runner import CellRunner  # after pinning: torch starts threads

        self.running = CellRunner(job.cell, job.weights, job.file, job.reference, job.torch)
        return self.running.ready()

    def window(self, job: TakeWindow) -> WindowTaken:
        """Some calls in a row."""
        assert self.running is not None
        return self.running.window(job.seconds, job.max_calls)

    def describe(self, job: Describe) -> Weights:
        """The identity of the weights."""
        return self._builds(job.weights, job.cpus).describe()

    def make(self, job: Make) -> File:
        """A file that cells need."""
        return self._builds(job.weights, job.cpus).make(job.request)

    def _builds(self, weights: WeightSource, cpus: Sequence[int]) -> FileBuilder:
        _pin(cpus)
        from .file_builder import FileBuilder

        if self._builder is None:
            self._builder = FileBuilder(weights)
        return self._builder


def serve(jobs: TextIO, answers: TextIO, server: Server) -> None:
    """Answers every job; after an error none is left to answer, since what it left behind is unknown."""
    for line in jobs:
        answer: Answer
        try:
            answer = server.answer(read_job(line))
        except BaseException as error:
            traceback.print_exc()
            answer = Failed(status=status_of(error), reason=reason_of(error))
        answers.write(to_line(answer))
        answers.flush()
        if isinstance(answer, Failed):
            return


def status_of(error: BaseException) -> Status:
    """`oom` for everything that says so in any library's words, else `failed`."""
    return "oom" if lacks_memory(error) or type(error).__name__ == "OutOfMemoryError" else "failed"


def reason_of(error: BaseException) -> str:
    """Our own errors in their words, others with their type."""
    return str(error) if isinstance(error, FvexportError) else f"{type(error).__name__}: {first_line(error)}"


def _pin(cpus: Sequence[int]) -> None:
    """Keeps every thread that is started from now on to these processors, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def main(server: Server | None = None) -> None:
    """Serves until stdin ends; what libraries print goes to stderr."""
    die_first()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers, server or Server())


if __name__ == "__main__":
    main()
