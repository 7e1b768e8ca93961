"""The process of one cell: jobs as lines of JSON on stdin, answers on stdout, everything else on stderr.

    {"do": "load", …}     -> the backend is ready: seconds, first call, parity, memory
    {"do": "window", …}   -> milliseconds of some calls in a row
    {"do": "make", …}     -> a file that cells need (see `file_builder`)

An answer is {"ok": {…}}, or {"error": {"status": …, "reason": …}}. Started by `worker_process.Worker` alone.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any, TextIO

from ...core.errors import FvexportError, first_line
from .process_memory import die_first
from .result import Cell

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "not enough memory")
"""In the messages of torch, onnxruntime, OpenVINO and the C++ library, in lower case."""


class Server:
    """Does one job after another, and keeps what the next one needs."""

    def __init__(self) -> None:
        self.running: Any = None
        self.builder: Any = None

    def load(self, job: dict[str, Any]) -> dict[str, Any]:
        """The cell of the job, ready to be timed."""
        _pin(job["cpus"])
        from .cell_runner import CellRunner  # after pinning: torch starts threads

        self.running = CellRunner(Cell(**job["cell"]), job["weights"], job["file"], job["reference"], job.get("own"))
        return self.running.loaded()

    def window(self, job: dict[str, Any]) -> dict[str, Any]:
        """Some calls in a row."""
        return self.running.window(job["seconds"], job["max_calls"])

    def make(self, job: dict[str, Any]) -> dict[str, Any]:
        """A file that cells need."""
        _pin(job["cpus"])
        from .file_builder import FileBuilder

        if self.builder is None:
            self.builder = FileBuilder(job["weights"])
        return getattr(self.builder, job["what"])(**job["arguments"])


def serve(jobs: TextIO, answers: TextIO, server: Server) -> None:
    """Answers every job; after an error none is left to answer, since what it left behind is unknown."""
    for line in jobs:
        job = json.loads(line)
        try:
            answer = {"ok": getattr(server, job.pop("do"))(job)}
        except BaseException as error:
            traceback.print_exc()
            answer = {"error": {"status": status_of(error), "reason": reason_of(error)}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if "error" in answer:
            return


def status_of(error: BaseException) -> str:
    """`oom` for everything that says so in any library's words, else `failed`."""
    text = str(error).lower()
    gone = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "oom" if gone or any(words in text for words in OUT_OF_MEMORY) else "failed"


def reason_of(error: BaseException) -> str:
    """Our own errors in their words, others with their type."""
    return str(error) if isinstance(error, FvexportError) else f"{type(error).__name__}: {first_line(error)}"


def _pin(cpus: list[int]) -> None:
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
