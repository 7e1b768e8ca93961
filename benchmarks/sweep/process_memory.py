"""Resident memory of a process, and the switches by which the system prefers one process to another."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

from ...core.hardware import proc_bytes

PR_SET_PDEATHSIG = 1
TIMED_NICENESS = -15
"""Of a process that is timed, where the system allows it (as root): others then wait, instead of taking turns."""


def resident_bytes(pid: int) -> int | None:
    """What a process holds now; None where the system does not tell."""
    return proc_bytes(f"{pid}/status", "VmRSS")


def peak_mb() -> float | None:
    """The most that this process has held since its start or `reset_peak`, in MB."""
    own = proc_bytes("self/status", "VmHWM")
    if own is not None:
        return own / 1e6
    if sys.platform == "win32":
        return None
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / 1e6 if sys.platform == "darwin" else largest * 1024 / 1e6


def reset_peak() -> bool:
    """Counts the peak from now on; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def die_first() -> None:
    """Lets this process die with its parent, and before others where memory runs out (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def may_go_first() -> bool:
    """Whether a process of this user may take precedence over others."""
    if not sys.platform.startswith("linux"):
        return False
    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, before - 1)
    except OSError:
        return False
    os.setpriority(os.PRIO_PROCESS, 0, before)
    return True


def go_first() -> None:
    """Gives every thread of this process precedence, where the system allows it."""
    if sys.platform.startswith("linux"):
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # not allowed, or the thread has ended
                os.setpriority(os.PRIO_PROCESS, int(thread.name), TIMED_NICENESS)
