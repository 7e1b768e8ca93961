"""`Worker`: a child process that answers one job at a time, within limits of time and memory."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ...core.cleanup import register
from ...core.errors import one_line
from ...core.hardware import has_cuda_gpu
from ...core.phrases import signal_name
from .messages import A, Failed, Job, read_answer, to_line
from .process_memory import resident_bytes
from .result import Status

COMMAND = (sys.executable, "-m", f"{__package__}.worker")
POLL_S = 0.1
LAST_BYTES = 4096
"""Size of the end of a dead process's log that is searched for the reason."""


class WorkerError(Exception):
    """A job without an answer; the process is gone.

    Attributes:
        status: of the cell.
        reason: one sentence.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status
        self.reason = one_line(reason)[:300]


class Worker:
    """A process that answers jobs.

    Raises WorkerError where it cannot be started: no descriptors, processes or memory are left.

    Args:
        log: file for its stderr.
        threads: number of threads of its numeric libraries.
        memory_bytes: limit over which it is ended; None for no limit.
        command: command that starts it; by default `worker` in this Python.
    """

    def __init__(
        self, log: Path, threads: int, memory_bytes: int | None = None, command: Sequence[str] = COMMAND,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.log, self.memory_bytes = log, memory_bytes
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("wb") as errors:
                self.process = subprocess.Popen(
                    list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8",
                    env=os.environ | _threads(threads) | dict(environment or {}),
                    start_new_session=True,  # Ctrl-C is the parent's to handle
                )  # fmt: skip
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # by the log
            raise WorkerError("failed", f"its process could not be started ({error.strerror or error})") from None
        self._forget = register(self.end)
        self.answers: queue.Queue[str] = queue.Queue()
        try:
            threading.Thread(target=self._listen, daemon=True).start()
        except RuntimeError as error:
            self.end()
            raise WorkerError("failed", f"its answers could not be read ({error})") from None

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, job: Job[A], timeout_s: float) -> A:
        """The answer to one job; raises WorkerError, after which the process is gone."""
        ends = time.monotonic() + timeout_s
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(to_line(job))
            self.process.stdin.flush()
        except OSError:
            pass  # it died; what it left says how
        line = ""
        while not line:
            with contextlib.suppress(queue.Empty):
                line = self.answers.get(timeout=POLL_S)
                if not line:
                    raise self._died()
                continue
            held = resident_bytes(self.pid) or 0
            if self.memory_bytes is not None and held > self.memory_bytes:
                self.end()
                raise WorkerError(
                    "oom", f"it held {held / 1e9:.2f} GB, over the limit of {self.memory_bytes / 1e9:.2f} GB"
                )
            if time.monotonic() > ends:
                self.end()
                raise WorkerError("timeout", f"no answer within {timeout_s:.0f} s")
        try:
            answer = read_answer(line, job)
        except ValueError as error:
            answer = Failed(status="failed", reason=f"the process gave no valid answer ({error})")
        if isinstance(answer, Failed):
            self.end()
            raise WorkerError(answer.status, answer.reason)
        return answer

    def end(self) -> None:
        """Ends the process and all its children."""
        if os.name == "posix":
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):  # Windows has no groups
            self.process.kill()
        self.process.wait()
        self._forget()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was not written goes nowhere
                    stream.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):  # closed by `end`
            for line in self.process.stdout:
                self.answers.put(line)
        self.answers.put("")

    def _died(self) -> WorkerError:
        code = self.process.wait()
        self.end()
        said = self._last_words()
        if code == -getattr(signal, "SIGKILL", 9):
            return WorkerError("oom", "the system killed the process, most likely since memory ran out")
        if code < 0:
            return WorkerError("crashed", f"the process died of {signal_name(-code)}" + (f": {said}" if said else ""))
        return WorkerError("crashed", f"the process ended with code {code}" + (f": {said}" if said else ""))

    def _last_words(self) -> str:
        """The last line of its stderr, which most often names the cause."""
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[-LAST_BYTES:].decode("utf-8", errors="replace").strip().splitlines()
            return lines[-1].strip()[:200] if lines else ""
        return ""


class Ask(Protocol):
    """Sends a job to a process and returns its answer; raises WorkerError."""

    def __call__(self, worker: Worker, job: Job[A], patience: float = 1, reserve: float = 0) -> A:
        """Waits `patience` times the timeout of one step, and leaves `reserve` seconds of the budget."""
        ...


def _threads(count: int) -> dict[str, str]:
    """What numeric libraries read as they start."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    found = dict.fromkeys(names, str(count))
    if not has_cuda_gpu():
        # Its pool of compilers would stay, half a gigabyte each; for the CPU there is little to compile at once.
        found["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return found
