"""Cases, and how they run: each in a process of its own, some beside each other, within a time limit.

A case is a function that gets an empty folder and its own random numbers. It raises `Failed` with what it found. Its
random numbers depend on the seed, its name and its index alone, so that `--seed S --only kills.onnx --index 17` runs
the same case again.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path


class Failed(Exception):  # noqa: N818 - what a case found
    """What fvexport did and should not have done."""


class Skipped(Exception):  # noqa: N818
    """Why a case cannot run on this machine."""


def expect(condition: object, what: str) -> None:
    """Raises Failed with `what` unless the condition holds."""
    if not condition:
        raise Failed(what)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attack on one command or reader.

    Attributes:
        part: `kills`, `faults`, …
        name: the command or reader, and what is done to it.
        run: called with an empty folder and random numbers; returns how often it tried, None for once.
        index: which of the cases with this name it is.
        seconds: time limit.
    """

    part: str
    name: str
    run: Callable[[Path, random.Random], int | None]
    index: int = 0
    seconds: float = 240

    @property
    def label(self) -> str:
        """Names the row in folders and on the command line: `faults.onnx.full-disk`."""
        return re.sub(r"[^\w.-]+", "-", f"{self.part}.{self.name.replace(', ', '.').replace('--', '')}")

    def matches(self, words: Sequence[str]) -> bool:
        """Whether one of the words is the label, a part before one of its dots, or a pattern with `*`."""
        return any(fnmatchcase(self.label, pattern) for word in words for pattern in (word, f"{word}.*"))


@dataclass(kw_only=True)
class Row:
    """One row of the table: all cases with one name.

    Attributes:
        tried: attempts; more than the cases where one case attempts several times.
        failed: what was found, the command that reproduces it, and the folder that was kept.
        skipped: the reason, if nothing was tried.
    """

    part: str
    name: str
    tried: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0


def run_cases(cases: list[Case], root: Path, *, seed: int, jobs: int, keep: bool = False) -> list[Row]:
    """Runs all cases, `jobs` at a time, and returns one row for each name.

    Args:
        cases: in the order in which they start.
        root: for the folders of cases; those of failed cases stay.
        seed: of all random numbers.
        jobs: cases that run at once.
        keep: keep the folders of all cases.
    """
    adopt_orphans()
    rows: dict[str, Row] = {case.label: Row(part=case.part, name=case.name) for case in cases}
    waiting, running = list(reversed(cases)), dict[int, tuple[Case, Path, float]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            case = waiting.pop()
            folder = root / f"{case.label}.{case.index}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            running[_fork(case, folder, seed)] = (case, folder, time.monotonic())
        pid = _ended(running)
        if pid is None:
            time.sleep(0.002)
            continue
        case, folder, started = running.pop(pid)
        for orphan in set(children()) - set(running):
            end_process(orphan)
        row, seconds = rows[case.label], time.monotonic() - started
        row.seconds += seconds
        _enter(row, case, folder, seed, timed_out=seconds > case.seconds)
        if not keep and not (row.failed and row.failed[-1]["folder"] == str(folder)):
            shutil.rmtree(folder, ignore_errors=True)
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return list(rows.values())


def _ended(running: dict[int, tuple[Case, Path, float]]) -> int | None:
    """A case that ended, or was ended since its time is over."""
    for pid, (case, _, started) in running.items():
        if time.monotonic() - started > case.seconds:
            end_process(pid)
            return pid
        if os.waitpid(pid, os.WNOHANG)[0]:
            return pid
    return None


def _fork(case: Case, folder: Path, seed: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    found: dict[str, object] = {"tried": 1}
    try:
        os.setsid()
        end_with_parent()
        adopt_orphans()
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        found["tried"] = case.run(folder, random.Random(f"{seed} {case.label} {case.index}")) or 1
    except Skipped as reason:
        found = {"tried": 0, "skipped": str(reason)}
    except Failed as what:
        found["failed"] = str(what)
    except BaseException:
        found["failed"] = "the campaign itself failed: " + traceback.format_exc()[-600:]
    with suppress(OSError):
        (folder / "result.json").write_text(json.dumps(found))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _enter(row: Row, case: Case, folder: Path, seed: int, *, timed_out: bool) -> None:
    """Adds what a case left to its row."""
    try:
        found = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        why = f"it did not end within {case.seconds:.0f} s" if timed_out else "its process died"
        found = {"tried": 1, "failed": why}
    row.tried += found["tried"]
    row.skipped = found.get("skipped", row.skipped)
    if "failed" in found:
        again = f"make campaign SEED={seed} ONLY={case.label} INDEX={case.index}"
        row.failed.append({"what": found["failed"], "again": again, "folder": str(folder)})


# --- processes -----------------------------------------------------------------------------------


def adopt_orphans() -> None:
    """Makes this process the parent of its descendants whose own parents die, so that none is overlooked."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def end_with_parent() -> None:
    """Has the system kill this process when its parent ends."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)


def children() -> Iterator[int]:
    """The ids of this process's children, adopted and dead ones included."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                stat = (entry / "stat").read_text()
                if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
                    yield int(entry.name)


def end_process(pid: int) -> None:
    """Kills a child and waits for it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
