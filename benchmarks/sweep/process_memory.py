"""Resident memory of a process, and the switches by which the system spares the others."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1


def resident_bytes(pid: int) -> int | None:
    """What a process holds now; None where the system does not tell."""
    return _status(pid, "VmRSS")


def peak_mb() -> float | None:
    """The most that this process has held since its start or `reset_peak`, in MB."""
    own = _status("self", "VmHWM")
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


def _status(pid: int | str, entry: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{entry}:"):
                return int(line.split()[1]) * 1024
    return None
